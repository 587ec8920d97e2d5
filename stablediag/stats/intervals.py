"""Means and other statistics of independent records, with standard errors and intervals that are honest at the ends.

`compare` has the intervals over seeds. Here the units are records, and most values lie in [0, 1]: a mean of exactly 0
or 1 has an interval too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from stablediag.errors import DataError, SpecError

#: rounding of float32 means that may overstep a bound
_SLACK = 1e-5


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic of n records with its standard error and a two-sided interval; never NaN.

    Attributes
    ----------
    value : float
    n : int
        Number of records.
    se : float
        Standard error over records. Of a single record: half the width of the bounds, infinite without them.
    low, high : float
        Limits of the interval, infinite where the records say nothing.
    """

    value: float
    n: int
    se: float
    low: float
    high: float


def mean_interval(
    values: ArrayLike, *, level: float = 0.95, bounds: tuple[float, float] | None = (0.0, 1.0)
) -> Interval:
    """Mean of independent values with an interval.

    Parameters
    ----------
    values : array_like, shape [n]
        One per record.
    level : float
        Coverage, in (0, 1).
    bounds : (float, float), optional
        Smallest and largest possible value; either may be infinite, None: both are.

    Returns
    -------
    Interval
        Between finite bounds: the score interval of a mean whose variance is ``f m (1 - m)``, where `f` is the observed
        variance over the largest possible one, with one record added at either bound. For values that are all 0 or 1,
        `f` is 1 and this is Wilson's interval; it has a positive width whatever the values are. Otherwise: Student's
        interval, cut at the bounds. An infinite value makes the mean infinite.

    Raises
    ------
    DataError
        No values, a value that is not a number, or one outside the bounds.
    SpecError
        `level` is not between 0 and 1.

    References
    ----------
    Wilson, Journal of the American Statistical Association 22 (1927) 209, doi:10.1080/01621459.1927.10502953.
    """
    known = np.asarray(values, np.float64).ravel()
    _check(known, level)
    bottom, top = bounds if bounds is not None else (-math.inf, math.inf)
    slack = _SLACK * (top - bottom if math.isfinite(top - bottom) else 1.0)
    if known.min() < bottom - slack or known.max() > top + slack:
        outside = known[(known < bottom - slack) | (known > top + slack)][0]
        raise DataError(f"value {outside:g} lies outside the bounds [{bottom:g}, {top:g}]: give the right bounds")
    known, n = known.clip(bottom, top), len(known)
    mean = float(known.mean())
    if not math.isfinite(mean):
        return Interval(mean, n, math.inf, bottom, top)
    width = top - bottom
    se = float(known.std(ddof=1)) / math.sqrt(n) if n > 1 else width / 2
    if math.isfinite(width):
        low, high = _score_limits((known - bottom) / width, level)
        return Interval(mean, n, se, bottom + width * low, bottom + width * high)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * se if n > 1 else math.inf
    return Interval(mean, n, se, max(bottom, mean - half), min(top, mean + half))


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    samples: ArrayLike | Sequence[ArrayLike],
    *,
    reps: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Any statistic of independent records with the percentile interval of its bootstrap.

    Parameters
    ----------
    statistic : callable
        From samples, shape [n, ...], to a number; NaN where a resample leaves it undefined, which is then left out.
    samples : array_like, shape [n, ...]
        One entry per record.
    reps, seed : int
        Number of resamples, and their seed.
    level : float
        Coverage, in (0, 1).

    Returns
    -------
    Interval
        It has no width where every resample gives the same: n must be large enough to hold what can happen. A single
        record has no finite interval.

    Raises
    ------
    DataError
        No samples, or the statistic of all of them is not a number.
    SpecError
        `level` is not between 0 and 1, or `reps` is not positive.

    References
    ----------
    Efron, Annals of Statistics 7 (1979) 1, doi:10.1214/aos/1176344552.
    """
    given = np.asarray(samples)
    n = len(given)
    if reps < 1:
        raise SpecError(f"reps must be a positive number of resamples, not {reps}")
    if not n:
        raise DataError("there are no records to take a statistic of: leave it out")
    value = float(statistic(given))
    _check(np.array([value]), level)
    if n == 1:
        return Interval(value, 1, math.inf, -math.inf, math.inf)
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(given[rng.integers(0, n, n)]) for _ in range(reps)], np.float64)
    return resampled_interval(value, n, drawn, lambda known: np.quantile(known, [0.5 - level / 2, 0.5 + level / 2]))


def resampled_interval(
    value: float,
    n: int,
    drawn: np.ndarray,
    limits: Callable[[np.ndarray], Sequence[float] | np.ndarray],
    *,
    least: int = 2,
) -> Interval:
    """A statistic of n records with limits from its resamples.

    Parameters
    ----------
    value : float
    n : int
        Number of records.
    drawn : ndarray, shape [r]
        The statistic of each resample; NaN where it is undefined, which is left out.
    limits : callable
        From the others to the two limits.
    least : int
        Fewest resamples that say anything; with fewer the limits are infinite.

    Returns
    -------
    Interval
    """
    known = drawn[~np.isnan(drawn)]
    if len(known) < least:
        return Interval(value, n, math.inf, -math.inf, math.inf)
    low, high = limits(known)
    return Interval(value, n, float(known.std(ddof=1)), float(low), float(high))


def _check(values: np.ndarray, level: float) -> None:
    if not 0 < level < 1:
        raise SpecError(f"level must lie between 0 and 1, not {level:g}")
    if not len(values):
        raise DataError("there are no values to take the mean of: leave the metric out")
    if np.isnan(values).any():
        raise DataError(f"value {int(np.isnan(values).argmax())} is not a number: leave the record out")


def _score_limits(values: np.ndarray, level: float) -> tuple[float, float]:
    """Limits of the mean of values in [0, 1]: the `m` with ``(mean - m)**2 <= z**2 f m (1 - m) / n``."""
    n, mean = len(values), float(values.mean())
    padded = np.concatenate([values, [0.0, 1.0]])
    centre = float(padded.mean())
    factor = min(1.0, float(padded.var()) / (centre * (1 - centre)))
    # Shares that are all 0 or 1 have their variance from their mean; of other values it is estimated.
    binary = factor > 1 - 1e-9
    z = float(stats.norm.ppf(0.5 + level / 2) if binary else stats.t.ppf(0.5 + level / 2, n + 1))
    a = z * z * factor / n
    middle = (mean + a / 2) / (1 + a)
    half = math.sqrt(a * mean * (1 - mean) + a * a / 4) / (1 + a)
    return max(0.0, min(mean, middle - half)), min(1.0, max(mean, middle + half))
