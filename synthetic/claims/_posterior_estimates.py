"""Posterior means as estimates of fixed moments: what the divisor ``nu - d - 1`` does to covariance and precision.

Ranks of posterior draws cannot see that divisor, for draws never use it; expectations over rows of one law do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from stablediag.maths import NIW, Floor, full_whitener
from stablediag.stats.theory import mean_cov, stationary_inflation, whitened_norm
from synthetic.calibration import sequential
from synthetic.certify import Row, Test, equality, identical, row
from synthetic.claims import STABLEEDIT, Claim, Scale
from synthetic.grid import Cell, Result
from synthetic.reduce import mean_se

ID = "corollary-3.3"
HERE = "synthetic.claims._posterior_estimates"
#: of whitened norms, through an eigendecomposition
TOLERANCE = 1e-10

#: label, d, batches, law of the rows; the violations are planted in the first
LAWS: tuple[tuple[str, int, tuple[int, ...], str], ...] = (
    ("d = 6, N = 40", 6, (5,) * 8, "gauss"),
    ("d = 6, N = 40, skewed rows", 6, (5,) * 8, "exponential"),
    ("d = 6, N = 12", 6, (3,) * 4, "gauss"),
)
#: besides, at full scale
MORE: tuple[tuple[str, int, tuple[int, ...], str], ...] = (
    ("d = 24, N = 60", 24, (20, 30, 10), "gauss"),
    ("d = 2, N = 300", 2, (1,) * 300, "gauss"),
)
#: rows beyond d from which the precision is averaged: nearer to d its tail is too heavy for a standard error
MARGIN = 20


def precision_factor(d: int, rows: int) -> float:
    """``E Sh^-1 = factor * Sigma^-1`` for Gaussian rows: the mean of an inverse Wishart of N - 1 degrees, ``N > d + 2``."""
    return (rows - d - 1) / (rows - d - 2)


def measure_moments(*, seed: int, reps: int, d: int, batches: list[int], noise: str) -> dict[str, Any]:
    """Expectations of the estimates over rows of one fixed law, with no prior.

    Parameters
    ----------
    reps : int
        Independent streams.
    batches : list of int
        Rows of each batch.
    noise : {"gauss", "exponential"}
        Law of the independent standardised coordinates.

    Returns
    -------
    dict
        Averages over the streams and their standard errors (``x`` and ``x se``) of what `_estimates` returns, with the
        divisor of the estimate and (``wrong x``) with N - 1; the posterior ``mean`` and its ``average`` over the
        coordinates; the truths ``mu`` and ``sigma``.
    """
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    eigenvalues = torch.logspace(0, -1.3, d, dtype=torch.float64)
    mu, sigma = torch.arange(1.0, d + 1, dtype=torch.float64), (basis * eigenvalues) @ basis.mT
    standard = torch.empty(reps, sum(batches), d, dtype=torch.float64)
    if noise == "gauss":
        standard.normal_(generator=generator)
    else:
        standard.exponential_(generator=generator).sub_(1.0)
    rows = mu + (standard * eigenvalues.sqrt()) @ basis.mT
    state = sequential(NIW.empty(d, batch_shape=(reps,)), rows.split(batches, dim=-2))
    # The posterior mean of the covariance divides by nu - d - 1.
    wrong = replace(state, nu=state.nu + d)
    found = {"mean": state.mean, "average": state.mean.mean(dim=-1)} | _estimates(state, rows, sigma, batches[-1])
    found |= {f"wrong {name}": value for name, value in _estimates(wrong, rows, sigma, batches[-1]).items()}
    result: dict[str, Any] = {"mu": mu.numpy(), "sigma": sigma.numpy()}
    for name, value in found.items():
        result[name], result[f"{name} se"] = mean_se(value.numpy())
    return result


def _estimates(state: NIW, rows: Tensor, sigma: Tensor, last: int) -> dict[str, Tensor]:
    """Per stream: covariance and precision (upper triangles), each against the truth, and squared norms of whitened rows.

    ``whitened`` averages over the last batch. The average over all rows is the same for every stream, d(1 - (d+1)/N);
    ``leverage gap`` is its relative error.
    """
    i, j = torch.triu_indices(state.d, state.d)
    cov, precision = state.cov, torch.linalg.inv(state.cov)
    energy = full_whitener(state, floor=Floor("none")).apply(rows).square().sum(dim=-1)
    return {
        "cov": cov[:, i, j],
        "precision": precision[:, i, j],
        "inflation": (torch.linalg.inv(sigma) * cov).sum(dim=(-2, -1)) / state.d,
        "precision ratio": (sigma * precision).sum(dim=(-2, -1)) / state.d,
        "whitened": energy[:, -last:].mean(dim=-1),
        "leverage gap": (energy.mean(dim=-1) / float(whitened_norm(state.d, rows.shape[-2])) - 1).abs(),
    }


def measure_inflation(*, seed: int, d: int, rows: int, batch: int) -> dict[str, Any]:
    """Variances of one stream of standard normal rows, whose coordinates are the replicates.

    Returns
    -------
    dict
        ``full`` from the full moments, ``diagonal`` from the diagonal ones, ``wrong`` with the divisor N - 1, and their
        standard errors (``x se``).
    """
    generator = torch.Generator().manual_seed(seed)
    state = NIW.empty(d)
    for start in range(0, rows, batch):
        state = state.update(torch.randn(min(batch, rows - start), d, generator=generator, dtype=torch.float64))
    found = {
        "full": state.cov.diagonal(),
        "diagonal": state.diag().var,
        "wrong": replace(state, nu=state.nu + d).cov.diagonal(),
    }
    result = {name: float(value.mean()) for name, value in found.items()}
    return result | {f"{name} se": float(value.std()) / math.sqrt(d) for name, value in found.items()}


def cells(scale: Scale) -> list[Cell]:
    """Estimates over many streams, then one wide stream."""
    found = []
    reps = scale.replicates(10_000, 2000)
    for label, d, batches, noise in (*LAWS, *scale.pick(MORE, ())):
        params = {"reps": reps, "d": d, "batches": list(batches), "noise": noise}
        cost = reps * sum(batches) * d * 1e-6
        found.append(Cell(f"{HERE}:measure_moments", params, scale.seed_of(ID, label), cost=cost))
    # The width of an 8B model, a hundred rows after its covariance has come to exist.
    d, rows = scale.pick((4096, 4200), (512, 525))
    wide = {"d": d, "rows": rows, "batch": 300}
    found.append(Cell(f"{HERE}:measure_inflation", wide, scale.seed_of(ID, "wide"), cost=scale.pick(20.0, 0.1)))
    return found


def rows(done: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    """Every estimate against its exact expectation, and the divisor N - 1 against the same."""
    table: list[Row] = []
    for (label, *_), cell, result in zip((*LAWS, *MORE), done[:-1], results[:-1], strict=False):
        table += _law_rows(label, cell, result, wrong=False)
    table += _law_rows(LAWS[0][0], done[0], results[0], wrong=True)
    return table + _wide_rows(done[-1], results[-1])


def _law_rows(label: str, cell: Cell, result: Result, *, wrong: bool) -> list[Row]:
    """Rows for one law of the rows. Every entry is tested; shown, and tested too, is the average against the truth."""
    d, total, df = cell.params["d"], sum(cell.params["batches"]), cell.params["reps"] - 1
    sigma, upper = result["sigma"], np.triu_indices(d)

    def against(name: str, exact: ArrayLike) -> Test:
        key = f"wrong {name}" if wrong else name
        return equality(result[key], result[f"{key} se"], exact, df=df)

    def shown(name: str, what: str, exact: float, tests: Sequence[Test]) -> Row:
        key = f"wrong {name}" if wrong else name
        return row(
            ID,
            f"planted: divisor N - 1 in the {what}, {label}" if wrong else f"{what}, {label}",
            tests,
            measured=result.number(key),
            error=result.number(f"{key} se"),
            exact=exact,
            planted=wrong,
            seconds=result.seconds,
        )

    found = []
    if not wrong:
        found.append(shown("average", "mean", float(result["mu"].mean()), [against("mean", result["mu"])]))
    inflation = float(stationary_inflation(d, total))
    tests = [against("cov", mean_cov(sigma, N=total, d=d)[upper]), against("inflation", inflation)]
    found.append(shown("inflation", "covariance over truth", inflation, tests))
    if cell.params["noise"] == "gauss" and total > d + MARGIN:
        factor = precision_factor(d, total)
        tests = [against("precision", factor * np.linalg.inv(sigma)[upper]), against("precision ratio", factor)]
        found.append(shown("precision ratio", "precision over truth", factor, tests))
    energy = float(whitened_norm(d, total))
    found.append(shown("whitened", "squared norm of a whitened row", energy, [against("whitened", energy)]))
    sure = [identical(result["wrong leverage gap" if wrong else "leverage gap"], TOLERANCE)]
    found.append(shown("leverage gap", "squared norm over all rows of one stream, relative gap", 0.0, sure))
    return found


def _wide_rows(cell: Cell, result: Result) -> list[Row]:
    d, total = cell.params["d"], cell.params["rows"]
    inflation = float(stationary_inflation(d, total))
    found = []
    for name, what, exact in (
        ("full", "covariance over truth", inflation),
        ("diagonal", "diagonal variances over truth", 1.0),
        ("wrong", "planted: divisor N - 1 in the covariance over truth", inflation),
    ):
        mean, error = result.number(name), result.number(f"{name} se")
        found.append(
            row(
                ID,
                f"{what}, d = {d}, N = {total}",
                [equality(mean, error, exact, df=d - 1)],
                measured=mean,
                error=error,
                exact=exact,
                planted=name == "wrong",
                seconds=result.seconds,
                note="one stream; the coordinates are the replicates",
            )
        )
    return found


CLAIM = Claim(
    ID,
    "posterior means: the mean is unbiased, the covariance inflated by (N-1)/(N-d-1), its inverse nearly unbiased",
    f"{STABLEEDIT}, Corollary 3.3; factors derived here",
    cells,
    rows,
)
