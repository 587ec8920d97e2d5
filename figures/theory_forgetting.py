"""Forgetting against uniform averaging: the gain under constant drift, and a tuned schedule under decaying drift."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures import theory
from figures.theory_cells import cell
from figures.verdict import Verdict
from stablediag import plots
from stablediag.stats.theory import best_mse, exact_mse, gain_schedule, optimal_gain, steady_mse
from synthetic.grid import Cell, Result
from synthetic.process import MeanDrift, Process
from synthetic.tracks import checkpoints

TITLE = "Forgetting against uniform averaging"
LABELS = {"fixed": "fixed direction", "random": "random directions"}
#: constant drift per step, in units of sqrt(R)
STEP = 0.1
GAINS = (0.03, 0.06, 0.12, 0.25, 0.5)
#: exponent of the decaying drift, below both thresholds of uniform averaging
ALPHA = 0.25


def cells(quick: bool) -> list[Cell]:
    """Constant gains under constant drift; then uniform and tuned gains under a decaying one."""
    reps = 60 if quick else 300
    steps = 300 if quick else 2000
    noise = Process(steps=1).traces()[0] / 20
    found = []
    for direction in LABELS:
        drift = MeanDrift(C=STEP * float(np.sqrt(noise)), alpha=0.0, direction=direction)  # type: ignore[arg-type]
        process = Process(steps=300, mean=drift)
        last = list(range(200, 301, 10))
        for gain in GAINS:
            every = np.maximum(1 / np.arange(1, 301), gain).tolist()
            found.append(cell("measure_gains", "theory-forgetting", process, reps=reps, steps=last, gains=every))
    marks = checkpoints(steps, count=12)
    for direction in LABELS:
        drift = MeanDrift(C=0.3, alpha=ALPHA, direction=direction)  # type: ignore[arg-type]
        process = Process(steps=steps, mean=drift)
        tuned = np.clip(
            gain_schedule(drift.C * np.arange(1, steps + 1.0) ** -ALPHA, noise, direction), None, 1
        ).tolist()
        for chosen in (None, tuned):
            found.append(cell("measure_gains", "theory-forgetting", process, reps=reps, steps=marks, gains=chosen))
    return found


def prepare(cells: Sequence[Cell], results: Sequence[Result]) -> pd.DataFrame:
    """Columns panel, direction, gain, schedule, step, value, se, exact; the left panel in units of R."""
    parts = []
    for one, result in zip(cells, results, strict=True):
        process = Process.from_params(one.params["process"])
        steps, gains = one.params["steps"], one.params["gains"]
        exact = exact_mse(process.drift(), process.traces(), n=process.n, gains=gains).total[np.asarray(steps) - 1]
        constant = process.mean.alpha == 0
        scale = process.traces()[0] / process.n if constant else 1.0
        values = {
            "step": steps,
            "value": result["measured"] / scale,
            "se": result["se"] / scale,
            "exact": exact / scale,
        }
        what = {"panel": "constant" if constant else "decaying", "direction": process.mean.direction}
        how = {"gain": gains[-1] if constant else np.nan, "schedule": "uniform" if gains is None else "tuned"}
        parts.append(pd.DataFrame({**what, **how, **values}))
    return pd.concat(parts, ignore_index=True)


def draw(frame: pd.DataFrame) -> Figure:
    """Left: steady error against the gain, with the optimum. Right: error along the stream."""
    figure, axes = plots.canvas(1, 2, height=3.2)
    left, right = axes[0]
    grid = np.geomspace(0.02, 0.8, 80)
    averaged = (
        frame[frame["panel"] == "constant"]
        .groupby(["direction", "gain"], as_index=False)[["value", "se", "exact"]]
        .mean()
    )
    for direction, (color, marker, line) in zip(LABELS, theory.PALETTE, strict=False):
        left.plot(grid, steady_mse(grid, STEP, 1.0, direction), color=color, linestyle=line, zorder=3)
        theory.points(averaged[averaged["direction"] == direction], left, x="gain", color=color, marker=marker)
        best = float(optimal_gain(STEP, 1.0, direction))
        left.plot([best], [best_mse(STEP, 1.0, direction)], color=color, marker="*", markersize=9, zorder=5)
    left.set(
        xscale="log", yscale="log", xlabel="gain $g$", ylabel="steady mean squared error / $R$", title="constant drift"
    )
    plots.log_axis(left.xaxis)
    left.legend(handles=theory.palette_handles(list(LABELS.values())), loc="upper right")
    decaying = frame[frame["panel"] == "decaying"]
    labels = []
    for (direction, schedule), (color, marker, line) in zip(_CURVES, theory.PALETTE, strict=False):
        part = decaying[(decaying["direction"] == direction) & (decaying["schedule"] == schedule)]
        right.plot(part["step"], part["exact"], color=color, linestyle=line, zorder=3)
        theory.points(part, right, x="step", color=color, marker=marker)
        labels.append(f"{LABELS[direction]}, {schedule}")
    right.set(xscale="log", yscale="log", xlabel="step $t$", ylabel="$E\\|m_t-\\mu_t\\|^2$")
    right.set_title(f"drift $.3\\,t^{{-{ALPHA:g}}}$")
    right.legend(handles=theory.palette_handles(labels), loc="upper left")
    right.set_ylim(top=30 * float(decaying["value"].max()))
    plots.panel_letters(axes)
    return figure


_CURVES = (("fixed", "uniform"), ("fixed", "tuned"), ("random", "uniform"), ("random", "tuned"))


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """By how much uniform averaging loses at the end of the stream."""
    found = []
    decaying = frame[frame["panel"] == "decaying"]
    last = decaying[decaying["step"] == decaying["step"].max()]
    for direction, label in LABELS.items():
        at = last[last["direction"] == direction].set_index("schedule")
        ratio = at.loc["uniform", "value"] / at.loc["tuned", "value"]
        found.append(
            Verdict(
                f"{label}, drift .3 t^-{ALPHA:g}: uniform averaging (the paper's) is as good as a tuned gain",
                "opposite" if ratio > 1.5 else "shown",
                f"error uniform / tuned {ratio:.3g} at t = {last['step'].iloc[0]} "
                f"(exact {at.loc['uniform', 'exact'] / at.loc['tuned', 'exact']:.3g})",
            )
        )
    return found
