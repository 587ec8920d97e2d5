"""Figure 4: geometry of consecutive updates with and without LN, within and beyond the model's capacity."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from figures import geometry
from figures.frames import ArmRun, chosen
from figures.needs import Needs
from figures.verdict import Verdict
from stablediag import plots

TITLE = "Update norm and adjacent cosine along the stream"
ARMS = ("stableedit", "ultraedit", "no_ln", "no_ln_first")
NEEDS = Needs(arms=ARMS, settings=("healthy", "stress"))
PANELS = {"healthy": "healthy horizon", "stress": "stress horizon"}


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """See `geometry.prepare`."""
    return geometry.prepare(chosen(runs, ARMS))


def draw(frame: pd.DataFrame) -> Figure:
    """Norms above, cosines below; one column per horizon."""
    figure, axes = plots.canvas(2, 2, height=4.4, sharey="row")
    for column, (setting, title) in enumerate(PANELS.items()):
        part = frame[frame["setting"] == setting]
        geometry.draw_norms(part, axes[0, column]).set_title(title)
        geometry.draw_cosines(part, axes[1, column]).set_title(title)
        axes[1, column].set_xlabel("target step")
        plots.whole_steps(axes[0, column])
        plots.whole_steps(axes[1, column])
    for row, text in enumerate(("update norm $\\|\\Delta_t\\|_F$", "cosine of $\\Delta_t$ and $\\Delta_{t-1}$")):
        axes[row, 0].set_ylabel(text)
    plots.log_axis(axes[0, 0].yaxis)
    geometry.fit_cosines(frame, axes[1, 0])
    plots.panel_letters(axes)
    entries = [*plots.handles(frame["arm"].tolist()), plots.area_handle(geometry.null_label(frame))]
    return plots.legend_below(figure, entries, columns=3)


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Bounded norms, no update without LN at the same rate, and cosines."""
    found = []
    for setting in PANELS:
        found += geometry.norm_verdicts(frame, setting, ("stableedit", "ultraedit"), [("no_ln", "stableedit")])
        found += geometry.cosine_verdicts(frame, setting, [("no_ln", "stableedit"), ("no_ln_first", "stableedit")])
    return found
