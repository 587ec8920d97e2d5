"""Norm feedback of locate-and-edit: exponential, linear and saturating growth, and anchored values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures import theory
from figures.verdict import Verdict
from stablediag import plots
from synthetic.claims.nas import EXPONENTIAL, REGIMES, START, predicted
from synthetic.grid import Cell, Result, derive_seed

ANCHORED = "anchored: saturating"
TITLE = "Norm feedback of exact locate-and-edit, and what anchoring does"


def cells(quick: bool) -> list[Cell]:
    """One cell per regime."""
    size = {
        "reps": 200 if quick else 1000,
        "points": np.unique(np.linspace(1, 80 if quick else 200, 12).astype(int)).tolist(),
    }
    return [
        Cell(
            "synthetic.claims.nas:measure_growth",
            {**size, "target": target, "spread": 0.0},
            derive_seed(0, "theory-nas", name),
        )
        for name, target in REGIMES.items()
    ]


def prepare(cells: Sequence[Cell], results: Sequence[Result]) -> pd.DataFrame:
    """Columns regime, edits, value, se, exact; squared norms in units of that before the first edit."""
    parts = []
    for name, one, result in zip(REGIMES, cells, results, strict=True):
        points = one.params["points"]
        values = {"value": result["mean"] / START, "se": result["se"] / START}
        exact = predicted(points, one.params["target"]) / START
        parts.append(pd.DataFrame({"regime": name, "edits": points, **values, "exact": exact}))
    return pd.concat(parts, ignore_index=True)


def draw(frame: pd.DataFrame) -> Figure:
    """Squared norm against edits, measured and predicted."""
    figure, axes = plots.canvas(1, 1, width="single", height=3.2)
    ax = axes[0, 0]
    for name, (color, marker, line) in zip(REGIMES, theory.PALETTE, strict=False):
        part = frame[frame["regime"] == name]
        ax.plot(part["edits"], part["exact"], color=color, linestyle=line, zorder=3)
        theory.points(part, ax, x="edits", color=color, marker=marker)
    ax.set(xlabel="edits $n$", ylabel="$E\\|W_n\\|^2\\,/\\,\\|W_0\\|^2$ in the key norm")
    plots.log_axis(ax.yaxis)
    return plots.legend_below(figure, theory.palette_handles([_label(name) for name in REGIMES]), columns=2)


def _label(name: str) -> str:
    return name.replace("s_new", "$s_{new}$").replace("s_old", "$s_{old}$").replace("<", "$<$").replace(">", "$>$")


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Growth when new values are larger than old ones, saturation when they are anchored."""
    last = frame[frame["edits"] == frame["edits"].max()].set_index("regime")
    grows = last.loc[EXPONENTIAL]
    late = frame.sort_values("edits").groupby("regime")["value"].apply(lambda curve: curve.iloc[-1] / curve.iloc[-4])
    z = ((frame["value"] - frame["exact"]).abs() / frame["se"]).where(frame["se"] > 0).max()
    return [
        Verdict(
            "the norm grows exponentially when new values exceed old ones by a factor (norm feedback)",
            "shown" if grows["value"] - 6 * grows["se"] > 2 else "not shown",
            f"{grows['value']:.3g} times the start after {frame['edits'].max()} edits, predicted "
            f"{grows['exact']:.3g}; largest deviation of all points {z:.1f} standard errors",
        ),
        Verdict(
            "anchoring the norm of the value stops the growth",
            "shown" if late[ANCHORED] < 1.05 < late[EXPONENTIAL] else "not shown",
            f"over the last quarter of the edits the squared norm grows by {100 * (late[ANCHORED] - 1):.1f} %, without "
            f"anchor by {100 * (late[EXPONENTIAL] - 1):.0f} %",
        ),
    ]
