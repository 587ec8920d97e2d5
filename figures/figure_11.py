"""Figure 11: adjacent cosines on several kinds of stream."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from figures import geometry, streams
from figures.frames import ArmRun, chosen
from figures.verdict import Verdict
from stablediag import plots

TITLE = "Cosine of consecutive updates on several streams"
NEEDS = streams.NEEDS


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """See `geometry.prepare`."""
    return geometry.prepare(chosen(runs, streams.ARMS))


def draw(frame: pd.DataFrame) -> Figure:
    """One panel per stream."""
    null = plots.area_handle(geometry.null_label(frame))
    label = "cosine of $\\Delta_t$ and $\\Delta_{t-1}$"
    figure = streams.draw(frame, geometry.draw_cosines, ylabel=label, extra=(null,))
    geometry.fit_cosines(frame, figure.axes[0])
    return figure


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """With against without LN, at the same rate and at matched norm."""
    found = []
    pairs = [("no_ln", "stableedit"), ("no_ln_first", "stableedit"), ("ultraedit_no_ln", "ultraedit")]
    for setting in streams.settings(frame):
        found += geometry.cosine_verdicts(frame, setting, pairs)
    return found
