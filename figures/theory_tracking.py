"""Which drifts can be tracked by averaging: the rate of the error against the exponent of the drift, by direction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures import theory
from figures.theory_cells import cell
from figures.verdict import Verdict
from stablediag import plots
from stablediag.stats.theory import tracking_threshold
from synthetic.grid import Cell, Result
from synthetic.process import MeanDrift, Process
from synthetic.tracks import checkpoints

TITLE = "Drift exponent against tracking: three thresholds, by coherence of the drift"
DIRECTIONS = ("fixed", "random", "rotating")
LABELS = {"fixed": "fixed direction", "random": "random directions", "rotating": "rotating direction"}


def cells(quick: bool) -> list[Cell]:
    """Every direction at every exponent; the window is the last decade."""
    steps = 400 if quick else 2000
    alphas = np.arange(0.0, 1.76, 0.5 if quick else 0.25)
    window = checkpoints(steps, count=8, first=steps // 10)
    found = []
    for direction in DIRECTIONS:
        for alpha in alphas:
            drift = MeanDrift(C=0.3, alpha=float(alpha), direction=direction)  # type: ignore[arg-type]
            process = Process(d=32, steps=steps, mean=drift)
            paths = 8 if direction == "random" else 1
            reps = (32 if quick else 128) // paths
            found.append(
                cell(
                    "measure_slope", "theory-tracking", process, reps=reps, paths=paths, steps=window, cost=float(paths)
                )
            )
    return found


def prepare(cells: Sequence[Cell], results: Sequence[Result]) -> pd.DataFrame:
    """Columns direction, alpha, slope, se, exact."""
    rows = []
    for one, result in zip(cells, results, strict=True):
        mean = one.params["process"]["mean"]
        values = {name: result.number(name) for name in ("slope", "se", "exact")}
        rows.append({"direction": mean["direction"], "alpha": mean["alpha"], **values})
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame) -> Figure:
    """Measured slopes as markers, the exact curves' slopes as lines; the error shrinks below the horizontal line."""
    figure, axes = plots.canvas(1, 1, width="single", height=3.1)
    ax = axes[0, 0]
    for direction, (color, marker, line) in zip(DIRECTIONS, theory.PALETTE, strict=False):
        part = frame[frame["direction"] == direction]
        ax.plot(part["alpha"], part["exact"], color=color, linestyle=line, zorder=3)
        theory.points(part.assign(value=part["slope"]), ax, x="alpha", color=color, marker=marker)
        ax.axvline(tracking_threshold(direction), color=color, linewidth=0.6, zorder=1)
    ax.axhline(0.0, color="#000000", linewidth=0.8)
    ax.axvspan(1.0, frame["alpha"].max() + 0.05, color="0.93", linewidth=0, zorder=0)
    ax.set(
        xlabel="drift exponent $\\alpha$, $\\|d_t\\| = .3\\,t^{-\\alpha}$",
        ylabel="log-log slope of $E\\|m_t-\\mu_t\\|^2$",
    )
    ax.set_xlim(-0.05, frame["alpha"].max() + 0.05)
    entries = theory.palette_handles([LABELS[name] for name in DIRECTIONS])
    entries.append(plots.Line2D([], [], color="0.5", linewidth=0.6, label="thresholds 1, 1/2, 0"))
    return plots.legend_below(figure, [*entries, plots.area_handle("Assumption 3.4")], columns=2)


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Is alpha > 1 needed?"""
    found = []
    for direction in DIRECTIONS:
        part = frame[(frame["direction"] == direction) & (frame["alpha"] > 0) & (frame["alpha"] <= 1)]
        tracked = part[part["slope"] + 6 * part["se"] < -0.1]["alpha"]
        least = f"error falls from alpha = {tracked.min():g} on" if len(tracked) else "error falls at no alpha <= 1"
        found.append(
            Verdict(
                f"{LABELS[direction]}: averaging tracks only when alpha > 1",
                "opposite" if len(tracked) else "shown",
                f"{least}; exact threshold {tracking_threshold(direction):g}; slopes over the last decade, six standard errors",
            )
        )
    return found
