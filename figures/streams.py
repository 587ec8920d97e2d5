"""Panels by edit stream: the layout of Figures 11 and 12."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
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
    figure, axes = plots.canvas(1, len(shown), height=2.5)
    for ax, setting in zip(axes[0], shown, strict=True):
        panel(frame[frame["setting"] == setting], ax).set_title(NAMES[setting.removeprefix("stream:")])
        ax.set_xlabel("target step")
        if ax is not axes[0, 0]:
            ax.sharey(axes[0, 0])
            ax.tick_params(labelleft=False)
    axes[0, 0].set_ylabel(ylabel)
    plots.panel_letters(np.asarray(axes))
    return plots.legend_below(figure, [*plots.handles(frame["arm"].tolist()), *extra], columns=3)
