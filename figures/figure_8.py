"""Figure 8: Largest eigenvalue of the covariance estimate against pure noise."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from figures import control
from figures.frames import ArmRun
from figures.verdict import Verdict

TITLE = "Largest eigenvalue of the covariance estimate against pure noise"
NEEDS = control.NEEDS


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """See `control.prepare`."""
    return control.prepare(runs, "eig_max")


def draw(frame: pd.DataFrame) -> Figure:
    """See `control.draw`."""
    return control.draw(frame, ylabel="largest eigenvalue of $\\hat\\Sigma_t$", log_x=False)


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """See `control.fall_verdicts`."""
    return control.fall_verdicts(frame, "the largest eigenvalue (it also falls when gradients shrink)")
