"""Sentences about Theorem 3.6 that are wrong: its rates, its base case, and the size of its floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from stablediag.stats import theory
from synthetic.certify import Row, dominates, equality, lower, row, upper
from synthetic.claims import STABLEEDIT, Claim, Scale
from synthetic.claims._covariance_common import Values, params, spectral_norms, states
from synthetic.grid import Cell, Result
from synthetic.process import MeanDrift, Process
from synthetic.reduce import mean_se, mean_slope, slope
from synthetic.tracks import checkpoints, track_covariance, track_mean

HERE = "synthetic.claims._covariance_audits"


def measure_average(*, seed: int, reps: int, process: Mapping[str, Any], first: int) -> Values:
    """Log-log slope, from step `first` on, of the error of the mean averaged over all steps so far."""
    path = Process.from_params(process)
    every = np.arange(1, path.total + 1)
    error = track_mean(path, reps=reps, seed=seed, steps=every.tolist()).error2
    window = np.asarray(checkpoints(path.total, count=12, first=first))
    average = np.cumsum(error, axis=1) / every
    exact = np.cumsum(theory.exact_mse(path.drift(), path.traces(), n=path.n).total) / every
    rate, se = mean_slope(window, average[:, window - 1])
    return {
        "slope": rate,
        "se": se,
        "exact": float(slope(window, exact[window - 1])),
        "log_rate": float(slope(window, np.log(window) / window)),
        "grown": exact[-1] * path.total / (exact[first - 1] * first),
    }


def _rate_cells(scale: Scale) -> list[Cell]:
    steps = scale.pick(4000, 1500)
    return [
        Cell(
            f"{HERE}:measure_average",
            {
                "reps": scale.replicates(200, 60),
                "process": params(16, 20, steps, geometric=0.05, mean=MeanDrift(C=0.3, alpha=alpha)),
                "first": steps // 10,
            },
            scale.seed_of("audit-3", alpha),
        )
        for alpha in scale.pick((1.1, 1.25, 1.4), (1.25,))
    ]


def _rate_rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    out = []
    for cell, result in zip(cells, results, strict=True):
        path = Process.from_params(cell.params["process"])
        alpha, df = path.mean.alpha, int(cell.params["reps"]) - 1
        measured, se, exact = result.number("slope"), result.number("se"), result.number("exact")
        window = f"t = {cell.params['first']} to {path.total}"
        shown: dict[str, Any] = {"measured": measured, "error": se, "exact": exact, "seconds": result.seconds}
        out += [
            row(
                "audit-3",
                f"averaged mean error is O(ln t/t), alpha {alpha:g}",
                [upper(measured, se, result.number("log_rate"), df=df)],
                expected="false",
                note=f"slope over {window}; ln t/t has {result.number('log_rate'):.2f} there, 1/t has -1; t times the "
                f"average grows {result.number('grown'):.1f}-fold on the exact curve",
                **shown,
            ),
            row(
                "audit-3",
                f"averaged mean error falls as t^(2-2 alpha), alpha {alpha:g}",
                [equality(measured, se, exact, df=df)],
                note=f"slope over {window} against the exact curve; 2-2 alpha = {2 - 2 * alpha:.2f} in the limit",
                **shown,
            ),
        ]
    return out


def measure_crossing(*, seed: int, reps: int, process: Mapping[str, Any], step: int) -> Values:
    """One step of the recursion over the threshold: `step` is the last with a negative divisor ``N - d - 1``.

    The error is measured after the step, and the recursion is evaluated from the error before it, with the weight of the
    theorem (negative) and with its absolute value; constant moments.
    """
    path = Process.from_params(process)
    d, n = path.d, path.n
    before, after = states(path, reps=reps, seed=seed, steps=[step, step + 1])
    now = torch.as_tensor(path.covariance(step))
    divisor, next_divisor = n * step - d - 1, n * (step + 1) - d - 1
    formal = spectral_norms(before.scale / divisor - now)
    error = spectral_norms(after.cov - now)
    mse = theory.exact_mse(path.drift(), path.traces(), n=n).total[step - 1]
    # Everything but the inherited error, by a recursion with unit weight on an inherited error of zero.
    fresh = (1 + n) * theory.paper_cov(
        [0.0], [0.0], [mse], F0=0.0, nu0=d + 2, kappa0=n * step, d=d, n=n, lmax=float(path.eigenvalues().max())
    )[0]
    out: Values = {"divisor": float(divisor), "next_divisor": float(next_divisor)}
    signed, absolute = ((weight * formal + fresh) / next_divisor for weight in (divisor, abs(divisor)))
    for name, values in (
        ("error", error),
        ("signed", signed),
        ("absolute", absolute),
        ("above_signed", error - signed),
        ("above_absolute", error - absolute),
    ):
        out[name], out[f"{name}_se"] = mean_se(values)
    return out


CROSSING = params(64, 20, 4)


def _crossing_cells(scale: Scale) -> list[Cell]:
    path = Process.from_params(CROSSING)
    work = {"reps": scale.replicates(200, 60), "process": CROSSING, "step": (path.d + 1) // path.n}
    return [Cell(f"{HERE}:measure_crossing", work, scale.seed_of("audit-4"))]


def _crossing_rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    (cell,), (result,) = cells, results
    weight = f"{result.number('divisor'):.0f}/{result.number('next_divisor'):.0f}"
    out = []
    for name, setting in (
        ("signed", "recursion through a negative weight"),
        ("absolute", "recursion with the weight's absolute value"),
    ):
        above, se = result.number(f"above_{name}"), result.number(f"above_{name}_se")
        out.append(
            row(
                "audit-4",
                f"{setting}, d=64 n=20, N = 60 to 80",
                [upper(above, se, 0.0, df=int(cell.params["reps"]) - 1)],
                measured=result.number("error"),
                error=result.number("error_se"),
                paper=result.number(name),
                expected="false" if name == "signed" else "holds",
                seconds=result.seconds,
                note=f"weight of the inherited error {weight}; tested is the error less the recursion: {above:.1f}",
            )
        )
    return out


def measure_floor(*, seed: int, reps: int, process: Mapping[str, Any], step: int) -> Values:
    """Spectral error after `step`."""
    path = Process.from_params(process)
    mean, se = mean_se(track_covariance(path, reps=reps, seed=seed, steps=[step]).spectral[:, 0])
    return {"error": mean, "se": se}


FLOOR_STEP = 1000


def _floor_cells(scale: Scale) -> list[Cell]:
    work = {"reps": scale.replicates(30, 16), "process": params(64, 20, FLOOR_STEP), "step": FLOOR_STEP}
    return [Cell(f"{HERE}:measure_floor", work, scale.seed_of("audit-11"), cost=2.0)]


def _sharp_floor(d: int, n: float) -> float:
    """Floor over lmax with the sharp size of one batch's noise."""
    return theory.paper_floor(d=d, n=n, noise=float(theory.W_sharp(d, n)))


