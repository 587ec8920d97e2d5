"""The normal-inverse-Wishart recursion as a posterior.

Two kinds of evidence: the recursion against the pooled formula, to rounding, however the rows are cut, ordered or merged;
and its calibration as a posterior, which needs no formula of it at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stablediag.maths import NIW
from synthetic.calibration import BINS, RIGHT, WRONG, Design, calibrate, sequential
from synthetic.certify import Row, identical, row, uniform
from synthetic.claims import STABLEEDIT, Claim, Scale
from synthetic.grid import Cell, Result

ID = "theorem-3.2"
HERE = "synthetic.claims._posterior_recursion"
TOLERANCE = 1e-12

POOLING: Mapping[str, dict[str, Any]] = {
    "batch by batch": {"merge": False, "prior": 0.0},
    "batch by batch, with a prior": {"merge": False, "prior": 9.0},
    "merged in random order": {"merge": True, "prior": 9.0},
}
#: test quantities that share a row, by the start of their names
GROUPS: Mapping[str, tuple[str, ...]] = {
    "mean": ("mean",),
    "covariance": ("first variance", "last variance", "correlation", "log determinant"),
    "mean and covariance with the data": ("log likelihood", "distance"),
}


def pooled(prior: NIW, rows: Tensor) -> NIW:
    """Posterior of all rows at once, by the batch formula in extended precision."""
    x, start = rows.numpy().astype(np.longdouble), prior.mean.numpy().astype(np.longdouble)
    count = x.shape[-2]
    centre = x.mean(axis=-2)
    centred, jump = x - centre[..., None, :], centre - start
    scatter = np.einsum("...ni,...nj->...ij", centred, centred)
    kappa = prior.kappa + count
    shift = prior.kappa * count / kappa * jump[..., :, None] * jump[..., None, :]
    mean = (prior.kappa * start + count * centre) / kappa
    return NIW(_double(mean), kappa, _double(prior.scale.numpy() + scatter + shift), prior.nu + count)


def gap(state: NIW, reference: NIW) -> float:
    """Largest relative difference of mean, scale and both counts, over the batch."""
    mean = (state.mean - reference.mean).norm(dim=-1) / reference.mean.norm(dim=-1)
    scale = (state.scale - reference.scale).norm(dim=(-2, -1)) / reference.scale.norm(dim=(-2, -1))
    counts = [abs(state.kappa / reference.kappa - 1), abs(state.nu / reference.nu - 1)]
    return max(float(mean.max()), float(scale.max()), *counts)


def measure_pooling(
    *, seed: int, d: int, trials: int, orders: int, updates: int, largest: int, merge: bool, prior: float
) -> dict[str, Any]:
    """Largest gap between pieces and pooled formula over random cuts and orders of the rows.

    Parameters
    ----------
    trials : int
        Independent sets of rows, a batch dimension.
    orders : int
        Random cuts into `updates` batches of 1 to `largest` rows, each with new rows in a random order.
    merge : bool
        Batches on their own, merged pair by pair in random order, instead of one after the other.
    prior : float
        Counts and scale of the prior; zero is what the editors use.

    Returns
    -------
    dict
        ``gap``; with a prior also the smallest gap of a backend that is wrong on purpose, ``wrong``, and its ``name``.
    """
    generator = torch.Generator().manual_seed(seed)
    start = NIW.empty(d, batch_shape=(trials,), prior=prior, kappa0=prior, nu0=prior)
    worst, wrong = 0.0, dict.fromkeys(WRONG, math.inf)
    for _ in range(orders):
        sizes = torch.randint(1, largest + 1, (updates,), generator=generator).tolist()
        mix = torch.randn(trials, d, d, generator=generator, dtype=torch.float64)
        rows = torch.randn(trials, sum(sizes), d, generator=generator, dtype=torch.float64) @ mix + 3.0
        reference = pooled(start, rows)
        batches = rows[:, torch.randperm(sum(sizes), generator=generator)].split(sizes, dim=-2)
        state = _merged_in_random_order(start, batches, generator) if merge else sequential(start, batches)
        worst = max(worst, gap(state, reference))
        if prior > 0:
            wrong = {name: min(least, gap(WRONG[name](start, batches), reference)) for name, least in wrong.items()}
    if prior == 0:
        return {"gap": worst}
    name = min(wrong, key=wrong.__getitem__)
    return {"gap": worst, "wrong": wrong[name], "name": name}


def _merged_in_random_order(start: NIW, batches: Sequence[Tensor], generator: torch.Generator) -> NIW:
    blank = NIW.empty(start.d, batch_shape=start.mean.shape[:-1])
    parts = [start, *(blank.update(rows) for rows in batches)]
    while len(parts) > 1:
        i, j = torch.randperm(len(parts), generator=generator)[:2].tolist()
        joined = parts[i].merge(parts[j])
        parts = [part for k, part in enumerate(parts) if k not in (i, j)] + [joined]
    return parts[0]


def _double(x: NDArray[Any]) -> Tensor:
    return torch.from_numpy(x.astype(np.float64))


def measure_calibration(*, seed: int, backend: str, design: dict[str, Any]) -> dict[str, Any]:
    """Calibration of a right or wrong backend: ``names`` of the test quantities, their ``p`` values, mean ``levels``."""
    found = calibrate(Design(**design), {**RIGHT, **WRONG}[backend], seed=seed)
    p = found.p_values()
    return {"names": list(p), "p": list(p.values()), "levels": [found.levels(name).mean() for name in p]}


def cells(scale: Scale) -> list[Cell]:
    """Pooling, then calibration of the right backends, then that of the wrong ones."""
    shape = {"d": 6, "trials": 8, "orders": scale.pick(10, 4), "updates": 12, "largest": 7}
    many = {"d": 5, "trials": 1, "orders": 1, "updates": scale.pick(10_000, 1000), "largest": 3}
    pieces = [shape | options for options in POOLING.values()] + [many | POOLING["batch by batch"]]
    found = [_cell("measure_pooling", scale, params, 0.3) for params in pieces]
    small = Design(sims=max(scale.replicates(4000, 1000), 10 * BINS), draws=scale.pick(127, 63))
    others = [replace(small, d=2, kappa0=4.0), replace(small, d=6, nu0=9.0, batches=(1, 4, 5))]
    designs = [small, *scale.pick(others, [])]
    pairs = [(name, design) for name in RIGHT for design in designs] + [(name, small) for name in WRONG]
    for backend, design in pairs:
        params = {"backend": backend, "design": asdict(design)}
        found.append(_cell("measure_calibration", scale, params, design.sims * design.draws * 2e-6))
    return found


def _cell(name: str, scale: Scale, params: Mapping[str, Any], cost: float) -> Cell:
    return Cell(f"{HERE}:{name}", params, scale.seed_of(ID, name, sorted(params.items())), cost=cost)


def rows(done: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    """Pooling to rounding, and calibration: by groups of quantities where it must hold, over all where it must not."""
    table: list[Row] = []
    for cell, result in zip(done, results, strict=True):
        if cell.function.endswith("measure_pooling"):
            table += _pooling_rows(cell, result)
        elif cell.params["backend"] in RIGHT:
            table += [_calibration_row(cell, result, group) for group in GROUPS]
        else:
            table.append(_calibration_row(cell, result, ""))
    return table


def _pooling_rows(cell: Cell, result: Result) -> list[Row]:
    params = cell.params
    label = next(name for name, options in POOLING.items() if options.items() <= params.items())
    setting = f"equals the pooled formula: {label}, {params['updates']} batches"
    found = [_gap_row(setting, result.number("gap"), result, planted=False)]
    if params["prior"] > 0 and not params["merge"]:
        setting = f"planted: {result['name']}, the least visible of {len(WRONG)} wrong recursions"
        found.append(_gap_row(setting, result.number("wrong"), result, planted=True))
    return found


def _gap_row(setting: str, size: float, result: Result, *, planted: bool) -> Row:
    tests = [identical(size, TOLERANCE)]
    note = "relative to the pooled formula"
    return row(ID, setting, tests, measured=size, exact=0.0, planted=planted, seconds=result.seconds, note=note)


def _calibration_row(cell: Cell, result: Result, group: str) -> Row:
    """Uniform ranks of a group of quantities, of all of them without a group; shown is the least uniform one."""
    names = [str(name) for name in result["names"]]
    at = [i for i, name in enumerate(names) if not group or name.startswith(GROUPS[group])]
    least = min(at, key=lambda i: float(result["p"][i]))
    backend, design = cell.params["backend"], Design(**cell.params["design"])
    size = f"d = {design.d}, {sum(design.batches)} rows"
    return row(
        ID,
        f"calibration of the {group}: by {backend}, {size}" if group else f"planted: {backend}",
        [uniform(result["p"][at])],
        measured=result["levels"][least],
        error=1 / math.sqrt(12 * design.sims),
        exact=0.5,
        planted=not group,
        seconds=result.seconds,
        note=f"mean rank of the {names[least]}, p = {result['p'][least]:.2g}; {design.sims} simulations",
    )


CLAIM = Claim(
    ID,
    "the recursion is the posterior: equal to the pooled formula, in any order, and calibrated",
    f"{STABLEEDIT}, Theorem 3.2",
    cells,
    rows,
)
