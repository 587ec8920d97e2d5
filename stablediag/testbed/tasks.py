"""Five capability tasks with label words, written by small grammars: what an editor should leave alone.

Each task has 4,000 training and 200 test items, balanced over its labels and disjoint. Pure Python.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from stablediag.testbed.world import WORLD_SEED
from stablediag.types import Probe

TRAIN_ITEMS = 4000
TEST_ITEMS = 200

_GOOD = [
    "wonderful",
    "brilliant",
    "charming",
    "funny",
    "moving",
    "superb",
    "clever",
    "delightful",
    "fresh",
    "gripping",
    "splendid",
    "lovely",
]
_BAD = [
    "dull",
    "boring",
    "awful",
    "clumsy",
    "weak",
    "tedious",
    "horrible",
    "silly",
    "stale",
    "dreadful",
    "bland",
    "shallow",
]
_WORKS = ["film", "novel", "play", "song", "concert", "meal", "hotel", "game", "lecture", "show"]
_DEGREES = ["very", "really", "rather", "quite", "truly", "simply"]

_SYNONYMS = {
    "adjective": [("big", "large"), ("small", "little"), ("happy", "glad"), ("angry", "furious")],
    "noun": [("child", "kid"), ("doctor", "physician"), ("ship", "vessel"), ("thief", "robber")],
    "verb": [("begins", "starts"), ("ends", "finishes"), ("hides", "conceals"), ("helps", "assists")],
}
_PARTS = ("adjective", "noun", "verb")

_SINGULAR = ["dog", "cat", "bird", "horse", "boy", "girl", "king", "queen", "farmer", "baker"]
_PLURAL = ["dogs", "cats", "birds", "horses", "boys", "girls", "kings", "queens", "farmers", "bakers"]
_VERBS = [
    ("runs", "run"),
    ("sings", "sing"),
    ("sleeps", "sleep"),
    ("walks", "walk"),
    ("jumps", "jump"),
    ("waits", "wait"),
]
_SIZES = ["young", "old", "tall", "short", "brave", "quiet"]
_PLACES = ["garden", "kitchen", "forest", "market", "harbour", "village"]

_KINDS = {
    "bird": ["robin", "sparrow", "eagle", "owl"],
    "fish": ["salmon", "trout", "carp", "cod"],
    "tree": ["oak", "pine", "birch", "maple"],
    "flower": ["rose", "tulip", "lily", "daisy"],
    "tool": ["hammer", "saw", "drill", "wrench"],
    "fruit": ["apple", "pear", "plum", "cherry"],
}
_ANTONYMS = [
    ("open", "closed"),
    ("hot", "cold"),
    ("clean", "dirty"),
    ("full", "empty"),
    ("wet", "dry"),
    ("loud", "silent"),
]
_THINGS = ["door", "box", "room", "bottle", "engine", "barn", "cup", "oven", "stove", "cellar"]


@dataclass(frozen=True, slots=True)
class CapabilityTask:
    """A classification task whose answers are label words.

    Attributes
    ----------
    name : str
    labels : tuple of str
        Label words; each is a single token of the testbed's tokenizer.
    train, test : tuple of Probe
        Disjoint in their prompts and balanced over the labels.
    """

    name: str
    labels: tuple[str, ...]
    train: tuple[Probe, ...]
    test: tuple[Probe, ...]


def _sentiment(label: str, rng: random.Random) -> str:
    negated = rng.random() < 0.5
    adjective = rng.choice(_GOOD if (label == "positive") != negated else _BAD)
    degree = rng.choice(_DEGREES) + " " if rng.random() < 0.7 else ""
    verb = rng.choice(["was", "is", "seemed"])
    negation = rng.choice(["not ", "never "]) if negated else ""
    subject = f"{rng.choice(['the', 'this', 'that'])} {rng.choice(_WORKS)}"
    return f"review : {subject} {verb} {negation}{degree}{adjective} . sentiment ?"


def _paraphrase(label: str, rng: random.Random) -> str:
    slots = [rng.choice(_SYNONYMS[part]) for part in _PARTS]
    first = [rng.choice(pair) for pair in slots]
    second = [rng.choice(pair) for pair in slots]
    if label == "different":
        # One to three words differ: the easy items are what makes the task learnable.
        for part in rng.sample(range(len(slots)), rng.randint(1, len(slots))):
            second[part] = rng.choice(rng.choice([pair for pair in _SYNONYMS[_PARTS[part]] if pair != slots[part]]))
    return f"first : the {' '.join(first)} . second : the {' '.join(second)} . same or different ?"


def _acceptability(label: str, rng: random.Random) -> str:
    plural = rng.random() < 0.5
    noun = rng.choice(_PLURAL if plural else _SINGULAR)
    size, verb = rng.choice(_SIZES), rng.choice(_VERBS)
    words = ["the", size, noun, verb[plural], "in", "the", rng.choice(_PLACES)]
    if label == "bad":
        fault = rng.randrange(3)
        if fault == 0:
            words[3] = verb[not plural]
        elif fault == 1:
            words[1], words[2] = words[2], words[1]
        else:
            words[2], words[3] = words[3], words[2]
    return f"sentence : {' '.join(words)} . good or bad ?"


def _entailment(label: str, rng: random.Random) -> str:
    kind = rng.choice(sorted(_KINDS))
    member = rng.choice(_KINDS[kind])
    place, owner = rng.choice(_PLACES), rng.choice(_SINGULAR)
    premise, hypothesis = member, kind
    if label == "no":
        if rng.random() < 0.5:
            hypothesis = rng.choice([k for k in sorted(_KINDS) if k != kind])
        else:
            premise, hypothesis = kind, member
    verb = rng.choice(["has", "keeps", "finds"])
    return f"premise : the {owner} {verb} a {premise} in the {place} . is that a {hypothesis} ?"


def _inference(label: str, rng: random.Random) -> str:
    pair = rng.choice(_ANTONYMS)
    side, thing = rng.randrange(2), rng.choice(_THINGS)
    owner = rng.choice(_SINGULAR)
    stated, concluded, about = pair[side], pair[side], thing
    if label == "contradiction":
        concluded = pair[1 - side]
    elif label == "neutral":
        if rng.random() < 0.5:
            about = rng.choice([other for other in _THINGS if other != thing])
        else:
            concluded = rng.choice(rng.choice([other for other in _ANTONYMS if other != pair]))
    verb = rng.choice(["is", "was", "looks"])
    premise = f"the {thing} of the {owner} {verb} {stated}"
    return f"premise : {premise} . hypothesis : the {about} {verb} {concluded} . relation ?"


_GRAMMARS: dict[str, tuple[tuple[str, ...], Callable[[str, random.Random], str]]] = {
    "sentiment": (("positive", "negative"), _sentiment),
    "paraphrase": (("same", "different"), _paraphrase),
    "acceptability": (("good", "bad"), _acceptability),
    "entailment": (("yes", "no"), _entailment),
    "inference": (("entailment", "contradiction", "neutral"), _inference),
}


def _task(name: str, rng: random.Random) -> CapabilityTask:
    labels, grammar = _GRAMMARS[name]
    seen: set[str] = set()
    items: list[Probe] = []
    while len(items) < TRAIN_ITEMS + TEST_ITEMS:
        label = labels[len(items) % len(labels)]
        prompt = grammar(label, rng)
        if prompt not in seen:
            seen.add(prompt)
            items.append(Probe(prompt, label, kind="capability", id=f"{name}:{len(items)}"))
    return CapabilityTask(name, labels, train=tuple(items[TEST_ITEMS:]), test=tuple(items[:TEST_ITEMS]))


@lru_cache(maxsize=2)
def capability_tasks(seed: int = WORLD_SEED) -> dict[str, CapabilityTask]:
    """The five tasks, by name.

    Parameters
    ----------
    seed : int
        The shipped weights belong to :data:`stablediag.testbed.world.WORLD_SEED`.
    """
    return {name: _task(name, random.Random(f"{name}-{seed}")) for name in _GRAMMARS}
