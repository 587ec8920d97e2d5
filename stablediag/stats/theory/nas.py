r"""Growth of the weights under exact-interpolation editing, and under norm-anchored values (NAS).

One step :math:`W^+ = W + (v - W k) k' C^{-1} / (k' C^{-1} k)` makes :math:`W^+ k = v`. In the norm
:math:`\|W\|_C^2 = \mathrm{tr}\, W C W'` the change is orthogonal to what is kept, so that

.. math:: \|W^+\|_C^2 - \|W\|_C^2 = (\|v\|^2 - \|W k\|^2) / (k' C^{-1} k).

If :math:`E\|v\|^2 = s_{new} \|W\|_C^2 + b_{new}`, :math:`E\|Wk\|^2 = s_{old} \|W\|_C^2 + b_{old}` and
:math:`K = 1 / (k' C^{-1} k)`, the expected squared norm follows :math:`w_{i+1} = r w_i + K (b_{new} - b_{old})` with
:math:`r = 1 + K (s_{new} - s_{old})`: exponential growth if and only if :math:`s_{new} > s_{old}`.

References
----------
NAS, arXiv:2602.02543. The identity for batches is derived here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from stablediag.stats.theory._checks import Floats, finite, nonnegative, positive


def nas_rate(K: ArrayLike, s_new: ArrayLike, s_old: ArrayLike) -> Floats:
    """Growth factor of the squared norm a step, ``r = 1 + K (s_new - s_old)``.

    Parameters
    ----------
    K : array-like
        ``1 / (k' C^-1 k)``, in expectation and independent of the values.
    s_new, s_old : array-like
        Slopes of the squared norms of new and replaced values against the squared norm of W.

    Returns
    -------
    ndarray, float64

    Raises
    ------
    ValueError
        K not positive, or a negative slope.
    """
    return 1 + positive("K", K) * (nonnegative("s_new", s_new) - nonnegative("s_old", s_old))


def nas_growth(
    n: ArrayLike,
    w0_sq: ArrayLike,
    *,
    K: ArrayLike,
    s_new: ArrayLike,
    b_new: ArrayLike,
    s_old: ArrayLike,
    b_old: ArrayLike,
) -> Floats:
    r"""Expected squared norm of W after n edits.

    :math:`r^n w_0 + \frac{b_{new} - b_{old}}{s_{new} - s_{old}} (r^n - 1)`; at equal slopes
    :math:`w_0 + n K (b_{new} - b_{old})`.

    Parameters
    ----------
    n : array-like
        Numbers of edits.
    w0_sq : array-like
        Expected squared norm before the first edit, in the C-weighted norm.
    K, s_new, s_old : array-like
        As in `nas_rate`.
    b_new, b_old : array-like
        Intercepts of the squared norms of new and replaced values.

    Returns
    -------
    ndarray, float64

    Raises
    ------
    ValueError
        Negative n, w0_sq or slope, K not positive.
    """
    edits, start = nonnegative("n", n), nonnegative("w0_sq", w0_sq)
    r = nas_rate(K, s_new, s_old)
    step = positive("K", K) * (finite("b_new", b_new) - finite("b_old", b_old))
    growth, change = r**edits, r - 1
    # Near r = 1 the quotient loses its digits; expm1 keeps them.
    small = (np.abs(change) < 0.1) & (change != 0)
    fine = np.expm1(edits * np.log1p(np.where(small, change, 1.0)))
    series = np.where(small, fine, growth - 1) / np.where(change == 0, 1.0, change)
    return growth * start + step * np.where(change == 0, edits, series)


def nas_anchored(
    n: ArrayLike, w0_sq: ArrayLike, *, K: ArrayLike, tau: ArrayLike, s_old: ArrayLike, b_old: ArrayLike
) -> Floats:
    r"""Expected squared norm of W after n edits whose values are rescaled to length `tau`.

    `nas_growth` with :math:`s_{new} = 0`, :math:`b_{new} = \tau^2`: the norm tends to :math:`(\tau^2 - b_{old}) / s_{old}` at rate
    :math:`(1 - K s_{old})^n`. Other parameters, result and errors as `nas_growth`.
    """
    b_new = nonnegative("tau", tau) ** 2
    return nas_growth(n, w0_sq, K=K, s_new=0.0, b_new=b_new, s_old=s_old, b_old=b_old)


def nas_step_identity(new: ArrayLike, old: ArrayLike, keys: ArrayLike, C: ArrayLike) -> Floats:
    r"""Change of :math:`\mathrm{tr}\, W C W'` by one interpolating step for a batch of keys.

    :math:`\mathrm{tr}\left[(V V' - V_o V_o') (H C^{-1} H')^{-1}\right]`, exact. A ridge in place of exact interpolation adds a
    cross term.

    Parameters
    ----------
    new : array-like, shape [..., n, d]
        Values V that the step installs, one a row.
    old : array-like, shape [..., n, d]
        Values that W gives to the same keys before the step.
    keys : array-like, shape [..., n, p]
        Keys H, linearly independent rows.
    C : array-like, shape [..., p, p]
        Symmetric positive definite weight of the update.

    Returns
    -------
    ndarray, float64, shape [...]

    Raises
    ------
    ValueError
        Shapes that do not fit, or more keys than dimensions.
    """
    v, u, h, c = finite("new", new), finite("old", old), finite("keys", keys), finite("C", C)
    if v.ndim < 2 or u.shape[-2:] != v.shape[-2:]:
        raise ValueError(f"old: must have the shape [..., n, d] of new, got {list(u.shape)} for {list(v.shape)}")
    if h.ndim < 2 or h.shape[-2] != v.shape[-2] or h.shape[-2] > h.shape[-1]:
        raise ValueError(f"keys: must be [..., {v.shape[-2]}, p] with at least as many columns, got {list(h.shape)}")
    if c.shape[-2:] != (h.shape[-1], h.shape[-1]):
        raise ValueError(f"C: must have shape [..., {h.shape[-1]}, {h.shape[-1]}], got {list(c.shape)}")
    gram = h @ np.linalg.solve(c, np.swapaxes(h, -1, -2))
    change = v @ np.swapaxes(v, -1, -2) - u @ np.swapaxes(u, -1, -2)
    return np.trace(np.linalg.solve(gram, change), axis1=-2, axis2=-1)
