r"""Sequential tests that may be looked at after every step: betting on signs, and cumulative sums.

Two kinds. A *bet on signs* needs nothing but symmetry: given the past and its own magnitude, every value is as likely
positive as negative. Its wealth is then a nonnegative martingale that starts at 1, so that

.. math:: P(\sup_t e_t \ge 1/\alpha) \le \alpha

for a stream of any length (Ville). A *cumulative sum* of standardised values notices small lasting excesses; over a stream of T
steps its false alarms are held at a level by the limit that `cusum_limit` reads from a simulated table.

All states are frozen and broadcast over leading dimensions, one entry a stream; NaN stands for a step without a value and
changes nothing. `stablediag.stats.sequential_alarm` joins them to one alarm.

References
----------
V. de la Pena, A general class of exponential inequalities for martingales and ratios, Annals of Probability 27, 1999,
doi:10.1214/aop/1022677271 (the wealth of one stake).
G. Shafer and V. Vovk, Game-theoretic foundations for probability and finance, 2019; J. Ville, 1939.
J. Shin, A. Ramdas and A. Rinaldo, E-detectors, 2022, arXiv:2203.03532 (the mixture over starting times).
E. S. Page, Continuous inspection schemes, Biometrika 41, 1954, doi:10.1093/biomet/41.1-2.100.
E. Paulson, An approximate normalization of the analysis of variance distribution, Annals of Mathematical Statistics 13, 1942,
doi:10.1214/aoms/1177731608.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]

#: shifts, in units of the values' root mean square, that the stakes are best against
STAKES = (0.3, 1.0, 3.0)
#: half of the wealth has been staked after this many values; later starts share the other half
PATIENCE = 32
#: memory of the root mean square, so that a stream whose values shrink is still bet on
SCALE_GAIN = 0.1
#: excess that a cumulative sum forgives at every step, and the largest one that it believes
ALLOWANCE = 0.5
CEILING = 4.0


@dataclass(frozen=True, eq=False)
class SignBet:
    r"""Wealth of a bettor on the signs of a stream, from stake 1.

    A stake :math:`\theta` multiplies its wealth by :math:`1 + \tanh(\theta \tilde x)`, with :math:`\tilde x` the value over the root mean
    square of the values so far, its own included: for a Gaussian shift this is the likelihood ratio of the sign given the
    magnitude. The fortune is spread over three stakes and over the times at which they start, so that a change late in
    the stream costs a logarithm, not the stream's whole past.

    Attributes
    ----------
    log_started : ndarray, shape [..., stakes]
        Logarithm of what has been staked, with its gains.
    square : ndarray, shape [...]
        Running mean square of the values.
    count : ndarray, shape [...]
        Values seen.
    """

    log_started: Floats
    square: Floats
    count: Floats

    @classmethod
    def empty(cls, shape: tuple[int, ...] = ()) -> SignBet:
        """A bettor before the first value, one for each stream of `shape`."""
        return cls(np.full((*shape, len(STAKES)), -np.inf), np.zeros(shape), np.zeros(shape))

    def step(self, value: ArrayLike) -> SignBet:
        """Bet on one value of every stream.

        Parameters
        ----------
        value : array-like, shape [...]
            NaN: no bet. Zero pays nothing.
        """
        x = np.asarray(value, np.float64)
        seen = np.isfinite(x)
        x = np.where(seen, x, 0.0)
        count = self.count + seen
        gain = np.maximum(SCALE_GAIN, 1 / np.maximum(count, 1))
        square = np.where(seen, self.square + gain * (x**2 - self.square), self.square)
        scaled = x / np.sqrt(np.where(square > 0, square, 1.0))
        # 1 + tanh(y) = 2 / (1 + exp(-2y)), which does not round to zero.
        won = np.log(2) - np.logaddexp(0.0, -2 * scaled[..., None] * np.asarray(STAKES))
        fresh = PATIENCE / ((PATIENCE + count - 1) * (PATIENCE + count))
        started = np.logaddexp(self.log_started, np.log(fresh)[..., None]) + won
        return SignBet(np.where(seen[..., None], started, self.log_started), square, count)

    @property
    def log_e(self) -> Floats:
        """Logarithm of the wealth, shape [...]: what has been staked, its gains, and what has not been."""
        kept = np.log(PATIENCE / (PATIENCE + self.count))
        started = np.logaddexp.reduce(self.log_started, axis=-1) - np.log(len(STAKES))
        return np.asarray(np.logaddexp(started, kept), np.float64)


def sign_bet(values: ArrayLike) -> Floats:
    """Logarithm of the wealth along whole streams: `SignBet` after each value.

    Parameters
    ----------
    values : array-like, shape [..., steps]

    Returns
    -------
    ndarray, float64, shape [..., steps]
    """
    x = np.asarray(values, np.float64)
    bettor, path = SignBet.empty(x.shape[:-1]), np.empty(x.shape)
    for t in range(x.shape[-1]):
        bettor = bettor.step(x[..., t])
        path[..., t] = bettor.log_e
    return path


def cusum_step(total: ArrayLike, value: ArrayLike) -> Floats:
    """The next cumulative sum ``max(0, total + min(value, CEILING) - ALLOWANCE)``; NaN leaves it as it is."""
    before, z = np.asarray(total, np.float64), np.asarray(value, np.float64)
    moved = np.maximum(0.0, before + np.minimum(z, CEILING) - ALLOWANCE)
    return np.where(np.isnan(z), before, moved)


def cusum(values: ArrayLike) -> Floats:
    """Cumulative sums of standardised values along whole streams.

    Parameters
    ----------
    values : array-like, shape [..., steps]

    Returns
    -------
    ndarray, float64, shape [..., steps]
    """
    z = np.asarray(values, np.float64)
    total, path = np.zeros(z.shape[:-1]), np.empty(z.shape)
    for t in range(z.shape[-1]):
        total = cusum_step(total, z[..., t])
        path[..., t] = total
    return path


#: (T / -log(1 - level), limit): simulated by reproduce/alarm_calibration.py, the worst of five spectra of the gradients
CUSUM_TABLE: tuple[tuple[float, float], ...] = (
    (100, 3.2),
    (300, 4.2),
    (1_000, 5.7),
    (3_000, 7.0),
    (10_000, 8.4),
    (30_000, 9.7),
    (100_000, 11.1),
    (300_000, 12.3),
)


def cusum_limit(level: float, *, horizon: int, streams: int = 1) -> float:
    r"""Limit that the largest cumulative sum of a stationary stream exceeds with probability at most `level`.

    Parameters
    ----------
    level : float
        Probability of a false alarm in the whole horizon and all streams together, in (0, 1).
    horizon : int
        Steps of the run.
    streams : int
        Cumulative sums that are watched at once; each gets an equal share of the level.

    Returns
    -------
    float
        Interpolated in the logarithm of :math:`T / -\log(1 - \alpha)`, extrapolated with the slope of the last two entries.

    Raises
    ------
    ValueError
        A level outside (0, 1), no steps or no streams.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: must lie between 0 and 1, got {level:g}")
    if horizon < 1 or streams < 1:
        raise ValueError(f"horizon, streams: must be at least 1, got {horizon} and {streams}")
    interval = np.log(horizon / -np.log1p(-level / streams))
    known, limits = np.log([row[0] for row in CUSUM_TABLE]), np.array([row[1] for row in CUSUM_TABLE])
    slope = (limits[-1] - limits[-2]) / (known[-1] - known[-2])
    beyond = max(0.0, interval - known[-1])
    return float(np.interp(interval, known, limits) + slope * beyond)


