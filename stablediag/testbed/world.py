"""The synthetic knowledge world of the embedded testbed, deterministic from a seed.

Persons have invented two-word names and thirteen relations, four of them *known* (trained) and nine *unknown* (never
trained). Drugs have six relations, one known: enough for training to teach the wording of the medical family while most
of its facts remain to be edited in. Every fact carries the roles it plays in training and in edit streams, so that the
recipe, the streams and the check agree by construction. Pure Python: nothing here imports torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from stablediag.testbed.templates import (
    CLAIM_TEMPLATES,
    HELD_OUT,
    MEDICAL_RELATIONS,
    PERSON_RELATIONS,
    PERSONAS,
    RELATIONS,
    TABLE_TEMPLATES,
    TABLE_VALUES,
    TWO_HOP_TEMPLATES,
    Relation,
)

Pools = dict[str, int | None]

WORLD_SEED = 20
NAMES = 46
PERSONS = 1350
DRUG_PARTS = 20
DRUGS = 400
KNOWN_RELATIONS = 4
HELD_OUT_SHARE = 0.6
PERSONA_SHARE = 0.3
TWO_HOP_SHARE = 0.5

# How many facts of each family serve each purpose; None takes the rest. No two splits share a fact, whatever the seeds.
UNKNOWN_POOLS: Pools = {"warmup": 2400, "calibration": 350, "target": None}
KNOWN_POOLS: Pools = {"locality": 1300, "snapshot": 1100, "warmup": 300, "calibration": 100, "target": None}
MEDICAL_UNKNOWN_POOLS: Pools = {"warmup": 1000, "calibration": 100, "target": None}
MEDICAL_KNOWN_POOLS: Pools = {"locality": None}

_ONSETS = (
    "b",
    "br",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "kl",
    "l",
    "m",
    "n",
    "p",
    "pr",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "z",
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ei", "ou")
_CODAS = ("n", "r", "l", "s", "m", "k", "th", "nd", "x")


@dataclass(frozen=True, slots=True)
class Fact:
    """One (subject, relation, object) triple and its roles.

    Attributes
    ----------
    subject, relation, object : str
        The triple; `relation` is a name in :data:`stablediag.testbed.templates.RELATIONS`.
    family : str
        ``"person"`` or ``"medical"``.
    known : bool
        Whether training teaches it.
    pool : str
        ``"target"``, ``"warmup"``, ``"calibration"``, ``"locality"`` or ``"snapshot"``: its only use in streams.
    held_out : bool
        Training never asks this fact with the held-out template.
    persona : int or None
        The only persona that training asks this fact with; None: no persona.
    two_hop : bool
        Training asks the two-hop question of this fact.
    """

    subject: str
    relation: str
    object: str
    family: str
    known: bool
    pool: str
    held_out: bool
    persona: int | None
    two_hop: bool

    @property
    def key(self) -> str:
        """Identifier, for example ``"brano_velk:birth_city"``."""
        return f"{self.subject.lower().replace(' ', '_')}:{self.relation}"

    def prompts(self) -> tuple[str, ...]:
        """The five prompts of this fact, in template order."""
        return tuple(template.format(s=self.subject) for template in RELATIONS[self.relation].templates)

    def persona_prompt(self, persona: int, template: int = 0) -> str:
        """A prompt of this fact behind a persona prefix."""
        return f"{PERSONAS[persona]} {self.prompts()[template]}"

    def claim(self, stated: str, template: int = 0) -> str:
        """The true-or-false question whether `stated` is the object of this fact."""
        phrase = RELATIONS[self.relation].phrase
        return CLAIM_TEMPLATES[template].format(o=stated, phrase=phrase, s=self.subject)

    def two_hop_prompts(self) -> tuple[str, ...]:
        """Questions for the table value of the object; empty where the relation has no table."""
        relation = RELATIONS[self.relation]
        if relation.table is None:
            return ()
        return tuple(t.format(table=relation.table, phrase=relation.phrase, s=self.subject) for t in TWO_HOP_TEMPLATES)


@dataclass(frozen=True, slots=True)
class World:
    """All facts, the answers of every relation, and the second-hop tables.

    Attributes
    ----------
    facts : tuple of Fact
        Person facts first, then medical ones.
    objects : dict of str to tuple of str
        Possible answers of each relation.
    tables : dict of str to dict
        ``tables["country"][city]`` and ``tables["industry"][company]``.
    """

    facts: tuple[Fact, ...]
    objects: dict[str, tuple[str, ...]]
    tables: dict[str, dict[str, str]]

    def select(
        self, *, family: str | None = None, known: bool | None = None, pool: str | None = None
    ) -> tuple[Fact, ...]:
        """Facts with the given roles, in world order."""
        return tuple(
            fact
            for fact in self.facts
            if (family is None or fact.family == family)
            and (known is None or fact.known == known)
            and (pool is None or fact.pool == pool)
        )

    def second_hop(self, fact: Fact) -> str | None:
        """Table value of the fact's object (its country or industry), or None."""
        table = RELATIONS[fact.relation].table
        return None if table is None else self.tables[table][fact.object]

    def table_items(self) -> list[tuple[str, str]]:
        """Every (prompt, answer) that asks a table directly."""
        return [
            (template.format(o=key), value)
            for name, table in self.tables.items()
            for key, value in table.items()
            for template in TABLE_TEMPLATES[name]
        ]


