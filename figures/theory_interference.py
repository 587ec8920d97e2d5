"""Interference between updates: adjacent cosines and cumulative coherence, with their null bands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import theory
from figures.theory_cells import HERE
from figures.verdict import Verdict
from stablediag import plots
from stablediag.stats.theory import gamma_null
from synthetic.grid import Cell, Result, derive_seed

TITLE = "Interference of updates and its null band"
#: setting of the simulated stream -> label; the last three are violations
SETTINGS = {
    "gauss": "full LN",
    "student": "full LN, t$_4$ gradients",
    "diagonal": "diagonal",
    "center": "centred only",
    "tanh": "full LN, tanh of it",
    "relu": "full LN, ReLU of it",
    "uncentred": "full, not centred",
    "signal": "full LN, keys explain gradients",
}
CURVES = ("gauss", "center", "relu", "uncentred", "signal")
FIRST = 20
D_OUT = 24


def cells(quick: bool) -> list[Cell]:
    """One stream per setting, keys with a common mean so that only the gradients can make updates orthogonal."""
    size = {"reps": 40 if quick else 300, "first": FIRST, "count": 15 if quick else 60}
    return [
        Cell(f"{HERE}:measure_orthogonality", {"name": name, **size}, derive_seed(0, "theory-interference", name))
        for name in SETTINGS
    ]


def prepare(cells: Sequence[Cell], results: Sequence[Result]) -> pd.DataFrame:
    """Columns setting, updates, coherence and its se, band (sd of the coherence); cosine quantiles repeat on every row."""
    parts = []
    for one, result in zip(cells, results, strict=True):
        updates = np.arange(1, one.params["count"] + 1)
        low, quarter, middle, three, high = result["cosine"]
        spread, kappa = result["null"]
        band = [gamma_null(kappa, D_OUT, steps=int(count)) for count in updates]
        cosine = {"low": low, "q25": quarter, "median": middle, "q75": three, "high": high}
        summary = {"mean": result.number("mean"), "mean_se": result.number("mean_se"), "null": spread}
        values = {"updates": updates, "value": result["coherence"], "se": result["coherence_se"], "band": band}
        parts.append(pd.DataFrame({"setting": one.params["name"], **cosine, **summary, **values}))
    return pd.concat(parts, ignore_index=True)


def draw(frame: pd.DataFrame) -> Figure:
    """Left: quantiles of the adjacent cosine. Right: coherence of the sum of updates."""
    figure, axes = plots.canvas(1, 2, height=3.3)
    _cosines(frame, axes[0, 0])
    _coherence(frame, axes[0, 1])
    plots.panel_letters(axes)
    entries = theory.palette_handles([SETTINGS[name] for name in CURVES])
    return plots.legend_below(
        figure, [*entries, plots.area_handle("95 % if updates are independent, full LN")], columns=3
    )


def _cosines(frame: pd.DataFrame, ax: Axes) -> None:
    for row, name in enumerate(SETTINGS):
        at = frame[frame["setting"] == name].iloc[0]
        ax.plot([at["low"], at["high"]], [row, row], color="#000000", linewidth=0.8)
        ax.plot([at["q25"], at["q75"]], [row, row], color="#0072B2", linewidth=4, solid_capstyle="butt")
        ax.plot([at["mean"]], [row], color="#D55E00", marker="o", markersize=4, zorder=4)
        ax.plot([-1.96 * at["null"], 1.96 * at["null"]], [row + 0.3] * 2, color=plots.GREY, marker="|", linewidth=0.6)
    null = frame.loc[frame["setting"] == "gauss", "null"].iloc[0]
    ax.axvspan(-1.96 * null, 1.96 * null, color="0.93", linewidth=0, zorder=0)
    ax.axvline(0, color="#000000", linewidth=0.6)
    ax.set_yticks(range(len(SETTINGS)), list(SETTINGS.values()))
    ax.set_ylim(len(SETTINGS) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="adjacent cosine / key overlap $\\kappa_\\Phi$", title="95 %, 50 % (bars), mean (dot)")


def _coherence(frame: pd.DataFrame, ax: Axes) -> None:
    for name, (color, _, line) in zip(CURVES, theory.PALETTE, strict=False):
        part = frame[frame["setting"] == name]
        ax.plot(part["updates"], part["value"], color=color, linestyle=line, zorder=3)
        ax.fill_between(
            part["updates"],
            part["value"] - 2 * part["se"],
            part["value"] + 2 * part["se"],
            color=color,
            alpha=0.2,
            linewidth=0,
        )
    null = frame[frame["setting"] == "gauss"]
    ax.fill_between(
        null["updates"], 1 - 1.96 * null["band"], 1 + 1.96 * null["band"], color="0.93", linewidth=0, zorder=0
    )
    ax.axhline(1.0, color="#000000", linewidth=0.6)
    ax.set(xlabel="updates $T$", title="all pairs of updates", yscale="log", xscale="log")
    ax.set_ylabel("$\\Gamma_T=\\|\\sum_t\\Delta_t\\|^2/\\sum_t\\|\\Delta_t\\|^2$")
    plots.log_axis(ax.yaxis)


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Is the mean adjacent cosine zero?"""
    found = []
    for name, label in SETTINGS.items():
        at = frame[frame["setting"] == name].iloc[-1]
        z = at["mean"] / at["mean_se"]
        found.append(
            Verdict(
                f"{label.replace('$_4$', '4')}: adjacent updates are orthogonal on average (Theorem 3.8c)",
                "opposite" if z > 5 else "not shown" if z < -5 else "shown",
                f"mean cosine / key overlap {at['mean']:.4f} (standard error {at['mean_se']:.4f}, sd of one under the null "
                f"{at['null']:.3f}), coherence {at['value']:.3g} after {int(at['updates'])} updates",
            )
        )
    return found
