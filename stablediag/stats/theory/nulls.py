r"""Null laws of the interference between updates: cosines, cumulative coherence, and what breaks them. Derived here.

For updates :math:`\Delta W_t = V_t' \Phi_t` with whitened rows :math:`V_t` [n, d] that are centred and independent over time and
key rows :math:`\Phi_t` [n, p], the inner product of two updates has mean zero and variance
:math:`\|\Phi_s \Phi_t'\|_F^2\, \mathrm{tr}(C^2)`, where C is the covariance of a whitened row. Hence the cosine has standard
deviation :math:`\kappa_{st} / \sqrt{d_{eff}}`. A mean that whitening or a transform leaves moves it away from zero.

References
----------
StableEdit, arXiv:2605.11836, Theorem 3.8(c) and Corollary D.7 (transforms).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from stablediag.stats.theory._checks import Floats, count, finite, nonnegative, one_of, positive

_FLOORS = {"relu": 1 / np.pi, "abs": 2 / np.pi, "odd": 0.0, "identity": 0.0, "tanh": 0.0, "sign": 0.0, "cube": 0.0}


def phi_rows(keys: ArrayLike, coefficient: ArrayLike, ridge: ArrayLike) -> Floats:
    r"""Key rows of an update: :math:`\varphi_i = c_i h_i' (H'H + \lambda I)^{-1}`, by the n x n system.

    Parameters
    ----------
    keys : array-like, shape [..., n, p]
        Keys H, one a row.
    coefficient : array-like, shape [..., n]
        :math:`c_i`, in the paper the squared length of the standardised key.
    ridge : array-like
        :math:`\lambda`, shape [...]; zero needs linearly independent keys.

    Returns
    -------
    ndarray, float64, shape [..., n, p]

    Raises
    ------
    ValueError
        Shapes that do not fit, a negative ridge, a singular system.
    """
    h, c = finite("keys", keys), finite("coefficient", coefficient)
    if h.ndim < 2 or c.shape[-1:] != h.shape[-2:-1]:
        raise ValueError(
            f"coefficient: must have one entry for each row of keys, got {list(c.shape)} for {list(h.shape)}"
        )
    system = h @ np.swapaxes(h, -1, -2) + nonnegative("ridge", ridge)[..., None, None] * np.eye(h.shape[-2])
    return c[..., None] * np.linalg.solve(system, h)


def _frobenius(x: Floats) -> Floats:
    return np.sqrt(np.square(x).sum(axis=(-2, -1)))


def kappa_phi(phi_s: ArrayLike, phi_t: ArrayLike) -> Floats:
    r"""Overlap of the key rows of two updates: :math:`\|\Phi_s \Phi_t'\|_F / (\|\Phi_s\|_F \|\Phi_t\|_F)`.

    Parameters
    ----------
    phi_s, phi_t : array-like, shapes [..., n, p] and [..., m, p]
        `phi_rows` of two steps.

    Returns
    -------
    ndarray, float64, shape [...]
        In [0, 1]; about :math:`1/\sqrt p` for independent isotropic rows.

    Raises
    ------
    ValueError
        Different p, or rows that are all zero.
    """
    a, b = finite("phi_s", phi_s), finite("phi_t", phi_t)
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"phi_t: must have shape [..., m, p] with the p of phi_s, got {list(b.shape)} for {list(a.shape)}"
        )
    lengths = positive("norm of phi_s", _frobenius(a)) * positive("norm of phi_t", _frobenius(b))
    return _frobenius(a @ np.swapaxes(b, -1, -2)) / lengths


def d_eff(eigs: ArrayLike) -> Floats:
    r"""Effective dimension :math:`(\mathrm{tr} C)^2 / \mathrm{tr} C^2` of rows with these covariance eigenvalues.

    Parameters
    ----------
    eigs : array-like, shape [..., d]
        Not negative and not all zero.

    Returns
    -------
    ndarray, float64, shape [...]
        Between 1 and d; d under full whitening.

    Raises
    ------
    ValueError
        A negative eigenvalue, or all zero.
    """
    w = nonnegative("eigs", eigs)
    return w.sum(axis=-1) ** 2 / positive("sum of eigs", np.square(w).sum(axis=-1))


def cos_null(kappa: ArrayLike, d_eff: ArrayLike) -> Floats:
    r"""Standard deviation :math:`\kappa / \sqrt{d_{eff}}` of the cosine of two updates; its mean is zero.

    Parameters
    ----------
    kappa : array-like
        `kappa_phi` of the two steps.
    d_eff : array-like
        Effective dimension of the whitened rows.

    Returns
    -------
    ndarray, float64

    Raises
    ------
    ValueError
        Negative kappa, d_eff not positive.
    """
    return nonnegative("kappa", kappa) / np.sqrt(positive("d_eff", d_eff))


def pair_kappa(kappas: ArrayLike, energies: ArrayLike | None = None) -> Floats:
    """Root mean square of the overlap over all pairs of steps, the kappa of `gamma_null`.

    Parameters
    ----------
    kappas : array-like, shape [..., T, T]
        `kappa_phi` of all pairs; the diagonal is not used.
    energies : array-like, shape [..., T], optional
        Expected squared norms of the updates, as weights; equal by default.

    Returns
    -------
    ndarray, float64, shape [...]

    Raises
    ------
    ValueError
        No square matrix of at least two steps, negative entries, energies all zero or of another length.
    """
    k = nonnegative("kappas", kappas)
    if k.ndim < 2 or k.shape[-2] != k.shape[-1] or k.shape[-1] < 2:
        raise ValueError(f"kappas: must have shape [..., T, T] with T > 1, got {list(k.shape)}")
    steps = k.shape[-1]
    a = np.ones(steps) if energies is None else nonnegative("energies", energies)
    if a.shape[-1:] != (steps,):
        raise ValueError(f"energies: must have shape [..., {steps}], got {list(a.shape)}")
    share = a / positive("sum of energies", a.sum(axis=-1, keepdims=True))
    pairs = k**2 * share[..., :, None] * share[..., None, :] * (1 - np.eye(steps))
    return np.sqrt(pairs.sum(axis=(-2, -1)) / (1 - 1 / steps))


def gamma_null(kappa: ArrayLike, d_eff: ArrayLike, *, steps: ArrayLike) -> Floats:
    r"""Standard deviation of the cumulative coherence :math:`\|W_T - W_0\|_F^2 / \sum_t \|\Delta W_t\|_F^2`; its mean is one.

    :math:`\kappa \sqrt{2 (1 - 1/T) / d_{eff}}`: the T (T - 1) / 2 inner products are uncorrelated, and the sum of the squared
    norms is taken as constant.

    Parameters
    ----------
    kappa : array-like
        Root mean square overlap of two steps, `pair_kappa`.
    d_eff : array-like
        Effective dimension of the whitened rows.
    steps : array-like
        Number T of updates.

    Returns
    -------
    ndarray, float64

    Raises
    ------
    ValueError
        Negative kappa, d_eff not positive, steps below one.
    """
    return cos_null(kappa, d_eff) * np.sqrt(2 * (1 - 1 / count("steps", steps)))


def transform_floor(name: str) -> float:
    r"""Share :math:`\|E T(x)\|^2 / E\|T(x)\|^2` that a transform of standard Gaussian rows turns into a mean.

    Times the coherence of the keys this is the cosine that stays however well the rows are centred. Zero for odd
    transforms, :math:`1/\pi` for "relu", :math:`2/\pi` for "abs".

    Parameters
    ----------
    name : {"relu", "abs", "odd", "identity", "tanh", "sign", "cube"}

    Returns
    -------
    float

    Raises
    ------
    ValueError
        Unknown name.
    """
    return _FLOORS[one_of("name", name, tuple(_FLOORS))]


def signal_cosine(
    w_sq: ArrayLike, trace: ArrayLike, *, Phi_inner: ArrayLike, phi_sq: ArrayLike, Phi_sq: ArrayLike
) -> Floats:
    r"""Cosine of two updates (ratio of expectations) when the whitened rows keep a mean w.

    :math:`\|w\|^2 \langle\Phi_s, \Phi_t\rangle / (\mathrm{tr} C \sum_i \|\varphi_i\|^2 + \|w\|^2 \|\Phi\|^2)`.

    Parameters
    ----------
    w_sq : array-like
        Squared length of w.
    trace : array-like
        Trace of the covariance C of a whitened row.
    Phi_inner : array-like
        Inner product of the summed key rows of the two steps.
    phi_sq, Phi_sq : array-like, array-like
        Sum of the squared lengths of the key rows, squared length of their sum; alike at both steps.

    Returns
    -------
    ndarray, float64

    Raises
    ------
    ValueError
        A negative squared norm, or an update of no energy.
    """
    signal, noise = nonnegative("w_sq", w_sq), nonnegative("trace", trace)
    energy = noise * nonnegative("phi_sq", phi_sq) + signal * nonnegative("Phi_sq", Phi_sq)
    return signal * finite("Phi_inner", Phi_inner) / positive("energy of the update", energy)
