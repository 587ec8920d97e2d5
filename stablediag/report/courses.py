"""What the figures of a report are made of: the columns that are drawn along a run, and curves before they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
#: points of a curve, at most
MOST_POINTS = 400
#: modules of one run that get a curve each; of more, the mean and the extremes are drawn
MOST_MODULES = 6


@dataclass(frozen=True)
class Course:
    """One column along the run.

    Attributes
    ----------
    id, title, unit, caption : str
        `unit` is the label of the vertical axis.
    table, column : str
    recorder : str
        What must be switched on to have it.
    over : str, optional
        Column that the means of `column` are divided by.
    null : str, optional
        Column of the level without the effect, drawn dotted; `null_label` says what it is.
    line : float, optional
        Horizontal reference.
    most : int
        Points of a curve, at most: few where single steps are noise.
    """

    id: str
    title: str
    unit: str
    caption: str
    table: str
    column: str
    recorder: str
    over: str | None = None
    null: str | None = None
    null_label: str = ""
    line: float | None = None
    log: bool = False
    most: int = MOST_POINTS

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that it reads."""
        return tuple(filter(None, ("step", "module", self.column, self.over, self.null)))


COURSES: tuple[Course, ...] = (
    Course(
        "update-norms", "Update norms", "‖ΔW‖, Frobenius",
        "Length of every update. Theorem 3.8(b) of StableEdit claims that it stays bounded.",
        "updates", "norm", "update_norm",
    ),
    Course(
        "adjacent-cosines", "Adjacent cosines", "cos(ΔW(t−1), ΔW(t))",
        "Cosine of consecutive updates; 0: orthogonal, as Theorem 3.8(c) of StableEdit claims in the limit.",
        "updates", "cosine", "adjacent_cosine", line=0.0,
    ),
    Course(
        "weight-growth", "Growth of the weights", "‖W‖ / unedited ‖W‖",
        "Norm of the edited weight over that of the model as loaded.",
        "updates", "weight_ratio", "update_norm", line=1.0,
    ),
    Course(
        "tracking-error", "Tracking error", "‖m − μ‖² / one batch's",
        "Squared error of the tracked mean of the value gradients, over the error that the mean of one batch alone has; "
        "averaged over stretches of the run, since single steps are noise. Estimates are unbiased, so that small ones may be "
        "negative.",
        "tracking", "prior_error", "prequential", over="prior_error_null", line=1.0, most=30,
    ),
    Course(
        "condition-number", "Condition number", "condition number",
        "Condition number of the covariance that is inverted.",
        "tracking", "condition_floored", "conditioning",
        null="condition_noise", null_label="pure noise with the final spectrum's bulk", log=True,
    ),
    Course(
        "interference", "Interference with earlier edits", "energy, earlier keys / own",
        "Mean squared change of the outputs at keys of a sample of earlier edits, over that at the step's own keys.",
        "interference", "moved", "interference",
        null="moved_null", null_label="an update of the same norm in a random direction", log=True,
    ),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Series:
    """One curve: x in edits (or steps), y, and a band where there is one.

    Attributes
    ----------
    run : int
        Place of the run in the report.
    part : str
        Module; empty for a curve of the run as a whole.
    x, y : ndarray, shape [n]
    low, high : ndarray, shape [n], optional
    kind : str
        "curve", "points" (each with its interval), "null" (a level to compare with), "second" (dashed, of the same run), "rows"
        (points whose y is a row, with horizontal intervals) or "before" (the same of the unedited model).
    """

    run: int
    part: str
    x: Floats
    y: Floats
    low: Floats | None = None
    high: Floats | None = None
    kind: str = "curve"


@dataclass(frozen=True)
class Drawing:
    """A figure before it is drawn.

    Attributes
    ----------
    id, title, xlabel, ylabel, caption : str
    series : sequence of Series
    line : float, optional
    log : bool
        Logarithmic axis, where all values are positive.
    rows : tuple of str
        Names of the rows 0, 1, ... of a figure that has rows instead of a vertical axis.
    warmup : float, optional
        Where the warm-up ends.
    notes : tuple of str
        What must be known about what is drawn, in the caption.
    """

    id: str
    title: str
    xlabel: str
    ylabel: str
    caption: str
    series: Sequence[Series]
    line: float | None = None
    log: bool = False
    rows: tuple[str, ...] = ()
    warmup: float | None = None
    notes: tuple[str, ...] = ()
