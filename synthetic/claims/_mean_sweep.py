"""Theorem 3.5 as an equality, over directions, decays, warm starts, offsets and distributions of the rows.

Every checkpoint has replicates of its own, so that all scores are independent and their distribution can be tested too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from stablediag.stats import theory
from synthetic.bounds import Bound
from synthetic.certify import Row, row, scores, standard_normal
from synthetic.claims import Scale
from synthetic.claims._mean_cells import SIZE, Floats, Run, Setting, fresh_cell, named
from synthetic.grid import Cell
from synthetic.process import CovDrift, MeanDrift, Noise, Process

ID = "theorem-3.5"
SETTINGS: tuple[Setting, ...] = (
    ("fixed", 0.75),
    ("fixed", 1.25),
    ("random", 0.25),
    ("random", 1.0),
    ("rotating", 0.25),
    ("rotating", 1.0),
)
#: steps of warm-up, and how far from the target's its mean lies
STARTS = ((0, 0.0), (20, 0.0), (20, 1.0), (5, 0.5))
NOISES = (Noise(), Noise("student", df=5.0))
#: standard errors divided by this must be noticed
TOO_SMALL = 2.0


def cells(scale: Scale) -> list[Cell]:
    """48 settings, three checkpoints each."""
    return [
        _cell(scale, setting, warmup, offset, noise)
        for setting in SETTINGS
        for warmup, offset in STARTS
        for noise in NOISES
    ]


def _cell(scale: Scale, setting: Setting, warmup: int, offset: float, noise: Noise) -> Cell:
    direction, alpha = setting
    labels = ("sweep", direction, alpha, warmup, offset, noise.kind)
    targets = scale.pick((10, 40, 160), (10, 20, 40))
    process = Process(
        d=32,
        # Means of Gaussian rows are drawn at once, whatever n is.
        n=20 if noise.gaussian else scale.pick(8, 4),
        steps=targets[-1],
        mean=MeanDrift(C=SIZE, alpha=alpha, direction=direction),
        cov=CovDrift(C=0.2, beta=0.5, kind="folding"),
        noise=noise,
        warmup=warmup,
        offset=offset,
        seed=scale.seed_of("mean", "path", *labels),
    )
    return fresh_cell(scale, process, [warmup + k for k in targets], *labels)


def rows(runs: Sequence[Run]) -> list[Row]:
    """One row for every kind of drift, the distribution of all scores, and oracles that are wrong on purpose."""
    groups = {setting: [run for run in runs if run.setting == setting] for setting in SETTINGS}
    exact = [_compared(named(setting), group, _exact) for setting, group in groups.items()]
    wrong = [
        _compared(f"planted: {name} ({named(setting)})", groups[setting], curve, planted=True)
        for name, (setting, curve) in WRONG.items()
    ]
    return [*exact, *_distribution(runs), *wrong]


def _compared(name: str, group: Sequence[Run], curve: Callable[[Process], Floats], *, planted: bool = False) -> Row:
    """Measured over predicted errors of one kind of drift, over all its starts and distributions."""
    curves = [curve(run.process) for run in group]
    tests = [run.equals(values) for run, values in zip(group, curves, strict=True)]
    at = [run.at(values) for run, values in zip(group, curves, strict=True)]
    ratios = np.concatenate([run.result["mean"] / values for run, values in zip(group, at, strict=True)])
    errors = np.concatenate([run.result["error"] / values for run, values in zip(group, at, strict=True)])
    return row(
        ID,
        name if planted else f"{name}: measured/exact, warm starts, offsets, Gaussian and t5 rows, drifting covariance",
        tests,
        measured=float(ratios.mean()),
        error=float(np.sqrt((errors**2).sum()) / errors.size),
        exact=1.0,
        planted=planted,
        seconds=0.0 if planted else sum(run.result.seconds for run in group),
        note=f"largest of {ratios.size} scores {max(test.z for test in tests):.2f}",
    )


def _distribution(runs: Sequence[Run]) -> list[Row]:
    """Are all scores together standard normal? And would standard errors that are too small be noticed?"""
    z = np.concatenate(
        [scores(run.result["mean"], run.result["error"], run.at(_exact(run.process)), df=run.df) for run in runs]
    )
    cases = {
        f"all {z.size} scores of the equality: mean, spread and shape": z,
        f"planted: standard errors {TOO_SMALL:g} times too small": TOO_SMALL * z,
    }
    return [
        row(
            ID,
            name,
            [standard_normal(values)],
            measured=float(values.mean()),
            error=float(values.std(ddof=1) / np.sqrt(values.size)),
            exact=0.0,
            planted=values is not z,
            note=f"standard deviation {values.std(ddof=1):.3f}, largest {np.abs(values).max():.2f}, "
            f"{100 * np.mean(np.abs(values) > 1.96):.1f} % beyond 1.96",
        )
        for name, values in cases.items()
    ]


def _exact(process: Process) -> Floats:
    return Bound("exact_mse", process).curve


def _slow_noise(process: Process) -> Floats:
    """The variance contracted by 1 - x, not by its square."""
    variance, out = 0.0, []
    for x, trace in zip(theory.gains(process.total, n=process.n), process.traces(), strict=True):
        variance = (1 - x) * variance + x**2 * trace / process.n
        out.append(variance)
    return theory.exact_mse(process.drift(), process.traces(), n=process.n).lag2 + np.array(out)


def _late_drift(process: Process) -> Floats:
    """The drift counted one step late."""
    return theory.exact_mse(np.roll(process.drift(), 1, axis=0), process.traces(), n=process.n).total


def _full_trace(process: Process) -> Floats:
    """``d lmax`` for the trace."""
    traces = np.full(process.total, process.d * process.spectrum.lmax)
    return theory.exact_mse(process.drift(), traces, n=process.n).total


WRONG: Mapping[str, tuple[Setting, Callable[[Process], Floats]]] = {
    "noise contracted by 1-x instead of its square": (("rotating", 1.0), _slow_noise),
    "drift counted one step late": (("fixed", 0.75), _late_drift),
    "d lmax in place of the trace": (("random", 1.0), _full_trace),
}
