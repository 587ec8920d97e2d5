"""Two runs, or two arms of several: what differs in spec and provenance, in quality and geometry, and where they collapse.

Effects are those of `stablediag.stats.run_effects`; here is what they need first, whether the runs saw the same edits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import pandas as pd

from stablediag.errors import DataError, StablediagError
from stablediag.stats.collapse import Collapse, horizon_extension
from stablediag.stats.horizon import collapse_of
from stablediag.stats.run_effects import independent_effects, paired_effects
from stablediag.stats.switches import MEASURES
from stablediag.types import RunInfo

#: stands for the value of a path that a run lacks and another of its side has
ABSENT = "(absent)"
#: paths of a spec in which repeats of one setting differ
_REPEATS = ("seed", "data.seed", "editor.params.match.run", "init.weights_from", "init.stats_from")


class RunLike(Protocol):
    """What gives its provenance, and tables by name, such as `stablediag.store.run.Run`."""

    @property
    def info(self) -> RunInfo:
        """Where the run comes from."""
        ...

    def table(self, name: str, /) -> Any:
        """A DataFrame."""
        ...

    def tables(self) -> Any:
        """Names of its tables."""
        ...


@dataclass(frozen=True)
class Change:
    """A value that the two sides do not have alike.

    Attributes
    ----------
    path : str
        Dotted, ``editor.params.lr``.
    first, second : tuple
        Distinct values on either side, in the order of its runs; empty where the path is not there.
    """

    path: str
    first: tuple[Any, ...]
    second: tuple[Any, ...]


@dataclass(frozen=True)
class Pairing:
    """Which runs are held against which.

    Attributes
    ----------
    kind : {"paired", "independent"}
    pairs : tuple of (int, int)
        Places in the first and in the second arm; empty where independent.
    reason : str
        One line.
    """

    kind: Literal["paired", "independent"]
    pairs: tuple[tuple[int, int], ...]
    reason: str


@dataclass(frozen=True, eq=False)
class Comparison:
    """What two arms differ in; effects are those of the second against the first.

    Attributes
    ----------
    pairing : Pairing
    spec, provenance : tuple of Change
        Without the name of the spec. `provenance`: paths under versions, code, device, model and dataset.
    metrics : DataFrame
        See `stablediag.stats.run_effects`; `over` says ``..., independent`` where nothing is paired.
    missing : tuple of str
        Names of the measures that not every run has.
    collapse : DataFrame
        One row a run: arm (0, 1), run (place), text, edits (NaN where unknown), state (collapsed, censored, never, unknown).
    extensions : tuple of str
        How many times as long the second lasts as the first, pair by pair; empty where independent.
    notes : tuple of str
        What to know before the numbers are read.
    """

    pairing: Pairing
    spec: tuple[Change, ...]
    provenance: tuple[Change, ...]
    metrics: pd.DataFrame
    missing: tuple[str, ...]
    collapse: pd.DataFrame
    extensions: tuple[str, ...]
    notes: tuple[str, ...]


def compare_runs(first: Sequence[RunLike], second: Sequence[RunLike], *, level: float = 0.95) -> Comparison:
    """Everything that two arms differ in.

    Parameters
    ----------
    first, second : sequence of Run
        One run each, or one a seed.
    level : float
        Coverage of the intervals.

    Returns
    -------
    Comparison

    Raises
    ------
    DataError
        An arm is empty, or has two runs of one seed.

    Notes
    -----
    Paired: over edits, over seeds, or both, as `stablediag.stats.switches.effects` does it. Independent: the difference of two
    means with Welch's standard error, over the edits of two runs, or over the runs of two arms. Measures of geometry have no
    interval between two single runs: the steps of a run are not independent draws.
    """
    for arm in (first, second):
        if not arm:
            raise DataError("compare: give at least one run on either side")
    pairing = pair(first, second)
    provenance = changes([_provenance(run.info) for run in first], [_provenance(run.info) for run in second])
    pairs = [(first[i], second[j]) for i, j in pairing.pairs]
    metrics = paired_effects(pairs, level=level) if pairs else independent_effects(first, second, level=level)
    found = set(metrics["metric"])
    collapses = [[_collapse(run) for run in arm] for arm in (first, second)]
    return Comparison(
        pairing=pairing,
        spec=tuple(changes([_spec(run.info) for run in first], [_spec(run.info) for run in second])),
        provenance=tuple(provenance),
        metrics=metrics,
        missing=tuple(measure.name for measure in MEASURES if measure.name not in found),
        collapse=_collapse_table(collapses),
        extensions=tuple(_extension(collapses[0][i], collapses[1][j]) for i, j in pairing.pairs),
        notes=tuple(_notes(provenance, pairing, first, second)),
    )


def changes(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> list[Change]:
    """Leaves of nested mappings that the two sides do not have alike, by path.

    Parameters
    ----------
    first, second : sequence of mapping
        One mapping a run. Lists of mappings are entered (``data.then[0].size``), other lists are values.

    Returns
    -------
    list of Change
        Sorted by path. A path counts as different when the sets of its values differ; `ABSENT` is the value of a run that
        lacks what another of its side has.
    """
    sides = [[dict(leaves(mapping)) for mapping in side] for side in (first, second)]
    found = []
    for path in sorted({path for side in sides for one in side for path in one}):
        values = [
            _distinct([one.get(path, ABSENT) for one in side]) if any(path in one for one in side) else {}
            for side in sides
        ]
        if set(values[0]) != set(values[1]):
            found.append(Change(path, tuple(values[0].values()), tuple(values[1].values())))
    return found


def pair(first: Sequence[RunLike], second: Sequence[RunLike]) -> Pairing:
    """Pairs of runs that saw the same edits: two single runs, or those of equal seeds.

    Parameters
    ----------
    first, second : sequence of Run

    Raises
    ------
    DataError
        Two runs of one side have the same seeds.
    """
    if len(first) == len(second) == 1:
        alike, reason = _same_edits(first[0], second[0])
        return Pairing("paired", ((0, 0),), reason) if alike else Pairing("independent", (), reason)
    places = [_by_seed(side) for side in (first, second)]
    common = [seed for seed in places[0] if seed in places[1]]
    if not common:
        return Pairing("independent", (), "no seed is on both sides: the runs are taken as independent")
    pairs = tuple((places[0][seed], places[1][seed]) for seed in common)
    for seed, (i, j) in zip(common, pairs, strict=True):
        alike, reason = _same_edits(first[i], second[j])
        if not alike:
            return Pairing("independent", (), f"at {_seeded(seed)}: {reason}")
    left = len(first) + len(second) - 2 * len(common)
    dropped = f"; {left} of other seeds left out" if left else ""
    return Pairing("paired", pairs, f"{len(common)} pairs of equal seeds, which saw the same edits{dropped}")


def _by_seed(side: Sequence[RunLike]) -> dict[tuple[Any, Any], int]:
    found: dict[tuple[Any, Any], int] = {}
    for place, run in enumerate(side):
        spec = run.info.spec
        seed = (_mapping(spec.get("data")).get("seed"), spec.get("seed"))
        if seed in found:
            raise DataError(f"compare: two runs of one side have {_seeded(seed)}: give one a seed")
        found[seed] = place
    return found


def _seeded(seed: tuple[Any, Any]) -> str:
    return f"data.seed {seed[0]}, seed {seed[1]}"


def _same_edits(one: RunLike, other: RunLike) -> tuple[bool, str]:
    """Whether two runs edit the same stream, or the same edits in another order."""
    sums = [_mapping(run.info.dataset.get("target")).get("sha256") for run in (one, other)]
    if sums[0] is not None and sums[0] == sums[1]:
        return True, "the same stream: paired over its edits"
    ids = [_ids(run) for run in (one, other)]
    if ids[0] and ids[0] == ids[1]:
        return True, "the same edits, in another order or with other texts: paired by their ids"
    shared = len(ids[0] & ids[1])
    some = f", with {shared} edits in common" if shared else ""
    return False, f"different streams{some}: nothing is paired, the runs are taken as independent"


def _ids(run: RunLike) -> set[str]:
    return set(run.table("edits")["edit_id"].dropna()) if "edits" in run.tables() else set()


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested mappings, and of lists of mappings, by dotted path: ``data.then[0].source``."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, Sequence) and value and all(isinstance(item, Mapping) for item in value):
        for place, item in enumerate(value):
            yield from leaves(item, f"{path}[{place}]")
    elif path:
        yield path, value


def _distinct(values: Iterable[Any]) -> dict[str, Any]:
    return {json.dumps(value, sort_keys=True, default=str): value for value in values}


def _spec(info: RunInfo) -> dict[str, Any]:
    return {key: value for key, value in info.spec.items() if key != "name"}


def _provenance(info: RunInfo) -> dict[str, Any]:
    return {
        "versions": info.versions,
        "code": info.code,
        "device": info.device,
        "model": info.model,
        "dataset": info.dataset,
    }


def _collapse(run: RunLike) -> Collapse | str:
    try:
        return collapse_of(run)
    except (StablediagError, KeyError) as error:
        return " ".join(str(error).split())


def _collapse_table(collapses: Sequence[Sequence[Collapse | str]]) -> pd.DataFrame:
    rows = []
    for arm, side in enumerate(collapses):
        for place, found in enumerate(side):
            if isinstance(found, str):
                rows.append((arm, place, f"unknown: {found}", math.nan, "unknown"))
            else:
                state = "never" if found.never else "censored" if found.censored else "collapsed"
                rows.append((arm, place, str(found), found.edits, state))
    return pd.DataFrame(rows, columns=["arm", "run", "text", "edits", "state"])


def _extension(first: Collapse | str, second: Collapse | str) -> str:
    if isinstance(first, str) or isinstance(second, str):
        return "unknown: a run has no collapse point"
    return str(horizon_extension(second, first))


def _notes(
    provenance: Sequence[Change], pairing: Pairing, first: Sequence[RunLike], second: Sequence[RunLike]
) -> Iterable[str]:
    for change in provenance:
        versioned = change.path == "versions.engine" or change.path.startswith("versions.recorder:")
        both = [[value for value in side if value != ABSENT] for side in (change.first, change.second)]
        if versioned and all(both) and both[0] != both[1]:
            old, new = (", ".join(map(str, side)) for side in both)
            what = change.path.removeprefix("versions.")
            yield f"{what} is of version {old} in A and {new} in B: its numbers may not mean the same"
    if any(change.path.startswith("model.sha256") for change in provenance):
        yield "the models differ: an effect may be theirs"
    for name, side in zip("AB", (first, second), strict=True):
        mixed = _mixed(side)
        if mixed:
            yield f"the runs of {name} differ in {', '.join(mixed)}: they are no repeats of one setting"
    seeds = len(pairing.pairs) if pairing.pairs else min(len(first), len(second))
    if seeds == 1:
        yield "one seed: intervals are over its edits alone and say nothing about another seed; geometry has none"
    elif seeds < 5:
        yield f"{seeds} seeds: intervals are wide, and few effects can survive the correction; five seeds tell more"
    if pairing.kind == "paired" and seeds == 1:
        yield "shares whose single edits are not kept are compared as if independent, which makes their intervals wide"


def _mixed(side: Sequence[RunLike]) -> list[str]:
    """Paths in which the runs of one side differ, but for seeds and what follows from them."""
    specs = [dict(leaves(_spec(run.info))) for run in side]
    paths = sorted({path for one in specs for path in one} - set(_REPEATS))
    return [path for path in paths if len(_distinct(one.get(path, ABSENT) for one in specs)) > 1]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
