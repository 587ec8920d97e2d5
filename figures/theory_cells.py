"""The cells of the theory figures: a process, its Monte-Carlo means, and oracles and bounds at the same steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthetic.bounds import Bound
from synthetic.claims._updates_measure import stream
from synthetic.grid import Cell, derive_seed
from synthetic.process import Process
from synthetic.reduce import mean_se, mean_slope, slope
from synthetic.tracks import track_covariance, track_mean
from synthetic.update_stream import UpdateStream, simulate_updates

Floats = NDArray[np.float64]
HERE = "figures.theory_cells"


def cell(function: str, figure: str, process: Process, *, cost: float = 1.0, **params: Any) -> Cell:
    """A cell of a figure; its seed comes from everything that sets it apart."""
    plain = {"process": process.params(), **params}
    return Cell(f"{HERE}:{function}", plain, derive_seed(0, figure, function, plain), cost)


def measure_bounds(
    *, seed: int, reps: int, process: Mapping[str, Any], steps: Sequence[int], bounds: Sequence[str]
) -> dict[str, Floats]:
    """Mean and standard error of the error of mean or covariance, and the named bounds, at some steps."""
    path = Process.from_params(process)
    found = {name: Bound(name, path) for name in bounds}
    if {one.quantity for one in found.values()} == {"mse"}:
        values = track_mean(path, reps=reps, seed=seed, steps=steps).error2
    else:
        values = track_covariance(path, reps=reps, seed=seed, steps=steps).spectral
    at = {name: np.array([one.value(step) for step in steps]) for name, one in found.items()}
    measured, se = mean_se(values)
    return {"measured": measured, "se": se, **at}


def measure_slope(
    *, seed: int, reps: int, paths: int, process: Mapping[str, Any], steps: Sequence[int]
) -> dict[str, float]:
    """Log-log slope of the mean squared error over a window, jackknife standard error, and the slope of the exact curve.

    The error is averaged over `paths` draws of the directions, each with `reps` replicates.
    """
    drawn = [Process.from_params({**process, "seed": i}) for i in range(paths)]
    values = np.concatenate(
        [track_mean(path, reps=reps, seed=derive_seed(seed, i), steps=steps).error2 for i, path in enumerate(drawn)]
    )
    found, se = mean_slope(steps, values)
    bounds = [Bound("exact_mse", path) for path in drawn]
    return {
        "slope": found,
        "se": se,
        "exact": float(slope(steps, [sum(one.value(step) for one in bounds) for step in steps])),
    }


def measure_gains(
    *, seed: int, reps: int, process: Mapping[str, Any], steps: Sequence[int], gains: Sequence[float] | None
) -> dict[str, Floats]:
    """Mean squared error with given gains x_t (None: plain averaging)."""
    path = Process.from_params(process)
    chosen = None if gains is None else np.asarray(gains, dtype=np.float64)
    measured, se = mean_se(track_mean(path, reps=reps, seed=seed, steps=steps, gains=chosen).error2)
    return {"measured": measured, "se": se}


def measure_orthogonality(*, seed: int, reps: int, name: str, first: int, count: int) -> dict[str, Floats]:
    """Adjacent cosines over key overlap, and the cumulative coherence, of consecutive updates of a named setting."""
    given = UpdateStream.from_params(stream(name, first + count - 1))
    found = simulate_updates(given, steps=range(first, first + count), reps=reps, seed=seed, total=True)
    assert found.total is not None  # asked for
    scaled = found.cosine / found.kappa
    mean, error = mean_se(scaled.mean(axis=1))
    joint, joint_error = mean_se(found.total / np.cumsum(found.update, axis=1))
    return {
        "cosine": np.quantile(scaled, (0.025, 0.25, 0.5, 0.75, 0.975)),
        "mean": mean,
        "mean_se": error,
        "coherence": joint,
        "coherence_se": joint_error,
        "null": np.array([1 / math.sqrt(given.d_eff(first)), float(np.sqrt(np.mean(found.kappa**2)))]),
    }
