"""Run checks: every claim, some claims, or one bound on a process of your own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stablediag.errors import SpecError
from synthetic.bounds import Bound
from synthetic.certify import FAMILY_LEVEL, FAMILY_SIZE, Row, Test, Verdict, equality, row, upper
from synthetic.claims import Claim, Scale, registry
from synthetic.grid import run_cells
from synthetic.reduce import mean_se
from synthetic.tracks import checkpoints, track_covariance, track_mean

FULL = Scale()


@dataclass(frozen=True)
class Report:
    """Rows of a run of checks."""

    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Every statement came out as predicted, every planted violation was caught, and the level is the one stated."""
        return all(one.ok for one in self.rows) and self.tests <= FAMILY_SIZE

    @property
    def verdict(self) -> Verdict:
        """The worst verdict among the rows in which nothing was planted: false, unknown, loose, holds."""
        found = {one.verdict for one in self.rows if not one.planted}
        order: tuple[Verdict, ...] = ("false", "unknown", "loose", "holds")
        return next((verdict for verdict in order if verdict in found), "unknown")

    @property
    def frame(self) -> pd.DataFrame:
        """One line per row, columns as in `synthetic.certify.Row`."""
        numbers = dict.fromkeys(("exact", "tight", "paper", "slack", "power", "z"), np.float64)
        return pd.DataFrame([one.as_dict() for one in self.rows]).astype(numbers)

    @property
    def tests(self) -> int:
        """Statistical tests made."""
        return sum(one.tests for one in self.rows)

    def summary(self) -> str:
        """What came out, on two lines."""
        counts = Counter(one.verdict for one in self.rows if not one.planted)
        planted = [one for one in self.rows if one.planted]
        verdicts = ", ".join(
            f"{counts[name]} {name}" for name in ("holds", "loose", "false", "unknown") if counts[name]
        )
        surprises = [f"{one.claim} ({one.setting}): {one.verdict}" for one in self.rows if not one.ok]
        return (
            f"{len(self.rows)} rows: {verdicts or 'no statement'}; planted violations caught: "
            f"{sum(bool(one.caught) for one in planted)} of {len(planted)}; family-wise false-alarm level "
            f"{FAMILY_LEVEL:g} over at most {FAMILY_SIZE} tests ({self.tests} made)\n"
            + ("as predicted" if not surprises else "NOT as predicted: " + "; ".join(surprises))
        )

    def _repr_html_(self) -> str:
        return str(self.frame.to_html())


def claims(ids: Sequence[str] = ()) -> list[Claim]:
    """Claims by id, all of them by default.

    Raises
    ------
    SpecError
        There is no such claim.
    """
    known = registry()
    unknown = [name for name in ids if name not in known]
    if unknown:
        raise SpecError(f"no claim {unknown[0]!r}: choose from {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(ids)] if ids else list(known.values())


def run_checks(
    ids: Sequence[str] = (),
    *,
    scale: Scale = FULL,
    jobs: int = 1,
    cache_dir: Path | None = None,
    progress: bool = False,
) -> Report:
    """Check claims.

    Parameters
    ----------
    ids : sequence of str, optional
        Such as ``theorem-3.5``; all claims by default.
    scale : Scale, optional
        Quick or full, base seed, replicates.
    jobs : int, optional
        Processes.
    cache_dir : Path, optional
        Where results of cells are kept.
    progress : bool, optional

    Returns
    -------
    Report

    Raises
    ------
    SpecError
        An unknown claim, or a number out of range.
    """
    if jobs < 1:
        raise SpecError(f"jobs: must be at least 1, got {jobs}")
    if scale.reps is not None:
        _check_reps(scale.reps)
    chosen = claims(ids)
    work = [(claim, claim.cells(scale)) for claim in chosen]
    results = run_cells(
        [cell for _, cells in work for cell in cells], jobs=jobs, cache_dir=cache_dir, progress=progress
    )
    rows: list[Row] = []
    start = 0
    for claim, cells in work:
        rows += claim.rows(cells, results[start : start + len(cells)])
        start += len(cells)
    return Report(tuple(rows))


@dataclass(frozen=True)
class Check:
    """A check that can be run: a claim by its id, or a bound on a process.

    Attributes
    ----------
    subject : str or Bound
    quick : bool
        Claims only: the small scale.
    seed : int
    reps : int or None
        Replicates; None leaves a claim its own numbers and gives a bound 200.
    """

    subject: str | Bound
    quick: bool = False
    seed: int = 0
    reps: int | None = None

    def run(self, *, jobs: int = 1, cache_dir: Path | None = None) -> Report:
        """Simulate and compare.

        Returns
        -------
        Report
            For a bound one row per checkpoint: exact values are tested for equality, bounds by a one-sided test.
        """
        scale = Scale(quick=self.quick, seed=self.seed, reps=self.reps)
        if not isinstance(self.subject, str | Bound):
            raise SpecError(f"subject: must be a claim's id or a Bound, got {self.subject!r}")
        if isinstance(self.subject, str):
            return run_checks([self.subject], scale=scale, jobs=jobs, cache_dir=cache_dir)
        return _check_bound(self.subject, scale)


def _check_reps(reps: int) -> None:
    if reps < 8:
        raise SpecError(f"reps: a standard error needs at least 8 replicates, got {reps}")


def _check_bound(bound: Bound, scale: Scale) -> Report:
    process, reps = bound.process, scale.replicates(200, 200)
    _check_reps(reps)
    usable = [step for step in checkpoints(process.total, count=12) if math.isfinite(bound.value(step))]
    if not usable:
        raise SpecError(f"{bound.name}: not defined at any step of this process; take more steps")
    seed = scale.seed_of("bound", bound.name, sorted(process.params().items()))
    if bound.quantity == "mse":
        values = track_mean(process, reps=reps, seed=seed, steps=usable).error2
    else:
        values = track_covariance(process, reps=reps, seed=seed, steps=usable).spectral
    mean, error = mean_se(values)
    rows = []
    for i, step in enumerate(usable):
        at = bound.value(step)
        test: Test = (equality if bound.kind == "exact" else upper)(mean[i], error[i], at, df=reps - 1)
        columns: dict[str, Any] = {bound.kind: at}
        rows.append(row(bound.name, f"step {step}", [test], measured=mean[i], error=error[i], **columns))
    return Report(tuple(rows))