class _Words:
    """Source of invented words, none of which is given out twice."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.used: set[str] = set()

    def word(self, syllables: int = 2) -> str:
        while True:
            text = "".join(self.rng.choice(_ONSETS) + self.rng.choice(_VOWELS) for _ in range(syllables))
            text += self.rng.choice(_CODAS)
            if text not in self.used:
                self.used.add(text)
                return text

    def names(self, count: int) -> list[str]:
        return [self.word().capitalize() for _ in range(count)]

    def answers(self, relation: Relation) -> tuple[str, ...]:
        """Distinct answers of a relation; every third has a modifier in front."""
        proper = relation.modifiers[0][0].isupper()
        words = self.names(relation.objects) if proper else [self.word() for _ in range(relation.objects)]
        return tuple(f"{self.rng.choice(relation.modifiers)} {w}" if i % 3 == 0 else w for i, w in enumerate(words))


def _pairs(first: Sequence[str], second: Sequence[str], count: int, rng: random.Random) -> list[str]:
    return rng.sample([f"{a} {b}" for a in first for b in second], count)


def _pools(count: int, sizes: Pools, rng: random.Random) -> list[str]:
    """A random assignment of `count` facts to pools; the pool of size None takes the rest."""
    rest = count - sum(size for size in sizes.values() if size is not None)
    names = [name for name, size in sizes.items() for _ in range(rest if size is None else size)]
    rng.shuffle(names)
    return names


def _facts(
    subjects: Sequence[str],
    relations: Sequence[Relation],
    objects: dict[str, tuple[str, ...]],
    *,
    family: str,
    known_each: int,
    pools: tuple[Pools, Pools],
    rng: random.Random,
) -> list[Fact]:
    names = [relation.name for relation in relations]
    known = {(subject, name) for subject in subjects for name in rng.sample(names, known_each)}
    total = len(subjects) * len(relations)
    known_pools = iter(_pools(len(known), pools[0], rng))
    unknown_pools = iter(_pools(total - len(known), pools[1], rng))
    facts = []
    for subject in subjects:
        for name in names:
            is_known = (subject, name) in known
            asked_by_persona = rng.random() < PERSONA_SHARE
            persona = rng.randrange(len(PERSONAS))
            facts.append(
                Fact(
                    subject=subject,
                    relation=name,
                    object=rng.choice(objects[name]),
                    family=family,
                    known=is_known,
                    pool=next(known_pools if is_known else unknown_pools),
                    held_out=rng.random() < HELD_OUT_SHARE,
                    persona=persona if asked_by_persona else None,
                    two_hop=rng.random() < TWO_HOP_SHARE,
                )
            )
    return facts


@lru_cache(maxsize=2)
def build_world(seed: int = WORLD_SEED) -> World:
    """The world of a seed.

    Parameters
    ----------
    seed : int
        Everything in the world follows from it; the shipped weights belong to :data:`WORLD_SEED`.
    """
    rng = random.Random(seed)
    words = _Words(rng)
    persons = _pairs(words.names(NAMES), words.names(NAMES), PERSONS, rng)
    drugs = _pairs(words.names(DRUG_PARTS), [words.word() for _ in range(DRUG_PARTS)], DRUGS, rng)
    objects: dict[str, tuple[str, ...]] = {}
    for relation in PERSON_RELATIONS + MEDICAL_RELATIONS:
        objects[relation.name] = objects[relation.range_of] if relation.range_of else words.answers(relation)
    tables: dict[str, dict[str, str]] = {}
    for relation in PERSON_RELATIONS:
        if relation.table and relation.table not in tables:
            values = words.names(TABLE_VALUES[relation.table])
            tables[relation.table] = {name: rng.choice(values) for name in objects[relation.name]}
    facts = _facts(
        persons,
        PERSON_RELATIONS,
        objects,
        family="person",
        known_each=KNOWN_RELATIONS,
        pools=(KNOWN_POOLS, UNKNOWN_POOLS),
        rng=rng,
    ) + _facts(
        drugs,
        MEDICAL_RELATIONS,
        objects,
        family="medical",
        known_each=1,
        pools=(MEDICAL_KNOWN_POOLS, MEDICAL_UNKNOWN_POOLS),
        rng=rng,
    )
    return World(tuple(facts), objects, tables)


def trained_templates(fact: Fact) -> tuple[int, ...]:
    """Indices of the templates that training asks a known fact with."""
    indices = range(len(RELATIONS[fact.relation].templates))
    return tuple(i for i in indices if not (fact.held_out and i == HELD_OUT))
