"""Figure 12: update norms on several kinds of stream."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from figures import geometry, streams
from figures.frames import ArmRun, chosen
from figures.verdict import Verdict

TITLE = "Update norm on several streams"
NEEDS = streams.NEEDS


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """See `geometry.prepare`."""
    return geometry.prepare(chosen(runs, streams.ARMS))


def draw(frame: pd.DataFrame) -> Figure:
    """One panel per stream."""
    return streams.draw(frame, geometry.draw_norms, ylabel="update norm $\\|\\Delta_t\\|_F$")


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Falling norms with LN, and none to speak of without it."""
    found = []
    pairs = [("no_ln", "stableedit"), ("ultraedit_no_ln", "ultraedit")]
    for setting in streams.settings(frame):
        found += geometry.norm_verdicts(frame, setting, ("stableedit", "ultraedit"), pairs)
    return found
