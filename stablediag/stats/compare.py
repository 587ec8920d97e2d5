"""Means over seeds with intervals, and differences between two arms that shared their seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean with a two-sided interval; `low` and `high` are NaN where `n` is 1.

    Attributes
    ----------
    mean, low, high : float
    n : int
        Number of independent units (seeds), never the number of steps or of modules.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    def excludes(self, value: float) -> bool:
        """Whether the interval exists and `value` lies outside it."""
        return not math.isnan(self.low) and not self.low <= value <= self.high

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{_short(self.mean)} (n = {self.n}, no interval)"
        return f"{_short(self.mean)} [{_short(self.low)}, {_short(self.high)}] (n = {self.n})"


def _short(value: float) -> str:
    """Three digits; rounding errors of a difference of equal numbers are zero."""
    return f"{0.0 if abs(value) < 1e-12 else value:.3g}"


def t_interval(values: Iterable[float], *, level: float = 0.95) -> Interval:
    """Student-t interval of the mean of independent values.

    Parameters
    ----------
    values : iterable of float
        One per seed; NaN values are left out.
    level : float
        Coverage for Gaussian values.

    Returns
    -------
    Interval
        NaN throughout when nothing is left.
    """
    known = np.asarray([value for value in values if not math.isnan(value)], dtype=np.float64)
    n = len(known)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(known.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1) * known.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def summary(frame: pd.DataFrame, *, value: str, by: Sequence[str], level: float = 0.95) -> pd.DataFrame:
    """Mean and interval of `value` within each group, one row per seed being the unit.

    Parameters
    ----------
    frame : DataFrame
        One row per group and seed.
    value : str
        Column to be averaged.
    by : sequence of str
        Grouping columns; groups keep the order in which they first appear.

    Returns
    -------
    DataFrame
        Columns `by`, mean, low, high, n.
    """
    rows = []
    for key, group in frame.groupby(list(by), sort=False, dropna=False):
        interval = t_interval(group[value].astype(float), level=level)
        named = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
        rows.append({**named, "mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n})
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "n"])


def paired(
    frame: pd.DataFrame, *, value: str, arm: str, first: str, second: str, unit: str = "seed", level: float = 0.95
) -> Interval:
    """Interval of ``first - second`` over the units that both arms have.

    Pairing by seed takes out what the two arms share: the stream, its order, and the unedited model.

    Parameters
    ----------
    frame : DataFrame
        One row per arm and unit.
    value, arm, unit : str
        Columns: what is compared, the arms' labels, and what pairs them.
    first, second : str
        Labels of the two arms.

    Raises
    ------
    ValueError
        An arm has two rows for one unit.
    """
    pairs = frame[frame[arm].isin([first, second])].pivot(index=unit, columns=arm, values=value)
    if first not in pairs or second not in pairs:
        return t_interval([], level=level)
    return t_interval((pairs[first] - pairs[second]).dropna().astype(float), level=level)


def ratio(
    frame: pd.DataFrame, *, value: str, arm: str, first: str, second: str, unit: str = "seed", level: float = 0.95
) -> Interval:
    """Geometric-mean ratio ``first / second`` over common units, with the interval of the mean log-ratio."""
    logged = frame.assign(**{value: np.log(frame[value].astype(float).where(frame[value] > 0))})
    found = paired(logged, value=value, arm=arm, first=first, second=second, unit=unit, level=level)
    return Interval(math.exp(found.mean), math.exp(found.low), math.exp(found.high), found.n)
