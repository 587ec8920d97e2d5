"""Edit streams over the embedded world. Pure Python.

Facts are divided once and for all, independently of any stream seed, into the pools ``target``, ``warmup``,
``calibration``, ``locality`` and ``snapshot`` (:mod:`stablediag.testbed.world`). A stream draws from the pool that its
split names; locality probes come from the locality pool alone, which no stream of any kind edits. So warm-up edits
never meet target edits, and nothing that is measured as untouched was ever edited, even where kinds of stream are
mixed.
"""

from __future__ import annotations

import random
from typing import Literal, get_args

from stablediag.errors import DataError
from stablediag.testbed.templates import CLAIM_TEMPLATES, PERSONAS, RELATIONS, TRUTH
from stablediag.testbed.world import Fact, World, build_world
from stablediag.types import Edit, Probe

Kind = Literal["new", "counterfactual", "claims", "medical", "relation"]
Split = Literal["target", "warmup", "calibration"]


def _other(fact: Fact, world: World, rng: random.Random) -> str:
    """A wrong object for the fact."""
    return rng.choice([o for o in world.objects[fact.relation] if o != fact.object])


def _draw(pool: tuple[Fact, ...], subject: str, rng: random.Random) -> Fact:
    """A fact of the pool about another subject."""
    while True:
        fact = rng.choice(pool)
        if fact.subject != subject:
            return fact


def _fact_probe(fact: Fact, kind: str, template: int = 0) -> Probe:
    return Probe(fact.prompts()[template], fact.object, kind=kind, id=f"{kind}:{fact.key}:{template}")


def _claim_probe(fact: Fact, world: World, rng: random.Random) -> Probe:
    truth = rng.random() < 0.5
    stated = fact.object if truth else _other(fact, world, rng)
    return Probe(fact.claim(stated), TRUTH[truth], id=f"locality:claim:{fact.key}:{TRUTH[truth]}")


def _fact_edit(fact: Fact, kind: Kind, split: str, world: World, locality: dict[str, tuple[Fact, ...]]) -> Edit:
    """The edit of a fact; its content depends on the fact and the kind, never on the stream's seed."""
    rng = random.Random(f"{kind}-{fact.key}")
    target = _other(fact, world, rng) if kind == "counterfactual" else fact.object
    prompt, *rephrases = fact.prompts()
    elsewhere = [_draw(locality[fact.family], fact.subject, rng)]
    if fact.family == "medical":
        elsewhere.append(_draw(locality["person"], fact.subject, rng))
    persona = rng.randrange(len(PERSONAS))
    table = RELATIONS[fact.relation].table
    return Edit(
        id=f"{kind}:{fact.key}",
        prompt=prompt,
        target=target,
        target_true=fact.object if kind == "counterfactual" else None,
        subject=fact.subject,
        group=fact.relation,
        rephrases=tuple(rephrases),
        locality=tuple(_fact_probe(other, "locality") for other in elsewhere),
        persona=(Probe(fact.persona_prompt(persona), target, kind="persona", id=f"persona:{kind}:{fact.key}"),),
        multihop=tuple(
            Probe(question, world.tables[table][target], kind="multihop", id=f"multihop:{kind}:{fact.key}:{index}")
            for index, question in enumerate(fact.two_hop_prompts())
            if table is not None
        ),
        source=f"testbed:{kind}:{split}",
        meta={"known": fact.known, "persona": persona},
    )


def _claim_edit(fact: Fact, split: str, world: World, locality: dict[str, tuple[Fact, ...]]) -> Edit:
    """An edit that flips the truth label of a claim; one claim per fact, true and false ones equally likely.

    It has no persona probes: training puts personas in front of questions only, never of claims.
    """
    rng = random.Random(f"claims-{fact.key}")
    truth = rng.random() < 0.5
    stated = fact.object if truth else _other(fact, world, rng)
    prompt, *rephrases = (fact.claim(stated, index) for index in range(len(CLAIM_TEMPLATES)))
    target = TRUTH[not truth]
    return Edit(
        id=f"claims:{fact.key}",
        prompt=prompt,
        target=target,
        target_true=TRUTH[truth],
        subject=fact.subject,
        group=fact.relation,
        rephrases=tuple(rephrases),
        locality=(
            _claim_probe(_draw(locality["person"], fact.subject, rng), world, rng),
            _fact_probe(_draw(locality["person"], fact.subject, rng), "locality"),
        ),
        source=f"testbed:claims:{split}",
        meta={"known": fact.known, "stated": stated},
    )


def edit_stream(
    kind: Kind, size: int, seed: int = 0, *, split: Split = "target", relation: str | None = None
) -> list[Edit]:
    """A stream of edits, fixed by its arguments.

    Parameters
    ----------
    kind : {"new", "counterfactual", "claims", "medical", "relation"}
        ``new`` teaches facts about persons that training left out; ``counterfactual`` overrides trained facts with
        another object; ``claims`` flips the label of true-or-false claims about trained facts; ``medical`` teaches
        untrained facts about drugs; ``relation`` is ``new`` within one relation.
    size : int
        Number of edits.
    seed : int
        Chooses which facts of the split, and their order. The same fact gives the same edit under every seed.
    split : {"target", "warmup", "calibration"}
        Disjoint whatever the seeds.
    relation : str, optional
        Relation name; required by ``relation`` and allowed for every kind.

    Returns
    -------
    list of Edit
        The first template is the prompt, the others (training withheld the last from most facts) are the rephrases.

    Raises
    ------
    DataError
        Unknown kind, split or relation, or more edits asked for than exist.
    """
    if kind not in get_args(Kind):
        raise DataError(f"testbed: no stream kind {kind!r}; choose one of {', '.join(get_args(Kind))}")
    if split not in get_args(Split):
        raise DataError(f"testbed: no split {split!r}; choose one of {', '.join(get_args(Split))}")
    if relation is not None and relation not in RELATIONS:
        raise DataError(f"testbed: no relation {relation!r}; choose one of {', '.join(RELATIONS)}")
    if kind == "relation" and relation is None:
        raise DataError("testbed: the stream kind 'relation' needs relation=NAME")
    world = build_world()
    family = "medical" if kind == "medical" else "person"
    facts = world.select(family=family, known=kind in ("counterfactual", "claims"), pool=split)
    if relation is not None:
        facts = tuple(fact for fact in facts if fact.relation == relation)
    if not 0 <= size <= len(facts):
        where = f"{kind} {split}" + (f" {relation}" if relation else "")
        raise DataError(f"testbed: {size} edits asked of stream {where!r}, which has {len(facts)}; ask for fewer")
    chosen = random.Random(f"stream-{seed}").sample(facts, size)
    locality = {name: world.select(family=name, pool="locality") for name in ("person", "medical")}
    if kind == "claims":
        return [_claim_edit(fact, split, world, locality) for fact in chosen]
    return [_fact_edit(fact, kind, split, world, locality) for fact in chosen]


def snapshot_probes(n: int = 1000) -> list[Probe]:
    """Known facts that no stream edits and no locality probe asks: one fixed order, the first `n` of it.

    Raises
    ------
    DataError
        More probes asked for than exist.
    """
    facts = list(build_world().select(family="person", pool="snapshot"))
    if not 0 <= n <= len(facts):
        raise DataError(f"testbed: {n} snapshot probes asked for, {len(facts)} exist; ask for fewer")
    random.Random("snapshot").shuffle(facts)
    return [_fact_probe(fact, "snapshot") for fact in facts[:n]]
