r"""Log-linear means of values that may be negative: quasi-likelihood, with intervals that hold under correlation in time.

The model is :math:`E\,y_i = m_i = \exp(x_i'\theta)` and :math:`\mathrm{Var}\,y_i \propto v_i = \varphi m_i^2 + s_i^2`: a part that is
relative to the mean, as for sizes whose noise scales with them, and a part that is there without any mean, as for unbiased
estimates of a squared length. The estimate solves :math:`\sum_i m_i (y_i - m_i) x_i / v_i = 0`; logarithms of y are never
taken, so that unbiased values stay unbiased. A wrong :math:`v` costs precision, not validity.

References
----------
R. W. M. Wedderburn, Quasi-likelihood functions, Biometrika 61 (1974) 439, doi:10.1093/biomet/61.3.439.
E. Lazarus, D. J. Lewis, J. H. Stock and M. W. Watson, HAR inference: recommendations for practice, Journal of Business &
Economic Statistics 36 (2018) 541, doi:10.1080/07350015.2018.1506926: equal-weighted cosine estimator, Student quantiles.
R. M. Bell and D. F. McCaffrey, Bias reduction in standard errors for linear regression, Survey Methodology 28 (2002) 169.
H. R. Kuensch, The jackknife and the bootstrap for general stationary observations, Annals of Statistics 17 (1989) 1217,
doi:10.1214/aos/1176347265.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from stablediag.errors import DataError, SpecError
from stablediag.stats.intervals import Interval

Floats = NDArray[np.float64]

# A step of the solver moves no log-mean by more than this: overshooting towards zero means cannot be undone.
_STRIDE = 2.0
_ROUNDS = 200
_SOLVED = 1e-8
#: log-means further than this from the mean of the data are a run towards zero, not a fit
_RANGE = 60.0


@dataclass(frozen=True, eq=False)
class LogLinear:
    """A fitted log-linear mean.

    Attributes
    ----------
    coef : ndarray, shape [p]
    design : ndarray, shape [n, p]
    fitted : ndarray, shape [n]
        Means m.
    spread : ndarray, shape [n]
        ``sqrt(v)``, the working standard deviation up to a factor.
    residuals : ndarray, shape [n]
        ``(y - m) / spread``.
    relative : float
        The factor phi of the working variance.
    noise : ndarray, shape [n]
        The part s of the working variance.
    place : ndarray, int64, shape [n]
        Position in time of every row, 0, 1, ...; rows of one position may be correlated in any way.
    waves : int or None
        Most cosines that the variance of a sum is taken from.
    """

    coef: Floats
    design: Floats
    fitted: Floats
    spread: Floats
    residuals: Floats
    relative: float
    noise: Floats
    place: NDArray[np.int64]
    waves: int | None = None

    @property
    def visible(self) -> bool:
        """Whether the mean of ``y / spread`` is positive beyond its error (one-sided, 1 %)."""
        scaled = self.residuals + self.fitted / self.spread
        sums = np.bincount(self.place, scaled)
        basis = _cosines(len(sums), self.waves)
        error = math.sqrt(float(np.square(basis @ (sums - sums.mean())).sum()))
        return float(sums.sum()) > float(stats.t.ppf(0.99, len(basis))) * error

    def contrast(self, direction: ArrayLike, *, level: float = 0.95) -> Interval:
        """A linear combination of the coefficients with its sandwich interval.

        The variance of the score is summed over its slow cosines, which holds under correlation over times short against
        the record; scale and degrees of freedom are those of independent rows (Bell and McCaffrey), without which the
        few rows that carry a slope in log t would make the interval too short.

        Parameters
        ----------
        direction : array-like, shape [p]
        level : float
            Coverage, in (0, 1).

        Returns
        -------
        Interval

        Raises
        ------
        SpecError
            `level` is not between 0 and 1.
        """
        c = _direction(direction, len(self.coef), level)
        value, se, dof = float(c @ self.coef), *self._error(c)
        return _student(value, len(self.fitted), se, dof, level)

    def bootstrap(
        self, direction: ArrayLike, *, level: float = 0.95, reps: int = 400, seed: int = 0, block: int | None = None
    ) -> Interval:
        """A linear combination of the coefficients with its moving-block bootstrap interval.

        Blocks of standardised residuals are put back around the fitted means; the interval is symmetric and studentised
        with the cosine estimator, recomputed in every replicate. It needs residuals of one law throughout, `contrast`
        does not.

        Parameters
        ----------
        direction : array-like, shape [p]
        level : float
            Coverage, in (0, 1).
        reps, seed : int
            Replicates, and their seed.
        block : int, optional
            Length of a block; ``1.25 n^(1/3)`` by default.

        Returns
        -------
        Interval

        Raises
        ------
        SpecError
            A level outside (0, 1), fewer than 20 replicates, a block that is not shorter than the record.
        DataError
            Several rows of one time: their blocks are not exchangeable; use `contrast`.
        """
        c, n = _direction(direction, len(self.coef), level), len(self.fitted)
        if reps < 20:
            raise SpecError(f"reps must be at least 20 replicates, not {reps}")
        if int(self.place.max()) + 1 != n:
            raise DataError("bootstrap: several rows of one time cannot be drawn in blocks: use contrast")
        size = block if block is not None else math.ceil(1.25 * n ** (1 / 3))
        if not 1 <= size < n:
            raise SpecError(f"block must be from 1 to {n - 1} rows of {n}, not {size}")
        rng = np.random.default_rng(seed)
        order = np.argsort(self.place)
        starts = rng.integers(0, n - size + 1, (reps, -(-n // size)))
        drawn = (starts[..., None] + np.arange(size)).reshape(reps, -1)[:, :n]
        residuals = np.empty((reps, n))
        residuals[:, order] = (self.residuals - self.residuals.mean())[order][drawn]
        y = self.fitted + self.spread * residuals
        coefs, solved = _solve(self.design, y, self.noise, self.relative, np.tile(self.coef, (reps, 1)), rounds=40)
        basis = _cosines(n, self.waves)[:, self.place]
        value = float(c @ self.coef)
        given = (self.fitted + self.spread * self.residuals)[None]
        se = float(_scores_error(self.design, given, self.noise, self.relative, self.coef[None], c, basis)[0])
        errors = _scores_error(self.design, y, self.noise, self.relative, coefs, c, basis)
        with np.errstate(invalid="ignore", divide="ignore"):
            roots = np.abs(coefs @ c - value) / errors
        # What could not be fitted counts as infinitely far away.
        roots = np.where(solved & np.isfinite(roots), roots, np.inf)
        half = float(np.quantile(roots, level, method="higher")) * se
        return Interval(value, n, se, value - half, value + half)

    def _error(self, c: Floats) -> tuple[float, float]:
        """Standard error and degrees of freedom of one combination."""
        scaled = self.design * (self.fitted / self.spread)[:, None]
        inverse = np.linalg.inv(scaled.T @ scaled)
        g = scaled @ (inverse @ c)
        basis = _cosines(int(self.place.max()) + 1, self.waves)[:, self.place] * g
        left = basis - (basis @ scaled) @ inverse @ scaled.T
        gram = left @ left.T
        trace = float(np.trace(gram))
        variance = float(np.square(basis @ self.residuals).sum()) * float(g @ g) / trace
        return math.sqrt(variance), trace**2 / float(np.square(gram).sum())


def time_mean(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """Mean of a series with an interval that holds under correlation in time: cosine estimator, Student quantiles.

    Parameters
    ----------
    values : array-like, shape [n]
        In the order of time.
    level : float
        Coverage, in (0, 1).

    Returns
    -------
    Interval

    Raises
    ------
    DataError
        Fewer than eight values, or one that is not finite.
    SpecError
        `level` is not between 0 and 1.
    """
    y = np.asarray(values, np.float64)
    if y.ndim != 1 or len(y) < 8:
        raise DataError(f"a mean over time needs a list of 8 values or more, got shape {list(y.shape)}")
    _finite("values", y)
    if not 0 < level < 1:
        raise SpecError(f"level must lie between 0 and 1, not {level:g}")
    basis, value = _cosines(len(y)), float(y.mean())
    se = float(np.linalg.norm(basis @ (y - value))) / len(y)
    return _student(value, len(y), se, len(basis), level)


def log_linear(
    design: ArrayLike,
    y: ArrayLike,
    *,
    noise: ArrayLike = 0.0,
    relative: float = 1.0,
    place: ArrayLike | None = None,
    waves: int | None = None,
) -> LogLinear | None:
    """Fit a log-linear mean.

    Parameters
    ----------
    design : array-like, shape [n, p]
        Rows x; the first column must be ones.
    y : array-like, shape [n]
        Values, in the order of time; negative ones are welcome.
    noise : array-like, shape [] or [n]
        Standard deviation s that y keeps at a mean of zero.
    relative : float
        Factor phi of the squared mean in the working variance; with 0, `noise` must be positive.
    place : array-like of int, shape [n], optional
        Position in time of every row; the row's number by default.
    waves : int, optional
        Most cosines that the variance of a sum is taken from: few where values are correlated over much of the record.

    Returns
    -------
    LogLinear or None
        None when no positive mean fits: the values show nothing above their noise.

    Raises
    ------
    DataError
        Fewer than p + 6 positions in time, shapes that do not fit, values that are not finite, no variance at all.
    """
    x, values = np.asarray(design, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or values.shape != x.shape[:1]:
        raise DataError(f"design [n, p] and values [n] do not fit: {list(x.shape)} and {list(values.shape)}")
    n, p = x.shape
    s = np.broadcast_to(np.asarray(noise, np.float64), (n,)).copy()
    where = np.arange(n) if place is None else np.unique(np.asarray(place), return_inverse=True)[1]
    _finite("design", x)
    _finite("values", values)
    _finite("noise", s)
    times = len(np.unique(where))
    if times < p + 6:
        raise DataError(f"a log-linear mean of {p} coefficients needs at least {p + 6} points in time, got {times}")
    if relative < 0 or (s < 0).any() or (relative == 0 and (s == 0).any()):
        raise DataError("the working variance must be positive: give a positive noise or a positive relative part")
    level = float(values.mean())
    if level <= 0 and not s.any():
        return None
    # Ties of scale are taken out, so that units never matter to the solver.
    unit = level if level > 0 else float(np.abs(values).mean())
    if unit == 0:
        return None
    scaled = (values / unit)[None]
    coefs, solved = _solve(x, scaled, s / unit, relative, _smooth_start(x, scaled[0], where)[None])
    if not solved[0]:
        coefs, solved = _solve(x, scaled, s / unit, relative, np.zeros((1, p)))
    if not solved[0]:
        return None
    theta = coefs[0].copy()
    theta[0] += math.log(unit)
    fitted = np.exp(x @ theta)
    spread = np.sqrt(relative * fitted**2 + s**2)
    return LogLinear(theta, x, fitted, spread, (values - fitted) / spread, relative, s, where.astype(np.int64), waves)


def _solve(
    x: Floats, y: Floats, s: Floats, relative: float, start: Floats, *, rounds: int = _ROUNDS
) -> tuple[Floats, NDArray[np.bool_]]:
    """Fisher scoring of all rows of y [r, n] at once: coefficients [r, p], and whether each is a solution."""
    p = x.shape[1]
    theta, ridge = start.copy(), 1e-12 * np.eye(p)
    outer = _outer(x)
    moved = np.full(len(y), np.inf)
    for _ in range(rounds):
        pull, information = _terms(x, outer, y, s, relative, theta)
        scale = np.trace(information, axis1=1, axis2=2)[:, None, None]
        step = np.linalg.solve(information + scale * ridge + 1e-300 * np.eye(p), (pull @ x)[..., None])[..., 0]
        moved = np.abs(step @ x.T).max(axis=1)
        theta = theta + step / np.maximum(moved / _STRIDE, 1.0)[:, None]
        if moved.max() < _SOLVED:
            break
    drift = np.abs((theta - start) @ x.T).max(axis=1)
    return theta, (moved < 1e-3) & (drift < _RANGE) & np.isfinite(theta).all(axis=1)


def _smooth_start(x: Floats, y: Floats, place: NDArray[np.int64]) -> Floats:
    """Least squares on the logarithms of means over eighths of the record: rough, but in the right valley."""
    eighth = place * 8 // (int(place.max()) + 1)
    centres = np.stack([x[eighth == e].mean(axis=0) for e in np.unique(eighth)])
    means = np.array([y[eighth == e].mean() for e in np.unique(eighth)])
    kept = means > 0
    if int(kept.sum()) <= x.shape[1]:
        return np.zeros(x.shape[1])
    found: Floats = np.linalg.lstsq(centres[kept], np.log(means[kept]), rcond=None)[0]
    return found


def _scores_error(x: Floats, y: Floats, s: Floats, relative: float, theta: Floats, c: Floats, basis: Floats) -> Floats:
    """Standard errors [r] of the combination c by the cosine estimator, without corrections for the sample's size."""
    pull, information = _terms(x, _outer(x), y, s, relative, theta)
    g = np.linalg.solve(information, np.broadcast_to(c, theta.shape)[..., None])[..., 0] @ x.T
    found: Floats = np.sqrt(np.square((g * pull) @ basis.T).sum(axis=1))
    return found


