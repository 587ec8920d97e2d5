r"""How far a running mean is from the true one, without knowing the truth: every batch judges the estimate before it.

Rows :math:`v_1 \dots v_n` of a batch are independent of the estimate m made before they came, so that products of
*different* rows carry no noise of their own:

.. math:: \hat E = \frac{1}{n(n-1)} \sum_{i \ne j} (v_i - m)'(v_j - m), \qquad E[\hat E \mid m] = \|m - \mu\|^2

for every law of independent rows with mean :math:`\mu`. Rows of one edit (its tokens) are not independent; with `groups` they
are averaged first and the edits take the place of the rows. Squared errors have the squared unit of the rows.

References
----------
Z. Bai and H. Saranadasa, Effect of high dimension: by an example of a two sample problem, Statistica Sinica 6, 1996.
S. X. Chen and Y.-L. Qin, A two-sample test for high-dimensional data, Annals of Statistics 38, 2010.
A. P. Dawid, Present position and potential developments: the prequential approach, JRSS A 147, 1984.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def prequential_error(rows: ArrayLike, mean: ArrayLike, *, groups: ArrayLike | None = None) -> Floats:
    r"""Unbiased estimate of :math:`\|m_{t-1} - \mu_t\|^2` from batch t. Negative values are part of being unbiased.

    Parameters
    ----------
    rows : array-like, shape [..., n, d]
        The batch.
    mean : array-like, shape [..., d]
        The estimate before the batch; it must not have seen these rows.
    groups : array-like, shape [n], optional
        Edit of every row, the same for all leading dimensions. Rows of an edit are averaged first; then
        :math:`\mu_t` is the mean over edits, each with equal weight.

    Returns
    -------
    ndarray, float64, shape [...]

    Raises
    ------
    ValueError
        Fewer than two rows (edits), shapes that do not fit, values that are not finite.

    Notes
    -----
    O(nd): :math:`\hat E = \|\bar v - m\|^2 - \mathrm{tr} S / (n(n-1))` with S the scatter of the batch. Treating k tokens
    of an edit with correlation :math:`\rho` as independent adds :math:`\rho (k-1) \mathrm{tr}\Sigma / (n-1)`.
    """
    delta, noise = _split(*_batch(rows, mean, groups, least=2))
    return np.square(delta).sum(axis=-1) - noise


def posterior_error(rows: ArrayLike, mean: ArrayLike, gain: float, *, groups: ArrayLike | None = None) -> Floats:
    r"""Unbiased estimate of the error after the batch, of :math:`m_t = (1-x) m_{t-1} + x \bar v_t`.

    :math:`(1-x)^2 \hat E + x^2 \mathrm{tr} S / (n(n-1))`; its mean given the past is that of :math:`\|m_t - \mu_t\|^2`.

    Parameters
    ----------
    rows, mean, groups
        As in `prequential_error`; `mean` is the estimate *before* the batch.
    gain : float
        Weight x of the batch, in [0, 1].

    Returns
    -------
    ndarray, float64, shape [...]

    Raises
    ------
    ValueError
        As in `prequential_error`, or a gain out of range.
    """
    if not 0 <= gain <= 1:
        raise ValueError(f"gain: must be in [0, 1], got {gain:g}")
    delta, noise = _split(*_batch(rows, mean, groups, least=2))
    return (1 - gain) ** 2 * (np.square(delta).sum(axis=-1) - noise) + gain**2 * noise


def prequential_sd(cov: ArrayLike, *, n: int, error: ArrayLike | None = None) -> Floats:
    r"""Standard deviation of `prequential_error` given the past, from the true moments.

    :math:`\sqrt{2 \mathrm{tr}\Sigma^2 / (n(n-1)) + 4 e'\Sigma e / n}`: Gaussian in its literature, but exact for every law of
    independent rows, since only products of different rows enter.

    Parameters
    ----------
    cov : array-like, shape [..., d, d]
        Covariance of a row (of the mean of an edit, with groups).
    n : int
        Independent rows (edits) of the batch.
    error : array-like, shape [..., d], optional
        ``m - mu``; zero by default, the standard deviation of an estimate that tracks perfectly.

    Returns
    -------
    ndarray, float64, shape [...]

    Raises
    ------
    ValueError
        Fewer than two rows, or shapes that do not fit.
    """
    sigma = np.asarray(cov, dtype=np.float64)
    if n < 2:
        raise ValueError(f"n: must be at least 2, got {n}")
    if sigma.ndim < 2 or sigma.shape[-1] != sigma.shape[-2]:
        raise ValueError(f"cov: must have shape [..., d, d], got {list(sigma.shape)}")
    variance = 2 * np.square(sigma).sum(axis=(-2, -1)) / (n * (n - 1))
    if error is not None:
        e = np.asarray(error, dtype=np.float64)
        if e.ndim == 0 or e.shape[-1] != sigma.shape[-1]:
            raise ValueError(f"error: must have shape [..., {sigma.shape[-1]}], got {list(e.shape)}")
        variance = variance + 4 * ((e[..., None, :] @ sigma)[..., 0, :] * e).sum(axis=-1) / n
    return np.sqrt(variance)


def prequential_variance(rows: ArrayLike, mean: ArrayLike, *, groups: ArrayLike | None = None) -> Floats:
    r"""Unbiased estimate of the variance of `prequential_error` from the batch itself, for any law (derived here).

    :math:`\hat E^2` less the unbiased estimate of :math:`\|m - \mu\|^4` that takes four different rows. Noisy, and negative at
    times: average over steps before taking a root.

    Parameters
    ----------
    rows, mean, groups
        As in `prequential_error`.

    Returns
    -------
    ndarray, float64, shape [...]

    Raises
    ------
    ValueError
        As in `prequential_error`, and fewer than four rows (edits).
    """
    v, m = _batch(rows, mean, groups, least=4)
    n = v.shape[-2]
    w = v - m[..., None, :]
    products = w @ np.swapaxes(w, -1, -2)
    products *= 1 - np.eye(n)
    sums = products.sum(axis=-1)
    total = sums.sum(axis=-1)
    # Of all pairs of pairs, those that share one row (four ways) or both (two ways) are taken off.
    apart = total**2 - 4 * np.square(sums).sum(axis=-1) + 2 * np.square(products).sum(axis=(-2, -1))
    return (total / (n * (n - 1))) ** 2 - apart / (n * (n - 1) * (n - 2) * (n - 3))


def _batch(rows: ArrayLike, mean: ArrayLike, groups: ArrayLike | None, least: int) -> tuple[Floats, Floats]:
    """Checked rows, averaged within groups, and the mean."""
    v, m = np.asarray(rows, dtype=np.float64), np.asarray(mean, dtype=np.float64)
    if v.ndim < 2:
        raise ValueError(f"rows: must have shape [..., n, d], got {list(v.shape)}")
    if m.ndim == 0 or m.shape[-1] != v.shape[-1]:
        raise ValueError(f"mean: must have shape [..., {v.shape[-1]}] as the rows, got {list(m.shape)}")
    for name, values in (("rows", v), ("mean", m)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: must be finite; leave out or repair what is not")
    if groups is not None:
        v = _averaged(v, np.asarray(groups))
    if v.shape[-2] < least:
        what = "rows" if groups is None else "groups"
        raise ValueError(f"{what}: at least {least} are needed, got {v.shape[-2]}")
    return v, m


def _averaged(rows: Floats, groups: NDArray[np.generic]) -> Floats:
    if groups.shape != rows.shape[-2:-1]:
        raise ValueError(f"groups: must have shape [{rows.shape[-2]}], one a row, got {list(groups.shape)}")
    _, first, counts = np.unique(np.sort(groups), return_index=True, return_counts=True)
    ordered = rows[..., np.argsort(groups, kind="stable"), :]
    return np.add.reduceat(ordered, first, axis=-2) / counts[:, None] if len(first) else rows


def _split(v: Floats, m: Floats) -> tuple[Floats, Floats]:
    """Batch mean less the estimate, and the noise of the batch mean, ``tr S/(n(n-1))``."""
    n = v.shape[-2]
    centre = v.mean(axis=-2)
    noise = np.square(v - centre[..., None, :]).sum(axis=(-2, -1)) / (n * (n - 1))
    return centre - m, noise
