r"""How fast the stream's moments drift, and how coherently: exponents, variogram, threshold, trackable horizon.

Sizes of drift :math:`\|\mu_t - \mu_{t-1}\| = C t^{-\alpha}` follow from paired probes; how the steps add up follows from the
variogram :math:`\gamma(t, k) = \|\mu_t - \mu_{t-k}\|^2`, which grows as :math:`k^2` for steps of one direction (ballistic), as k for
independent directions (diffusive), and not at all where the mean keeps coming back (stationary). With
:math:`\gamma(t, k) = A k^p t^{-2\alpha}` plain averaging tracks the mean if and only if :math:`\alpha > p/2`, and at :math:`\alpha = 0`
its squared lag is :math:`A t^p / (p + 2)`, equal to the noise R/t at the horizon

.. math:: t^* = \left(\frac{(p + 2) R}{A}\right)^{1/(p+1)}

(derived here; at p = 2, 1 the laws of `stablediag.stats.theory.tracking`).

References
----------
StableEdit, arXiv:2605.11836, Assumption 3.4: alpha > 1 and beta > 1, the threshold of ballistic drift.
G. Matheron, Principles of geostatistics, Economic Geology 58 (1963) 1246, doi:10.2113/gsecongeo.58.8.1246: the variogram.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from stablediag.errors import DataError, SpecError
from stablediag.stats.intervals import Interval
from stablediag.stats.quasi import LogLinear, log_linear

Floats = NDArray[np.float64]
Kind = Literal["ballistic", "diffusive", "stationary", "unclear"]
Verdict = Literal["yes", "no", "unknown"]

#: of the variogram, averaged over consecutive steps: enough for the fit, and a long record costs no more than a short one
_BINS = 192
#: fewest points of a power law
_LEAST = 8
#: slope of the variogram below which the law of the horizon has no meaning
_LEAST_SLOPE = -0.5


@dataclass(frozen=True, eq=False)
class PowerLaw:
    r"""Sizes :math:`C t^{-\alpha}`, from values whose mean is a power of them.

    Attributes
    ----------
    exponent : Interval
        :math:`\alpha`, positive when the sizes decay.
    size : Interval
        Size at the last step, in the unit of the value's root.
    power : float
        Power of the size that the values estimate.
    visible : bool
        Whether there is anything above the noise; an invisible drift has an interval, but no meaning.
    fit : LogLinear
    """

    exponent: Interval
    size: Interval
    power: float
    visible: bool
    fit: LogLinear

    def at(self, steps: ArrayLike) -> Floats:
        """Fitted sizes at given steps."""
        log_t = np.log(np.asarray(steps, np.float64))
        found: Floats = np.exp((self.fit.coef[0] + self.fit.coef[1] * log_t) / self.power)
        return found


def power_law(
    steps: ArrayLike,
    values: ArrayLike,
    *,
    power: float = 2.0,
    noise: ArrayLike = 0.0,
    method: Literal["sandwich", "bootstrap"] = "sandwich",
    level: float = 0.95,
    reps: int = 400,
    seed: int = 0,
) -> PowerLaw | None:
    r"""Exponent of a drift from unbiased estimates of a power of its size.

    Quasi-likelihood of :math:`E\,Y_t = (C t^{-\alpha})^{power}` with variance :math:`m_t^2 + s^2`. :math:`Y_t` may be negative.

    Parameters
    ----------
    steps : array-like, shape [n]
        Steps t >= 1, ascending.
    values : array-like, shape [n]
        For mean drift: the U-statistic of paired probes, power 2. For covariance drift: norms of the change, power 1.
    power : float
        Power of the size that the values estimate.
    noise : array-like, shape [] or [n]
        Standard deviation of the values where nothing drifts; 0 for paired probes, whose noise shrinks with the drift.
    method : {"sandwich", "bootstrap"}
        Interval of the exponent: cosine sandwich, or studentised moving-block bootstrap.
    level, reps, seed : float, int, int
        Coverage; replicates of the bootstrap and their seed.

    Returns
    -------
    PowerLaw or None
        None when no positive mean fits, not even to means of neighbouring values.

    Raises
    ------
    DataError
        Fewer than 8 steps, steps that do not ascend from 1 or more, values that are not finite.
    SpecError
        A power that is not positive, an unknown method, a level outside (0, 1).
    """
    t = np.asarray(steps, np.float64)
    if t.ndim != 1 or t.size == 0 or t[0] < 1 or (np.diff(t) <= 0).any():
        raise DataError("steps must ascend from 1 or more, one a value: sort the rows and count from 1")
    if not power > 0:
        raise SpecError(f"power must be positive, not {power:g}")
    if method not in ("sandwich", "bootstrap"):
        raise SpecError(f'method must be "sandwich" or "bootstrap", not {method!r}')
    y, s = np.asarray(values, np.float64), np.broadcast_to(np.asarray(noise, np.float64), t.shape)
    log_t = np.log(t)
    fit = log_linear(np.column_stack([np.ones_like(t), log_t]), y, noise=s)
    while fit is None and len(y) >= 2 * _LEAST:
        # A single negative value at an early step can leave no solution; its mean with a neighbour often does not.
        log_t, y, s = _pairs(log_t), _pairs(y), np.sqrt(_pairs(s**2) / 2)
        fit = log_linear(np.column_stack([np.ones_like(y), log_t]), y, noise=s)
    if fit is None:
        return None
    direction = [0.0, -1 / power]
    if method == "sandwich":
        exponent = fit.contrast(direction, level=level)
    else:
        exponent = fit.bootstrap(direction, level=level, reps=reps, seed=seed)
    size = _exponential(fit.contrast([1 / power, math.log(t[-1]) / power], level=level))
    return PowerLaw(exponent, size, power, fit.visible, fit)


@dataclass(frozen=True, eq=False)
class Coherence:
    r"""How the steps of a drift add up: :math:`\gamma(t, k) = A k^p t^{-2\alpha}`.

    Attributes
    ----------
    slope : Interval
        p: 2 ballistic, 1 diffusive, 0 stationary.
    exponent : Interval
        :math:`\alpha`, jointly with p.
    margin : Interval
        :math:`\alpha - p/2`: above 0, plain averaging tracks.
    step : Interval
        Size of one step at the end of the record, as the law has it.
    kind : str
        By the whole interval of p: above 1.5 ballistic, within 0.5 and 1.5 diffusive, below 0.5 stationary, else unclear.
    visible : bool
        Whether there is anything above the noise.
    last : int
        Last step of the record.
    fit : LogLinear
        On 1, log k and the logarithm of the middle of the lag.
    """

    slope: Interval
    exponent: Interval
    margin: Interval
    step: Interval
    kind: Kind
    visible: bool
    last: int
    fit: LogLinear

    @property
    def threshold(self) -> float:
        """Drift exponent above which plain averaging tracks, p/2 with p kept within 0 and 2."""
        return min(max(self.slope.value, 0.0), 2.0) / 2

    @property
    def tracks(self) -> Verdict:
        """Whether plain averaging tracks this drift, by the interval of the margin; unknown of what is not visible.

        "no" means that the lag does not vanish; of a mean that keeps coming back it does not grow, either.
        """
        if not self.visible or self.margin.low <= 0 <= self.margin.high:
            return "unknown"
        return "yes" if self.margin.low > 0 else "no"

    def horizon(self, R: float, *, level: float = 0.95) -> Interval:
        """Steps after which more rows make the mean worse, if the drift keeps its size of the end of the record.

        Parameters
        ----------
        R : float
            Noise of one batch mean, trace / n, in the squared unit of the rows.
        level : float
            Coverage.

        Returns
        -------
        Interval
            In steps; its standard error by the delta method on the logarithm. The slope p enters as it was estimated, also
            above 2: A was estimated with it, and goes with no other.

        Raises
        ------
        SpecError
            R is not positive.
        """
        if not (math.isfinite(R) and R > 0):
            raise SpecError(f"R, the noise of one batch mean, must be positive and finite, not {R:g}")
        p = max(self.slope.value, _LEAST_SLOPE)
        at_end = np.array([1.0, 0.0, math.log(self.last)])
        value = (math.log((p + 2) * R) - float(at_end @ self.fit.coef)) / (p + 1)
        gradient = -at_end / (p + 1)
        gradient[1] = 1 / ((p + 2) * (p + 1)) - value / (p + 1)
        half = self.fit.contrast(gradient, level=level)
        shift = value - half.value
        moved = Interval(value, half.n, half.se, half.low + shift, half.high + shift)
        return _exponential(moved)


def coherence(
    variogram: pd.DataFrame, *, noise: float | None = None, level: float = 0.95, bins: int = _BINS
) -> Coherence | None:
    """Coherence and exponent of a drift from the variogram of its batch means.

    Lags above a third of their step are left out: the law holds for lags short against the age of the stream.

    Parameters
    ----------
    variogram : DataFrame
        Columns step, lag, value: unbiased estimates of the squared distance of the means at ``step - lag`` and ``step``.
    noise : float, optional
        Standard deviation of a value where nothing drifts (`variogram_noise`); from the differences of neighbouring
        values at the smallest lag by default.
    level : float
        Coverage.
    bins : int
        Values of one lag are averaged within so many stretches of time.

    Returns
    -------
    Coherence or None
        None when no positive mean fits: no drift is seen.

    Raises
    ------
    DataError
        Fewer than two lags or nine stretches of time, values that are not finite.

    Notes
    -----
    Of 4,000 intervals at 95 % each, for records of 200 steps with lags up to 64, ballistic and diffusive drifts that do not
    decay or decay slowly: the slope was held in 93.2 to 96.0 %, the exponent in 94.6 to 96.1, the margin in 94.5 to 96.3, the
    step in 95.1 to 96.2, the horizon in 95.2 to 96.1 (each to within 0.9, Clopper and Pearson).
    """
    missing = [name for name in ("step", "lag", "value") if name not in variogram]
    if missing:
        raise DataError(f"the variogram lacks {', '.join(missing)}: give columns step, lag, value")
    frame = variogram[(variogram["lag"] * 3 <= variogram["step"]) & (variogram["lag"] > 0)]
    if frame["lag"].nunique() < 2:
        raise DataError("the variogram needs two lags or more of at most a third of their step: record more steps")
    s = noise if noise is not None else _own_noise(frame)
    binned = _binned(frame, bins)
    design = np.column_stack([np.ones(len(binned)), np.log(binned["lag"]), binned["log_mid"]])
    sd = s / np.sqrt(binned["count"].to_numpy(np.float64))
    last = int(frame["step"].max())
    # Values of a lag have as many steps in common as it is long: no wave may be faster.
    waves = int(2 * last / frame["lag"].max())
    fit = log_linear(
        design, binned["value"].to_numpy(np.float64), noise=sd, place=binned["bin"].to_numpy(), waves=waves
    )
    if fit is None:
        return None
    slope = fit.contrast([0, 1, 0], level=level)
    return Coherence(
        slope=slope,
        exponent=fit.contrast([0, 0, -0.5], level=level),
        margin=fit.contrast([0, -0.5, -0.5], level=level),
        step=_exponential(fit.contrast([0.5, 0, 0.5 * math.log(last)], level=level)),
        kind=_kind(slope),
        visible=fit.visible,
        last=last,
        fit=fit,
    )


def variogram_noise(R: float, effective_rank: float) -> float:
    r"""Standard deviation of a variogram's value where nothing drifts: :math:`R \sqrt{8 / d_{eff}}` (derived here).

    Parameters
    ----------
    R : float
        Noise of one batch mean, trace / n.
    effective_rank : float
        :math:`d_{eff} = (\mathrm{tr}\Sigma)^2 / \mathrm{tr}\Sigma^2`.

    Returns
    -------
    float

    Raises
    ------
    SpecError
        A value that is not positive and finite.

    Notes
    -----
    To leading order in 1/n: the difference of two batch means has covariance :math:`2\Sigma/n`.
    """
    for name, value in (("R", R), ("effective_rank", effective_rank)):
        if not (math.isfinite(value) and value > 0):
            raise SpecError(f"{name} must be positive and finite, not {value:g}")
    return R * math.sqrt(8 / effective_rank)


def _pairs(x: Floats) -> Floats:
    """Means of neighbours; the first of an odd number is left out."""
    found: Floats = x[len(x) % 2 :].reshape(-1, 2).mean(axis=1)
    return found


def _kind(slope: Interval) -> Kind:
    if slope.low > 1.5:
        return "ballistic"
    if slope.high < 0.5:
        return "stationary"
    return "diffusive" if slope.low > 0.5 and slope.high < 1.5 else "unclear"


def _exponential(log: Interval) -> Interval:
    """From the logarithm to the value; what overflows is infinite."""
    with np.errstate(over="ignore"):
        value, low, high = (float(np.exp(x)) for x in (log.value, log.low, log.high))
    return Interval(value, log.n, value * log.se, low, high)


def _own_noise(frame: pd.DataFrame) -> float:
    """Spread of neighbours at the smallest lag, robust against what drifts; they share a batch, so every second one."""
    shortest = frame[frame["lag"] == frame["lag"].min()].sort_values("step")["value"].to_numpy(np.float64)
    gaps = np.abs(np.diff(shortest[::2]))
    return float(np.median(gaps)) / (0.6745 * math.sqrt(2)) if len(gaps) else 0.0


def _binned(frame: pd.DataFrame, bins: int) -> pd.DataFrame:
    """Means over stretches of time that grow with the step: short against it, never shorter than a step."""
    step = frame["step"].to_numpy(np.int64)
    steps = np.unique(step)
    # The root keeps stretches a small share of their age, yet spends most of them late, where most of the data are.
    grown = np.sqrt((steps - steps[0]) / max(1, steps[-1] - steps[0]))
    place = np.minimum((grown * bins).astype(np.int64), bins - 1) if len(steps) > bins else np.arange(len(steps))
    middle = np.log(step - 0.5 * frame["lag"].to_numpy(np.float64))
    kept = frame.assign(bin=place[np.searchsorted(steps, step)], log_mid=middle)
    grouped = kept.groupby(["bin", "lag"], sort=True)
    found = grouped.agg(value=("value", "mean"), log_mid=("log_mid", "mean"), count=("value", "size"))
    return found.reset_index()
