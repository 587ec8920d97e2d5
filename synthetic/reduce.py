"""Replicates to numbers: means, slopes, and their standard errors."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Floats = NDArray[np.float64]


def mean_se(values: ArrayLike) -> tuple[Floats, Floats]:
    """Mean over the leading dimension, the replicates, and its standard error."""
    x = np.asarray(values, dtype=np.float64)
    return x.mean(axis=0), x.std(axis=0, ddof=1) / math.sqrt(len(x))


def slope(x: ArrayLike, y: ArrayLike) -> Floats:
    """Least-squares slopes of ``log y`` [..., K] against ``log x`` [K]; NaN where a value is negative."""
    at = np.log(np.asarray(x, dtype=np.float64))
    centred = at - at.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        of = np.log(np.asarray(y, dtype=np.float64))
        return np.asarray((of * centred).sum(axis=-1) / (centred**2).sum())


def mean_slope(x: ArrayLike, values: ArrayLike, noise: ArrayLike = 0.0) -> tuple[float, float]:
    """Log-log slope of the mean of replicates [R, K] less `noise` [K], and its jackknife standard error.

    The replicates are left out one by one: the points of one run depend on each other, the runs do not.
    """
    y = np.asarray(values, dtype=np.float64)
    reps = len(y)
    left_out = slope(x, (y.sum(axis=0) - y) / (reps - 1) - noise)
    return float(slope(x, y.mean(axis=0) - noise)), float(math.sqrt((reps - 1) * left_out.var()))


def spectral_norms(matrices: Tensor) -> Tensor:
    """Spectral norms of symmetric matrices [..., d, d]."""
    return torch.linalg.eigvalsh(matrices).abs().amax(dim=-1)
