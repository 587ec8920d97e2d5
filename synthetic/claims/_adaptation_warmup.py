"""Warm-up as virtual samples: what it gains, for how long, and from which offset on it does harm (Remark D.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from stablediag.maths import DiagNIW
from stablediag.stats import theory
from synthetic.bounds import sizes
from synthetic.certify import Row, Test, equality, identical, lower, row, upper
from synthetic.claims import STABLEEDIT, Claim, Scale
from synthetic.claims._adaptation_common import Values, batch_noise
from synthetic.grid import Cell, Result
from synthetic.process import MeanDrift, Process
from synthetic.reduce import mean_se

HERE = "synthetic.claims._adaptation_warmup"
#: steps of the warm-up, and steps after it
WARMUP, STEPS = 20, (1, 20, 200)
#: squared offset, as a multiple of the one at which warm-up and cold start break even
INSIDE, AT, OUTSIDE = 0.5, 1.0, 2.0


def measure_warmup(*, seed: int, reps: int, process: Mapping[str, Any], steps: Sequence[int]) -> Values:
    """Squared errors after `steps` of the target phase, with the warm-up and without, on the same batches.

    ``ratio`` is the first mean over the second, ``gap`` the first less the second.
    """
    path = Process.from_params(process)
    batches = path.sampler(reps, seed).next_means(path.total)
    mu = torch.as_tensor(path.means())
    cold = DiagNIW.empty(path.d, batch_shape=(reps,))
    warm = cold.update(batches[:, : path.warmup])
    start, kept = path.warmup, []
    for step in steps:
        stop = path.warmup + step
        warm, cold = (state.update(batches[:, start:stop]) for state in (warm, cold))
        kept.append([(state.mean - mu[stop - 1]).square().sum(dim=-1).numpy() for state in (warm, cold)])
        start = stop
    errors = np.array(kept)  # [K, 2, R]
    first, second = errors[:, 0].T, errors[:, 1].T
    out: Values = {}
    for name, values in (("warm", first), ("cold", second), ("gap", first - second)):
        out[name], out[f"{name}_se"] = mean_se(values)
    ratio = out["ratio"] = np.asarray(out["warm"]) / np.asarray(out["cold"])
    out["ratio_se"] = mean_se(first - ratio * second)[1] / np.asarray(out["cold"])
    return out


def _base(steps: int, mean: MeanDrift | None = None) -> Process:
    return Process(steps=steps, warmup=WARMUP, mean=mean or MeanDrift())


def _cells(scale: Scale) -> list[Cell]:
    reps = scale.replicates(1000, 400)

    def cell(process: Process, steps: Sequence[int], *labels: object) -> Cell:
        params = {"reps": reps, "process": process.params(), "steps": list(steps)}
        return Cell(f"{HERE}:measure_warmup", params, scale.seed_of("remark-D.3", *labels))

    found = [cell(_base(STEPS[-1], mean), STEPS, mean.C) for mean in (MeanDrift(), MeanDrift(C=0.3, alpha=1.25))]
    for k in (1, WARMUP):
        still = _base(k)
        limit = float(theory.warmup_breakeven(WARMUP, k, R=batch_noise(still)))
        for share in (INSIDE, AT, OUTSIDE):
            found.append(cell(replace(still, offset=(share * limit) ** 0.5), [k], k, share))
    return found


def _rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    still, drifting, *offsets = zip(cells, results, strict=True)
    out = [*_same(*still), _merged(*still), _merged(*drifting)]
    for cell, result in offsets:
        out += _beside(cell, result)
    return out


def _same(cell: Cell, result: Result) -> list[Row]:
    """Same distribution: what is left of the error of a cold start."""
    df, R = int(cell.params["reps"]) - 1, batch_noise(Process.from_params(cell.params["process"]))
    out = []
    for i, k in enumerate(cell.params["steps"]):
        ratio, exact = result["ratio"][i], float(theory.warmup_ratio(WARMUP, k))
        mse = theory.warmup_mse(WARMUP, k, R=R)
        out.append(
            row(
                "remark-D.3",
                f"error with over without warm-up, same distribution, r={WARMUP} k={k}",
                [
                    equality(ratio, result["ratio_se"][i], exact, df=df),
                    equality(result["warm"][i], result["warm_se"][i], mse, df=df),
                ],
                measured=ratio,
                error=result["ratio_se"][i],
                exact=exact,
                seconds=result.seconds,
                note=f"the warm-up takes {1 - exact:.0%} off",
            )
        )
    return out


def _merged(cell: Cell, result: Result) -> Row:
    """The merged expression: what substitution gives, and a bound."""
    path, df = Process.from_params(cell.params["process"]), int(cell.params["reps"]) - 1
    bound = partial(theory.paper_mse_closed, d=path.d, lmax=float(path.eigenvalues().max()), n=path.n)
    eps = sizes(path)
    merged = bound(eps)
    substituted = bound(eps[WARMUP:], kappa0=WARMUP * path.n, e0=float(bound(eps[:WARMUP])[-1]))
    at = WARMUP + np.asarray(cell.params["steps"]) - 1
    exact = theory.exact_mse(path.drift(), path.traces(), n=path.n).total
    warm, se = result["warm"], result["warm_se"]
    return row(
        "remark-D.3",
        "merged bound, " + (f"drift {path.mean.C:g} t^-{path.mean.alpha:g}" if path.mean.C else "no drift"),
        [
            identical(np.abs(substituted / merged[WARMUP:] - 1), 1e-10),
            upper(warm, se, merged[at], df=df),
            equality(warm, se, exact[at], df=df),
        ],
        measured=warm[-1],
        error=se[-1],
        exact=exact[at[-1]],
        paper=merged[at[-1]],
        seconds=result.seconds,
        note="bound/measured "
        + ", ".join(f"{b / m:.3g} (k={k})" for b, m, k in zip(merged[at], warm, cell.params["steps"], strict=True)),
    )


def _beside(cell: Cell, result: Result) -> list[Row]:
    """Warm-up from another distribution, at an offset below, at or above the break-even."""
    path, df = Process.from_params(cell.params["process"]), int(cell.params["reps"]) - 1
    (k,), R = cell.params["steps"], batch_noise(path)
    share = path.offset**2 / float(theory.warmup_breakeven(WARMUP, k, R=R))
    exact = float(theory.warmup_mse(WARMUP, k, R=R, offset=path.offset))
    gap, gap_se = result["gap"], result["gap_se"]
    where = f"r={WARMUP} k={k}, squared offset {share:.3g} x break-even"

    def one(setting: str, tests: list[Test], claimed: float, *, planted: bool = False) -> Row:
        return row(
            "remark-D.3",
            setting,
            tests,
            measured=result["warm"][0],
            error=result["warm_se"][0],
            exact=claimed,
            planted=planted,
            seconds=result.seconds,
            note=f"cold start {result['cold'][0]:.4g}",
        )

    size = equality(result["warm"], result["warm_se"], exact, df=df)
    if share < (INSIDE + AT) / 2:
        return [one(f"warm-up still helps, {where}", [size, upper(gap, gap_se, 0.0, df=df)], exact)]
    if share < (AT + OUTSIDE) / 2:
        return [one(f"neither better nor worse, {where}", [size, equality(gap, gap_se, 0.0, df=df)], exact)]
    ignoring = float(theory.warmup_mse(WARMUP, k, R=R))
    wrong = equality(result["warm"], result["warm_se"], ignoring, df=df)
    return [
        one(f"warm-up does harm, {where}", [size, lower(gap, gap_se, 0.0, df=df)], exact),
        one(f"virtual samples whatever their offset, {where}", [wrong], ignoring, planted=True),
    ]


CLAIM = Claim(
    "remark-D.3",
    "warm-up acts as virtual samples: gain k/(r+k), merged bound, and the offset at which it breaks even",
    f"{STABLEEDIT}, Remark D.3; ratio and break-even derived here",
    _cells,
    _rows,
)
