"""What a rule of the doctor is, what it may look at, and how a number becomes a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from stablediag.errors import StoreError
from stablediag.stats.collapse import Slope, slope
from stablediag.stats.intervals import Interval
from stablediag.stats.quasi import time_mean

Floats = NDArray[np.float64]
Verdict = Literal["ok", "info", "bad", "unknown"]

#: points that a series is averaged down to before anything is fitted to it
_POINTS = 200
#: from the mildest verdict to the gravest; unknown says nothing either way
GRAVITY: Mapping[Verdict, int] = {"unknown": 0, "ok": 1, "info": 2, "bad": 3}

#: table -> column -> recorder that fills it ("*": the rest of the table)
ANSWERED_BY: Mapping[str, Mapping[str, str]] = {
    "updates": {
        **dict.fromkeys(("norm", "weight_norm", "weight_ratio"), "update_norm"),
        **dict.fromkeys(("inner", "cosine"), "adjacent_cosine"),
        **dict.fromkeys(("realised_ratio", "realised_cosine", "unchanged_fraction"), "realised_update"),
        "grad_sq": "leverage",
        "*": "coherence",
    },
    "tracking": {
        **dict.fromkeys(("nu", "whitening_active", "condition_raw", "condition_floored"), "conditioning"),
        **dict.fromkeys(("eig_max", "eig_min", "floored_fraction", "d_eff"), "conditioning"),
        "whitened_index": "whitened_norm",
        "grad_tail": "leverage",
        "*": "prequential",
    },
    "probes": {"*": "paired_probes"},
    "variogram": {"*": "variogram"},
    "interference": {"*": "interference"},
    "alarms": {"*": "alarm"},
    "value_norms": {"*": "value_norms"},
    "quality": {"*": "quality"},
    "edits": {"*": "quality"},
}


class RunLike(Protocol):
    """A run, or anything else that has tables by name."""

    def table(self, name: str, /) -> pd.DataFrame:
        """One table; StoreError or KeyError when there is none."""
        ...


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Attributes
    ----------
    verdict : str
        "ok", "info" (worth knowing, or too close to the threshold to tell), "bad", or "unknown".
    value, low, high : float
        The number and its 95% interval, NaN where there is none.
    where : str
        Module or scope that the number is of: the worst one.
    hint : str
        What is seen and what to do about it.
    """

    verdict: Verdict
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    where: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Evidence:
    """The columns of a run that the rules read, read once.

    Attributes
    ----------
    tables : mapping of str to DataFrame
        By name; absent tables and columns are absent here, too.
    parts : mapping of str to mapping of str to DataFrame
        Tables with a column ``module``, split by it, in the order of the steps.
    shapes : mapping of str to (int, int)
        (d_in, d_out) of the edited modules, where the run says them.
    targets : ndarray of int, optional
        Steps that wrote target edits; None where the run does not say.
    total : int
        Steps of the run.
    """

    tables: Mapping[str, pd.DataFrame]
    parts: Mapping[str, Mapping[str, pd.DataFrame]] = field(repr=False)
    shapes: Mapping[str, tuple[int, int]]
    targets: NDArray[np.int64] | None = field(repr=False)
    total: int

    @classmethod
    def of(cls, run: RunLike, reads: Mapping[str, tuple[str, ...]]) -> Evidence:
        """Read what the rules need: `reads` has the columns of every table beside its keys."""
        tables = {name: frame for name, wanted in reads.items() if (frame := _read(run, name, wanted)) is not None}
        parts = {
            name: {str(module): part for module, part in frame.groupby("module", sort=True, observed=True)}
            for name, frame in tables.items()
            if "module" in frame
        }
        steps = tables.get("steps", pd.DataFrame())
        targets = None
        if {"step", "phase", "written"} <= set(steps):
            targets = steps.loc[(steps["phase"] == "target") & (steps["written"] == 1), "step"].to_numpy(np.int64)
        total = len(steps) or 1 + max(
            (int(f["step"].max()) for f in tables.values() if "step" in f and len(f)), default=-1
        )
        return cls(tables, parts, _shapes(run), targets, total)

    def table(self, name: str) -> pd.DataFrame:
        """One table, empty when there is none."""
        return self.tables.get(name, pd.DataFrame())

    def modules(self, table: str, *columns: str, target: bool = True) -> Iterator[tuple[str, pd.DataFrame]]:
        """Rows of every module in which all these columns have values; by default those of target steps alone."""
        for module, part in self.parts.get(table, {}).items():
            if not set(columns) <= set(part):
                continue
            kept = part.dropna(subset=list(columns))
            if target and self.targets is not None:
                kept = kept[kept["step"].isin(self.targets)]
            if len(kept):
                yield module, kept

    def lacks(self, reads: Mapping[str, tuple[str, ...]]) -> str | None:
        """Why a rule cannot be answered, with the recorder that would; None when it can."""
        for name, columns in reads.items():
            frame = self.tables.get(name)
            for column in columns:
                known = ANSWERED_BY.get(name, {})
                recorder = known.get(column) or known.get("*")
                by = f'the recorder "{recorder}"' if recorder else f'a run with the table "{name}"'
                if frame is None or column not in frame:
                    return f"{name}.{column} was not recorded: add {by}"
                if not frame[column].notna().any():
                    return f"{name}.{column} has no values, although recorded: this editor does not have it ({by})"
        return None


