"""Theorem 3.5 on long runs: exact value, worst direction, the paper's bound, and how fast the drift part falls.

A bound that is attained cannot be certified by sampling, so the bounds are compared with the exact value and the exact
value with the runs. Slopes are compared with that of the exact curve on the same steps, never with the asymptotic exponent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stablediag.stats import theory
from synthetic.bounds import Bound
from synthetic.certify import Row, dominates, equality, row
from synthetic.claims import Scale
from synthetic.claims._mean_cells import LARGE, SIZE, Run, Setting, drifting, independent, named
from synthetic.grid import Cell

ID = "theorem-3.5"
SETTINGS: tuple[Setting, ...] = (
    ("fixed", 0.75),
    ("fixed", 1.0),
    ("fixed", 1.25),
    ("fixed", 2.0),
    ("random", 0.25),
    ("random", 0.5),
    ("random", 1.0),
    ("rotating", 0.25),
    ("rotating", 1.0),
)
#: where a drift of size `SIZE` is lost in the noise, so that its slope is measured with a larger one
HIDDEN: tuple[Setting, ...] = (("fixed", 2.0), ("random", 1.0), ("rotating", 1.0))


def cells(scale: Scale) -> list[Cell]:
    """A long run for every kind of drift, and one more where its slope needs a larger drift."""
    return [drifting(scale, one) for one in SETTINGS] + [drifting(scale, one, C=LARGE) for one in HIDDEN]


def rows(runs: Sequence[Run]) -> list[Row]:
    """Errors, slopes, and what must be refuted."""
    by = {(run.setting, run.process.mean.C): run for run in runs}
    visible = {one: by[one, LARGE if one in HIDDEN else SIZE] for one in SETTINGS}
    return [
        *(_errors(by[one, SIZE]) for one in SETTINGS),
        *(_slopes(run) for run in visible.values()),
        *_planted(by[("fixed", 0.75), SIZE], by[("fixed", 1.25), SIZE], visible["fixed", 2.0]),
    ]


def _errors(run: Run) -> Row:
    """Measured = exact at every step, after and before the update; exact <= worst direction <= paper."""
    process = run.process
    exact, worst, recursion, closed = (
        Bound(name, process).curve for name in ("exact_mse", "worst_mse", "paper_mse", "paper_mse_closed")
    )
    tests = [
        run.equals(exact),
        run.equals(independent(process).prediction, before=True),
        dominates(worst, exact),
        dominates(recursion, worst),
        dominates(closed, recursion),
    ]
    measured, error = run.final()
    return row(
        ID,
        f"{named(run.setting)}: error after {process.total} steps",
        tests,
        measured=measured,
        error=error,
        exact=exact[-1],
        tight=worst[-1],
        paper=closed[-1],
        seconds=run.result.seconds,
        note=f"over measured: worst direction {worst[-1] / measured:.3g}, paper's recursion "
        f"{recursion[-1] / measured:.3g}, its closed form {closed[-1] / measured:.3g}",
    )


def _slopes(run: Run) -> Row:
    """Slope of the drift part over the last decade."""
    exact = run.slope_of(independent(run.process).lag2)
    measured, error = run.result.number("lag"), run.result.number("lag_error")
    size = "" if run.process.mean.C == SIZE else f", C = {run.process.mean.C:g}"
    return row(
        ID,
        f"{named(run.setting)}{size}: slope of the drift part over the last decade",
        [equality(measured, error, exact, df=run.df)],
        measured=measured,
        error=error,
        exact=exact,
        seconds=run.result.seconds if size else 0.0,
        note=f"asymptotic exponent {theory.lag_rate(*run.setting):g}",
    )


def _planted(growing: Run, falling: Run, steep: Run) -> list[Row]:
    """A bound without its drift, an error before the update taken for that after it, and two wrong slopes."""
    process = growing.process
    measured, error = growing.final()
    still = theory.paper_mse_closed(np.zeros(process.total), d=process.d, lmax=process.spectrum.lmax, n=process.n)
    exact = independent(falling.process)
    after, after_error = falling.result["mean"], falling.result["error"]
    lag = falling.slope_of(exact.lag2)
    limit = float(theory.lag_rate(*steep.setting))
    return [
        row(
            ID,
            f"planted: the paper's bound without its drift term ({named(growing.setting)})",
            [dominates(still, independent(process).total)],
            measured=measured,
            error=error,
            exact=independent(process).total[-1],
            paper=still[-1],
            planted=True,
        ),
        row(
            ID,
            f"planted: the error before the update for that after it ({named(falling.setting)})",
            [falling.equals(exact.prediction)],
            measured=float(after[0]),
            error=float(after_error[0]),
            exact=float(falling.at(exact.prediction)[0]),
            planted=True,
        ),
        _wrong_slope("the variance left in", falling, "trend", lag),
        _wrong_slope("the asymptotic exponent for the slope of the exact curve", steep, "lag", limit),
    ]


def _wrong_slope(name: str, run: Run, which: str, exact: float) -> Row:
    measured, error = run.result.number(which), run.result.number(f"{which}_error")
    return row(
        ID,
        f"planted: {name} ({named(run.setting)})",
        [equality(measured, error, exact, df=run.df)],
        measured=measured,
        error=error,
        exact=exact,
        planted=True,
    )
