r"""Are the edits that are lost those that later updates disturbed most?

Of all edits that worked at first, some are lost by the end. Interference is what later updates did at the keys of an edit,
e.g. :math:`\sum_t |k_i \Delta W_t|^2`, any unit. Three answers to the same question: the odds of being lost per doubling of the
interference (logistic), the probability that a lost edit had more of it than a kept one (ranks), and the rank correlation
with how much success was lost. Interference grows with age, and age may harm in other ways: the comparison *within* a
stretch of the stream, between edits that all the later updates had in common, is the one that speaks for interference.

References
----------
D. Firth, Bias reduction of maximum likelihood estimates, Biometrika 80 (1993) 27, doi:10.1093/biomet/80.1.27: finite slopes
where interference separates lost from kept.
J. A. Hanley and B. J. McNeil, The meaning and use of the area under a ROC curve, Radiology 143 (1982) 29,
doi:10.1148/radiology.143.1.7063747.
P. H. van Elteren, On the combination of independent two sample tests of Wilcoxon, Bulletin of the ISI 37 (1960) 351: strata.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from stablediag.errors import DataError, SpecError
from stablediag.stats.intervals import Interval, mean_interval, resampled_interval

Floats = NDArray[np.float64]

#: lost and kept edits, or clusters, below which resamples say nothing about the spread
_LEAST = 5
_ROUNDS = 30
#: log-odds per doubling and standard deviation beyond which nothing is told apart any more
_FAR = 30.0
#: numbers held at a time by a batch of resamples
_HELD = 2_000_000


@dataclass(frozen=True)
class Forgetting:
    """Loss of edits against interference; limits are infinite where fewer than five edits are lost, or kept.

    Attributes
    ----------
    n, lost : int
        Edits that worked at first, and those of them that do not any more.
    share : Interval
        Share of lost edits.
    odds : Interval
        Factor of the odds of being lost per doubling of the interference; 1: no association.
    odds_aged : Interval or None
        The same at equal age (linear in the log-odds); None without ages, or when all are equal.
    auc : Interval
        Probability that a lost edit had more interference than a kept one; 0.5: no association.
    auc_within : Interval or None
        The same for pairs of one stratum; None without strata, or without such pairs.
    rank : Interval or None
        Spearman's correlation of interference and drop; None without drops, or where either does not vary.
    clusters : int
        Independent units that were resampled.
    """

    n: int
    lost: int
    share: Interval
    odds: Interval
    odds_aged: Interval | None
    auc: Interval
    auc_within: Interval | None
    rank: Interval | None
    clusters: int


def forgetting(
    interference: ArrayLike,
    lost: ArrayLike,
    *,
    drop: ArrayLike | None = None,
    age: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    reps: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Forgetting:
    """Association of loss with interference.

    Parameters
    ----------
    interference : array-like, shape [n]
        Nonnegative, one an edit that worked at first. Zeros count as half of the smallest positive value.
    lost : array-like of bool, shape [n]
    drop : array-like, shape [n], optional
        Success at first less success at the end.
    age : array-like, shape [n], optional
        Steps since the edit was written, or its step: only differences matter.
    strata : array-like, shape [n], optional
        Edits that are compared with each other, such as those written at the same step.
    clusters : array-like, shape [n], optional
        Edits of one cluster are not independent and are resampled together; every edit is its own by default.
    reps, seed : int
        Number of resamples, and their seed.
    level : float
        Coverage, in (0, 1).

    Returns
    -------
    Forgetting
        Limits are from the bootstrap over edits (or clusters), the run and its updates being given: symmetric on the scale
        of the log-odds, the logit and the inverse hyperbolic tangent. Where every lost edit had more interference (or
        less) than every kept one, resamples say nothing; that limit is the one of disjoint pairs.

    Raises
    ------
    DataError
        No edits, shapes that do not fit, values that are not finite, interference that is negative or all the same.
    SpecError
        A level outside (0, 1), or fewer than 100 resamples.

    Notes
    -----
    Shares of 600 intervals at 95 % that held the truth, for 60 and 200 edits, 12 to 35 % of them lost, and 1 to 7 times the
    odds per doubling: odds and ranks .94 to .97; quantiles of the same resamples held .92 to .95. None of the
    answers is causal; an edit that was hard to write may be both easy to disturb and easy to lose.
    """
    if not 0 < level < 1:
        raise SpecError(f"level must lie between 0 and 1, not {level:g}")
    if reps < 100:
        raise SpecError(f"reps must be at least 100 resamples, not {reps}")
    energy = _numbers("interference", interference, None)
    n = len(energy)
    gone = _numbers("lost", lost, n)
    if not n:
        raise DataError("forgetting: there are no edits that worked at first")
    if energy.min() < 0 or energy.max() == energy.min() or not np.isin(gone, (0, 1)).all():
        raise DataError(
            "forgetting: interference must be nonnegative and differ between edits, and lost be true or false"
        )
    x = np.log2(np.maximum(energy, energy[energy > 0].min() / 2))
    units = _codes("clusters", clusters, n) if clusters is not None else np.arange(n)
    enough = min(gone.sum(), n - gone.sum(), units.max() + 1) >= _LEAST
    draw = _Draw(units, reps if enough else 0, seed, level)
    aged = within = rank = None
    if age is not None and np.ptp(years := _numbers("age", age, n)) > 0:
        aged = draw.interval(lambda w: _odds(x, gone, years, w), _LOG)
    if strata is not None:
        within = draw.ranked(x, gone, _codes("strata", strata, n))
    if drop is not None and np.ptp(fall := _numbers("drop", drop, n)) > 0:
        rank = draw.interval(lambda w: _spearman(x, fall, w), _CORRELATION)
    return Forgetting(
        n,
        int(gone.sum()),
        mean_interval(gone, level=level),
        draw.interval(lambda w: _odds(x, gone, None, w), _LOG),
        aged,
        draw.ranked(x, gone, np.zeros(n, np.int64)),
        within if within is not None and math.isfinite(within.value) else None,
        rank,
        int(units.max()) + 1,
    )


def forgetting_curve(interference: ArrayLike, lost: ArrayLike, *, bins: int = 5, level: float = 0.95) -> pd.DataFrame:
    """Share of lost edits in classes of interference that hold about as many edits each.

    Parameters
    ----------
    interference, lost : array-like, shape [n]
        As in `forgetting`.
    bins : int
        Number of classes; ties may leave fewer.
    level : float
        Coverage, in (0, 1).

    Returns
    -------
    DataFrame
        Columns low, high (limits of the class, both held), median, n, share, share_low, share_high.

    Raises
    ------
    DataError
        As in `forgetting`.
    SpecError
        Fewer than two classes, or a level outside (0, 1).
    """
    if bins < 2:
        raise SpecError(f"bins must be at least 2 classes, not {bins}")
    x = _numbers("interference", interference, None)
    gone = _numbers("lost", lost, len(x))
    if not len(x):
        raise DataError("forgetting: there are no edits that worked at first")
    edges = np.quantile(x, np.linspace(0, 1, bins + 1)[1:-1])
    rows = []
    for number in np.unique(place := np.searchsorted(edges, x, side="left")):
        mine, share = x[place == number], mean_interval(gone[place == number], level=level)
        row = {"low": mine.min(), "high": mine.max(), "median": float(np.median(mine)), "n": len(mine)}
        rows.append({**row, "share": share.value, "share_low": share.low, "share_high": share.high})
    return pd.DataFrame(rows)


def _numbers(name: str, values: ArrayLike, n: int | None) -> Floats:
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or (n is not None and len(found) != n):
        raise DataError(f"forgetting: {name} has shape {list(found.shape)}, not one value an edit")
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        raise DataError(f"forgetting: {name} of edit {bad[0]} is not finite: leave the edit out")
    return found


def _codes(name: str, labels: ArrayLike, n: int) -> NDArray[np.int64]:
    found = np.asarray(labels)
    if found.shape != (n,):
        raise DataError(f"forgetting: {name} has shape {list(found.shape)}, not one label an edit")
    return np.unique(found, return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class _Scale:
    """Where a statistic is about normal, and back; `edge` is how near to its ends it is told from them."""

    onto: Callable[[Floats], Floats]
    back: Callable[[float], float]
    bottom: float = -math.inf
    top: float = math.inf
    edge: float = 1e-12

    def __call__(self, values: Floats) -> Floats:
        return self.onto(np.clip(values, self.bottom + self.edge, self.top - self.edge))


_LOG = _Scale(np.log, math.exp, bottom=0.0, edge=1e-300)
_CORRELATION = _Scale(np.arctanh, math.tanh, -1.0, 1.0)


@dataclass(frozen=True)
class _Draw:
    """Resamples of the units, as weights of the edits, and limits from what they give."""

    units: NDArray[np.int64]
    reps: int
    seed: int
    level: float

    def interval(self, statistic: Callable[[Floats], Floats], scale: _Scale) -> Interval:
        """From weights [r, n] to values [r]; the same resamples at every call."""
        n = len(self.units)
        value = statistic(np.ones((1, n)))
        rng, count = np.random.default_rng(self.seed), int(self.units.max()) + 1
        found = []
        batch = max(1, _HELD // n)
        for first in range(0, self.reps, batch):
            size = min(batch, self.reps - first)
            drawn = rng.multinomial(count, np.full(count, 1 / count), size=size)
            found.append(statistic(drawn[:, self.units].astype(np.float64)))
        values = np.concatenate(found) if found else np.empty(0)

        def limits(known: Floats) -> tuple[float, float]:
            centre = float(scale(value)[0])
            half = float(stats.norm.ppf(0.5 + self.level / 2)) * float(scale(known).std(ddof=1))
            return scale.back(centre - half), scale.back(centre + half)

        return resampled_interval(float(value[0]), n, values, limits, least=max(-(-self.reps // 2), 2))

    def ranked(self, x: Floats, gone: Floats, strata: NDArray[np.int64]) -> Interval:
        """Probability that of a lost and a kept edit of a stratum the lost one has the larger x."""
        lost, kept = np.bincount(strata, gone), np.bincount(strata, 1 - gone)
        pairs, apart = float(lost @ kept), float(np.minimum(lost, kept).sum())
        half = 0.5 / max(pairs, 1.0)
        logit = _Scale(lambda p: np.log(p / (1 - p)), lambda u: 1 / (1 + math.exp(-u)), 0.0, 1.0, half)
        found = self.interval(lambda w: _auc(x, gone, strata, w), logit)
        if not math.isfinite(found.se) or half < found.value < 1 - half:
            return found
        # Disjoint pairs are independent: a probability p gives them all with chance p ** apart.
        least = (0.5 - self.level / 2) ** (1 / apart)
        low, high = (least, 1.0) if found.value > 0.5 else (0.0, 1 - least)
        return Interval(found.value, found.n, found.se, low, high)


def _odds(x: Floats, gone: Floats, age: Floats | None, weights: Floats) -> Floats:
    """Odds ratio [r] a doubling, by Firth's logistic regression with weights [r, n]."""
    scales = [float(x.std())]
    columns = [np.ones_like(x), (x - x.mean()) / scales[0]]
    if age is not None:
        columns.append((age - age.mean()) / age.std())
    design = np.column_stack(columns)
    p = design.shape[1]
    outer = (design[:, :, None] * design[:, None, :]).reshape(-1, p * p)
    theta, ridge = np.zeros((len(weights), p)), 1e-9 * np.eye(p)
    for _ in range(_ROUNDS):
        share = 1 / (1 + np.exp(-np.clip(theta @ design.T, -_FAR, _FAR)))
        spread = share * (1 - share)
        information = ((weights * spread) @ outer).reshape(-1, p, p)
        inverse = np.linalg.inv(information + np.trace(information, axis1=1, axis2=2)[:, None, None] * ridge)
        leverage = spread * (inverse.reshape(-1, p * p) @ outer.T)
        score = (weights * (gone - share + leverage * (0.5 - share))) @ design
        step = (inverse @ score[..., None])[..., 0]
        largest = np.abs(step).max(axis=1, keepdims=True)
        theta = np.clip(theta + step / np.maximum(largest, 1.0), -_FAR, _FAR)
        if largest.max() < 1e-8:
            break
    one_sided = np.isin(weights @ gone, (0.0,)) | np.isin(weights @ (1 - gone), (0.0,))
    found: Floats = np.where(one_sided, np.nan, np.exp(theta[:, 1] / scales[0]))
    return found


