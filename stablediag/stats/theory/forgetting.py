r"""Forgetting: the best gain, and what it reaches, when the drift does not die out. Derived here.

With a constant gain g the mean moves by :math:`m_t = (1-g) m_{t-1} + g \bar v_t`. The limit of its squared error under
drift of size c is, with :math:`R = \mathrm{tr}\Sigma / n`,

.. math:: \frac{(1-g)^2 c^2}{g^2} + \frac{g R}{2-g} \ \text{(fixed direction)}, \qquad
          \frac{(1-g)^2 c^2}{g (2-g)} + \frac{g R}{2-g} \ \text{(independent random directions)}.

Plain averaging has no finite limit in either case. Order of the best error: :math:`1.19\,(cR)^{2/3}` and
:math:`c \sqrt{R}` for small c.

References
----------
O. Besbes, Y. Gur and A. Zeevi, Non-stationary stochastic optimization, 2015.
J. Cutler, D. Drusvyatskiy and Z. Harchaoui, Stochastic optimization under distributional drift, 2023.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from stablediag.stats.theory._checks import Floats, fraction, nonnegative, one_of, positive, series

DIRECTIONS = ("fixed", "random")
# Each halving gains a bit; from [0, 1] this also resolves gains as small as 1e-12 to full relative precision.
_HALVINGS = 100


def steady_mse(gain: ArrayLike, c: ArrayLike, R: ArrayLike, direction: str) -> Floats:
    """Limit of the mean squared error (after the step) at a constant gain.

    Parameters
    ----------
    gain : array-like
        In (0, 1].
    c : array-like
        Size of the drift a step.
    R : array-like
        Noise of one batch mean, trace / n.
    direction : {"fixed", "random"}

    Returns
    -------
    ndarray, float64

    Raises
    ------
    ValueError
        Gain outside (0, 1], negative c or R, unknown direction.
    """
    one_of("direction", direction, DIRECTIONS)
    g, size, noise = fraction("gain", gain), nonnegative("c", c), nonnegative("R", R)
    return (size * (1 - g)) ** 2 / (g**2 if direction == "fixed" else g * (2 - g)) + g * noise / (2 - g)


def optimal_gain(c: ArrayLike, R: ArrayLike, direction: str) -> Floats:
    r"""Constant gain with the least `steady_mse`.

    Random directions: the steady Kalman gain, root of :math:`g^2 / (1-g) = c^2/R`. Fixed direction: the root of
    :math:`g^3 = (c^2/R)(1-g)(2-g)^2`, for small c about :math:`(4c^2/R)^{1/3}`.

    Parameters
    ----------
    c : array-like
        Size of the drift a step. At zero the gain is zero: never forget.
    R : array-like
        Noise of one batch mean, positive.
    direction : {"fixed", "random"}

    Returns
    -------
    ndarray, float64
        In [0, 1).

    Raises
    ------
    ValueError
        Negative c, R not positive, unknown direction.
    """
    one_of("direction", direction, DIRECTIONS)
    q = nonnegative("c", c) ** 2 / positive("R", R)
    if direction == "random":
        # The positive root of g^2 + q g - q = 0, in the form without cancellation.
        return 2 * np.sqrt(q) / (np.sqrt(q) + np.sqrt(q + 4))
    low, high = np.zeros(q.shape), np.ones(q.shape)
    for _ in range(_HALVINGS):
        g = (low + high) / 2
        short = q * (1 - g) * (2 - g) ** 2 > g**3
        low, high = np.where(short, g, low), np.where(short, high, g)
    return low


def best_mse(c: ArrayLike, R: ArrayLike, direction: str) -> Floats:
    """Limit of the mean squared error at the optimal gain (random directions: gain times R); zero at c = 0.

    Parameters, result and errors as `optimal_gain`.
    """
    g = optimal_gain(c, R, direction)
    return np.where(g > 0, steady_mse(np.where(g > 0, g, 1.0), c, R, direction), 0.0)


def gain_schedule(sizes: ArrayLike, R: ArrayLike, direction: str) -> Floats:
    r"""Gains for a drift of known, changing size: ``max(1/t, optimal_gain(size_t))``.

    For sizes :math:`C t^{-\alpha}` the error falls as :math:`t^{-2\alpha/3}` (fixed direction) or :math:`t^{-\alpha}`
    (random) for every alpha > 0, until plain averaging's 1/t takes over; averaging alone needs alpha > 1 or 1/2.

    Parameters
    ----------
    sizes : array-like, shape [..., T]
        Size of the drift at each step.
    R : array-like
        Noise of one batch mean, positive.
    direction : {"fixed", "random"}

    Returns
    -------
    ndarray, float64, shape [..., T]
        In (0, 1]; the first is one.

    Raises
    ------
    ValueError
        Negative sizes, R not positive, unknown direction.
    """
    eps = series("sizes", sizes)
    return np.maximum(1 / np.arange(1, eps.shape[-1] + 1), optimal_gain(eps, R, direction))


def covariance_window(A: ArrayLike, step: ArrayLike) -> tuple[Floats, Floats]:
    r"""Memory that balances noise and drift of the covariance estimate.

    Minimises :math:`2 A w^{-1/2} + s w`. With gain g the memory is w = 1/g steps, the effective number of rows about 2nw,
    hence :math:`A = \lambda_{\max} \sqrt{r / (2n)}` with r the effective rank; s bounds
    :math:`\|\Sigma_t - \Sigma_{t-1}\|`.

    Parameters
    ----------
    A : array-like
        Noise at a memory of one step, halved; unit of the covariance.
    step : array-like
        s, the spectral norm of the drift a step.

    Returns
    -------
    window, error : ndarray, float64
        :math:`(A/s)^{2/3}` steps, and :math:`3 s^{1/3} A^{2/3}`.

    Raises
    ------
    ValueError
        A or step not positive.

    Notes
    -----
    Leading order only: it needs about 2nw rows to be many times d; at a shorter memory shrink the estimate instead.
    """
    noise, moved = positive("A", A), positive("step", step)
    return np.cbrt(noise / moved) ** 2, 3 * np.cbrt(moved * noise**2)
