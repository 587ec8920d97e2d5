r"""Energy of one update: exact expectations, sure bounds, and the published constants.

The update of a batch of n rows is :math:`\Delta W = -\gamma \sum_i \tilde v_i \varphi_i` with whitened rows
:math:`\tilde v_i = \hat\Sigma^{-1/2} (v_i - m)` and key rows :math:`\varphi_i = \|\tilde h_i\|^2 h_i' (H'H + \lambda I)^{-1}`
(`nulls.phi_rows`). It splits into :math:`\Delta W_{char}`, with the true mean in place of m, and
:math:`\Delta W_{bias} = \gamma \hat\Sigma^{-1/2} (m - \mu) \Phi`, :math:`\Phi = \sum_i \varphi_i`. Arguments in common:
``phi_sq`` is :math:`\sum_i \|\varphi_i\|^2`, ``Phi_sq`` is :math:`\|\Phi\|^2`, N the rows in the statistics, d their dimension.

With ``inclusive=True`` the statistics contain the batch (what the algorithm does); with False they are those of before the
batch, and N is counted there. The expectations (derived here) hold for stationary rows from a flat prior, key rows
independent of the value gradients, and :math:`\hat\Sigma = \Psi / (N - d - 1)`.

References
----------
StableEdit, arXiv:2605.11836, Theorem 3.8, Corollary 3.9, Propositions D.1 and D.9.
S. Janson, Gaussian Hilbert Spaces, 1997 (hypercontractivity).
T. W. Anderson, An Introduction to Multivariate Statistical Analysis, 2003 (Wishart, Hotelling).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from stablediag.stats.theory._checks import Floats, below, count, finite, nonnegative, positive, rows_for_inverse

# (E|e|^8)^(1/4) <= constant * E|e|^2 for Gaussian e: the paper's, 729^(1/4), by hypercontractivity twice; and the sharp one,
# attained in one dimension, by Minkowski's inequality over coordinates.
PAPER_EIGHTH = 27**0.5
SHARP_EIGHTH = 105**0.25


def whitened_norm(d: ArrayLike, N: ArrayLike) -> Floats:
    r"""Expected squared length of a whitened row that is in the statistics: :math:`d (1 - (d+1)/N)`.

    For every exchangeable law: the squared lengths are N - d - 1 times leverages, which add to d.

    Parameters
    ----------
    d, N : array-like, array-like
        Dimension, and rows in the statistics.

    Returns
    -------
    ndarray, float64

    Raises
    ------
    ValueError
        N <= d + 1.
    """
    rows, dim = rows_for_inverse(N, d)
    return dim * (rows - dim - 1) / rows


def whitened_norm_out(d: ArrayLike, N: ArrayLike) -> Floats:
    r"""Expected squared length of a new row, whitened with N earlier ones: :math:`d (1 + 1/N) (N-d-1)/(N-d-2)`.

    Gaussian rows. The divisor N - d - 1 makes the inverse, not the covariance, nearly unbiased. Parameters and result as
    `whitened_norm`; raises ValueError for N <= d + 2.
    """
    rows, dim = rows_for_inverse(N, d, beyond=2)
    return dim * (1 + 1 / rows) * (rows - dim - 1) / (rows - dim - 2)


def update_energy(
    phi_sq: ArrayLike, Phi_sq: ArrayLike, *, d: ArrayLike, N: ArrayLike, gamma: float = 1.0, inclusive: bool = True
) -> Floats:
    r"""Expected squared Frobenius norm of the update, the exact form of Corollary 3.9.

    Inclusive, every exchangeable law: :math:`\gamma^2 d (1 - \frac{d+1}{N}) (N \sum\|\varphi_i\|^2 - \|\Phi\|^2)/(N-1)`.
    Pre-update, Gaussian: :math:`\gamma^2 d \frac{N-d-1}{N-d-2} (\sum\|\varphi_i\|^2 + \|\Phi\|^2/N)`.

    Parameters
    ----------
    phi_sq, Phi_sq : array-like, array-like
        See the module.
    d, N : array-like, array-like
        Dimension, and rows in the statistics.
    gamma : float
        Learning rate.
    inclusive : bool
        Whether the statistics contain the batch.

    Returns
    -------
    ndarray, float64

    Raises
    ------
    ValueError
        N <= d + 1 (pre-update: d + 2), or a negative squared norm.
    """
    each, summed, rate = nonnegative("phi_sq", phi_sq), nonnegative("Phi_sq", Phi_sq), float(finite("gamma", gamma))
    if inclusive:
        rows, dim = rows_for_inverse(N, d)
        return rate**2 * whitened_norm(dim, rows) * (rows * each - summed) / (rows - 1)
    rows, dim = rows_for_inverse(N, d, beyond=2)
    return rate**2 * dim * (rows - dim - 1) / (rows - dim - 2) * (each + summed / rows)


def hotelling_bias(Phi_sq: ArrayLike, *, d: ArrayLike, N: ArrayLike, gamma: float = 1.0) -> Floats:
    r"""Expected squared norm of the bias part, the exact form of Theorem 3.8(a) for Gaussian rows.

    :math:`\gamma^2 \|\Phi\|^2 \frac{d}{N} \frac{N-d-1}{N-d-2}`, for statistics with or without the batch:
    :math:`N (m-\mu)' \hat\Sigma^{-1} (m-\mu)` is :math:`\frac{N-d-1}{N-1}` times Hotelling's :math:`T^2_{d,N-1}`. A skewed law
    adds a term of relative order 1/N.

    Parameters
    ----------
    Phi_sq : array-like
        See the module.
    d, N : array-like, array-like
        Dimension, and rows in the statistics.
    gamma : float
        Learning rate.

    Returns
    -------
    ndarray, float64

    Raises
    ------
    ValueError
        N <= d + 2, or a negative squared norm.
    """
    rows, dim = rows_for_inverse(N, d, beyond=2)
    scale = float(finite("gamma", gamma)) ** 2 * (rows - dim - 1) / (rows - dim - 2)
    return scale * nonnegative("Phi_sq", Phi_sq) * dim / rows


def char_energy(
    phi_sq: ArrayLike, Phi_sq: ArrayLike, *, d: ArrayLike, N: ArrayLike, gamma: float = 1.0, inclusive: bool = True
) -> Floats:
    r"""Expected squared norm of the characteristic part, the exact form of Theorem 3.8(b) for Gaussian rows.

    Inclusive, the update and its bias part are orthogonal in expectation under every exchangeable law (given the rows
    without their order, the bias is fixed and the whitened rows average to zero), so that the energy is that of the update
    *plus* that of the bias, and the cross term of the two parts is minus twice the energy of the bias. Pre-update the two
    parts are orthogonal, and it is the update's *minus* the bias's. Parameters, result and errors as `update_energy`, with
    N > d + 2.
    """
    energy = update_energy(phi_sq, Phi_sq, d=d, N=N, gamma=gamma, inclusive=inclusive)
    bias = hotelling_bias(Phi_sq, d=d, N=N, gamma=gamma)
    return energy + bias if inclusive else energy - bias


def bias_share(phi_sq: ArrayLike, Phi_sq: ArrayLike, N: ArrayLike, *, d: ArrayLike | None = None) -> Floats:
    r"""Energy of the bias over that of the update, statistics with the batch.

    Parameters
    ----------
    phi_sq, Phi_sq : array-like, array-like
        See the module; phi_sq positive.
    N : array-like
        Rows in the statistics.
    d : array-like, optional
        Dimension, for the exact ratio ``hotelling_bias / update_energy``. Without it the leading order for large N,
        :math:`\|\Phi\|^2 / (N \sum \|\varphi_i\|^2)`, at most one over the number of steps.

    Returns
    -------
    ndarray, float64

    Raises
    ------
    ValueError
        phi_sq not positive, N too small.
    """
    each, summed = positive("phi_sq", phi_sq), nonnegative("Phi_sq", Phi_sq)
    if d is None:
        return summed / (count("N", N) * each)
    return hotelling_bias(summed, d=d, N=N) / update_energy(each, summed, d=d, N=N)


def sure_bound(
    largest: ArrayLike, ridge: ArrayLike, *, n: ArrayLike, d: ArrayLike, N: ArrayLike, gamma: float = 1.0
) -> Floats:
    r"""Bound of the Frobenius norm of the update that holds surely, whatever the rows and the keys (derived here).

    :math:`\gamma \max_i \|\tilde h_i\|^2 \sqrt{\min(n,d) (N-d-1)} / (2 \sqrt\lambda)`: the leverages of the batch add to at
    most min(n, d), and :math:`\|H'(HH' + \lambda)^{-1}\| \le 1/(2\sqrt\lambda)`. Needs statistics with the batch.

    Parameters
    ----------
    largest : array-like
        Largest key coefficient of the batch.
    ridge : array-like
        :math:`\lambda`, positive.
    n, d, N : array-like
        Rows of the batch, dimension, rows in the statistics.
    gamma : float
        Learning rate.

    Returns
    -------
    ndarray, float64
        Norm, not squared.

    Raises
    ------
    ValueError
        N <= d + 1, ridge not positive, negative coefficient.
    """
    rows, dim = rows_for_inverse(N, d)
    length = np.sqrt(np.minimum(count("n", n), dim) * (rows - dim - 1) / positive("ridge", ridge))
    return abs(float(finite("gamma", gamma))) * nonnegative("largest", largest) * length / 2


def paper_C_a(
    n: ArrayLike, M_phi: ArrayLike, M_S: ArrayLike, gamma: float = 1.0, constant: float = PAPER_EIGHTH
) -> Floats:
    r"""Constant of Theorem 3.8(a): the energy of the bias is at most C_a times the mean squared error of m.

    :math:`C_a = c\,\gamma^2 n^2 M_\varphi^{1/2} M_S^{1/4}` with :math:`c = 3\sqrt3`.

    Parameters
    ----------
    n : array-like
        Rows of the batch.
    M_phi : array-like
        Bound of :math:`E\|\varphi_i\|^4`.
    M_S : array-like
        Bound of :math:`E\|\hat\Sigma^{-1}\|^4`, spectral norm.
    gamma : float
        Learning rate.
    constant : float
        c; `SHARP_EIGHTH` is the best one for Gaussian errors (3.20 instead of 5.20).

    Returns
    -------
    ndarray, float64

    Raises
    ------
    ValueError
        n below one, a negative moment.

    Notes
    -----
    Cauchy-Schwarz twice, with :math:`\|\sum\varphi_i\|^4 \le n^3 \sum \|\varphi_i\|^4`; nothing need be independent. The error
    of m must be Gaussian, hence the drift not random.
    """
    moments = np.sqrt(nonnegative("M_phi", M_phi)) * nonnegative("M_S", M_S) ** 0.25
    return float(positive("constant", constant)) * float(finite("gamma", gamma)) ** 2 * count("n", n) ** 2 * moments


def paper_C_b(
    n: ArrayLike, d: ArrayLike, lmax: ArrayLike, M_phi: ArrayLike, M_S: ArrayLike, gamma: float = 1.0
) -> Floats:
    r"""Bound of Theorem 3.8(b) on the energy of the characteristic part.

    :math:`C_b = 3 \gamma^2 n^2 \lambda_{\max} \sqrt{d(d+2)} M_\varphi^{1/2} M_S^{1/4}`, from
    :math:`E\|u\|^4 \le d(d+2)\lambda_{\max}^2` and :math:`E\|u\|^8 \le 81 (E\|u\|^4)^2` for Gaussian rows. Parameters, result and
    errors as `paper_C_a`, with the dimension and the bound of the eigenvalues.
    """
    dim = count("d", d)
    return paper_C_a(n, M_phi, M_S, gamma, 3.0) * positive("lmax", lmax) * np.sqrt(dim * (dim + 2))


def stationary_inflation(d: ArrayLike, N: ArrayLike) -> Floats:
    r"""Expected :math:`\mathrm{tr}(\Sigma^{-1} \hat\Sigma) / d` when nothing drifts, ``(N - 1)/(N - d - 1)``.

    Raises ValueError for N <= d + 1.
    """
    rows, dim = rows_for_inverse(N, d)
    return (rows - 1) / (rows - dim - 1)


def char_lower(phi_sq: ArrayLike, inflation: ArrayLike, *, d: ArrayLike, gamma: float = 1.0) -> Floats:
    r"""Lower bound of the energy of the characteristic part, statistics of before the batch (derived here).

    :math:`\gamma^2 \sum E\|\varphi_i\|^2\, d^2 / E\,\mathrm{tr}(\Sigma_t^{-1} \hat\Sigma_{t-1})`: a corrected form of the lower
    bound of Proposition D.9, which fails without a bound on the inflation and on the key rows from below.

    Parameters
    ----------
    phi_sq : array-like
        :math:`\sum_i E\|\varphi_i\|^2`.
    inflation : array-like
        :math:`E\,\mathrm{tr}(\Sigma_t^{-1} \hat\Sigma_{t-1}) / d`; `stationary_inflation` when nothing drifts.
    d : array-like
        Dimension.
    gamma : float
        Learning rate.

    Returns
    -------
    ndarray, float64

    Raises
    ------
    ValueError
        Negative phi_sq, inflation not positive, d below one.
    """
    scale = float(finite("gamma", gamma)) ** 2 * count("d", d)
    return scale * nonnegative("phi_sq", phi_sq) / positive("inflation", inflation)


def self_normalised_lag(alpha: ArrayLike) -> Floats:
    r"""Limit of :math:`b_t' \hat\Sigma_t^{-1} b_t` under aligned drift of size :math:`t^{-\alpha}`: :math:`3 - 2\alpha`.

    For alpha < 1 the lag itself does not vanish, but the scatter of the batch means inflates the estimate at the same rate
    (derived here). Raises ValueError for alpha >= 1.
    """
    return 3 - 2 * below("alpha", alpha, 1.0)


def drift_from_update(L: ArrayLike, norm: ArrayLike) -> Floats:
    """Bound ``L * norm`` of the drift of the mean, Proposition D.1.

    Parameters
    ----------
    L : array-like
        Lipschitz constant of the value gradient in the weights of *all* edited modules.
    norm : array-like
        Expected Frobenius norm of the update of all edited modules together.

    Returns
    -------
    ndarray, float64

    Raises
    ------
    ValueError
        A negative argument.
    """
    return nonnegative("L", L) * nonnegative("norm", norm)


def cov_drift_from_update(L: ArrayLike, norm: ArrayLike, lmax: ArrayLike) -> Floats:
    r"""Bound :math:`2 \sqrt{\lambda_{\max}} L \cdot norm` of the drift of the covariance, spectral (derived here).

    Triangle inequality for the standard deviation of each projection. Sharper than the published :math:`4 G L \cdot norm`
    (`paper_cov_drift`) by at least :math:`2\sqrt{\mathrm{tr}\Sigma / \lambda_{\max}}`. `norm` is the root mean squared norm of the
    update, `lmax` bounds the eigenvalues; else as `drift_from_update`.
    """
    return 2 * np.sqrt(positive("lmax", lmax)) * drift_from_update(L, norm)


def paper_cov_drift(L: ArrayLike, norm: ArrayLike, G: ArrayLike) -> Floats:
    r"""Published bound :math:`4 G L \cdot norm` of the drift of the covariance, Proposition D.1.

    :math:`G^2` bounds the second moment of the value gradient, `norm` is the root mean squared norm of the update; else as
    `drift_from_update`.
    """
    return 4 * nonnegative("G", G) * drift_from_update(L, norm)
