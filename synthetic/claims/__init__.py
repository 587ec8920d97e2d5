"""What is checked: every claim of the papers, the sharper results, and the sentences that are wrong.

A claim is a list of cells (see `synthetic.grid`) and a function from their results to rows (see `synthetic.certify`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from synthetic.certify import Row
from synthetic.grid import Cell, Result, derive_seed

T = TypeVar("T")

STABLEEDIT = "StableEdit, arXiv:2605.11836"
NAS = "Norm-Anchor Scaling, arXiv:2602.02543"

#: files of this package, in the order of the table
MODULES = ("posterior", "mean", "adaptation", "covariance", "updates", "transforms", "closed_loop", "nas")


@dataclass(frozen=True)
class Scale:
    """How much work a run of the checks does.

    Attributes
    ----------
    quick : bool
        Fewer settings, replicates and steps; the same code, tests and level.
    seed : int
        Base of all seeds.
    reps : int or None
        Replicates of every cell; None leaves each claim its own number.
    """

    quick: bool = False
    seed: int = 0
    reps: int | None = None

    def pick(self, full: T, quick: T) -> T:
        """One of two values, by scale."""
        return quick if self.quick else full

    def replicates(self, full: int, quick: int) -> int:
        """Replicates of a cell: the user's number, else the scale's."""
        return self.reps if self.reps is not None else self.pick(full, quick)

    def seed_of(self, *labels: object) -> int:
        """Seed of the cell with these labels."""
        return derive_seed(self.seed, *labels)


@dataclass(frozen=True)
class Claim:
    """One claim and how it is checked.

    Attributes
    ----------
    id : str
        Such as ``theorem-3.5``.
    title : str
        What is claimed, on one line.
    source : str
        Paper and number, or "derived here".
    cells : callable
        The work, at a scale.
    rows : callable
        Cells and their results (same order) to rows of the table.
    """

    id: str
    title: str
    source: str
    cells: Callable[[Scale], list[Cell]]
    rows: Callable[[Sequence[Cell], Sequence[Result]], list[Row]]


def registry() -> dict[str, Claim]:
    """Every claim by its id, in the order of the table."""
    found: dict[str, Claim] = {}
    for name in MODULES:
        for claim in importlib.import_module(f"synthetic.claims.{name}").CLAIMS:
            if claim.id in found:
                raise ValueError(f"claim {claim.id!r} is registered twice")
            found[claim.id] = claim
    return found
