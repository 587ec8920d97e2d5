"""Figure 7: Condition number of the covariance estimate against pure noise."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from figures import control
from figures.frames import ArmRun
from figures.verdict import Verdict

TITLE = "Condition number of the covariance estimate against pure noise"
NEEDS = control.NEEDS


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """See `control.prepare`."""
    return control.prepare(runs, "condition")


def draw(frame: pd.DataFrame) -> Figure:
    """See `control.draw`."""
    return control.draw(frame, ylabel="condition number of $\\hat\\Sigma_t$", log_x=False, floored=True)


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """See `control.fall_verdicts`."""
    return control.fall_verdicts(frame, "the condition number")
