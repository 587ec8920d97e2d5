r"""Sampling noise of a covariance matrix: bounds of :math:`E\|\frac1N \sum z_i z_i' - \Sigma\| / \|\Lambda\|` in spectral norm.

The rows are independent centred Gaussians whose covariances are all below :math:`\Lambda`, and
:math:`r = \mathrm{tr}\Lambda / \|\Lambda\|` is its effective rank. `W_gordon` needs one common covariance, `W_chevet` and
`W_weighted` do not; `W_sharp` is the leading order of the truth for an isotropic covariance, not a bound that is proved.
Heavier tails break them all: for Student rows with four degrees of freedom the noise is a multiple of the Gaussian one.

References
----------
R. Vershynin, High-Dimensional Probability, 2018, sections 4.6, 4.7, 7.2 and 8.7.
K. R. Davidson and S. J. Szarek, Local operator theory, random matrices and Banach spaces, 2001.
V. Koltchinskii and K. Lounici, Concentration inequalities and moment bounds for sample covariance operators, 2017.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from stablediag.stats.theory._checks import Floats, count, nonnegative, positive

# Offset of the comparison: E(sqrt N - chi_N)_+ <= .369, at N = 1, is what the proof needs; .604 leaves room.
GORDON_OFFSET = 0.604
# Mean and second moment of a variable with tail min(1, 2 exp(-t^2/2)): the two-sided fluctuation around the offset.
TAIL_MEAN, TAIL_SQUARE = 1.7766, 3.3863


def effective_rank(eigs: ArrayLike) -> Floats:
    """Trace over largest eigenvalue.

    Parameters
    ----------
    eigs : array-like, shape [..., d]
        Eigenvalues, not negative and not all zero.

    Returns
    -------
    ndarray, float64, shape [...]
        Between 1 and d.

    Raises
    ------
    ValueError
        A negative eigenvalue, or all zero.
    """
    w = nonnegative("eigs", eigs)
    return w.sum(axis=-1) / positive("largest of eigs", w.max(axis=-1))


def W_sharp(r: ArrayLike, N: ArrayLike) -> Floats:
    r"""Leading order of the relative noise: :math:`2\sqrt{r/N} + r/N`.

    Parameters
    ----------
    r : array-like
        Effective rank.
    N : array-like
        Rows.

    Returns
    -------
    ndarray, float64

    Raises
    ------
    ValueError
        r not positive, or N below one.

    Notes
    -----
    For identity covariance it is the Marchenko-Pastur edge, which finite samples approach from below.
    """
    ratio = positive("r", r) / count("N", N)
    return 2 * np.sqrt(ratio) + ratio


def W_gordon(r: ArrayLike, N: ArrayLike, *, delta: float | None = None) -> Floats:
    r"""Bound of the relative noise for rows with one common covariance (derived here).

    In expectation, with :math:`a = \sqrt{r/N}`:
    :math:`2a + 4.761/\sqrt N + a^2 + 4.761\,a/\sqrt N + 5.897/N`; or with probability :math:`1 - \delta`.

    Parameters
    ----------
    r, N : array-like, array-like
        Effective rank and rows.
    delta : float, optional
        Allowed probability of failure, in (0, 1). Without it the bound is of the expectation.

    Returns
    -------
    ndarray, float64

    Raises
    ------
    ValueError
        r not positive, N below one, delta outside (0, 1).

    Notes
    -----
    With :math:`y = \Sigma^{1/2} x`, let D be the supremum over unit x of :math:`|\,\|Z y\| - \sqrt N \|y\|\,|`. Comparing
    :math:`\langle Zy, u\rangle + g\|y\|` with :math:`\|y\| \langle g', u\rangle + \langle h, y\rangle` (Gordon, Slepian) bounds
    the expectation of each side by :math:`\sqrt{\mathrm{tr}\Sigma} + .604 \|\Sigma\|^{1/2}`; Gaussian concentration adds a
    variable with tail :math:`\min(1, 2 e^{-t^2/2})` times :math:`\|\Sigma\|^{1/2}` (mean 1.7766, mean square 3.3863; at level
    :math:`\delta` the constant :math:`\sqrt{2 \ln(2/\delta)}` and its square). Then
    :math:`|\,\|Zy\|^2 - N\|y\|^2\,| \le D^2 + 2 \sqrt N \|y\| D`.
    """
    m, rows = np.sqrt(positive("r", r)) + GORDON_OFFSET, count("N", N)
    if delta is None:
        first, second = TAIL_MEAN, TAIL_SQUARE
    elif 0 < delta < 1:
        second = 2 * float(np.log(2 / delta))
        first = second**0.5
    else:
        raise ValueError(f"delta: must be in (0, 1), got {delta:g}")
    return 2 * (m + first) / np.sqrt(rows) + (m**2 + 2 * m * first + second) / rows


def W_chevet(r: ArrayLike, N: ArrayLike) -> Floats:
    r"""Bound of the expected relative noise for independent rows of different covariances: :math:`4\sqrt{r/N} + 2r/N`.

    Parameters
    ----------
    r : array-like
        Effective rank of a matrix that dominates every covariance.
    N : array-like
        Rows.

    Returns
    -------
    ndarray, float64

    Raises
    ------
    ValueError
        r not positive, or N below one.

    Notes
    -----
    Derived here. Subtracting an independent copy and rotating, :math:`zz' - \tilde z \tilde z' = ab' + ba'` with a, b
    independent; Jensen's inequality raises their covariances to the dominating one; Chevet's inequality is used for one
    factor and then for the other. No lower-order terms; subtracting the sample mean only helps.
    """
    return 2 * W_sharp(r, N)


def W_weighted(r: ArrayLike, weights: ArrayLike) -> Floats:
    r"""Bound of :math:`E\|\sum_i w_i (z_i z_i' - \Sigma_i)\| / \|\Lambda\|` for weighted rows, as under forgetting.

    :math:`4 \sqrt{r \sum_i w_i^2} + 2 r \max_i w_i`, which is `W_chevet` at equal weights (derived here, same proof).

    Parameters
    ----------
    r : array-like
        Effective rank of a matrix that dominates every covariance.
    weights : array-like, shape [..., N]
        Weight of each row (not of each batch), not negative.

    Returns
    -------
    ndarray, float64

    Raises
    ------
    ValueError
        r not positive, or a negative weight.
    """
    rank, w = positive("r", r), nonnegative("weights", weights)
    return 4 * np.sqrt(rank * np.square(w).sum(axis=-1)) + 2 * rank * w.max(axis=-1)
