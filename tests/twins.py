"""Slow, obvious twins of the fast paths: numpy, float64, one case at a time.

They share no code with what they check. Arrays in, arrays or floats out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def pooled_moments(rows: Array, prior: float = 0.0) -> tuple[Array, Array]:
    """Mean and scatter of all rows [n, d] at once, prior * I included."""
    rows = np.asarray(rows, dtype=np.float64)
    mean = rows.mean(axis=0)
    centred = rows - mean
    return mean, prior * np.eye(rows.shape[1]) + centred.T @ centred


def sample_block_scatter(blocks: Sequence[Array]) -> Array:
    """Scatter of blocks pooled one after another, each counted ``n_b`` times its sample covariance."""
    d = blocks[0].shape[1]
    count, mean, scatter = 0, np.zeros(d), np.zeros((d, d))
    for block in blocks:
        n = len(block)
        delta = block.mean(axis=0) - mean
        own = n * np.atleast_2d(np.cov(block, rowvar=False, ddof=1))
        scatter = scatter + own + count * n / (count + n) * np.outer(delta, delta)
        mean = mean + n / (count + n) * delta
        count += n
    return scatter


def weighted_moments(rows: Array, weights: Array) -> tuple[Array, Array]:
    """Mean and scatter of rows [n, d] with a weight each: what forgetting amounts to."""
    mean = (weights[:, None] * rows).sum(axis=0) / weights.sum()
    centred = rows - mean
    return mean, (weights[:, None] * centred).T @ centred


def inverse_root(matrix: Array, floor: float = 0.0) -> Array:
    """Symmetric inverse root with eigenvalues lifted to `floor`."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(1 / np.sqrt(np.maximum(values, floor))) @ vectors.T


def primal_ridge(keys: Array, targets: Array, ridge: float) -> Array:
    """The p x p normal equations: ``(H^T H + lam I)^{-1} H^T U``."""
    return np.linalg.solve(keys.T @ keys + ridge * np.eye(keys.shape[1]), keys.T @ targets)


def dense_inner(a: Array, b: Array) -> float:
    """Frobenius inner product of two matrices."""
    return float((a * b).sum())


def dense_cosine(a: Array, b: Array) -> float:
    """Cosine of the angle between two matrices."""
    return dense_inner(a, b) / (float(np.linalg.norm(a)) * float(np.linalg.norm(b)))


def dense_ln_update(
    keys: Array, grads: Array, *, key_rows: Array, grad_rows: Array, lr: float, ridge: float, full: bool
) -> Array:
    """LN update from scratch, with statistics pooled over `key_rows` and `grad_rows` (no prior, no floor)."""
    standard = (keys - key_rows.mean(axis=0)) / key_rows.std(axis=0, ddof=1)
    mean, scatter = pooled_moments(grad_rows)
    if full:
        n, d = grad_rows.shape
        normal = (grads - mean) @ inverse_root(scatter / (n - d - 1))
    else:
        normal = (grads - mean) / grad_rows.std(axis=0, ddof=1)
    return primal_ridge(keys, -lr * (standard**2).sum(axis=1)[:, None] * normal, ridge)
