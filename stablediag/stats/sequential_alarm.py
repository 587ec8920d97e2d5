r"""One alarm from five detectors, at one level for the whole run.

======== ====================================================== ============================= ======================
share    detector                                               what it notices               test
======== ====================================================== ============================= ======================
1/4      ``innovations``: sign of a step's innovation along     a mean that keeps moving one  `SignBet`, limit 4/level
         the direction of the recent ones                       way: raise the gain
1/4      ``updates``: sign of the inner product of adjacent     updates that add up           `SignBet`, limit 4/level
         updates
1/4      ``tracking``: squared innovation over its expectation  a mean that the tracked one   `cusum_limit`
                                                                does not follow
1/8      ``growth``: logarithm of a step's gradient variance    gradients that grow           `cusum_limit`
1/8      ``shrinkage``: the same, downwards                     gradients that shrink: the    `cusum_limit`
                                                                tracked scale is stale
======== ====================================================== ============================= ======================

The shares add up to 1, so that the union bound holds whatever the dependence between the detectors. Streams (scopes of
statistics, modules) are joined by the mean of their wealths, and share the level of a cumulative sum equally.

The last two watch the whitened-norm index in its scalar form: the variance within a step, about the step's own mean, is
independent of the earlier steps, while the index itself shares its covariance with all of them.

What is assumed without a cause for alarm: batches that are independent with one law, whose mean over edits is symmetric (or
normal) about its centre, so that the innovations of a running mean are independent and symmetric; updates whose sign is
a fair coin given their size and the past. Updates are so under Lifelong Normalization without signal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from stablediag.stats.sequential import Floats, Recursive, SignBet, cusum_limit, cusum_step

Verdict = Literal["quiet", "warning", "alarm"]
#: verdicts as numbers, in rising order
VERDICTS: tuple[Verdict, ...] = ("quiet", "warning", "alarm")
#: detector -> its share of the level
SHARES: Mapping[str, float] = {
    "innovations": 0.25,
    "updates": 0.25,
    "tracking": 0.25,
    "growth": 0.125,
    "shrinkage": 0.125,
}

#: change of the gradient variance, as a logarithm, that is no cause for alarm: a factor of 1.25
LOG_TOLERANCE = 0.2231


@dataclass(frozen=True, eq=False)
class ScopeWatch:
    """What is known of one statistic (a module's, or one that several share); broadcasts over replicates.

    Attributes
    ----------
    innovations : SignBet
    tracking, growth, shrinkage : ndarray, shape [...]
        Cumulative sums.
    scale : Recursive
        Law of the logarithm of the gradient variance so far.
    """

    innovations: SignBet
    tracking: Floats
    scale: Recursive
    growth: Floats
    shrinkage: Floats

    @classmethod
    def empty(cls, shape: tuple[int, ...] = ()) -> ScopeWatch:
        """Before the first step."""
        zero = np.zeros(shape)
        return cls(SignBet.empty(shape), zero, Recursive.empty(shape), zero, zero)

    def step(
        self, *, projection: ArrayLike, excess: ArrayLike, log_variance: ArrayLike, tolerance: float = LOG_TOLERANCE
    ) -> ScopeWatch:
        """Take one step.

        Parameters
        ----------
        projection : array-like, shape [...]
            Inner product of the step's innovation with a direction that the past chose; any positive scale.
        excess : array-like, shape [...]
            `excess_score` of the squared innovation.
        log_variance : array-like, shape [...]
            Logarithm of the trace of the step's own gradient covariance.
        tolerance : float
            Change of `log_variance` that is forgiven.

        NaN in any of them: that detector waits.
        """
        scale, up, down = self.scale.step(log_variance, tolerance=tolerance)
        return ScopeWatch(
            self.innovations.step(projection),
            cusum_step(self.tracking, excess),
            scale,
            cusum_step(self.growth, up),
            cusum_step(self.shrinkage, down),
        )


def evidence(scopes: Sequence[ScopeWatch], updates: Sequence[SignBet]) -> dict[str, Floats]:
    """Value of every detector that has a stream: the mean wealth (as a logarithm), the largest cumulative sum.

    Parameters
    ----------
    scopes : sequence of ScopeWatch
        All statistics of the run, those without a step yet included.
    updates : sequence of SignBet
        On the adjacent inner products, one bettor for each edited module of the run.

    Returns
    -------
    dict of str to ndarray, shape [...]
    """
    found: dict[str, Floats] = {}
    if scopes:
        found["innovations"] = _mean_wealth([scope.innovations for scope in scopes])
    if updates:
        found["updates"] = _mean_wealth(updates)
    for name in ("tracking", "growth", "shrinkage") if scopes else ():
        found[name] = np.max([getattr(scope, name) for scope in scopes], axis=0)
    return found


def limits(level: float, *, horizon: int, streams: int) -> dict[str, float]:
    """What `evidence` exceeds with probability at most `level` in all, in a run without a cause.

    Parameters
    ----------
    level : float
        In (0, 1).
    horizon : int
        Steps of the run; the bets need none.
    streams : int
        Number of statistics.

    Returns
    -------
    dict of str to float

    Raises
    ------
    ValueError
        As `cusum_limit`.
    """
    bets = ("innovations", "updates")
    return {
        name: -float(np.log(level * share))
        if name in bets
        else cusum_limit(level * share, horizon=horizon, streams=streams)
        for name, share in SHARES.items()
    }


@dataclass(frozen=True)
class Decision:
    """What a step's evidence says.

    Attributes
    ----------
    verdict : {"quiet", "warning", "alarm"}
    which : tuple of str
        Detectors above the limit of the verdict, the furthest above it first; empty when it is quiet.
    """

    verdict: Verdict
    which: tuple[str, ...]


def decide(values: Mapping[str, ArrayLike], *, alarm: Mapping[str, float], warning: Mapping[str, float]) -> Decision:
    """The verdict of one run at one step.

    Parameters
    ----------
    values : mapping of str to number
        `evidence` of a single run.
    alarm, warning : mapping of str to float
        `limits` at the two levels.

    Returns
    -------
    Decision
    """
    for verdict, bounds in (("alarm", alarm), ("warning", warning)):
        over = {name: float(np.asarray(value)) / bounds[name] for name, value in values.items()}
        which = sorted((name for name, ratio in over.items() if ratio >= 1), key=lambda name: -over[name])
        if which:
            return Decision("alarm" if verdict == "alarm" else "warning", tuple(which))
    return Decision("quiet", ())


def _mean_wealth(bettors: Sequence[SignBet]) -> Floats:
    total = np.logaddexp.reduce([bettor.log_e for bettor in bettors], axis=0)
    return np.asarray(total - np.log(len(bettors)), np.float64)
