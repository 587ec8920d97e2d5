"""Covariance with forgetting: the weighted bound, the best window, and why mean and covariance need two rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from stablediag.maths import NIW, DiagNIW
from stablediag.stats import theory
from synthetic.bounds import sizes
from synthetic.certify import Row, equality, lower, row, upper
from synthetic.claims import Claim, Scale
from synthetic.claims._covariance_common import Floats, Values, params, spectral_norms
from synthetic.grid import Cell, Result
from synthetic.process import CovDrift, MeanDrift, Process
from synthetic.reduce import mean_se

HERE = "synthetic.claims._covariance_forgetting"


def measure_windows(*, seed: int, reps: int, process: Mapping[str, Any], windows: Sequence[float]) -> Values:
    """Spectral error after the last step of estimates that forget at rates 1/window, on the same rows, and its bound."""
    path = Process.from_params(process)
    now = torch.as_tensor(path.covariance(path.total))
    kept = [NIW.empty(path.d, batch_shape=(reps,)) for _ in windows]
    sampler = path.sampler(reps, seed)
    for _ in range(path.total):
        rows = sampler.next(1)[:, 0]
        kept = [state.update(rows, forget=1 - 1 / w) for state, w in zip(kept, windows, strict=True)]
    error = np.stack([spectral_norms(state.cov - now) for state in kept], axis=1)
    mean, se = mean_se(error)
    rise, rise_se = mean_se(np.log(error) - np.log(error[:, [len(windows) // 2]]))
    bound, every = (
        np.array([_weighted_bound(path, 1 / w, forgets=forgets) for w in windows]) for forgets in (True, False)
    )
    return {"mean": mean, "se": se, "rise": rise, "rise_se": rise_se, "bound": bound, "every": every}


def _weighted_bound(process: Process, gain: float, *, forgets: bool = True) -> float:
    """Bound of the spectral error with weights that decay: independent rows, no drift of the mean.

    Without `forgets` the noise is, wrongly, that of all rows with equal weights.
    """
    age = np.arange(process.total)[::-1]
    batch = (1 - gain) ** age
    mass = process.n * batch.sum()
    weights = np.repeat(batch / mass, process.n)
    lmax = float(process.eigenvalues().max())
    r = float(process.d)  # of lmax I, which dominates every covariance
    past = sum(w * process.covariance(t) for t, w in enumerate(batch / batch.sum(), start=1))
    now = process.covariance(process.total)
    bias = np.linalg.norm(mass * (past - now) + (process.d + 1) * now, ord=2)
    if not forgets:
        weights = np.full(len(weights), 1 / len(weights))
    # The square of the weighted mean's error is taken off when rows are centred: at most r sum w^2 in expectation.
    w = theory.W_weighted(r, weights) + r * np.square(weights).sum()
    return float(theory.tight_cov(N=mass, d=process.d, trace=r * lmax, top=lmax, w=w, bias=bias))


def measure_rates(*, seed: int, reps: int, process: Mapping[str, Any], fast: float, slow: float) -> Values:
    """One rate for both moments, or the mean at gain `fast` and the covariance of what it leaves at gain `slow`."""
    path = Process.from_params(process)
    empty = NIW.empty(path.d, batch_shape=(reps,))
    one_fast, one_slow, two = empty, empty, empty
    centre = DiagNIW.empty(path.d, batch_shape=(reps,))
    sampler = path.sampler(reps, seed)
    for _ in range(path.total):
        rows = sampler.next(1)[:, 0]
        one_fast, one_slow = one_fast.update(rows, forget=1 - fast), one_slow.update(rows, forget=1 - slow)
        two = two.update(rows - centre.mean.unsqueeze(-2), forget=1 - slow)
        centre = centre.update(rows, forget=1 - fast)
    mu = torch.as_tensor(path.means()[-1])
    now = torch.as_tensor(path.covariance(path.total))
    error = {
        name: spectral_norms(state.cov - now) for name, state in (("fast", one_fast), ("slow", one_slow), ("two", two))
    }
    out: Values = {}
    for name, values in (
        *error.items(),
        ("mean_fast", (centre.mean - mu).square().sum(dim=-1).numpy()),
        ("mean_slow", (one_slow.mean - mu).square().sum(dim=-1).numpy()),
        ("less_fast", error["two"] - error["fast"]),
        ("less_slow", error["two"] - error["slow"]),
    ):
        out[name], out[f"{name}_se"] = mean_se(values)
    return out


D, N, C_SIGMA, C_MEAN = 16, 40, 0.002, 0.1
#: windows as multiples of the best one
MULTIPLES = (0.125, 1.0, 8.0)


def _cells(scale: Scale) -> list[Cell]:
    steps, reps = scale.pick(400, 300), scale.replicates(60, 60)
    moving = CovDrift(C=C_SIGMA, beta=0.0, kind="folding")
    still_mean = params(D, N, steps, geometric=0.05, cov=moving)
    both = params(D, N, steps, geometric=0.05, cov=moving, mean=MeanDrift(C=C_MEAN, alpha=0.0))
    best, _ = _window(Process.from_params(still_mean))
    windows = [multiple * best for multiple in MULTIPLES]
    fast = float(theory.optimal_gain(C_MEAN, _mean_noise(Process.from_params(both)), "fixed"))
    return [
        Cell(
            f"{HERE}:measure_windows",
            {"reps": reps, "process": still_mean, "windows": windows},
            scale.seed_of("forgetting-covariance", "windows"),
        ),
        Cell(
            f"{HERE}:measure_rates",
            {"reps": reps, "process": both, "fast": fast, "slow": 1 / best},
            scale.seed_of("forgetting-covariance", "rates"),
        ),
    ]


def _window(process: Process) -> tuple[float, float]:
    """Best window in steps and its error, to leading order, at the spectrum of the first step."""
    eigenvalues = process.eigenvalues()[0]
    A = eigenvalues.max() * np.sqrt(theory.effective_rank(eigenvalues) / (2 * process.n))
    window, error = theory.covariance_window(A, process.cov_steps()[-1])
    return float(window), float(error)


def _mean_noise(process: Process) -> float:
    """tr Sigma/n at the last step."""
    return float(process.traces()[-1] / process.n)


def _rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    windows, rates = results
    df = int(cells[0].params["reps"]) - 1
    at = list(cells[0].params["windows"])
    best, predicted = _window(Process.from_params(cells[0].params["process"]))
    setting = f"d={D} n={N} geo, Sigma drift {C_SIGMA:g} a step"
    mean, se, bound = windows["mean"], windows["se"], windows["bound"]
    middle = len(at) // 2
    out = [
        row(
            "forgetting-covariance",
            f"weighted bound, {setting}",
            [upper(mean, se, bound, df=df)],
            measured=mean[middle],
            error=se[middle],
            tight=bound[middle],
            seconds=windows.seconds,
            note=_each("bound/measured", at, bound / mean),
        ),
        row(
            "forgetting-covariance",
            f"best window, {setting}",
            [lower(np.delete(windows["rise"], middle), np.delete(windows["rise_se"], middle), 0.0, df=df)],
            measured=mean[middle],
            error=se[middle],
            seconds=windows.seconds,
            note=f"best window {best:.1f} steps, error {predicted:.3f} to leading order; "
            + _each("measured", at, mean),
        ),
        _rates_row(cells[1], rates),
        row(
            "forgetting-covariance",
            f"planted: all rows counted although old ones are forgotten, {setting}",
            [upper(mean, se, windows["every"], df=df)],
            measured=mean[0],
            error=se[0],
            tight=windows["every"][0],
            planted=True,
            seconds=windows.seconds,
        ),
    ]
    return out


def _rates_row(cell: Cell, result: Result) -> Row:
    """Tests: smaller covariance error than with either rate alone, and the mean error of the fast rate, exactly."""
    df = int(cell.params["reps"]) - 1
    path = Process.from_params(cell.params["process"])
    fast, slow = float(cell.params["fast"]), float(cell.params["slow"])
    exact = theory.exact_mse(path.drift(), path.traces(), n=path.n, forget=1 - fast).total[-1]
    less = [result.number("less_fast"), result.number("less_slow")]
    less_se = [result.number("less_fast_se"), result.number("less_slow_se")]
    return row(
        "forgetting-covariance",
        f"two rates, mean drift {sizes(path)[-1]:g} a step too",
        [
            upper(less, less_se, 0.0, df=df),
            equality(result.number("mean_fast"), result.number("mean_fast_se"), exact, df=df),
        ],
        measured=result.number("two"),
        error=result.number("two_se"),
        seconds=result.seconds,
        note=f"covariance error with the fast rate alone (gain {fast:.2f}) {result.number('fast'):.3f}, the slow one "
        f"({slow:.3f}) {result.number('slow'):.3f}, both {result.number('two'):.3f}; error of the mean "
        f"{result.number('mean_fast'):.4f} (exact {exact:.4f}) against {result.number('mean_slow'):.4f}",
    )


def _each(name: str, windows: Sequence[float], values: Floats) -> str:
    return f"{name} " + ", ".join(f"{v:.3g} (window {w:.3g})" for w, v in zip(windows, values, strict=True))


CLAIM = Claim(
    "forgetting-covariance",
    "covariance with forgetting: weighted bound, best window, and one rate each for mean and covariance",
    "derived here",
    _cells,
    _rows,
)
