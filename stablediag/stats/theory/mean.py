r"""Error of the running mean: exact, worst case, and the published bound.

Batch t brings n rows with mean :math:`\mu_t` and covariance :math:`\Sigma_t`; the estimate moves by
:math:`m_t = (1 - x_t) m_{t-1} + x_t \bar v_t` with :math:`x_t = n / \kappa_t`, :math:`\kappa_t = \rho \kappa_{t-1} + n`.
Its error splits into a lag :math:`b_t = E m_t - \mu_t`, which only the drift :math:`d_t = \mu_t - \mu_{t-1}` feeds, and a
variance, which only the noise feeds:

.. math:: b_t = (1 - x_t)(b_{t-1} - d_t), \qquad V_t = (1 - x_t)^2 V_{t-1} + x_t^2 \Sigma_t / n, \qquad
          E\|m_t - \mu_t\|^2 = \|b_t\|^2 + \mathrm{tr} V_t .

This is an equality for every distribution of the rows and every direction of the drift (derived here); the published
bound replaces the vector sum in :math:`b_t` by sizes and :math:`(1 - x)^2` on the noise by :math:`1 - x`.

Time arrays hold step t at index t - 1. Squared errors have the squared unit of the rows; R stands for
:math:`\mathrm{tr}\Sigma / n`, the noise of one batch mean.

References
----------
StableEdit, arXiv:2605.11836, Theorems 3.2 and 3.5 and Remark D.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from stablediag.stats.theory._checks import Floats, count, finite, fraction, nonnegative, positive, series


@dataclass(frozen=True)
class MSE:
    """Mean squared error of a running mean, step by step; float64 arrays [..., T].

    Attributes
    ----------
    total : ndarray
        After the step, ``lag2 + variance``.
    lag2 : ndarray
        Squared length of the lag.
    variance : ndarray
        Trace of the covariance of the estimate.
    prediction : ndarray
        Before the step: squared error of m_{t-1} as an estimate of mu_t. NaN at the first step when there is no estimate.
    """

    total: Floats
    lag2: Floats
    variance: Floats
    prediction: Floats


def gains(steps: int, *, n: float, kappa0: float = 0.0, forget: float = 1.0) -> Floats:
    """Weight of each batch in the estimate that it updates: ``x_t = n / kappa_t``.

    Parameters
    ----------
    steps : int
        Number T of steps.
    n : float
        Rows a batch.
    kappa0 : float
        Prior strength, in rows; a warm-up of r batches leaves ``r n``.
    forget : float
        rho in (0, 1]: ``kappa_t = rho kappa_{t-1} + n``. Below one the gain tends to ``1 - rho``.

    Returns
    -------
    ndarray, float64, shape [T]

    Raises
    ------
    ValueError
        steps or n below one, negative kappa0, forget outside (0, 1].
    """
    count("steps", steps)
    kappa, rows, rho = float(nonnegative("kappa0", kappa0)), float(count("n", n)), float(fraction("forget", forget))
    out = np.empty(steps)
    for t in range(steps):
        kappa = rho * kappa + rows
        out[t] = rows / kappa
    return out


def _choose_gains(given: ArrayLike | None, steps: int, n: float, kappa0: float, forget: float) -> Floats:
    if given is None:
        return gains(steps, n=n, kappa0=kappa0, forget=forget)
    if kappa0 != 0.0 or forget != 1.0:
        raise ValueError("gains: give either gains or kappa0 and forget, not both")
    x = fraction("gains", given)
    if x.shape != (steps,):
        raise ValueError(f"gains: must have shape [{steps}], one a step, got {list(x.shape)}")
    return x


def _drift_array(drift: ArrayLike) -> Floats:
    x = finite("drift", drift)
    if x.ndim < 2 or x.shape[-2] == 0:
        raise ValueError(f"drift: must have shape [..., T, d] with at least one step, got {list(x.shape)}")
    return x


def _variance(traces: Floats, x: Floats, n: float, v0: float) -> Floats:
    out, v = np.empty(traces.shape), np.full(traces.shape[:-1], v0)
    for t, g in enumerate(x):
        v = (1 - g) ** 2 * v + g**2 * traces[..., t] / n
        out[..., t] = v
    return out


def lag(drift: ArrayLike, gains: ArrayLike, *, b0: ArrayLike | None = None) -> Floats:
    """Mean error vector of the estimate, ``b_t = (1 - x_t)(b_{t-1} - d_t)``.

    Parameters
    ----------
    drift : array-like, shape [..., T, d]
        ``d_t = mu_t - mu_{t-1}``; d_1 matters only if the first gain is below one.
    gains : array-like, shape [T]
        In (0, 1].
    b0 : array-like, shape [..., d], optional
        Error of the starting estimate, zero by default.

    Returns
    -------
    ndarray, float64, shape [..., T, d]

    Raises
    ------
    ValueError
        Shapes that do not fit, or a gain outside (0, 1].
    """
    d = _drift_array(drift)
    x = _choose_gains(gains, d.shape[-2], 1, 0.0, 1.0)
    b = np.zeros(d.shape[-1]) if b0 is None else finite("b0", b0)
    out = np.empty(d.shape)
    for t, g in enumerate(x):
        b = (1 - g) * (b - d[..., t, :])
        out[..., t, :] = b
    return out


def exact_mse(
    drift: ArrayLike,
    traces: ArrayLike,
    *,
    n: float,
    gains: ArrayLike | None = None,
    kappa0: float = 0.0,
    forget: float = 1.0,
    b0: ArrayLike | None = None,
    v0: float = 0.0,
    pool: float | None = None,
) -> MSE:
    r"""Mean squared error of the running mean, an equality for every law of independent rows (derived here).

    Unrolled from a cold start with equal batches: :math:`b_t = -\frac1t \sum_s (s-1) d_s` and
    :math:`\mathrm{tr} V_t = \sum_s \mathrm{tr}\Sigma_s / (n t^2)`.

    Parameters
    ----------
    drift : array-like, shape [..., T, d]
        ``d_t = mu_t - mu_{t-1}``.
    traces : array-like, shape [..., T]
        Trace of the covariance of one row at each step.
    n : float
        Rows a batch.
    gains : array-like, shape [T], optional
        Gains in (0, 1], in place of `kappa0` and `forget`.
    kappa0, forget : float, float
        As in `gains`.
    b0 : array-like, shape [..., d], optional
        Mean error of the starting estimate, zero by default.
    v0 : float
        Trace of the covariance of the starting estimate.
    pool : float, optional
        The rows are drawn without replacement from a pool of that many rows: the variance is multiplied by
        ``1 - N_t / pool``, exact when `traces` has the pool's covariance with divisor ``pool - 1``. For frozen moments
        and plain pooling only.

    Returns
    -------
    MSE
        Arrays broadcast over the leading dimensions of `drift` and `traces`.

    Raises
    ------
    ValueError
        Shapes that do not fit, a gain outside (0, 1], a negative trace or variance, a pool that is too small or goes with
        drift, a prior or forgetting.

    Notes
    -----
    For a drift that is random and independent of the noise, average `lag2` over it. Correlated rows break the equality:
    an intraclass correlation rho multiplies the batch noise by ``1 + (n - 1) rho``.
    """
    steps = _drift_array(drift)
    total = steps.shape[-2]
    noise = series("traces", traces, total)
    x = _choose_gains(gains, total, float(count("n", n)), kappa0, forget)
    start = np.zeros(steps.shape[-1]) if b0 is None else finite("b0", b0)
    first = float(nonnegative("v0", v0))
    b, variance = lag(steps, x, b0=start), _variance(noise, x, n, first)
    if pool is not None:
        if gains is not None or kappa0 or forget != 1.0 or v0 or np.any(steps) or np.any(np.ptp(noise, axis=-1)):
            raise ValueError("pool: needs frozen moments and plain pooling (no drift, no prior, no forgetting)")
        if not pool >= n * total:
            raise ValueError(f"pool: must hold at least the {n * total:g} rows of the stream, got {pool:g}")
        variance = variance * (1 - n * np.arange(1, total + 1) / pool)
    lag2 = np.square(b).sum(axis=-1)
    b_before = np.concatenate([np.broadcast_to(start, b[..., :1, :].shape), b[..., :-1, :]], axis=-2)
    v_before = np.concatenate([np.full(variance[..., :1].shape, first), variance[..., :-1]], axis=-1)
    prediction = np.square(b_before - steps).sum(axis=-1) + v_before
    if b0 is None and x[0] == 1.0:
        prediction[..., 0] = np.nan
    return MSE(total=lag2 + variance, lag2=lag2, variance=variance, prediction=prediction)


def worst_mse(
    sizes: ArrayLike, traces: ArrayLike, *, n: float, kappa0: float = 0.0, b0: float = 0.0, v0: float = 0.0
) -> Floats:
    r"""Largest mean squared error that drifts of given sizes can cause; attained by aligned drift (derived here).

    :math:`\left[(\kappa_0 \|b_0\| + \sum_{j \le t} \kappa_{j-1} \varepsilon_j) / \kappa_t\right]^2 + \mathrm{tr} V_t`.

    Parameters
    ----------
    sizes : array-like, shape [..., T]
        Bounds :math:`\varepsilon_t` of ``|d_t|``.
    traces : array-like, shape [..., T]
        Trace of the covariance of one row.
    n, kappa0 : float, float
        Rows a batch and prior strength in rows.
    b0, v0 : float, float
        Length of the starting lag, and trace of the starting covariance.

    Returns
    -------
    ndarray, float64, shape [..., T]

    Raises
    ------
    ValueError
        Negative values, or different numbers of steps.
    """
    eps = series("sizes", sizes)
    noise = series("traces", traces, eps.shape[-1])
    x = gains(eps.shape[-1], n=n, kappa0=kappa0)
    aligned = lag(-eps[..., None], x, b0=nonnegative("b0", b0).reshape(1))[..., 0]
    return aligned**2 + _variance(noise, x, n, float(nonnegative("v0", v0)))


def paper_mse(sizes: ArrayLike, *, d: int, lmax: float, n: float, kappa0: float = 0.0, e0: float = 0.0) -> Floats:
    r"""Bound of StableEdit Theorem 3.5, as a recursion.

    :math:`E_t \le (1-x)^2 (1+x) E_{t-1} + (1-x)^2 (1 + 1/x) \varepsilon_t^2 + x^2 d \lambda_{\max} / n`: Young's
    inequality with parameter :math:`x = n / \kappa_t` on the product of old error and drift, the choice that gives the
    published contraction :math:`\kappa_{t-1} / \kappa_t`.

    Parameters
    ----------
    sizes : array-like, shape [..., T]
        Bounds of ``|d_t|``.
    d : int
        Dimension.
    lmax : float
        Bound of the eigenvalues of every covariance.
    n, kappa0 : float, float
        Rows a batch and prior strength in rows.
    e0 : float
        Mean squared error of the starting estimate.

    Returns
    -------
    ndarray, float64, shape [..., T]

    Raises
    ------
    ValueError
        Negative sizes or e0, lmax not positive, d or n below one.
    """
    eps = series("sizes", sizes)
    noise = count("d", d) * positive("lmax", lmax) / count("n", n)
    e, out = np.full(eps.shape[:-1], nonnegative("e0", e0)), np.empty(eps.shape)
    for t, x in enumerate(gains(eps.shape[-1], n=n, kappa0=kappa0)):
        e = (1 - x) ** 2 * ((1 + x) * e + (1 + 1 / x) * eps[..., t] ** 2) + x**2 * noise
        out[..., t] = e
    return out


def paper_mse_closed(
    sizes: ArrayLike, *, d: int, lmax: float, n: float, kappa0: float = 0.0, e0: float = 0.0
) -> Floats:
    r"""Bound of StableEdit Theorem 3.5, unrolled (a little above `paper_mse`).

    With :math:`\kappa = \kappa_0 + k n`: :math:`\frac{\kappa_0}{\kappa} E_0 + \frac{d \lambda_{\max}}{\kappa}
    \ln(1 + kn/\kappa_0) + \frac{1}{n \kappa} \sum_{j \le k} \kappa_j^2 \varepsilon_j^2`. From a cold start the logarithm is
    :math:`1 + \ln k` and the sum starts at j = 2. Parameters, result and errors as `paper_mse`.
    """
    eps = series("sizes", sizes)
    noise, start = count("d", d) * positive("lmax", lmax), nonnegative("kappa0", kappa0) * nonnegative("e0", e0)
    k = np.arange(1, eps.shape[-1] + 1)
    kappa = kappa0 + count("n", n) * k
    log = 1 + np.log(k) if kappa0 == 0 else np.log1p(n * k / kappa0)
    drift = kappa**2 * eps**2 / n
    if kappa0 == 0:
        drift[..., 0] = 0.0
    return (start + noise * log + np.cumsum(drift, axis=-1)) / kappa
