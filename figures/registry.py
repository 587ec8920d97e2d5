"""Every figure by its id."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol, cast

import pandas as pd
from matplotlib.figure import Figure

from figures.frames import ArmRun
from figures.needs import Needs
from figures.verdict import Verdict

#: id -> module; in the order in which they are drawn
FIGURES: dict[str, str] = {
    "figure-3": "figures.figure_3",
    "figure-4": "figures.figure_4",
    "figure-7": "figures.figure_7",
    "figure-8": "figures.figure_8",
    "figure-11": "figures.figure_11",
    "figure-12": "figures.figure_12",
    "figure-13": "figures.figure_13",
    "figure-14": "figures.figure_14",
    "table-3": "figures.table_3",
    "table-4": "figures.table_4",
}


class FigureModule(Protocol):
    """What a figure's file offers. A module may also have ``markdown(frame) -> str``, written beside the picture.

    Attributes
    ----------
    TITLE : str
        One line, for listings and for the metadata of the picture.
    NEEDS : Needs
        The runs it is made of.
    """

    __file__: str
    TITLE: str
    NEEDS: Needs

    def prepare(self, runs: Sequence[ArmRun]) -> pd.DataFrame:
        """The tidy table behind the figure."""
        ...

    def draw(self, frame: pd.DataFrame) -> Figure:
        """The picture of that table."""
        ...

    def verdicts(self, frame: pd.DataFrame) -> list[Verdict]:
        """What the table says about the paper's claims."""
        ...


def module(name: str) -> FigureModule:
    """The figure of an id.

    Raises
    ------
    KeyError
        There is no such figure.
    """
    return cast(FigureModule, importlib.import_module(FIGURES[name]))
