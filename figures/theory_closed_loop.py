"""Closed loop: where LN wins and where it loses against raw updates of the same norm, in step size and key overlap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from figures.verdict import Verdict
from stablediag import plots
from synthetic.grid import Cell, Result
from synthetic.loop_cells import phase_cells

TITLE = "Closed loop: LN against raw updates of equal norm, by step size and key overlap"
PANELS = {
    "log kl": "held-out divergence, $\\ln$(LN / raw)",
    "retention": "retention, LN $-$ raw",
    "efficacy": "efficacy, LN $-$ raw",
}
#: sign of a difference that favours LN
BETTER = {"log kl": -1, "retention": 1, "efficacy": 1}


def cells(quick: bool) -> list[Cell]:
    """The phase diagram."""
    return phase_cells(quick)


def prepare(cells: Sequence[Cell], results: Sequence[Result]) -> pd.DataFrame:
    """Columns step, overlap, metric, value, se, reps."""
    rows = []
    for one, result in zip(cells, results, strict=True):
        at = {"step": result.number("step"), "overlap": result.number("overlap"), "reps": one.params["reps"]}
        rows += [
            {**at, "metric": name, "value": result.number(name), "se": result.number(f"{name} se")} for name in PANELS
        ]
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame) -> Figure:
    """One map per metric; purple favours LN, a dot marks cells within two standard errors of zero."""
    figure, axes = plots.canvas(1, len(PANELS), height=2.9, sharey="row")
    for ax, (metric, title) in zip(axes[0], PANELS.items(), strict=True):
        _map(frame[frame["metric"] == metric], ax, metric)
        ax.set_title(title)
        ax.set_xlabel("step size $\\gamma p$")
    axes[0, 0].set_ylabel("key overlap $n/p$")
    plots.panel_letters(axes)
    dot = plots.Line2D(
        [], [], color="#000000", marker=".", linestyle="none", label="within two standard errors of zero"
    )
    better, worse = (
        plots.Patch(facecolor=color, label=text) for color, text in (("#542788", "LN better"), ("#b35806", "LN worse"))
    )
    return plots.legend_below(figure, [better, worse, dot], columns=3)


def _map(part: pd.DataFrame, ax: Axes, metric: str) -> None:
    table = part.pivot(index="overlap", columns="step", values="value")
    reach = max(float(np.abs(table.to_numpy()).max()), 1e-9)
    cmap = "PuOr" if BETTER[metric] > 0 else "PuOr_r"
    mesh = ax.pcolormesh(
        range(table.shape[1] + 1),
        range(table.shape[0] + 1),
        table.to_numpy(),
        cmap=cmap,
        norm=TwoSlopeNorm(0, -reach, reach),
    )
    figure = ax.get_figure()
    assert figure is not None
    figure.colorbar(mesh, ax=ax, shrink=0.9)
    ax.set_xticks(np.arange(table.shape[1]) + 0.5, [f"{step:g}" for step in table.columns])
    ax.set_yticks(np.arange(table.shape[0]) + 0.5, [f"{overlap:.2g}" for overlap in table.index])
    ax.grid(False)
    columns, rows = {s: i for i, s in enumerate(table.columns)}, {o: i for i, o in enumerate(table.index)}
    for _, at in part[part["value"].abs() < 2 * part["se"]].iterrows():
        ax.plot([columns[at["step"]] + 0.5], [rows[at["overlap"]] + 0.5], color="#000000", marker=".", markersize=4)


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """In how many cells LN is better, and in how many worse, by more than three standard errors."""
    found = []
    for metric, title in PANELS.items():
        part = frame[frame["metric"] == metric]
        score = BETTER[metric] * part["value"] / part["se"]
        wins, losses = int((score > 3).sum()), int((score < -3).sum())
        worst = part.loc[score.idxmin()]
        name = title.split(",")[0]
        found.append(
            Verdict(
                f"{name}: LN is better than raw updates of the same norm at every step size and overlap",
                "shown" if wins == len(part) else "opposite" if losses > wins else "not shown",
                f"better in {wins} and worse in {losses} of {len(part)} cells by three standard errors; worst for LN at step "
                f"{worst['step']:g}, overlap {worst['overlap']:.2g}: {worst['value']:+.3g} (standard error {worst['se']:.2g})",
            )
        )
    return found