@dataclass(frozen=True)
class Rule:
    """One assumption or claim, and how a run answers it.

    Attributes
    ----------
    id : str
    claim : str
        What is assumed, or claimed.
    measures : str
        What the number is, with its unit.
    threshold : float
        Default.
    reads : mapping of str to tuple of str
        Columns without which the answer is "unknown", by table.
    evaluate : callable
        From the evidence and the threshold to what is found.
    hint : str
        What to do when it is bad.
    cites : str
    uses : mapping of str to tuple of str
        Columns that sharpen the answer where there are any.
    """

    id: str
    claim: str
    measures: str
    threshold: float
    reads: Mapping[str, tuple[str, ...]]
    evaluate: Callable[[Evidence, float], Finding]
    hint: str
    cites: str
    uses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def answer(self, evidence: Evidence, threshold: float) -> Finding:
        """The finding; unknown where a column is missing."""
        lacking = evidence.lacks(self.reads)
        return unknown(lacking) if lacking is not None else self.evaluate(evidence, threshold)


def unknown(reason: str) -> Finding:
    """No answer, and why."""
    return Finding("unknown", hint=reason)


def too_few(found: int, needed: int, what: str = "steps") -> Finding:
    """No answer, for want of data."""
    return unknown(f"{found} {what} are too few, {needed} are needed: make the run longer or record more often")


def judge(interval: Interval | Finding, threshold: float, *, above: bool = True) -> Verdict:
    """Bad when the whole interval lies beyond the threshold, ok when none of it does, else info.

    A number without an interval is compared itself. `above`: large values are bad.
    """
    value, low, high = interval.value, interval.low, interval.high
    low, high = (value if math.isnan(limit) else limit for limit in (low, high))
    if math.isnan(value):
        return "unknown"
    if above:
        return "bad" if low > threshold else "ok" if high <= threshold else "info"
    return "bad" if high < threshold else "ok" if low >= threshold else "info"


def found(interval: Interval, threshold: float, *, where: str = "", hint: str = "", above: bool = True) -> Finding:
    """The finding of one number with its interval."""
    return Finding(judge(interval, threshold, above=above), interval.value, interval.low, interval.high, where, hint)


def worst(findings: Iterator[Finding] | list[Finding], *, above: bool = True) -> Finding:
    """The gravest of several modules' findings, and among those the most extreme; unknown of none."""
    sign = 1.0 if above else -1.0
    ranked = sorted(
        findings, key=lambda f: (GRAVITY[f.verdict], sign * f.value if math.isfinite(f.value) else -math.inf)
    )
    return ranked[-1] if ranked else unknown("no module has rows on which this can be judged: record more often")


def thinned(values: ArrayLike, *, most: int = _POINTS) -> Floats:
    """A series averaged over stretches of equal length, at most so many."""
    y = np.asarray(values, np.float64)
    if len(y) <= most:
        return y
    starts = np.linspace(0, len(y), most, endpoint=False).astype(np.int64)
    sums: Floats = np.add.reduceat(y, starts) / np.diff(np.append(starts, len(y)))
    return sums


def mean_over_time(values: ArrayLike) -> Interval:
    """Mean of a series with an interval that holds under correlation in time; of a short one, Student's."""
    y = thinned(values)
    y = y[np.isfinite(y)]
    if len(y) >= 8:
        return time_mean(y)
    n, value = len(y), float(y.mean()) if len(y) else math.nan
    se = float(y.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    half = float(stats.t.ppf(0.975, n - 1)) * se if n > 1 else math.inf
    return Interval(value, n, se, value - half, value + half)


def trend(values: ArrayLike) -> Slope | None:
    """Change of a series over the whole run, by a straight line with deviations correlated in time; None when too short."""
    y = thinned(values)
    if len(y) < 8 or not np.isfinite(y).all():
        return None
    return slope((np.arange(len(y)) + 0.5) / len(y), y)


def exp_of(interval: Slope | Interval) -> Interval:
    """Factor from the interval of its logarithm."""
    value, low, high = (math.exp(min(max(x, -700.0), 700.0)) for x in (interval.value, interval.low, interval.high))
    return Interval(value, interval.n, math.nan, low, high)


def _read(run: RunLike, name: str, wanted: tuple[str, ...]) -> pd.DataFrame | None:
    select: Any = getattr(run, "select", None)
    try:
        if select is not None:
            frame: pd.DataFrame = select(name, wanted)
            return frame
        frame = run.table(name)
    except (StoreError, KeyError):
        return None
    return frame[[column for column in dict.fromkeys(wanted) if column in frame]]


def _shapes(run: RunLike) -> dict[str, tuple[int, int]]:
    info: Any = getattr(run, "info", None)
    modules = info.model.get("modules", {}) if info is not None else {}
    return {str(name): (int(shape[0]), int(shape[1])) for name, shape in modules.items() if len(shape) == 2}
