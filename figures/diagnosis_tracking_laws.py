r"""The error of the running mean of one module from its tables: measured, by exact laws, and bounded.

Times are target steps; sizes have any one unit, the same for the rows' noise and the drift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from stablediag.stats.theory import mean as law

#: neighbouring steps over which traces and sizes of the drift are averaged
NEIGHBOURS = 5


def drift_squares(probes: pd.DataFrame, scope: str, total: int) -> np.ndarray:
    """Unbiased squared sizes of the drift before every step, [T]: an update moves what the *next* batch is drawn from.

    Negative values are part of being unbiased; 0 at the first step and where nothing was written.
    """
    squares = np.zeros(total)
    if len(probes):
        mine = probes[probes["module"] == scope]
        after = mine["step"].to_numpy(np.int64) + 1
        kept = after < total
        squares[after[kept]] = mine["mean_sq"].to_numpy(np.float64)[kept]
    return squares


def drift_sizes(squares: np.ndarray) -> np.ndarray:
    """Sizes of the drift, [T]: roots of the means over `NEIGHBOURS` steps, so that few are negative and taken for 0."""
    later = pd.Series(squares[1:]).rolling(NEIGHBOURS, min_periods=1, center=True).mean()
    return np.concatenate([[0.0], np.sqrt(later.clip(lower=0.0).to_numpy(np.float64))])


def displacement(sizes: np.ndarray, p: float) -> np.ndarray:
    r"""Squared distances of the means of all pairs of steps, [T, T]: :math:`|\tau_t - \tau_s|^p`, tau the sums of sizes^(2/p)."""
    tau = np.cumsum(sizes ** (2 / p))
    found: np.ndarray = np.abs(tau[:, None] - tau[None, :]) ** p
    return found


def coherence(scopes: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Exponent p with which the measured sizes add up to the measured variogram; NaN where nothing drifts.

    Parameters
    ----------
    scopes : sequence of (ndarray [T], ndarray [k, 3])
        Sizes of the drift; rows of step, lag, value of the variogram.
    """
    if not any(sizes.any() for sizes, _ in scopes):
        return math.nan

    def misfit(p: float) -> float:
        total = 0.0
        for sizes, pairs in scopes:
            step, lag = pairs[:, 0].astype(int), pairs[:, 1].astype(int)
            total += float(np.square(pairs[:, 2] - displacement(sizes, p)[step, step - lag]).sum())
        return total

    return float(minimize_scalar(misfit, bounds=(0.1, 2.0), method="bounded").x)


def expected_lag(gamma: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared distance of a running mean's expectation from the mean, after and before each step.

    Parameters
    ----------
    gamma : ndarray, shape [T, T]
        Squared distances of the means of two steps.
    rows : ndarray, shape [T]
        Rows of each step.

    Returns
    -------
    after, before : ndarray, shape [T]
        NaN before the first step, where there is no estimate.
    """
    after, before = np.zeros(len(rows)), np.full(len(rows), np.nan)
    for t in range(len(rows)):
        weights = rows[: t + 1] / rows[: t + 1].sum()
        spread = 0.5 * weights @ gamma[: t + 1, : t + 1] @ weights
        after[t] = weights @ gamma[: t + 1, t] - spread
        if t + 1 < len(rows):
            before[t + 1] = weights @ gamma[: t + 1, t + 1] - spread
    return after, before


def errors(
    record: np.ndarray, squares: np.ndarray, p: float, rows: np.ndarray, *, top_share: float, d: int
) -> pd.DataFrame:
    r"""Measured and computed errors, by target step from 1.

    Parameters
    ----------
    record : ndarray, shape [T, 6]
        Of every step: the unbiased error before it, noise of its batch mean, noise of the estimate before it by split halves,
        trace of a unit's covariance, length of the estimate's step, units (edits).
    squares : ndarray, shape [T]
        Of the drift, see `drift_squares`.
    p : float
        Coherence of the drift; NaN: nothing drifts.
    rows : ndarray, shape [T]
    top_share : float
        Share of the largest eigenvalue in the trace.
    d : int
        Width.

    Returns
    -------
    DataFrame
        Columns measured, paper, worst, exact and noise (the error after a step, and what it should be), prior, prior_noise,
        prior_exact (the same before it), shadow, drift and surrogate (squared sizes).
    """
    prior, noise, shadow, trace, shift, edits = record.T
    n, sizes = float(np.median(edits)), drift_sizes(squares)
    gains = rows / rows.cumsum()
    still = law.exact_mse(np.zeros((len(rows), 1)), n * noise, n=n, gains=gains)
    after, before = expected_lag(displacement(sizes, p), rows) if math.isfinite(p) else (0.0, 0.0)
    lmax = float(pd.Series(trace).rolling(NEIGHBOURS, min_periods=1, center=True).mean().max()) * top_share
    return pd.DataFrame(
        {
            "measured": (1 - gains) ** 2 * np.where(gains < 1, prior, 0.0) + gains**2 * noise,
            "paper": law.paper_mse_closed(sizes, d=d, lmax=lmax, n=n),
            "worst": law.worst_mse(sizes, n * noise, n=n),
            "exact": still.variance + after,
            "noise": still.variance,
            "prior": prior,
            "prior_noise": still.prediction,
            "prior_exact": still.prediction + before,
            "shadow": shadow,
            "drift": squares,
            "surrogate": shift**2,
        },
        index=np.arange(1, len(rows) + 1),
    )