def _floor_rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    (cell,), (result,) = cells, results
    path = Process.from_params(cell.params["process"])
    error, se, df = result.number("error"), result.number("se"), int(cell.params["reps"]) - 1
    floor, rows = _sharp_floor(path.d, path.n), path.n * path.total
    large = _sharp_floor(4096, 100)
    dims = np.array([16, 64, 256, 1024, 4096])
    below, above = (np.array([_sharp_floor(d, 9 * d + side) for d in dims]) for side in (-1, 1))
    return [
        row(
            "audit-11",
            "the floor is small: no more than the error of the estimate 0, d=4096 n=100",
            [dominates(1.0, large)],
            measured=large,
            expected="false",
            note="in units of the largest eigenvalue, with the sharp constant of one batch",
        ),
        row(
            "audit-11",
            f"the floor is irreducible, d={path.d} n={path.n} iso, N={rows}",
            [lower(error, se, floor, df=df)],
            measured=error,
            error=se,
            paper=floor,
            expected="false",
            seconds=result.seconds,
            note=f"the estimate goes {floor / error:.0f} times below it",
        ),
        row(
            "audit-11",
            "the floor says nothing (exceeds 1) exactly for n < 9 d",
            [dominates(below, np.ones(len(dims))), dominates(np.ones(len(dims)), above)],
            measured=above[-1],
            note=f"d = {', '.join(map(str, dims))}, one row to either side of 9 d",
        ),
    ]


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "audit-3",
        "rate of the averaged error of the mean in Theorem 3.6 for exponents between 1 and 3/2",
        f"{STABLEEDIT}, Theorem 3.6; exact curve derived here",
        _rate_cells,
        _rate_rows,
    ),
    Claim(
        "audit-4",
        "base case of Theorem 3.6 with a negative weight",
        f"{STABLEEDIT}, Theorem 3.6 and Remark D.5",
        _crossing_cells,
        _crossing_rows,
    ),
    Claim(
        "audit-11",
        "size of the floor of Theorem 3.6 in units of the largest eigenvalue",
        f"{STABLEEDIT}, Appendix B.3.3",
        _floor_cells,
        _floor_rows,
    ),
)
