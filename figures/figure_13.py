"""Figure 13: Drift surrogate of the mean against pure noise."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from figures import control
from figures.frames import ArmRun
from figures.verdict import Verdict

TITLE = "Drift surrogate of the mean against pure noise"
NEEDS = control.NEEDS


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """See `control.prepare`."""
    return control.prepare(runs, "mean_shift")


def draw(frame: pd.DataFrame) -> Figure:
    """See `control.draw`."""
    return control.draw(frame, ylabel="$\\|m_t - m_{t-1}\\|_2$", log_x=True)


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """See `control.slope_verdicts`."""
    return control.slope_verdicts(frame, "the mean surrogate")
