"""What the checks of the running mean share: runs of it along a process, reduced to means, and the exact values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stablediag.stats import theory
from synthetic.bounds import mean_oracle
from synthetic.certify import Test, equality
from synthetic.claims import Scale
from synthetic.grid import Cell, Result, derive_seed
from synthetic.process import MeanDrift, Process
from synthetic.reduce import mean_se, mean_slope, slope
from synthetic.tracks import checkpoints, track_mean

Floats = NDArray[np.float64]
Direction = Literal["fixed", "random", "rotating", "reverting", "jump", "periodic"]
#: direction and decay of a drift
Setting = tuple[Direction, float]

HERE = "synthetic.claims._mean_cells"
#: slopes are fitted from the last step divided by this
DECADE = 10
#: size C of the drift, and one that is seen over the noise where the first is not; slopes do not depend on it
SIZE, LARGE = 0.3, 100.0


def measure_fresh(*, seed: int, process: Mapping[str, Any], reps: int, steps: Sequence[int]) -> dict[str, Floats]:
    """Squared error of the running mean at `steps`, each from replicates of its own, so that they are independent.

    Parameters
    ----------
    process : mapping
        From `Process.params`.
    reps : int
        Replicates of every step.

    Returns
    -------
    dict
        ``mean`` and ``error`` (standard error), shape [K].
    """
    path = Process.from_params(process)
    runs = [track_mean(path, reps=reps, seed=derive_seed(seed, step), steps=[step]).error2[:, 0] for step in steps]
    return _reduced(np.stack(runs, axis=1), "")


def measure_path(*, seed: int, process: Mapping[str, Any], reps: int, steps: Sequence[int]) -> dict[str, Any]:
    """Squared error of the running mean at `steps` of one run, and its slope over the last decade.

    Returns
    -------
    dict
        ``mean``, ``error``: of the error after each step, shape [K]; ``before_mean``, ``before_error``: before it;
        ``trend``, ``trend_error``: log-log slope of the mean error over the last decade; ``lag``, ``lag_error``: the
        same of its drift part, what is left without the exact variance; NaN where the noise hides it.
    """
    path = Process.from_params(process)
    track = track_mean(path, reps=reps, seed=seed, steps=steps)
    late = last_decade(track.steps)
    at, errors = track.steps[late], track.error2[:, late]
    trend, trend_error = mean_slope(at, errors)
    lag, lag_error = mean_slope(at, errors, oracle(path).variance[at - 1])
    slopes = {"trend": trend, "trend_error": trend_error, "lag": lag, "lag_error": lag_error}
    return _reduced(track.error2, "") | _reduced(track.prediction2, "before_") | slopes


def _reduced(values: Floats, name: str) -> dict[str, Floats]:
    mean, error = mean_se(values)
    return {f"{name}mean": mean, f"{name}error": error}


def last_decade(steps: ArrayLike) -> NDArray[np.bool_]:
    """Which of ascending steps belong to the last decade, both ends included."""
    at = np.asarray(steps)
    return np.asarray(at * DECADE >= at[-1])


def oracle(process: Process) -> theory.MSE:
    """Exact errors of the running mean at every step, for batches that depend on each other too."""
    if process.noise.dependence != "ar1":
        return mean_oracle(process)
    found = independent(process)
    variance = found.variance * serial_factor(process.noise.rho, process.total)
    more = np.concatenate([[0.0], variance - found.variance])
    return replace(found, total=found.lag2 + variance, variance=variance, prediction=found.prediction + more[:-1])


def independent(process: Process) -> theory.MSE:
    """Exact errors if all rows were independent."""
    return theory.exact_mse(process.drift(), process.traces(), n=process.n)


def serial_factor(rho: float, steps: int) -> Floats:
    """Variance of the mean of t = 1 ... `steps` autoregressive errors over that of independent ones, [steps].

    Derived here: ``(1/t) sum_{s,u <= t} rho^|s-u|``, which tends to ``(1 + rho)/(1 - rho)``; constant covariance.
    """
    added = 2 * np.cumsum(rho ** np.arange(steps)) - 1
    return np.asarray(np.cumsum(added) / np.arange(1, steps + 1))


def drifting(scale: Scale, setting: Setting, *, C: float = SIZE) -> Cell:
    """A long run with constant spectrum, d = 64, n = 20, trace 20.5 at full scale; equal for all who ask for it."""
    direction, alpha = setting
    mean = MeanDrift(C=C, alpha=alpha, direction=direction)
    labels = (direction, alpha, C)
    process = Process(
        d=scale.pick(64, 32),
        n=20,
        steps=scale.pick(2000, 300),
        mean=mean,
        seed=scale.seed_of("mean", "path", *labels),
    )
    return path_cell(scale, process, *labels, cost=4.0)


def path_cell(
    scale: Scale, process: Process, *labels: object, steps: Sequence[int] | None = None, cost: float = 1.0
) -> Cell:
    """One run of a process, by default recorded three times a decade up to its end."""
    if steps is None:
        # Not from the first step: nothing is predicted before it.
        decades = 3 if process.total >= 2 * DECADE**3 else 2
        steps = checkpoints(process.total, count=3 * decades + 1, first=round(process.total / DECADE**decades))
    return _cell("measure_path", scale, process, steps, labels, cost)


def fresh_cell(scale: Scale, process: Process, steps: Sequence[int], *labels: object, cost: float = 1.0) -> Cell:
    """Independent runs of a process up to each of `steps`."""
    return _cell("measure_fresh", scale, process, steps, labels, cost)


def _cell(
    name: str, scale: Scale, process: Process, steps: Sequence[int], labels: Sequence[object], cost: float
) -> Cell:
    params = {"process": process.params(), "reps": scale.replicates(400, 200), "steps": list(steps)}
    return Cell(f"{HERE}:{name}", params, scale.seed_of("mean", *labels), cost=cost)


@dataclass(frozen=True)
class Run:
    """A cell of this file and what it returned.

    Attributes
    ----------
    process : Process
    steps : ndarray, int64, shape [K]
    df : int
        Degrees of freedom of the standard errors.
    result : Result
    fresh : bool
        From `measure_fresh`: the steps are independent of each other.
    """

    process: Process
    steps: NDArray[np.int64]
    df: int
    result: Result
    fresh: bool

    @classmethod
    def of(cls, cell: Cell, result: Result) -> Run:
        """From a cell and what it returned."""
        process = Process.from_params(cell.params["process"])
        steps = np.asarray(cell.params["steps"])
        return cls(process, steps, cell.params["reps"] - 1, result, cell.function.endswith("measure_fresh"))

    @property
    def setting(self) -> Setting:
        """Direction and decay of the drift."""
        return self.process.mean.direction, self.process.mean.alpha

    def at(self, curve: Floats) -> Floats:
        """Values of a curve [T] at the recorded steps, [K]."""
        return curve[self.steps - 1]

    def equals(self, curve: Floats, *, before: bool = False) -> Test:
        """Is the mean error after (or before) every step the value of the curve [T]?"""
        name = "before_" if before else ""
        return equality(self.result[f"{name}mean"], self.result[f"{name}error"], self.at(curve), df=self.df)

    def final(self) -> tuple[float, float]:
        """Mean error after the last step, and its standard error."""
        return float(self.result["mean"][-1]), float(self.result["error"][-1])

    def slope_of(self, curve: Floats) -> float:
        """Slope of a curve [T] over the recorded steps of the last decade."""
        late = self.steps[last_decade(self.steps)]
        return float(slope(late, curve[late - 1]))


def named(setting: Setting) -> str:
    """Direction and decay in words."""
    return f"{setting[0]} drift, alpha = {setting[1]:g}"