def _auc(x: Floats, gone: Floats, strata: NDArray[np.int64], weights: Floats) -> Floats:
    """Probability [r] that a lost edit has the larger x, of pairs within strata; equal ones count half."""
    order = np.lexsort((x, strata))
    values, codes, flag, w = x[order], strata[order], gone[order], weights[:, order]
    lost, kept = w * flag, w * (1 - flag)
    ties = np.flatnonzero(np.r_[True, (np.diff(values) != 0) | (np.diff(codes) != 0)])
    lost_here, kept_here = np.add.reduceat(lost, ties, axis=1), np.add.reduceat(kept, ties, axis=1)
    starts = np.flatnonzero(np.r_[True, np.diff(codes[ties]) != 0])
    lengths = np.diff(np.r_[starts, len(ties)])
    below = np.cumsum(kept_here, axis=1) - kept_here
    below -= np.repeat(below[:, starts], lengths, axis=1)
    won = (lost_here * (below + kept_here / 2)).sum(axis=1)
    pairs = (np.add.reduceat(lost_here, starts, axis=1) * np.add.reduceat(kept_here, starts, axis=1)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        found: Floats = won / pairs
    return found


def _spearman(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Correlation [r] of weighted mid-ranks."""
    a, b = (_midranks(values, weights) for values in (x, y))
    total = weights.sum(axis=1, keepdims=True)
    a = a - (weights * a).sum(axis=1, keepdims=True) / total
    b = b - (weights * b).sum(axis=1, keepdims=True) / total
    with np.errstate(invalid="ignore"):
        found: Floats = (weights * a * b).sum(axis=1) / np.sqrt(
            (weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1)
        )
    return found


def _midranks(values: Floats, weights: Floats) -> Floats:
    dense = stats.rankdata(values, method="dense") - 1
    order = np.argsort(dense, kind="stable")
    sums = np.add.reduceat(weights[:, order], np.flatnonzero(np.r_[True, np.diff(dense[order]) != 0]), axis=1)
    ranks: Floats = (np.cumsum(sums, axis=1) - sums / 2)[:, dense]
    return ranks