def _outer(x: Floats) -> Floats:
    """Outer product of every row with itself, [n, p * p]."""
    found: Floats = (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    return found


def _terms(x: Floats, outer: Floats, y: Floats, s: Floats, relative: float, theta: Floats) -> tuple[Floats, Floats]:
    """What every value adds to the score, [r, n], before it is multiplied with its row; information [r, p, p]."""
    m = np.exp(np.clip(theta @ x.T, -_RANGE * 5, _RANGE * 5))
    v = relative * m**2 + s**2
    p = x.shape[1]
    return m * (y - m) / v, ((m**2 / v) @ outer).reshape(-1, p, p)


def _student(value: float, n: int, se: float, dof: float, level: float) -> Interval:
    """Student's interval."""
    half = float(stats.t.ppf(0.5 + level / 2, dof)) * se
    return Interval(value, n, se, value - half, value + half)


def _cosines(n: int, most: int | None = None) -> Floats:
    """Rows that turn scores [n] into roots of the variance of their sum: [b, n], b = 0.4 n^(2/3) or `most`, at least 4."""
    count = max(4, min(int(0.4 * n ** (2 / 3)), n if most is None else most))
    waves = np.cos(np.pi * np.arange(1, count + 1)[:, None] * (np.arange(n) + 0.5) / n)
    found: Floats = math.sqrt(2 / count) * waves
    return found


def _direction(direction: ArrayLike, p: int, level: float) -> Floats:
    c = np.asarray(direction, np.float64)
    if c.shape != (p,):
        raise SpecError(f"direction must have {p} entries, one a coefficient, got {list(c.shape)}")
    if not 0 < level < 1:
        raise SpecError(f"level must lie between 0 and 1, not {level:g}")
    return c


def _finite(name: str, values: Floats) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise DataError(f"{name}{bad[0].tolist()} is {values[tuple(bad[0])]}, not a finite number: leave that row out")
