"""Effects between two sides of runs on quality and geometry, paired where they saw the same edits and by Welch where not.

The measures and their paired effects are those of `stablediag.stats.switches`.

References
----------
B. L. Welch, The generalization of "Student's" problem when several different population variances are involved, Biometrika 34
(1947) 28, doi:10.1093/biomet/34.1-2.28.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from stablediag.stats.pairs import holm, paired_edits
from stablediag.stats.switches import COLUMNS, MEASURES, ROUNDING, Measure, Read, RunLike, effects, read

#: normal quantile behind the 95 % limits of the table `quality`
_NORMAL = 1.959964
#: kinds of a metric that are no shares, and their units
_UNITS = {"nats": "nats", "mcc": ""}
#: group of a row that is no measure, but a further row of the last evaluation
FURTHER = "further"
#: (metric, kind) of the table `quality` that a measure stands for
_COVERED = {("efficacy", "token"), ("generalization", "token"), ("specificity", "token"), ("specificity_kl", "nats")}


def paired_effects(pairs: Sequence[tuple[RunLike, RunLike]], *, level: float = 0.95) -> pd.DataFrame:
    """Effects of the second runs against the first, which saw the same edits, pair by pair.

    Parameters
    ----------
    pairs : sequence of (RunLike, RunLike)
        One pair a seed.
    level : float
        Coverage.

    Returns
    -------
    DataFrame
        Columns of `stablediag.stats.switches.COLUMNS`, one row a measure that every run has, then one for each further row of
        the last evaluation, named ``metric kind``, of group ``further``. `p_holm` is corrected in the measures and in the
        further rows apart; `survives` where it is below ``1 - level``.
    """
    runs = [
        (side, seed, run)
        for seed, both in enumerate(pairs)
        for side, run in zip(("first", "second"), both, strict=True)
    ]
    table = effects(runs, {"second": "first"}, level=level)
    ours = [(_others(first), _others(second)) for first, second in pairs]
    rows = []
    for key in _common([one for both in ours for one in both]):
        kept = [(a[key], b[key]) for a, b in ours]
        rows.append(_row(_other(key), *_of_pairs(kept, _other(key), level)) | {"group": FURTHER})
    return _joined(table, rows, level)


def independent_effects(first: Sequence[RunLike], second: Sequence[RunLike], *, level: float = 0.95) -> pd.DataFrame:
    """The same of runs that share nothing: two runs over their edits, two arms over their runs.

    Parameters
    ----------
    first, second : sequence of RunLike
    level : float
        Coverage.

    Returns
    -------
    DataFrame
        As `paired_effects`, without retention, which is of the edits that both runs had right.
    """
    reads = [[read(run) for run in side] for side in (first, second)]
    single = len(first) == len(second) == 1
    rows = []
    for measure in MEASURES:
        if measure.name == "retention":
            continue
        sides = [[_of_read(one, measure) for one in side] for side in reads]
        if all(any(math.isfinite(_scaled(cell.value, measure)) for cell in side) for side in sides):
            rows.append(_row(measure, *_of_arms(sides, measure, single, level)))
    ours = [[_others(run) for run in side] for side in (first, second)]
    for key in _common([one for side in ours for one in side]):
        measure = _other(key)
        sides = [[one[key] for one in side] for side in ours]
        rows.append(_row(measure, *_of_arms(sides, measure, single, level)) | {"group": FURTHER})
    return _joined(pd.DataFrame(columns=COLUMNS), rows, level)


@dataclass(frozen=True)
class _Cell:
    """A number of one run, its standard error over edits (NaN where it has none), and their number."""

    value: float
    se: float = math.nan
    n: float = math.nan


@dataclass(frozen=True)
class _Effect:
    """Second less first, in logarithms where the measure is compared by ratio."""

    mean: float
    se: float
    freedom: float
    over: str
    seeds: int
    level: float


def _of_read(one: Read, measure: Measure) -> _Cell:
    if measure.edits is not None:
        known = one.edits[measure.edits].dropna().to_numpy(np.float64)
        n = len(known)
        return _Cell(
            float(known.mean()) if n else math.nan, float(known.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan, n
        )
    nan = math.nan
    return _Cell(one.values[measure.name], one.errors.get(measure.name, nan), one.counts.get(measure.name, nan))


def _others(run: RunLike) -> dict[tuple[str, str], _Cell]:
    """The rest of the last evaluation: (metric, kind) -> value and error in the unit of `_other`."""
    table = run.table("quality") if "quality" in run.tables() else pd.DataFrame()
    if not {"step", "metric", "kind", "value"} <= set(table) or not (table["step"] >= 0).any():
        return {}
    last = table[table["step"] == table["step"].max()]
    found = {}
    for row in last.to_dict("records"):
        key = (str(row["metric"]), str(row["kind"]))
        value = _float(row["value"])
        if key in _COVERED or not math.isfinite(value):
            continue
        se = _float(row.get("se"))
        if math.isnan(se):
            se = (_float(row.get("high")) - _float(row.get("low"))) / (2 * _NORMAL)
        factor = 1.0 if key[1] in _UNITS else 100.0
        found[key] = _Cell(factor * value, factor * se, _float(row.get("n")))
    return found


def _other(key: tuple[str, str]) -> Measure:
    name = " ".join(key)
    return Measure(name, name, "of the last evaluation", "quality", "difference", _UNITS.get(key[1], "points"))


def _common(cells: Sequence[Mapping[tuple[str, str], _Cell]]) -> list[tuple[str, str]]:
    return [key for key in cells[0] if all(key in other for other in cells[1:])] if cells else []


def _of_pairs(
    pairs: Sequence[tuple[_Cell, _Cell]], measure: Measure, level: float
) -> tuple[list[list[_Cell]], _Effect]:
    sides = [[pair_[side] for pair_ in pairs] for side in (0, 1)]
    if len(pairs) == 1:
        return _of_arms(sides, measure, True, level, over="edits")
    frame = pd.DataFrame(
        [
            {"side": side, "seed": seed, "value": cell.value}
            for seed, cells in enumerate(pairs)
            for side, cell in zip(("first", "second"), cells, strict=True)
        ]
    )
    found = paired_edits(frame, value="value", arm="side", first="second", second="first", edit=None, level=level)
    floor = _floor(measure, sum(pair_[0].n for pair_ in pairs))
    return sides, _Effect(found.mean, max(found.se, floor), found.freedom, "seeds", found.seeds, level)


def _of_arms(
    sides: Sequence[Sequence[_Cell]], measure: Measure, single: bool, level: float, *, over: str = ""
) -> tuple[list[list[_Cell]], _Effect]:
    """Welch: over the edits of two runs, or over the runs of two arms."""
    kept = [[cell for cell in side if math.isfinite(_scaled(cell.value, measure))] for side in sides]
    scaled = [np.array([_scaled(cell.value, measure) for cell in side]) for side in kept]
    means = [float(v.mean()) for v in scaled]
    # Rounding errors are no effect.
    mean = 0.0 if math.isclose(*means, rel_tol=ROUNDING) else means[1] - means[0]
    if single:
        parts = [(kept[side][0].se ** 2, kept[side][0].n - 1) for side in (0, 1)]
        over = over or "edits, independent"
    else:
        parts = [(float(v.var(ddof=1)) / len(v) if len(v) > 1 else math.nan, len(v) - 1.0) for v in scaled]
        over = "seeds, independent"
    variance = parts[0][0] + parts[1][0]
    # Two answers that are right throughout have no spread to judge by, unless their number bounds it.
    if math.isnan(variance) or (variance == 0 and measure.unit != "points"):
        return kept, _Effect(mean, math.nan, math.nan, "nothing", min(map(len, kept)), level)
    spread = sum(part**2 / freedom for part, freedom in parts if freedom > 0)
    freedom = variance**2 / spread if spread > 0 else math.inf
    floor = _floor(measure, min(cell.n for side in kept for cell in side)) if single else 0.0
    return kept, _Effect(mean, max(math.sqrt(variance), floor), freedom, over, min(map(len, kept)), level)


def _floor(measure: Measure, cells: float) -> float:
    """Standard error of as many pairs that agree, with one more at either end, in percent."""
    return math.sqrt(2 * 100**2 / ((cells + 2) * cells)) if measure.unit == "points" and cells > 0 else 0.0


def _row(measure: Measure, sides: Sequence[Sequence[_Cell]], found: _Effect) -> dict[str, Any]:
    ratio = measure.scale == "ratio"
    back: Callable[[float], float] = math.exp if ratio else float
    half = float(stats.t.ppf(0.5 + found.level / 2, found.freedom)) * found.se
    p = math.nan
    if not math.isnan(found.se):
        p = 2 * float(stats.t.sf(abs(found.mean) / found.se, found.freedom)) if found.se > 0 else float(found.mean == 0)
    means = [back(float(np.mean([_scaled(cell.value, measure) for cell in side]))) for side in sides]
    counts = [cell.n for side in sides for cell in side if math.isfinite(cell.n)]
    return {
        "variation": "second", "against": "first", "metric": measure.name, "group": measure.group, "scale": measure.scale,
        "unit": measure.unit, "reference": means[0], "value": means[1], "effect": back(found.mean),
        "low": back(found.mean - half), "high": back(found.mean + half), "p": p, "p_holm": math.nan, "survives": False,
        "over": found.over, "seeds": found.seeds, "edits": int(min(counts)) if counts and "edits" in found.over else 0,
    }  # fmt: skip


def _joined(table: pd.DataFrame, rows: Sequence[Mapping[str, Any]], level: float) -> pd.DataFrame:
    parts = [part for part in (table, pd.DataFrame(list(rows), columns=COLUMNS)) if len(part)]
    joined = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)
    p, further = joined["p"].to_numpy(np.float64), (joined["group"] == FURTHER).to_numpy(bool)
    corrected = np.full(len(joined), math.nan)
    for family in (further, ~further):
        corrected[family] = holm(p[family])
    return joined.assign(p_holm=corrected, survives=corrected < 1 - level)


def _scaled(value: float, measure: Measure) -> float:
    if measure.scale == "difference":
        return value
    return math.log(value) if math.isfinite(value) and value > 0 else math.nan


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)