def excess_score(ratio: ArrayLike, *, d_eff: ArrayLike, n: ArrayLike) -> Floats:
    r"""Standard normal score of a squared innovation over its expectation.

    Without lag :math:`\|\bar v - m\|^2` over its expectation, estimated from the n units of the batch, is close to an F variable with
    :math:`d_{eff}` and :math:`d_{eff}(n-1)` degrees of freedom; its cube root is close to normal.

    Parameters
    ----------
    ratio : array-like, shape [...]
        Not negative; NaN gives NaN.
    d_eff : array-like
        Effective dimension :math:`(\mathrm{tr}\Sigma)^2 / \mathrm{tr}\Sigma^2` of a unit.
    n : array-like
        Independent units (edits) of the batch, at least 2.

    Returns
    -------
    ndarray, float64, shape [...]

    Notes
    -----
    Paulson (1942), eq. 1, with the degrees of freedom of Satterthwaite. Spectra with one large eigenvalue leave a right tail
    heavier than normal; the table behind `cusum_limit` contains them.
    """
    root, d, units = np.cbrt(np.asarray(ratio, np.float64)), np.asarray(d_eff, np.float64), np.asarray(n, np.float64)
    upper, lower = 2 / (9 * d), 2 / (9 * d * np.maximum(units - 1, 1))
    return np.asarray(((1 - lower) * root - (1 - upper)) / np.sqrt(lower * root**2 + upper), np.float64)


