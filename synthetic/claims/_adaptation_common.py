"""What the checks of adaptation share: streams whose replicates drift along paths of their own, and their exact errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from stablediag.stats import theory
from synthetic.bounds import sizes
from synthetic.grid import derive_seed
from synthetic.process import MeanDrift, Process

Floats = NDArray[np.float64]
Values = dict[str, float | Floats]


def batch_means(process: Process, *, reps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Means of all batches [R, T, d], and the true means: [R, T, d] for random directions, else [1, T, d].

    Random directions are drawn anew for every replicate, so that averages over replicates are averages over paths too.
    """
    if process.mean.direction == "random":
        paths = [replace(process, seed=derive_seed(seed, "path", i)).means() for i in range(reps)]
    else:
        paths = [process.means()]
    mu = torch.as_tensor(np.stack(paths))
    noise = replace(process, mean=MeanDrift()).sampler(reps, seed).next_means(process.total)
    return noise + mu, mu


def expected_mse(process: Process, *, gains: ArrayLike | None = None) -> theory.MSE:
    """Exact errors of the running mean, random directions averaged over.

    Independent directions are uncorrelated, and so are those of the axes: one axis a step has the same expectation.
    """
    drift = np.diag(sizes(process)) if process.mean.direction == "random" else process.drift()
    return theory.exact_mse(drift, process.traces(), n=process.n, gains=gains)


def batch_noise(process: Process) -> float:
    """``tr Sigma/n``, the squared error of one batch mean; constant covariance."""
    return float(process.traces()[0]) / process.n
