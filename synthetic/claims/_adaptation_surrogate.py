"""Steps of the running moments taken for drift (Appendix B.6.3): they decay whatever the true moments do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from stablediag.maths import NIW, DiagNIW
from stablediag.stats import theory
from synthetic.certify import Row, Test, equality, lower, row
from synthetic.claims import STABLEEDIT, Claim, Scale
from synthetic.claims._adaptation_common import Floats, Values, batch_means, batch_noise, expected_mse
from synthetic.grid import Cell, Result
from synthetic.process import CovDrift, MeanDrift, Process
from synthetic.reduce import mean_se, mean_slope, slope
from synthetic.tracks import checkpoints

HERE = "synthetic.claims._adaptation_surrogate"


def measure_mean_steps(*, seed: int, reps: int, process: Mapping[str, Any], steps: Sequence[int]) -> Values:
    """Squared steps ``|m_t - m_{t-1}|^2`` at `steps`, and the log-log slope of their root mean square."""
    path = Process.from_params(process)
    batches, _ = batch_means(path, reps=reps, seed=seed)
    state, kept = DiagNIW.empty(path.d, batch_shape=(reps,)), []
    for t in range(path.total):
        after = state.update(batches[:, t : t + 1])
        if t + 1 in steps:
            kept.append((after.mean - state.mean).square().sum(dim=-1).numpy())
        state = after
    return _reduced(np.stack(kept, axis=1), steps)


def measure_cov_steps(*, seed: int, reps: int, process: Mapping[str, Any], steps: Sequence[int]) -> Values:
    """Squared steps of the running covariance, Frobenius norm, and the slope of their root mean square."""
    path = Process.from_params(process)
    sampler = path.sampler(reps, seed)
    state, kept = NIW.empty(path.d, batch_shape=(reps,)), []
    for t in range(path.total):
        after = state.update(sampler.next(1)[:, 0])
        if t + 1 in steps:
            kept.append((after.cov - state.cov).square().sum(dim=(-2, -1)).numpy())
        state = after
    return _reduced(np.stack(kept, axis=1), steps)


def _reduced(squares: Floats, steps: Sequence[int]) -> Values:
    mean, se = mean_se(squares)
    found, found_se = mean_slope(steps, squares)
    return {"mean": mean, "se": se, "slope": found / 2, "slope_se": found_se / 2}


#: mean drifts by name
MEANS = {
    "no drift": MeanDrift(),
    "random .3, never decays": MeanDrift(C=0.3, alpha=0.0, direction="random"),
    "random .3 t^-.5": MeanDrift(C=0.3, alpha=0.5, direction="random"),
    "fixed .3, never decays": MeanDrift(C=0.3, alpha=0.0),
}
#: covariance: process, and first and last step of the fit
COVS: dict[str, tuple[dict[str, Any], int, int]] = {
    "no drift, N from 1.6 d": ({}, 5, 20),
    "no drift": ({}, 50, 200),
    "mean drift random .3, never decays": ({"mean": MEANS["random .3, never decays"]}, 20, 100),
    "Sigma turns by .02, never decays": ({"cov": CovDrift(C=0.02, beta=0.0, kind="rotation")}, 20, 100),
}


def _mean_process(name: str, steps: int) -> Process:
    return Process(steps=steps, mean=MEANS[name])


def _cov_process(name: str) -> Process:
    changes, _, last = COVS[name]
    return Process(steps=last, **changes)


def _cells(scale: Scale) -> list[Cell]:
    total, found = scale.pick(1000, 400), []
    for name in MEANS:
        params = {
            "reps": scale.replicates(100, 60),
            "process": _mean_process(name, total).params(),
            "steps": checkpoints(total, count=12, first=10),
        }
        found.append(Cell(f"{HERE}:measure_mean_steps", params, scale.seed_of("surrogate", name)))
    for name, (_, first, last) in COVS.items():
        params = {
            "reps": scale.replicates(60, 20),
            "process": _cov_process(name).params(),
            "steps": checkpoints(last, count=8, first=first),
        }
        found.append(Cell(f"{HERE}:measure_cov_steps", params, scale.seed_of("surrogate covariance", name)))
    return found


def _rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    """The first cells are those of `MEANS`, the others those of `COVS`."""
    out: list[Row] = []
    pairs = list(zip(cells, results, strict=True))
    for name, (cell, result) in zip(MEANS, pairs, strict=False):
        out += _mean_rows(name, cell, result)
    for name, (cell, result) in zip(COVS, pairs[len(MEANS) :], strict=True):
        df = int(cell.params["reps"]) - 1
        out.append(
            _slope_row(
                f"the steps of Sh decay as the drift does, {name}",
                [lower(result["slope"], result["slope_se"], 0.0, df=df)],
                result,
                None,
                f"steps {cell.params['steps'][0]} to {cell.params['steps'][-1]}",
                expected="false",
            )
        )
    return out


def _mean_rows(name: str, cell: Cell, result: Result) -> list[Row]:
    """What the steps are made of, exactly; then the sentence that they show the drift."""
    path, df = Process.from_params(cell.params["process"]), int(cell.params["reps"]) - 1
    steps = np.asarray(cell.params["steps"])
    gain2 = np.square(theory.gains(path.total, n=path.n))[steps - 1]
    before = expected_mse(path).prediction[steps - 1]
    exact = gain2 * (before + batch_noise(path))
    curve = float(slope(steps, exact)) / 2
    where = f"steps {steps[0]} to {steps[-1]}"
    mean, se = result["mean"], result["se"]
    out = [
        _slope_row(
            f"steps of the mean: gain times what the batch adds to the lag, {name}",
            [equality(mean, se, exact, df=df), equality(result["slope"], result["slope_se"], curve, df=df)],
            result,
            curve,
            where,
        )
    ]
    if path.mean.C == 0:
        out.append(
            _slope_row(
                f"steps of the mean without the noise of the batch, {name}",
                [equality(mean, se, gain2 * before, df=df)],
                result,
                float(slope(steps, gain2 * before)) / 2,
                where,
                planted=True,
            )
        )
    if path.mean.direction == "random" or path.mean.C == 0:
        drift = 0.0 - path.mean.alpha if path.mean.C else 0.0
        out.append(
            _slope_row(
                f"the steps of the mean decay as the drift does, {name}",
                [lower(result["slope"], result["slope_se"], drift, df=df)],
                result,
                None,
                f"slope of the drift {drift:g}; {where}",
                expected="false",
            )
        )
    return out


def _slope_row(
    setting: str,
    tests: list[Test],
    result: Result,
    exact: float | None,
    note: str,
    *,
    expected: Literal["holds", "false"] = "holds",
    planted: bool = False,
) -> Row:
    return row(
        "audit-6",
        setting,
        tests,
        measured=result.number("slope"),
        error=result.number("slope_se"),
        exact=exact,
        expected=expected,
        planted=planted,
        seconds=result.seconds,
        note=note,
    )


CLAIM = Claim(
    "audit-6",
    "a decaying step of the running moments shows a decaying drift",
    f"{STABLEEDIT}, Appendix B.6.3",
    _cells,
    _rows,
)
