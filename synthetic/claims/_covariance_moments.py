"""The exact mean of the running covariance under drift, and what starting it from nothing costs (Remark D.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from stablediag.stats import theory
from synthetic.certify import Row, equality, row, scores, upper
from synthetic.claims import STABLEEDIT, Claim, Scale
from synthetic.claims._covariance_common import Values, params, spectral_norms, states
from synthetic.grid import Cell, Result, derive_seed
from synthetic.process import CovDrift, MeanDrift, Noise, Process
from synthetic.reduce import mean_se

HERE = "synthetic.claims._covariance_moments"
#: random directions in which the mean matrix is tested, beside the direction in which the mean has moved
DIRECTIONS = 9


def measure_mean(*, seed: int, reps: int, process: Mapping[str, Any], prior: float) -> Values:
    """Variances ``u'Sh u`` of the estimate in some directions after the last step, with their exact means.

    The first direction is the one in which the mean has moved most (any, when it has not). The exact means come as they
    are, without the scatter of the means, and with the divisor of a sample covariance, ``N - 1``.
    """
    path = Process.from_params(process)
    steps, d = path.total, path.d
    (state,) = states(path, reps=reps, seed=seed, steps=[steps], prior=prior)
    rows = path.n * steps
    B = theory.scatter_of_means(path.means())
    generator = torch.Generator().manual_seed(derive_seed(seed, "directions"))
    random = torch.randn(DIRECTIONS, d, generator=generator, dtype=torch.float64).numpy()
    u = np.concatenate([np.linalg.eigh(B)[1][:, -1:].T, random / np.linalg.norm(random, axis=1, keepdims=True)])
    cov = state.cov.numpy()
    mean, se = mean_se(np.einsum("ki,rij,kj->rk", u, cov, u))
    exact = theory.mean_cov(path.time_average(steps), B, N=rows, d=d, eps0=prior)
    still = theory.mean_cov(path.time_average(steps), N=rows, d=d, eps0=prior)
    entry, entry_se = mean_se(cov)
    return {
        "mean": mean,
        "se": se,
        "exact": np.einsum("ki,ij,kj->k", u, exact, u),
        "no_scatter": np.einsum("ki,ij,kj->k", u, still, u),
        "sample_divisor": np.einsum("ki,ij,kj->k", u, exact, u) * (rows - d - 1) / (rows - 1),
        "entries": np.abs(scores(entry, entry_se, exact, df=reps - 1)).max(),
    }


def _setting(mean: MeanDrift | None, cov: CovDrift | None, noise: Noise | None, steps: int = 40) -> dict[str, Any]:
    return params(24, 12, steps, geometric=0.05, mean=mean, cov=cov, noise=noise)


_FIXED = MeanDrift(C=0.3, alpha=0.5)
_FOLDING = CovDrift(C=0.2, beta=0.75, kind="folding")
BOTH = "both drifts"
#: process and prior by name
DRIFTS: dict[str, tuple[dict[str, Any], float]] = {
    BOTH: (_setting(_FIXED, _FOLDING, None), 0.0),
    "mean drift .3 t^-.5, exponential rows": (_setting(_FIXED, None, Noise(kind="exponential")), 0.0),
    "Sigma rotating, prior 5": (_setting(None, CovDrift(C=0.1, beta=0.5, kind="rotation"), None), 5.0),
    "random mean drift": (_setting(MeanDrift(C=0.5, alpha=0.25, direction="random"), None, None), 0.0),
    "both drifts, Student-t df 5": (_setting(_FIXED, _FOLDING, Noise(kind="student", df=5.0)), 0.0),
    "both drifts, N = 36": (_setting(_FIXED, _FOLDING, None, steps=3), 0.0),
}
MEAN_QUICK = (BOTH, "mean drift .3 t^-.5, exponential rows", "Sigma rotating, prior 5")


def _mean_cells(scale: Scale) -> list[Cell]:
    return [
        Cell(
            f"{HERE}:measure_mean",
            {"reps": scale.replicates(1000, 400), "process": DRIFTS[name][0], "prior": DRIFTS[name][1]},
            scale.seed_of("mean-covariance", name),
        )
        for name in scale.pick(tuple(DRIFTS), MEAN_QUICK)
    ]


def _mean_rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    out: list[Row] = []
    for cell, result in zip(cells, results, strict=True):
        work = (cell.params["process"], cell.params["prior"])
        name = next(name for name, known in DRIFTS.items() if known == work)
        out.append(_mean_row(cell, result, name, "exact"))
        if name == BOTH:
            out.append(_mean_row(cell, result, f"{name}, without the scatter of means", "no_scatter"))
            out.append(_mean_row(cell, result, f"{name}, divisor N - 1", "sample_divisor"))
    return out


def _mean_row(cell: Cell, result: Result, setting: str, key: str) -> Row:
    """The first direction is shown, all are tested."""
    mean, se, exact = result["mean"], result["se"], result[key]
    return row(
        "mean-covariance",
        setting,
        [equality(mean, se, exact, df=int(cell.params["reps"]) - 1)],
        measured=mean[0],
        error=se[0],
        exact=exact[0],
        planted=key != "exact",
        seconds=result.seconds,
        note=f"{len(mean)} directions tested, the first along the drift; largest |z| of all entries "
        f"{result.number('entries'):.1f}",
    )


def measure_start(*, seed: int, reps: int, process: Mapping[str, Any], steps: Sequence[int]) -> Values:
    """Relative bias ``tr(Sigma^-1 Sh)/d - 1`` and relative spectral error of an estimate started from nothing."""
    path = Process.from_params(process)
    inverse = torch.linalg.inv(torch.as_tensor(path.covariance(1)))
    bias, error = [], []
    for state in states(path, reps=reps, seed=seed, steps=steps):
        bias.append((state.cov * inverse).sum(dim=(-2, -1)).numpy() / path.d - 1)
        error.append(spectral_norms(state.cov - torch.as_tensor(path.covariance(1))))
    found, se = mean_se(np.stack(bias, axis=1))
    mean, mean_error = mean_se(np.stack(error, axis=1))
    return {"bias": found, "bias_se": se, "error": mean, "error_se": mean_error}


START = params(32, 8, 80, geometric=0.05)
START_STEPS = [5, 8, 20, 80]


def _start_cells(scale: Scale) -> list[Cell]:
    work = {"reps": scale.replicates(1000, 300), "process": START, "steps": START_STEPS}
    return [Cell(f"{HERE}:measure_start", work, scale.seed_of("remark-D.5"))]


def _start_rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    (cell,), (result,) = cells, results
    path = Process.from_params(cell.params["process"])
    d, n, df = path.d, path.n, int(cell.params["reps"]) - 1
    rows = n * np.asarray(cell.params["steps"], dtype=np.float64)
    out = []
    floor = theory.paper_floor(d=d, n=n) * rows / (rows - d - 1)
    error = result["error"]
    out.append(
        row(
            "remark-D.5",
            f"floor times N/(N-d-1) bounds a cold start, d={d} n={n} geo",
            [upper(error, result["error_se"], floor, df=df)],
            measured=error[-1],
            error=result["error_se"][-1],
            paper=floor[-1],
            seconds=result.seconds,
            note="bound/measured "
            + ", ".join(f"{b / e:.3g} (N={N:.0f})" for b, e, N in zip(floor, error, rows, strict=True)),
        )
    )
    bias, se = result["bias"], result["bias_se"]
    exact = theory.stationary_inflation(d, rows) - 1
    numbers = ", ".join(f"{b:.3f} (N={N:.0f})" for b, N in zip(bias, rows, strict=True))
    for setting, value, planted in (
        ("relative bias of a cold start is d/(N-d-1)", exact, False),
        ("a cold start has no bias", np.zeros_like(exact), True),
    ):
        out.append(
            row(
                "remark-D.5",
                f"{setting}, d={d}",
                [equality(bias, se, value, df=df)],
                measured=bias[-1],
                error=se[-1],
                exact=value[-1],
                planted=planted,
                seconds=result.seconds,
                note=f"the dropped term (d+1)/(N-d-1) less 1/(N-d-1) for the mean: {numbers}",
            )
        )
    return out


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "mean-covariance",
        "exact mean of the covariance estimate under drift: time average plus scatter of the means",
        "derived here",
        _mean_cells,
        _mean_rows,
    ),
    Claim(
        "remark-D.5",
        "covariance from a cold start: the floor function falls, and the dropped term is a real bias",
        f"{STABLEEDIT}, Remark D.5",
        _start_cells,
        _start_rows,
    ),
)
