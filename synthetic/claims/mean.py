"""Claims about the running mean: its exact error, what it tracks, how it fails to fall, and dependence of the rows."""

from __future__ import annotations

from collections.abc import Sequence

from synthetic.certify import Row
from synthetic.claims import STABLEEDIT, Claim, Scale, _mean_dependence, _mean_paths, _mean_sweep, _mean_tracking
from synthetic.claims._mean_cells import Run
from synthetic.grid import Cell, Result


def _cells(scale: Scale) -> list[Cell]:
    return _mean_sweep.cells(scale) + _mean_paths.cells(scale)


def _rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    runs = [Run.of(cell, result) for cell, result in zip(cells, results, strict=True)]
    sweep, paths = [run for run in runs if run.fresh], [run for run in runs if not run.fresh]
    return _mean_sweep.rows(sweep) + _mean_paths.rows(paths)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "theorem-3.5",
        "error of the running mean: an equality, below the worst direction, below the paper's bound",
        f"{STABLEEDIT}, Theorem 3.5; the equality is derived here",
        _cells,
        _rows,
    ),
    *_mean_tracking.CLAIMS,
    *_mean_dependence.CLAIMS,
)
