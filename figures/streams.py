"""Panels by edit stream: the layout of Figures 11 and 12."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.needs import STREAMS, Needs
from stablediag import plots

ARMS = ("stableedit", "ultraedit", "no_ln", "ultraedit_no_ln", "no_ln_first")
NEEDS = Needs(arms=ARMS, settings=(STREAMS,))
NAMES = {
    "new": "new facts",
    "counterfactual": "counterfactual",
    "medical": "medical",
    "relation": "one relation",
    "claims": "claims",
}


def settings(frame: pd.DataFrame) -> list[str]:
    """The streams of a table, in the order of `NAMES`."""
    present = set(frame["setting"])
    return [f"stream:{name}" for name in NAMES if f"stream:{name}" in present]


def draw(frame: pd.DataFrame, panel: Callable[[pd.DataFrame, Axes], Axes], *, ylabel: str, extra: tuple = ()) -> Figure:
    """One panel per stream on one vertical scale; `extra` legend entries follow the arms."""
    shown = settings(frame)
    figure, axes = plots.canvas(1, len(shown), height=2.5, sharey="row")
    for ax, setting in zip(axes[0], shown, strict=True):
        panel(frame[frame["setting"] == setting], ax).set_title(NAMES[setting.removeprefix("stream:")])
        plots.whole_steps(ax).set_xlabel("target step")
    axes[0, 0].set_ylabel(ylabel)
    if axes[0, 0].get_yscale() == "log":
        plots.log_axis(axes[0, 0].yaxis)
    plots.panel_letters(axes)
    return plots.legend_below(figure, [*plots.handles(frame["arm"].tolist()), *extra], columns=3)
