"""Lag under drift: the horizon up to which averaging helps, and the lag in units of the covariance it inflates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stablediag.maths import NIW, DiagNIW
from stablediag.stats import theory
from synthetic.certify import Row, equality, identical, row, upper
from synthetic.claims import Claim, Scale
from synthetic.claims._adaptation_common import Floats, Values, batch_means, batch_noise, expected_mse
from synthetic.grid import Cell, Result
from synthetic.process import CHUNK, MeanDrift, Process
from synthetic.reduce import mean_se

HERE = "synthetic.claims._adaptation_lag"

# Trackable horizon


def measure_horizon(*, seed: int, reps: int, process: Mapping[str, Any], steps: Sequence[int]) -> Values:
    """Squared error of plain averaging at `steps`, averaged over directions if they are random."""
    path = Process.from_params(process)
    batches, mu = batch_means(path, reps=reps, seed=seed)
    state, start, kept = DiagNIW.empty(path.d, batch_shape=(reps,)), 0, []
    for step in steps:
        state, start = state.update(batches[:, start:step]), step
        kept.append((state.mean - mu[:, step - 1]).square().sum(dim=-1).numpy())
    mean, se = mean_se(np.stack(kept, axis=1))
    return {"mean": mean, "se": se}


def _horizon_cells(scale: Scale) -> list[Cell]:
    """At a third of the horizon, at it, and at three times it."""
    found = []
    for direction in ("fixed", "random"):
        for c in scale.pick((0.1, 0.03, 0.01), (0.1,)):
            mean = MeanDrift(C=c, alpha=0.0, direction=direction)
            at = float(theory.horizon(c, batch_noise(Process()), direction))
            steps = [math.ceil(at * factor) for factor in (1 / 3, 1, 3)]
            params = {
                "reps": scale.replicates(400, 200),
                "process": Process(steps=steps[-1], mean=mean).params(),
                "steps": steps,
            }
            found.append(Cell(f"{HERE}:measure_horizon", params, scale.seed_of("horizon", direction, c)))
    return found


def _horizon_rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    out = []
    for cell, result in zip(cells, results, strict=True):
        path, df = Process.from_params(cell.params["process"]), int(cell.params["reps"]) - 1
        steps = np.asarray(cell.params["steps"])
        still = batch_noise(path) / steps
        mean, se, exact = result["mean"], result["se"], expected_mse(path).total[steps - 1]
        ratio = mean / still
        for planted in (False, True):
            tests = [equality(mean, se, still if planted else exact, df=df)]
            if not planted:
                tests.append(identical(np.abs(exact[1] / still[1] / 2 - 1), 0.1))
            out.append(
                row(
                    "horizon",
                    f"{path.mean.direction} direction, {path.mean.C:g} a step: error over that without drift"
                    + (", drift ignored" * planted),
                    tests,
                    measured=ratio[1],
                    error=se[1] / still[1],
                    exact=1.0 if planted else exact[1] / still[1],
                    planted=planted,
                    seconds=result.seconds,
                    note=f"horizon {theory.horizon(path.mean.C, batch_noise(path), path.mean.direction):.1f} steps; "
                    + ", ".join(f"{r:.2f} at t={t}" for r, t in zip(ratio, steps, strict=True)),
                )
            )
    return out


# Lag in units of the covariance


def measure_normalised(*, seed: int, reps: int, process: Mapping[str, Any], steps: Sequence[int]) -> Values:
    """``b' S^-1 b`` at `steps` with b the exact lag: S the running covariance, or of rows centred in their own batch."""
    path = Process.from_params(process)
    b = torch.as_tensor(theory.lag(path.drift(), theory.gains(path.total, n=path.n)))
    sampler = path.sampler(reps, seed)
    most = max(1, CHUNK // (reps * path.n * path.d))
    running = within = NIW.empty(path.d, batch_shape=(reps,))
    found: dict[str, list[Floats]] = {"running": [], "within": []}
    for step in steps:
        while sampler.at < step:
            rows = sampler.next(min(most, step - sampler.at))
            running = running.update(rows.flatten(1, 2))
            within = within.update((rows - rows.mean(dim=2, keepdim=True)).flatten(1, 2))
        for name, state in (("running", running), ("within", within)):
            found[name].append(_normalised(b[step - 1], state.cov))
    out: Values = {"raw": b[np.asarray(steps) - 1].square().sum(dim=-1).numpy()}
    for name, kept in found.items():
        out[name], out[f"{name}_se"] = mean_se(np.stack(kept, axis=1))
    out["exact"] = np.array([exact_normalised(path, step) for step in steps])
    return out


def _normalised(b: Tensor, cov: Tensor) -> Floats:
    column = b.expand(cov.shape[:-1]).unsqueeze(-1)
    return (column * torch.linalg.solve(cov, column)).sum(dim=(-2, -1)).numpy()


def exact_normalised(process: Process, step: int) -> float:
    r"""Mean of ``b' Sh^-1 b`` when the true mean moves along one line (derived here); constant covariance.

    Along the line the scatter of whitened rows is a non-central chi-square Q with N - 1 degrees of freedom, whose
    non-centrality is N times the scatter of the true means. What the other coordinates explain of it is a random projection,
    so that the Schur complement is Q times an independent Beta((N-d)/2, (d-1)/2). Without drift this is the mean of an inverse
    Wishart matrix.
    """
    d, N = process.d, float(process.n * step)
    root = np.sqrt(process.eigenvalues()[0])
    means = process.means()[:step] / root
    b2 = float(np.square(theory.lag(process.drift(), theory.gains(process.total, n=process.n))[step - 1] / root).sum())
    spread = N * float(np.square(means - means.mean(axis=0)).sum(axis=1).mean())
    return (N - d - 1) * b2 * (N - 3) / (N - d - 2) * inverse_chi2(N - 1, spread)


def inverse_chi2(df: float, spread: float) -> float:
    """Mean of the inverse of a non-central chi-square variable, ``df > 2``, non-centrality `spread`.

    The mean of ``1/(df - 2 + 2J)`` over Poisson J of mean spread/2, as an integral over its generating function.
    """
    a, rate = df - 2, spread / 2
    v, weight = np.polynomial.laguerre.laggauss(60)
    u = v / (a + spread)
    return float((weight * np.exp(v - a * u + rate * np.expm1(-2 * u))).sum() / (a + spread))


#: exponents of aligned drifts of size 3 t^-alpha, and a jump of that size at this step
ALPHAS, SIZE, JUMP = (0.0, 0.25, 0.5, 0.75), 3.0, 40


def _lag_cells(scale: Scale) -> list[Cell]:
    total, d = scale.pick(2000, 500), scale.pick(32, 16)
    drifts = [MeanDrift(C=SIZE, alpha=alpha) for alpha in scale.pick(ALPHAS, (0.0, 0.5))]
    found = []
    for mean in (*drifts, MeanDrift(C=SIZE, direction="jump", at=JUMP + 1)):
        jump = mean.direction == "jump"
        process = Process(d=d, steps=JUMP + 1 if jump else total, mean=mean)
        params = {
            "reps": scale.replicates(40, 20),
            "process": process.params(),
            "steps": [process.total] if jump else [total // 20, total // 4, total],
        }
        found.append(
            Cell(
                f"{HERE}:measure_normalised", params, scale.seed_of("normalised", mean.direction, mean.alpha), cost=3.0
            )
        )
    return found


def _lag_rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    out = []
    for cell, result in zip(cells, results, strict=True):
        path, df = Process.from_params(cell.params["process"]), int(cell.params["reps"]) - 1
        mean, se, exact = result["running"], result["running_se"], result["exact"]
        within, within_se, raw = result["within"], result["within_se"], result["raw"]
        jump = path.mean.direction == "jump"
        if jump:
            what, limit = f"jump after {JUMP} steps", float(JUMP)
            tests = [equality(mean, se, exact, df=df), upper(mean, se, limit, df=df)]
        else:
            what, limit = f"aligned drift t^-{path.mean.alpha:g}", float(theory.self_normalised_lag(path.mean.alpha))
            # The limit is that of a growing lag: within 1 % of it by the last step.
            tests = [equality(mean, se, exact, df=df), identical(np.abs(exact[-1] / limit - 1), 0.01)]
        out.append(
            row(
                "self-normalised-lag",
                f"{what}, d={path.d} t={path.total}",
                tests,
                measured=mean[-1],
                error=se[-1],
                exact=exact[-1],
                tight=limit if jump else None,
                seconds=result.seconds,
                note=("at most " if jump else "limit ") + f"{limit:g}; raw squared lag {raw[0]:.3g} to {raw[-1]:.3g}",
            )
        )
        if not jump and path.mean.alpha == 0:
            out.append(
                row(
                    "self-normalised-lag",
                    f"{what}, whitened by the scatter within batches",
                    [upper(within, within_se, 1.01 * limit, df=df)],
                    measured=within[-1],
                    error=within_se[-1],
                    exact=limit,
                    planted=True,
                    seconds=result.seconds,
                )
            )
    return out


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "horizon",
        "trackable horizon of plain averaging under constant drift: there the error is twice that without drift",
        "derived here",
        _horizon_cells,
        _horizon_rows,
    ),
    Claim(
        "self-normalised-lag",
        "the lag in units of the running covariance tends to 3 - 2 alpha while the lag itself grows",
        "derived here",
        _lag_cells,
        _lag_rows,
    ),
)
