"""What the checks of the running covariance share: processes by their parameters, and the moments along a path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stablediag.maths import NIW
from synthetic import reduce
from synthetic.process import CovDrift, MeanDrift, Noise, Process, Spectrum
from synthetic.tracks import advance

Floats = NDArray[np.float64]
Values = dict[str, float | Floats]


def params(
    d: int,
    n: int,
    steps: int,
    *,
    geometric: float | None = None,
    mean: MeanDrift | None = None,
    cov: CovDrift | None = None,
    noise: Noise | None = None,
) -> dict[str, Any]:
    """JSON parameters of a process with identity covariance, or with a spectrum that falls from 1 to `geometric`."""
    eigenvalues = Spectrum("iso") if geometric is None else Spectrum("geometric", lmin=geometric)
    return Process(
        d=d,
        n=n,
        steps=steps,
        spectrum=eigenvalues,
        mean=mean or MeanDrift(),
        cov=cov or CovDrift(),
        noise=noise or Noise(),
    ).params()


def states(process: Process, *, reps: int, seed: int, steps: Sequence[int], prior: float = 0.0) -> Iterator[NIW]:
    """Running moments of every replicate after each of `steps` (ascending)."""
    sampler = process.sampler(reps, seed)
    state = NIW.empty(process.d, batch_shape=(reps,), prior=prior)
    for step in steps:
        state = advance(state, sampler, step)
        yield state


def spectral_norms(matrices: Tensor) -> Floats:
    """`reduce.spectral_norms` as an array."""
    return reduce.spectral_norms(matrices).numpy()
