r"""What pure noise does to the NIW covariance estimate, as a control for curves along an edit stream.

With :math:`N` pooled rows of dimension :math:`d` the estimate is :math:`\hat\Sigma = \Psi / (N - d - 1)`. Its spectrum
spreads although nothing changes: for identity covariance the eigenvalues fill the Marchenko-Pastur interval
:math:`(1 \pm \sqrt{c})^2 \, N / (N - d - 1)` with :math:`c = d / N`, so that the condition number, the largest eigenvalue
and the step-to-step change all fall as rows come in. A measured fall must be compared with this one.

References
----------
V. A. Marchenko and L. A. Pastur, Distribution of eigenvalues for some sets of random matrices, 1967.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def mp_edges(rows: ArrayLike, d: int) -> tuple[Floats, Floats]:
    """Edges of the bulk of the NIW estimate of an identity covariance.

    Parameters
    ----------
    rows : array-like of float
        Numbers of pooled rows N.
    d : int
        Dimension.

    Returns
    -------
    low, high : ndarray, float64
        NaN where N <= d + 1 (the estimate does not exist).
    """
    n = np.asarray(rows, dtype=np.float64)
    exists = n > d + 1
    n = np.where(exists, n, np.nan)
    root, scale = np.sqrt(d / n), n / (n - d - 1)
    return (1 - root) ** 2 * scale, (1 + root) ** 2 * scale


def mp_condition(rows: ArrayLike, d: int) -> Floats:
    """Condition number that identity-covariance noise alone gives at N rows; NaN where N <= d + 1."""
    low, high = mp_edges(rows, d)
    return high / low


def iid_mean_shift(rows: Sequence[float], trace: float) -> Floats:
    r"""Root mean squared step of a pooled mean when nothing drifts.

    :math:`E\|m_t - m_{t-1}\|^2 = \mathrm{tr}\,\Sigma \cdot n_t / (N_t N_{t-1})` for independent rows with constant moments.

    Parameters
    ----------
    rows : sequence of float
        Rows n_t of each step.
    trace : float
        Trace of the covariance of one row.

    Returns
    -------
    ndarray, float64, same length
        NaN at the first step.
    """
    n = np.asarray(rows, dtype=np.float64)
    after = np.cumsum(n)
    before = np.concatenate([[np.nan], after[:-1]])
    return np.sqrt(trace * n / (after * before))


def shrunk_spectrum(eigenvalues: ArrayLike, rows: float) -> Floats:
    r"""Population spectrum behind a sample spectrum: the same trace, and the spread that is left when noise is taken out.

    :math:`\lambda' = \bar\lambda + \sqrt{1 - \rho} (\lambda - \bar\lambda)`, where :math:`1 - \rho` is the share of the squared
    spread that is not noise. (Shrinking by :math:`1 - \rho` itself minimises the error of the matrix, but narrows the
    spectrum too much.) A simulation from the sample spectrum would spread it a second time.

    Parameters
    ----------
    eigenvalues : array-like, shape [d]
        Of an unbiased covariance estimate (divisor N - 1).
    rows : float
        Number N of rows behind it.

    Notes
    -----
    Y. Chen, A. Wiesel, Y. C. Eldar and A. O. Hero, Shrinkage algorithms for MMSE covariance estimation, 2010: the estimate of rho.
    """
    w = np.asarray(eigenvalues, dtype=np.float64)
    d, square, trace2 = len(w), float((w**2).sum()), float(w.sum()) ** 2
    spread = (rows + 1 - 2 / d) * (square - trace2 / d)
    rho = min(1.0, ((1 - 2 / d) * square + trace2) / spread) if spread > 0 else 1.0
    return w.mean() + np.sqrt(1 - rho) * (w - w.mean())


def noise_curves(
    rows: Sequence[int], eigenvalues: ArrayLike, *, seed: int = 0, repeats: int = 1, prior: float = 0.0
) -> pd.DataFrame:
    """Simulate the estimate on independent Gaussian rows of constant covariance: the null curves of a run.

    Parameters
    ----------
    rows : sequence of int
        Rows that each step brings, as recorded by the run.
    eigenvalues : array-like, shape [d]
        Population spectrum; ones for pure isotropic noise. The eigenvectors do not matter for these statistics.
    seed, repeats : int, int
        Repetitions are averaged (geometric mean for the condition number).
    prior : float
        Prior scatter ``Psi_0 = prior * tr(Psi_1)/d * I``, relative to the first step's scatter.

    Returns
    -------
    DataFrame
        Columns step, nu (rows so far), condition, eig_max, eig_min, mean_shift, cov_shift (spectral norm); NaN before the
        estimate exists.
    """
    spectrum = np.asarray(eigenvalues, dtype=np.float64)
    rng = np.random.default_rng(seed)
    runs = np.stack([_one_noise(rows, spectrum, rng, prior) for _ in range(repeats)])
    with np.errstate(invalid="ignore"):
        condition = np.exp(np.log(runs[:, :, 0]).mean(axis=0))
    means = runs.mean(axis=0)
    columns = {"condition": condition} | {
        name: means[:, i] for i, name in enumerate(("eig_max", "eig_min", "mean_shift", "cov_shift"), start=1)
    }
    return pd.DataFrame({"step": np.arange(len(rows)), "nu": np.cumsum(rows), **columns})


def _one_noise(rows: Sequence[int], spectrum: Floats, rng: np.random.Generator, prior: float) -> Floats:
    d = len(spectrum)
    out = np.full((len(rows), 5), np.nan)
    mean, scatter, total = np.zeros(d), np.zeros((d, d)), 0
    previous: Floats | None = None
    for step, n in enumerate(rows):
        x = rng.standard_normal((n, d)) * np.sqrt(spectrum)
        batch_mean = x.mean(axis=0)
        centred, offset = x - batch_mean, batch_mean - mean
        moved = offset * (n / (total + n))
        scatter = scatter + centred.T @ centred + np.outer(offset, offset) * (total * n / (total + n))
        if total == 0 and prior:
            scatter = scatter + prior * np.trace(scatter) / d * np.eye(d)
        mean, total = mean + moved, total + n
        if step > 0:
            out[step, 3] = np.linalg.norm(moved)
        if total > d + 1:
            estimate = scatter / (total - d - 1)
            w = np.linalg.eigvalsh(estimate)
            out[step, :3] = w[-1] / w[0], w[-1], w[0]
            if previous is not None:
                out[step, 4] = np.abs(np.linalg.eigvalsh(estimate - previous)).max()
            previous = estimate
    return out
