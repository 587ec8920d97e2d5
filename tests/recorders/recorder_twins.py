"""Slow, obvious twins of what the recorders measure: everything dense, everything float64, nothing shared with them."""

from __future__ import annotations

import numpy as np


def dense(update):
    """The update as a float64 matrix, whatever its form."""
    if hasattr(update, "matrix"):
        return update.matrix.double().cpu().numpy()
    return update.left.double().cpu().numpy() @ update.right.double().cpu().numpy()


def norm(update):
    return float(np.sqrt((dense(update) ** 2).sum()))


def inner(update, other):
    return float((dense(update) * dense(other)).sum())


def cosine(update, other):
    return inner(update, other) / (norm(update) * norm(other))


def covariance(rows, prior=0.0):
    """Posterior mean of the covariance of all rows seen: scatter over (rows - d - 1)."""
    rows = np.asarray(rows, np.float64)
    n, d = rows.shape
    centred = rows - rows.mean(axis=0)
    return (centred.T @ centred + prior * np.eye(d)) / (n - d - 1)


def spectral(matrix):
    return float(np.linalg.norm(matrix, 2))


def spectrum(sigma):
    """Condition number, extreme eigenvalues and participation ratio."""
    values = np.linalg.svd(sigma, compute_uv=False)
    return {
        "condition_raw": values[0] / values[-1],
        "eig_max": values[0],
        "eig_min": values[-1],
        "d_eff": np.trace(sigma) ** 2 / np.trace(sigma @ sigma),
    }


def whitened_index(batch, rows):
    """Mean squared Mahalanobis norm of the batch under all rows, over its expectation."""
    batch, rows = np.asarray(batch, np.float64), np.asarray(rows, np.float64)
    n, d = rows.shape
    centred = batch - rows.mean(axis=0)
    distances = np.einsum("ij,jk,ik->i", centred, np.linalg.inv(covariance(rows)), centred)
    return float(distances.mean() / (d * (1 - (d + 1) / n)))
