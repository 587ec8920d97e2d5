"""Variations of a spec: the same run with one thing changed, what it is compared with, and the question it answers.

`stablediag.spec.variation_switches` and `stablediag.spec.variation_controls` are the catalogues.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from stablediag.errors import SpecError
from stablediag.spec.base import TESTBED
from stablediag.spec.models import Spec
from stablediag.spec.problems import lookup_error
from stablediag.spec.streams import DataSpec

#: name of the spec as it is
BASE = "base"
MATCH = "editor.params.match"
Group = Literal["quality", "geometry"]


@dataclass(frozen=True)
class Variation:
    """One run beside the base.

    Attributes
    ----------
    name : str
    what : str
        What is changed, in a few words.
    question : str
        What the comparison answers.
    source : str
        Where the published work does or claims what is varied.
    changes : mapping of str to Any
        Dotted path in the spec -> value. A text ``"@name"`` stands for the run of that variation at the same seed.
    against : str or None
        The variation that it is compared with; None where it is only there for others.
    groups : tuple of str
        What can be compared.
    """

    name: str
    what: str
    question: str
    source: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    against: str | None = BASE
    groups: tuple[Group, ...] = ("quality", "geometry")

    @property
    def builds_on(self) -> tuple[str, ...]:
        """Names of the variations that must be run before it."""
        return tuple(dict.fromkeys(_references(list(self.changes.values()))))


@dataclass(frozen=True)
class LeftOut:
    """A variation that this spec cannot have, and why."""

    name: str
    what: str
    reason: str


@dataclass(frozen=True)
class Catalogue:
    """The variations of one spec, the base first, and those that it cannot have."""

    variations: tuple[Variation, ...]
    left_out: tuple[LeftOut, ...] = ()

    def __getitem__(self, name: str) -> Variation:
        for variation in self.variations:
            if variation.name == name:
                return variation
        raise SpecError(lookup_error("variation", name, self.names))

    @property
    def names(self) -> list[str]:
        """Names in their order."""
        return [variation.name for variation in self.variations]

    def only(self, names: Sequence[str]) -> Catalogue:
        """These variations and what they need; all of them where no name is given.

        Raises
        ------
        SpecError
            A name that there is not, or one that this spec cannot have, with the reason.
        """
        reasons = {one.name: one.reason for one in self.left_out}
        for name in names:
            if name in reasons:
                raise SpecError(f"{name} cannot be had of this spec: {reasons[name]}")
            if name not in self.names:
                raise SpecError(lookup_error("variation", name, [*self.names, *reasons]))
        wanted = set(names or self.names) | {BASE}
        while True:
            more = {other for name in wanted for other in self._needed(name)} - wanted
            if not more:
                break
            wanted |= more
        left_out = () if names else self.left_out
        return Catalogue(tuple(one for one in self.variations if one.name in wanted), left_out)

    def _needed(self, name: str) -> tuple[str, ...]:
        one = self[name]
        return (*one.builds_on, *(() if one.against is None else (one.against,)))


def base_variation() -> Variation:
    """The spec as it is."""
    return Variation(BASE, "the spec as it is", "what the others are compared with", "", against=None)


def matched(catalogue: Catalogue) -> Catalogue:
    """Every variation with the update norms of what it is compared with, step by step.

    What changes the length of a step then changes its direction alone. Left out are those that write no update, and those
    that are then equal to another one.
    """
    found: list[Variation] = []
    dropped = list(catalogue.left_out)
    for one in catalogue.variations:
        if one.against is None:
            found.append(one)
        elif one.changes.get("editor.params.target_apply", True) is False:
            dropped.append(LeftOut(one.name, one.what, "writes no update whose norm could be matched"))
        else:
            match = {"run": f"@{one.against}", "mode": "every"}
            changes = {**one.changes, MATCH: match}
            same = next((other.name for other in found if other.changes == changes), None)
            if same is None:
                found.append(replace(one, changes=changes, what=_at_norms(one)))
            else:
                dropped.append(LeftOut(one.name, one.what, f"with every norm matched it is {same}"))
    return Catalogue(tuple(found), tuple(dropped))


def value_at(spec: Spec, dotted: str) -> Any:
    """A value of a spec by its dotted path; None where there is none."""
    node: Any = spec.canonical()
    for part in dotted.split("."):
        if not isinstance(node, Mapping):
            return None
        node = node.get(part)
    return node


def with_changes(spec: Spec, changes: Mapping[str, Any], *, where: str) -> Spec:
    """The spec with values at dotted paths replaced.

    Raises
    ------
    SpecError
        What results is not a spec; the line begins with `where`.
    """
    tree = spec.canonical()
    for dotted, value in changes.items():
        *parents, leaf = dotted.split(".")
        node = tree
        for part in parents:
            below = node.get(part)
            node[part] = below = {} if below is None else below
            node = below
        node[leaf] = copy.deepcopy(value)
    return Spec.from_mapping(tree, where=where)


def with_seed(spec: Spec, more: int) -> Spec:
    """The spec with every seed of its streams, and the run's own, raised by a number; 0 gives the spec itself."""
    if more == 0:
        return spec
    data, warmup = _seeded(spec.data, more), spec.warmup
    if warmup.data is not None:
        warmup = warmup.model_copy(update={"data": _seeded(warmup.data, more)})
    return spec.model_copy(update={"data": data, "warmup": warmup, "seed": spec.seed + more})


def draws(spec: Spec) -> bool:
    """Whether another seed gives another stream."""
    parts = (spec.data, *spec.data.then)
    drawn = any(part.source == TESTBED or part.shuffle for part in parts)
    return drawn or spec.data.arrange in ("permuted", "iid")


def without_references(changes: Mapping[str, Any], directories: Mapping[str, str]) -> dict[str, Any]:
    """The changes with a directory for every ``"@name"``."""

    def found(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: found(item) for key, item in value.items()}
        if isinstance(value, str) and value.startswith("@"):
            return directories[value[1:]]
        return value

    return {dotted: found(value) for dotted, value in changes.items()}


def _at_norms(one: Variation) -> str:
    """What is changed, without the norms that it would have on its own."""
    told = one.what
    for rest in (", the first target update of", ", every update of", ", at the base's", ", at the same rate"):
        told = told.partition(rest)[0]
    return told


def _seeded(data: DataSpec, more: int) -> DataSpec:
    then = [part.model_copy(update={"seed": part.seed + more}) for part in data.then]
    return data.model_copy(update={"seed": data.seed + more, "then": then})


def _references(values: Iterable[Any]) -> Iterable[str]:
    for value in values:
        if isinstance(value, Mapping):
            yield from _references(list(value.values()))
        elif isinstance(value, str) and value.startswith("@"):
            yield value[1:]