@dataclass(frozen=True, eq=False)
class Recursive:
    r"""Every value against the mean and the standard deviation of those before it, as a standard normal score.

    For independent normal values of one law the scores are independent and standard normal, from the third value on:
    :math:`(y_t - \bar y_{t-1}) / (s_{t-1} \sqrt{1 + 1/(t-1)})` is Student's t with t - 2 degrees of freedom and independent of what
    came before.

    Attributes
    ----------
    count, mean, scatter : ndarray, shape [...]
        Values seen, their mean, their sum of squared deviations.

    Notes
    -----
    R. L. Brown, J. Durbin and J. M. Evans, Techniques for testing the constancy of regression relationships over time, JRSS B 37,
    1975, doi:10.1111/j.2517-6161.1975.tb01532.x, section 2.
    """

    count: Floats
    mean: Floats
    scatter: Floats

    @classmethod
    def empty(cls, shape: tuple[int, ...] = ()) -> Recursive:
        """Nothing seen yet, for each stream of `shape`."""
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape))

    def step(self, value: ArrayLike, *, tolerance: float = 0.0) -> tuple[Recursive, Floats, Floats]:
        """Take one value of every stream.

        Parameters
        ----------
        value : array-like, shape [...]
            NaN: nothing was seen.
        tolerance : float
            Departure from the mean, in units of the values, that is forgiven in both directions.

        Returns
        -------
        Recursive
        up, down : ndarray, shape [...]
            Scores of the departure upwards and downwards, less the tolerance: opposite numbers when that is zero. NaN where
            fewer than two values, or equal ones, came before.
        """
        y = np.asarray(value, np.float64)
        seen = np.isfinite(y)
        y = np.where(seen, y, self.mean)
        count, off = self.count + seen, y - self.mean
        able = seen & (self.count >= 2) & (self.scatter > 0)
        df = np.where(able, self.count - 1, 1.0)
        spread = np.sqrt(np.where(able, self.scatter, 1.0) / df * (1 + 1 / np.maximum(self.count, 1)))
        up, down = (np.where(able, _normal((side - tolerance) / spread, df), np.nan) for side in (off, -off))
        mean = self.mean + off / np.maximum(count, 1)
        return Recursive(count, mean, self.scatter + off * (y - mean)), up, down


def _normal(student: Floats, df: Floats) -> Floats:
    """Normal score of Student's t; the tail beyond the value is the one that keeps its digits."""
    return np.asarray(-np.sign(student) * special.ndtri(special.stdtr(df, -np.abs(student))), np.float64)
