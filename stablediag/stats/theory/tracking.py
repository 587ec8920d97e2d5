r"""What plain averaging can track: warm-up, rates and thresholds of the lag, trackable horizon. Derived here.

The mean of t equal batches lags behind a drift of size :math:`C t^{-\alpha}` by
:math:`b_t = -\frac1t \sum_s (s-1) d_s`, a sum of vectors: a drift that keeps its direction adds up, independent
directions add in squares, and a rotating direction cancels. The drift exponent beyond which the estimate converges is 1,
1/2 and 0 in turn; the assumption alpha > 1 of StableEdit (arXiv:2605.11836, Assumption 3.4) is the first.

R stands for :math:`\mathrm{tr}\Sigma / n`, the noise of one batch mean; squared errors have the squared unit of the rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from stablediag.stats.theory._checks import Floats, below, count, finite, nonnegative, one_of, positive

DIRECTIONS = ("fixed", "random", "rotating")


def warmup_ratio(r: ArrayLike, k: ArrayLike) -> Floats:
    """Error after k steps with r warm-up steps on the same distribution, over that without: ``k / (r + k)``."""
    warm, current = nonnegative("r", r), count("k", k)
    return current / (warm + current)


def warmup_mse(r: ArrayLike, k: ArrayLike, *, R: ArrayLike, offset: ArrayLike = 0.0) -> Floats:
    r"""Mean squared error k steps after a warm-up of r steps whose mean is off by `offset` (derived here).

    :math:`(r/(r+k))^2 \|\Delta\|^2 + R/(r+k)`; `R` is the noise of one batch mean, `offset` the length of :math:`\Delta`.
    Raises ValueError for negative values, or r + k = 0.
    """
    warm, current = nonnegative("r", r), nonnegative("k", k)
    total = positive("r + k", warm + current)
    return (warm / total) ** 2 * nonnegative("offset", offset) ** 2 + nonnegative("R", R) / total


def warmup_breakeven(r: ArrayLike, k: ArrayLike, *, R: ArrayLike) -> Floats:
    r"""Squared offset up to which a warm-up of r steps still helps at step k: ``R (r + k) / (r k)`` (derived here)."""
    warm, current = positive("r", r), positive("k", k)
    return nonnegative("R", R) * (warm + current) / (warm * current)


def lag_rate(direction: str, alpha: ArrayLike) -> Floats:
    r"""Exponent of t in :math:`\|b_t\|^2` for drift of size :math:`C t^{-\alpha}` under plain averaging (derived here).

    ``2 - 2 alpha`` for a fixed direction, ``1 - 2 alpha`` for independent random ones, ``-2 alpha`` for a rotating one,
    and never below -2, the rate at which a finished drift is averaged out. At the three corners (alpha = 2, 3/2, 1) the
    first two carry a logarithm. Raises ValueError for an unknown direction.
    """
    a = finite("alpha", alpha)
    free = {"fixed": 2 - 2 * a, "random": 1 - 2 * a, "rotating": -2 * a}
    return np.maximum(free[one_of("direction", direction, DIRECTIONS)], -2.0)


def lag_limit(
    direction: str, alpha: ArrayLike, C: ArrayLike, t: ArrayLike, *, angle: ArrayLike | None = None
) -> Floats:
    r"""Asymptotic :math:`\|b_t\|^2` for drift of size :math:`C t^{-\alpha}` under plain averaging (derived here).

    Parameters
    ----------
    direction : {"fixed", "random", "rotating"}
        Fixed: :math:`C^2 t^{2-2\alpha} / (2-\alpha)^2`. Random (expectation): :math:`C^2 t^{1-2\alpha} / (3-2\alpha)`.
        Rotating by :math:`\omega` a step: :math:`C^2 t^{-2\alpha} / (2 \sin(\omega/2))^2`.
    alpha : array-like
        Below 2, 3/2 and 1; beyond, the early steps decide and the decay is :math:`t^{-2}`.
    C, t : array-like, array-like
        Size of the drift at step 1, and step.
    angle : array-like, optional
        :math:`\omega` in radians, for "rotating" only.

    Returns
    -------
    ndarray, float64

    Raises
    ------
    ValueError
        Unknown direction, alpha too large, angle missing.
    """
    limit = {"fixed": 2.0, "random": 1.5, "rotating": 1.0}[one_of("direction", direction, DIRECTIONS)]
    a, size, step = below("alpha", alpha, limit), nonnegative("C", C), count("t", t)
    if direction == "fixed":
        return size**2 * step ** (2 - 2 * a) / (2 - a) ** 2
    if direction == "random":
        return size**2 * step ** (1 - 2 * a) / (3 - 2 * a)
    return size**2 * step ** (-2 * a) / _chord2(angle)


def _chord2(angle: ArrayLike | None) -> Floats:
    if angle is None:
        raise ValueError("angle: must be given for direction 'rotating'")
    return 4 * np.sin(below("angle", positive("angle", angle), 2 * np.pi) / 2) ** 2


def tracking_threshold(direction: str) -> float:
    """Drift exponent above which plain averaging tracks: 1 (fixed direction), 0.5 (random), 0 (rotating) (derived here)."""
    return {"fixed": 1.0, "random": 0.5, "rotating": 0.0}[one_of("direction", direction, DIRECTIONS)]


def horizon(c: ArrayLike, R: ArrayLike, direction: str, *, angle: ArrayLike | None = None) -> Floats:
    r"""Step at which lag and noise are equal under drift of constant size c and plain averaging (derived here).

    :math:`(4R/c^2)^{1/3}` for a fixed direction, :math:`\sqrt{3R}/c` for random ones, :math:`R (2 \sin(\omega/2))^2/c^2` for a
    rotating one. Beyond it more rows make the estimate worse (rotating: no better). Raises ValueError for an unknown
    direction, c or R not positive, or a missing angle.
    """
    one_of("direction", direction, DIRECTIONS)
    size, noise = positive("c", c), positive("R", R)
    if direction == "fixed":
        return np.cbrt(4 * noise / size**2)
    if direction == "random":
        return np.sqrt(3 * noise) / size
    return noise * _chord2(angle) / size**2
