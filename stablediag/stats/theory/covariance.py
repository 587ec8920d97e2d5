r"""Error of the running covariance: expectation, a bound that goes to zero, and the published one with its floor.

From a flat prior the NIW recursion is pooled statistics: with N rows so far,
:math:`\hat\Sigma_t = [\epsilon_0 I + \sum_i (v_i - m_t)(v_i - m_t)'] / (N - d - 1)`. The published bound adds each step's noise
in absolute value, which leaves a floor that no number of steps lowers. Bounding the pooled sum at once does not:

.. math:: E\|\hat\Sigma_t - \Sigma_t\| \le \frac{1}{N-d-1} \Big\{ N \|\Lambda\| w
          + 2\sqrt N \big[\sqrt{\|\Lambda\|\,\mathrm{tr} B_t} + \sqrt{\mathrm{tr}\Lambda\,\|B_t\|}\big]
          + \|\epsilon_0 I + (N-1)(\bar\Sigma_t - \Sigma_t) + N B_t + d \Sigma_t\| \Big\}

for Gaussian rows (derived here), where :math:`\bar\Sigma_t` is the time average of the covariances, :math:`B_t` the scatter of
the batch means, :math:`\Lambda` a matrix above every covariance and w its relative noise (`W_gordon`, `W_chevet`).

Norms of matrices are spectral. Time arrays hold step t at index t - 1.

References
----------
StableEdit, arXiv:2605.11836, Theorem 3.6 and Remark D.5.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from stablediag.stats.theory._checks import (
    Floats,
    below,
    count,
    finite,
    nonnegative,
    positive,
    rows_for_inverse,
    series,
    square,
)


def paper_C1(d: int) -> float:
    r"""Constant C1 of Theorem 3.6 for Gaussian rows: ``2 + 4.77 / sqrt(d)`` (derived here, from `W_gordon`).

    The noise of one batch is at most :math:`\lambda_{\max} C_1 (\sqrt{d/n} + d/n)`; the leading 2 cannot be lowered. Raises
    ValueError for d < 6, where the constant is too small.
    """
    if not d >= 6:
        raise ValueError(f"d: must be at least 6 for this constant, got {d:g}; give C1 or noise")
    return float(2 + 4.77 / np.sqrt(d))


def _batch_noise(d: int, n: float, C1: float | None, noise: float | None) -> float:
    if noise is not None:
        if C1 is not None:
            raise ValueError("noise: give either noise or C1, not both")
        return float(nonnegative("noise", noise))
    y = np.sqrt(count("d", d) / count("n", n))
    return float((paper_C1(d) if C1 is None else nonnegative("C1", C1)) * (y + y**2))


def paper_floor(
    *, d: int, n: float, lmax: float = 1.0, C1: float | None = None, C2: float = 1.0, noise: float | None = None
) -> float:
    r"""Part of the bound of Theorem 3.6 that no number of steps removes.

    :math:`\lambda_{\max} [C_1 (\sqrt{d/n} + d/n) + (C_2 + 1) d/n]`; the estimate zero has error :math:`\lambda_{\max}`.

    Parameters
    ----------
    d : int
        Dimension.
    n : float
        Rows a batch.
    lmax : float
        Bound of the eigenvalues of every covariance.
    C1 : float, optional
        Default `paper_C1`.
    C2 : float
        One for Gaussian rows, from :math:`E\|\bar w\|^2 = d/n`.
    noise : float, optional
        In place of :math:`C_1 (\sqrt{d/n} + d/n)`: relative noise of one batch, say ``W_sharp(d, n)``. A measured
        noise of the centred scatter already holds what C2 stands for, and goes with C2 = 0.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        A negative constant, d or n below one, lmax not positive, both C1 and noise.
    """
    batch = _batch_noise(d, n, C1, noise)
    return float(positive("lmax", lmax)) * (batch + (float(nonnegative("C2", C2)) + 1) * d / float(count("n", n)))


def _inputs(sizes: ArrayLike, cov_steps: ArrayLike, mse_before: ArrayLike) -> tuple[Floats, Floats, Floats]:
    eps = series("sizes", sizes)
    moved, mse = (series(name, x, eps.shape[-1]) for name, x in (("cov_steps", cov_steps), ("mse_before", mse_before)))
    a, b, c = np.broadcast_arrays(eps, moved, mse)
    return a, b, c


def paper_cov(
    sizes: ArrayLike,
    cov_steps: ArrayLike,
    mse_before: ArrayLike,
    *,
    F0: float,
    nu0: float,
    d: int,
    n: float,
    lmax: float,
    kappa0: float | None = None,
    C1: float | None = None,
    C2: float = 1.0,
    noise: float | None = None,
) -> Floats:
    r"""Bound of StableEdit Theorem 3.6 on the expected spectral error, as a recursion.

    With :math:`D_t = \nu_t - d - 1`: :math:`D_t F_t \le D_{t-1} (F_{t-1} + \varepsilon^\Sigma_t) + n \lambda_{\max}
    [C_1 (\sqrt{d/n} + d/n) + C_2 d/n] + \frac{\kappa_{t-1} n}{\kappa_t} [d \lambda_{\max}/n + 2\varepsilon_t^2 + 2 E_{t-1}]`.

    Parameters
    ----------
    sizes : array-like, shape [..., T]
        Bounds of ``|mu_t - mu_{t-1}|``.
    cov_steps : array-like, shape [..., T]
        Bounds of ``|Sigma_t - Sigma_{t-1}|``.
    mse_before : array-like, shape [..., T]
        Mean squared error of the running mean before each step, :math:`E_{t-1}`.
    F0 : float
        Expected spectral error of the starting estimate.
    nu0 : float
        Rows behind it, more than d + 1: earlier the weights are negative and nothing is bounded.
    d, n, lmax : int, float, float
        Dimension, rows a batch, bound of the eigenvalues.
    kappa0 : float, optional
        Rows behind the starting mean, `nu0` by default.
    C1, C2, noise : float, float, float
        As in `paper_floor`.

    Returns
    -------
    ndarray, float64, shape [..., T]

    Raises
    ------
    ValueError
        Too few rows, negative values, or different numbers of steps.
    """
    eps, moved, mse = _inputs(sizes, cov_steps, mse_before)
    divisor = float(rows_for_inverse(nu0, d, name="nu0")[0]) - d - 1
    rows, top = float(count("n", n)), float(positive("lmax", lmax))
    fresh = rows * top * _batch_noise(d, n, C1, noise) + top * d * float(nonnegative("C2", C2))
    kappa = float(nonnegative("kappa0", nu0 if kappa0 is None else kappa0))
    f, out = np.full(eps.shape[:-1], nonnegative("F0", F0)), np.empty(eps.shape)
    for t in range(eps.shape[-1]):
        shift = d * top / rows + 2 * eps[..., t] ** 2 + 2 * mse[..., t]
        f = (divisor * (f + moved[..., t]) + fresh + kappa * rows / (kappa + rows) * shift) / (divisor + rows)
        kappa, divisor = kappa + rows, divisor + rows
        out[..., t] = f
    return out


def paper_cov_closed(
    sizes: ArrayLike,
    cov_steps: ArrayLike,
    mse_before: ArrayLike,
    *,
    F0: float,
    nu0: float,
    d: int,
    n: float,
    lmax: float,
    C1: float | None = None,
    C2: float = 1.0,
    noise: float | None = None,
) -> Floats:
    r"""Bound of StableEdit Theorem 3.6, unrolled (above `paper_cov`: :math:`\kappa_{t-1} n / \kappa_t` is replaced by n).

    With :math:`D_k = D_0 + kn`: :math:`[D_0 F_0 + kn \cdot \mathrm{floor} + \sum_j D_{j-1} \varepsilon^\Sigma_j
    + 2n \sum_j (\varepsilon_j^2 + E_{j-1})] / D_k`, floor as `paper_floor`. Parameters, result and errors as `paper_cov`.
    """
    eps, moved, mse = _inputs(sizes, cov_steps, mse_before)
    start = float(rows_for_inverse(nu0, d, name="nu0")[0]) - d - 1
    floor = paper_floor(d=d, n=n, lmax=lmax, C1=C1, C2=C2, noise=noise)
    k = np.arange(1, eps.shape[-1] + 1)
    divisor = start + n * k
    lagged = np.cumsum((divisor - n) * moved + 2 * n * (eps**2 + mse), axis=-1)
    return (start * nonnegative("F0", F0) + k * n * floor + lagged) / divisor


def scatter_of_means(means: ArrayLike) -> Floats:
    """Scatter of the batch means around their average, ``B_t = (1/t) sum_j (mu_j - mubar)(mu_j - mubar)'``.

    Parameters
    ----------
    means : array-like, shape [..., t, d]
        True means of the batches (of equal size) pooled so far.

    Returns
    -------
    ndarray, float64, shape [..., d, d]

    Raises
    ------
    ValueError
        Fewer than two dimensions, or a value that is not finite.
    """
    mu = finite("means", means)
    if mu.ndim < 2 or mu.shape[-2] == 0:
        raise ValueError(f"means: must have shape [..., t, d] with at least one step, got {list(mu.shape)}")
    centred = mu - mu.mean(axis=-2, keepdims=True)
    return np.swapaxes(centred, -1, -2) @ centred / mu.shape[-2]


def mean_cov(Sbar: ArrayLike, B: ArrayLike | None = None, *, N: ArrayLike, d: int, eps0: float = 0.0) -> Floats:
    r"""Expectation of the estimate, for every law of independent rows (derived here).

    :math:`E\hat\Sigma_t = [\epsilon_0 I + (N-1) \bar\Sigma_t + N B_t] / (N - d - 1)`: without drift
    :math:`(N-1)/(N-d-1)` times the truth, and inflated along the drift.

    Parameters
    ----------
    Sbar : array-like, shape [..., d, d]
        Average over time of the covariances so far.
    B : array-like, shape [..., d, d], optional
        `scatter_of_means`; zero by default.
    N : array-like
        Rows pooled so far, shape [...].
    d : int
        Dimension.
    eps0 : float
        Prior scatter ``Psi_0 = eps0 I``.

    Returns
    -------
    ndarray, float64, shape [..., d, d]

    Raises
    ------
    ValueError
        N <= d + 1, a negative prior, or shapes that do not fit.
    """
    rows = rows_for_inverse(N, d)[0][..., None, None]
    total = nonnegative("eps0", eps0) * np.eye(d) + (rows - 1) * square("Sbar", Sbar, d)
    if B is not None:
        total = total + rows * square("B", B, d)
    return total / (rows - d - 1)


def cov_bias(
    Sbar: ArrayLike, Sigma_t: ArrayLike, B: ArrayLike | None = None, *, N: ArrayLike, d: int, eps0: float = 0.0
) -> Floats:
    r"""Last term in the braces of the pooled bound, ``(N - d - 1) |E Sh_t - Sigma_t|``; argument `bias` of `tight_cov`.

    Equal to :math:`\|\epsilon_0 I + (N-1)(\bar\Sigma_t - \Sigma_t) + N B_t + d \Sigma_t\|`.

    Parameters
    ----------
    Sbar, B, N, d, eps0
        As in `mean_cov`.
    Sigma_t : array-like, shape [..., d, d]
        Covariance that is estimated, at the last step.

    Returns
    -------
    ndarray, float64, shape [...]

    Raises
    ------
    ValueError
        As `mean_cov`.
    """
    rows = rows_for_inverse(N, d)[0]
    error = mean_cov(Sbar, B, N=N, d=d, eps0=eps0) - square("Sigma_t", Sigma_t, d)
    return (rows - d - 1) * np.linalg.norm(error, ord=2, axis=(-2, -1))


def tight_cov(
    *,
    N: ArrayLike,
    d: int,
    trace: ArrayLike,
    top: ArrayLike,
    w: ArrayLike,
    bias: ArrayLike,
    B: ArrayLike | None = None,
) -> Floats:
    """Bound of the expected spectral error that goes to zero, for independent Gaussian rows (derived here).

    Parameters
    ----------
    N : array-like
        Rows pooled so far, shape [...].
    d : int
        Dimension.
    trace, top : array-like, array-like
        Trace and largest eigenvalue of a matrix above every covariance so far: the covariance itself if it is constant,
        else for instance ``lmax I``, or today's covariance plus its largest distance from earlier ones times I.
    w : array-like
        Relative noise at ``r = trace / top``: `W_gordon` for constant covariance, `W_chevet` else; with `W_sharp` the value
        is a prediction instead of a bound.
    bias : array-like
        `cov_bias`, with the same B.
    B : array-like, shape [..., d, d], optional
        `scatter_of_means`; zero by default. Left out under a drift, the value is no bound.

    Returns
    -------
    ndarray, float64, shape [...]

    Raises
    ------
    ValueError
        N <= d + 1, trace or top not positive, negative w or bias.
    """
    rows = rows_for_inverse(N, d)[0]
    tr, lam = positive("trace", trace), positive("top", top)
    total = rows * lam * nonnegative("w", w) + nonnegative("bias", bias)
    if B is not None:
        means = square("B", B, d)
        spread, peak = np.trace(means, axis1=-2, axis2=-1), np.linalg.norm(means, ord=2, axis=(-2, -1))
        total = total + 2 * np.sqrt(rows) * (np.sqrt(lam * spread) + np.sqrt(tr * peak))
    return total / (rows - d - 1)


def niw_limit(c: ArrayLike) -> Floats:
    r"""Relative spectral error :math:`2\sqrt c / (1 - \sqrt c)` of the NIW estimate of an isotropic covariance, c = d/N fixed.

    Limit for large d; `tight_cov` with `W_sharp` has the same limit, so nothing is lost there. The divisor N - 1 would give
    :math:`2 \sqrt c + c`. Raises ValueError for c outside [0, 1).
    """
    root = np.sqrt(below("c", nonnegative("c", c), 1.0))
    return 2 * root / (1 - root)
