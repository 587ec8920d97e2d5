"""Warm-up as virtual samples, and the mismatch at which it stops helping."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import theory
from figures.theory_cells import cell
from figures.verdict import Verdict
from stablediag import plots
from stablediag.stats.theory import warmup_breakeven, warmup_mse, warmup_ratio
from synthetic.grid import Cell, Result
from synthetic.process import Process
from synthetic.tracks import checkpoints

TITLE = "Warm-up as virtual samples, and its break-even under mismatch"
LENGTHS = (0, 5, 20, 80)
WARM = 20
AFTER = (1, 5, 20, 100)
#: squared offsets of the warm-up's mean, in units of one batch's noise R = tr Sigma/n
OFFSETS = (0.03, 0.1, 0.3, 1.0, 3.0)


def cells(quick: bool) -> list[Cell]:
    """Warm-up lengths with the same distribution; then one length with an offset mean."""
    reps = 100 if quick else 800
    found = []
    for length in LENGTHS:
        process = Process(steps=200, warmup=length)
        steps = [length + k for k in checkpoints(200, count=12)]
        found.append(cell("measure_gains", "theory-warmup", process, reps=reps, steps=steps, gains=None))
    noise = Process(steps=1).traces()[0] / 20
    for offset in OFFSETS:
        process = Process(steps=max(AFTER), warmup=WARM, offset=float(np.sqrt(offset * noise)))
        steps = [WARM + k for k in AFTER]
        found.append(cell("measure_gains", "theory-warmup", process, reps=reps, steps=steps, gains=None))
    return found


def prepare(cells: Sequence[Cell], results: Sequence[Result]) -> pd.DataFrame:
    """Columns warmup, offset2 (over R), k, value and se (squared error over R), exact."""
    parts = []
    for one, result in zip(cells, results, strict=True):
        process = Process.from_params(one.params["process"])
        noise = process.traces()[0] / process.n
        k = np.asarray(one.params["steps"]) - process.warmup
        exact = warmup_mse(process.warmup, k, R=1.0, offset=process.offset / np.sqrt(noise))
        values = {"k": k, "value": result["measured"] / noise, "se": result["se"] / noise, "exact": exact}
        parts.append(pd.DataFrame({"warmup": process.warmup, "offset2": process.offset**2 / noise, **values}))
    return pd.concat(parts, ignore_index=True)


def draw(frame: pd.DataFrame) -> Figure:
    """Left: error against target steps, by warm-up length. Right: gain over a cold start, by offset."""
    figure, axes = plots.canvas(1, 2, height=3.2)
    _lengths(frame, axes[0, 0])
    _offsets(frame, axes[0, 1])
    plots.panel_letters(axes)
    return figure


def _lengths(frame: pd.DataFrame, ax: Axes) -> None:
    matched = frame[frame["offset2"] == 0]
    for length, (color, marker, line) in zip(LENGTHS, theory.PALETTE, strict=False):
        part = matched[matched["warmup"] == length]
        ax.plot(part["k"], part["exact"], color=color, linestyle=line, zorder=3)
        theory.points(part, ax, x="k", color=color, marker=marker)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="target step $k$",
        ylabel="mean squared error / $R$",
        title="same distribution",
    )
    ax.legend(
        handles=theory.palette_handles([f"$r={length}$" for length in LENGTHS]),
        loc="upper right",
        title="warm-up steps",
    )


def _offsets(frame: pd.DataFrame, ax: Axes) -> None:
    grid = np.geomspace(OFFSETS[0] / 2, OFFSETS[-1] * 2, 60)
    for k, (color, marker, line) in zip(AFTER, theory.PALETTE, strict=False):
        ax.plot(grid, warmup_mse(WARM, k, R=1.0, offset=np.sqrt(grid)) * k, color=color, linestyle=line, zorder=3)
        part = frame[(frame["offset2"] > 0) & (frame["k"] == k)]
        ratio = part.assign(value=part["value"] * k, se=part["se"] * k)
        theory.points(ratio, ax, x="offset2", color=color, marker=marker)
        ax.plot([warmup_breakeven(WARM, k, R=1.0)], [1.0], color=color, marker="|", markersize=9, zorder=5)
    ax.axhline(1.0, color="#000000", linewidth=0.8)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="squared offset of the warm-up mean / $R$",
        title=f"{WARM} warm-up steps, offset mean",
    )
    ax.set_ylabel("error / error of a cold start")
    ax.legend(handles=theory.palette_handles([f"$k={k}$" for k in AFTER]), loc="upper left", title="target step")


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """What a matched warm-up gains, early and late; and on which side of the break-even it hurts."""
    found = []
    for k in (1, 200):
        at = frame[(frame["offset2"] == 0) & (frame["k"] == k)].set_index("warmup")
        ratio = at.loc[WARM, "value"] / at.loc[0, "value"]
        error = ratio * np.hypot(at.loc[WARM, "se"] / at.loc[WARM, "value"], at.loc[0, "se"] / at.loc[0, "value"])
        helps = 1 - ratio > 0.5
        found.append(
            Verdict(
                f"a warm-up of {WARM} steps halves the error of the mean at target step {k}",
                "shown" if helps else "not shown",
                f"error warm / cold {ratio:.3f} (standard error {error:.3f}), exact {warmup_ratio(WARM, k):.3f}",
            )
        )
    worst = frame[(frame["offset2"] > 0) & (frame["k"] == WARM)]
    hurts = worst[worst["value"] * WARM - 6 * worst["se"] * WARM > 1]["offset2"]
    found.append(
        Verdict(
            "an out-of-domain warm-up still helps the mean",
            "opposite" if len(hurts) else "shown",
            f"at target step {WARM} it hurts from a squared offset of {hurts.min():.2g} R on, the least one tried beyond the "
            f"break-even {float(warmup_breakeven(WARM, WARM, R=1.0)):.2g} R",
        )
    )
    return found
