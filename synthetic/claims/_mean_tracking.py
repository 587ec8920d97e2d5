"""When the running mean follows a moving target, and that its error need not fall.

The size of the steps does not decide it alone: a drift that keeps its direction is followed if its steps are summable, one
of random directions if their squares are, one that turns if it decays at all (derived here, from the exact error).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from stablediag.stats import theory
from synthetic.bounds import Bound
from synthetic.certify import Row, equality, row, upper
from synthetic.claims import STABLEEDIT, Claim, Scale
from synthetic.claims._mean_cells import SIZE, Floats, Run, Setting, drifting, independent, named, path_cell
from synthetic.grid import Cell, Result
from synthetic.process import MeanDrift, Process

TRACKING, AUDIT = "tracking", "audit-1"
SETTINGS: tuple[Setting, ...] = (
    ("fixed", 1.25),
    ("fixed", 2.0),
    ("random", 0.75),
    ("random", 1.0),
    ("rotating", 0.25),
    ("rotating", 1.0),
    ("fixed", 0.25),
    ("fixed", 0.75),
    ("random", 0.25),
)
#: the target moves but goes nowhere
OTHERS: Mapping[str, Callable[[int], MeanDrift]] = {
    "reverting drift": lambda steps: MeanDrift(C=SIZE, alpha=0.5, direction="reverting", persistence=0.9),
    "periodic drift": lambda steps: MeanDrift(C=0.1, alpha=0.0, direction="periodic", period=50),
    "one jump": lambda steps: MeanDrift(C=1.0, direction="jump", at=steps // 4),
}
#: a warm start of this many steps, whose error an aligned drift of this size then exceeds; no drift; or an offset
WARMUP = 100
AFTER = {
    "fixed drift, alpha = 1.25, C = 3": (MeanDrift(C=3.0, alpha=1.25), 0.0, 700),
    "an offset of 0.5, no drift": (MeanDrift(), 0.5, 20),
    "no drift": (MeanDrift(), 0.0, 100),
}


def _tracking_cells(scale: Scale) -> list[Cell]:
    return [drifting(scale, one) for one in SETTINGS] + [_other(scale, name) for name in OTHERS]


def _other(scale: Scale, name: str) -> Cell:
    steps = scale.pick(1000, 300)
    seed = scale.seed_of("mean", "path", name)
    process = Process(d=32, n=20, steps=steps, mean=OTHERS[name](steps), seed=seed)
    return path_cell(scale, process, name, cost=1.5)


def _tracking_rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    runs = [Run.of(cell, result) for cell, result in zip(cells, results, strict=True)]
    others = dict(zip(OTHERS, runs[len(SETTINGS) :], strict=True))
    return [
        *(_trend(run) for run in runs[: len(SETTINGS)]),
        *(_other_row(name, run, independent(run.process).total) for name, run in others.items()),
        *(
            _other_row(f"planted: {wrong} ({name})", others[name], curve(others[name].process), planted=True)
            for wrong, (name, curve) in WRONG.items()
        ),
    ]


def _trend(run: Run) -> Row:
    """Does the error fall over the last decade? Below the threshold it grows, and the sentence must be refuted."""
    direction, alpha = run.setting
    threshold = theory.tracking_threshold(direction)
    tracks = alpha > threshold
    measured, error = run.result.number("trend"), run.result.number("trend_error")
    exact = run.slope_of(independent(run.process).total)
    falls = upper(measured, error, 0.0, df=run.df)
    # The sentence alone is planted below the threshold: the slope itself is as predicted there too.
    tests = [falls, equality(measured, error, exact, df=run.df)] if tracks else [falls]
    return row(
        TRACKING,
        f"{'' if tracks else 'planted: '}{named(run.setting)}: the error falls (slope over the last decade)",
        tests,
        measured=measured,
        error=error,
        exact=exact,
        planted=not tracks,
        seconds=run.result.seconds,
        note=f"threshold {threshold:g}, asymptotic exponent {max(float(theory.lag_rate(direction, alpha)), -1.0):g}",
    )


def _other_row(name: str, run: Run, exact: Floats, *, planted: bool = False) -> Row:
    tests = [run.equals(exact)]
    if not planted:
        tests.append(run.equals(independent(run.process).prediction, before=True))
    measured, error = run.final()
    return row(
        TRACKING,
        name if planted else f"{name}: error after {run.process.total} steps",
        tests,
        measured=measured,
        error=error,
        exact=exact[-1],
        planted=planted,
        seconds=0.0 if planted else run.result.seconds,
    )


def _scalar_drift(process: Process) -> Floats:
    """The lengths of the steps alone, as if all had one direction."""
    return Bound("worst_mse", process).curve


def _slow_lag(process: Process) -> Floats:
    """An inherited error that falls as 1/t and not as 1/t^2: contracted by 1 - x, not by its square."""
    jump, at = process.mean.C, process.mean.at
    assert at is not None  # a jump has its step
    kappa = np.arange(1, process.total + 1)
    lag2 = np.where(kappa >= at, jump**2 * (at - 1) / kappa, 0.0)
    return lag2 + independent(process).variance


WRONG: Mapping[str, tuple[str, Callable[[Process], Floats]]] = {
    "the lengths of the steps alone": ("periodic drift", _scalar_drift),
    "an inherited error that falls as 1/t": ("one jump", _slow_lag),
}


def _audit_process(scale: Scale, name: str) -> Process:
    mean, offset, steps = AFTER[name]
    return Process(d=64, n=20, steps=steps, mean=mean, warmup=WARMUP, offset=offset, seed=scale.seed_of("mean", name))


def _peak(process: Process) -> int:
    """Step after the warm-up with the largest error; the last if that is the end of the warm-up."""
    after = independent(process).total[WARMUP - 1 :]
    return WARMUP + int(after.argmax()) if after.argmax() > 0 else process.total


def _audit_cells(scale: Scale) -> list[Cell]:
    processes = {name: _audit_process(scale, name) for name in AFTER}
    return [path_cell(scale, one, AUDIT, name, steps=[WARMUP, _peak(one)], cost=2.0) for name, one in processes.items()]


def _audit_rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    runs = {name: Run.of(cell, one) for name, cell, one in zip(AFTER, cells, results, strict=True)}
    return [*map(_monotone, runs, runs.values()), *map(_largest, runs, runs.values())]


def _monotone(name: str, run: Run) -> Row:
    """Is the error at its peak at most that at the end of the warm-up?"""
    exact = independent(run.process).total
    before, later = (float(exact[step - 1]) for step in run.steps)
    measured, error = run.final()
    return row(
        AUDIT,
        f"{name}: the error after a warm start is never above what it was (step {run.steps[1] - WARMUP})",
        [upper(measured, error, before, df=run.df)],
        measured=measured,
        error=error,
        exact=later,
        expected="false" if later > before else "holds",
        seconds=run.result.seconds,
        note=f"exact error {before:.4g} at the end of the warm-up, {later:.4g} after {run.steps[1] - WARMUP} more steps",
    )


def _largest(name: str, run: Run) -> Row:
    """What takes the place of the sentence: the largest exact error."""
    exact = independent(run.process).total
    measured, error = run.final()
    return row(
        AUDIT,
        f"{name}: the exact error, at the end of the warm-up and at step {run.steps[1] - WARMUP}",
        [run.equals(exact)],
        measured=measured,
        error=error,
        exact=float(exact[run.steps[1] - 1]),
    )


CLAIMS = (
    Claim(
        TRACKING,
        "the running mean follows the target iff its drift decays faster than a threshold set by its coherence",
        "derived here, from Theorem 3.5 of " + STABLEEDIT,
        _tracking_cells,
        _tracking_rows,
    ),
    Claim(
        AUDIT,
        "the error of the running mean is non-increasing",
        f"{STABLEEDIT}, Corollary 3.9 (detailed)",
        _audit_cells,
        _audit_rows,
    ),
)
