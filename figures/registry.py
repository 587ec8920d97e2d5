"""Every figure by its id."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol, TypeGuard, cast

import pandas as pd
from matplotlib.figure import Figure

from figures.frames import ArmRun
from figures.needs import Needs
from figures.verdict import Verdict
from synthetic.grid import Cell, Result

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
    "table-editors": "figures.table_editors",
    "figure-editors": "figures.editors_figure",
    "table-doctor": "figures.table_doctor",
    "diagnosis-factorial": "figures.diagnosis_factorial",
    "diagnosis-frontier": "figures.diagnosis_frontier",
    "diagnosis-transfer": "figures.diagnosis_transfer",
    "diagnosis-noise": "figures.diagnosis_noise",
    "diagnosis-tracking": "figures.diagnosis_tracking",
    "diagnosis-interference": "figures.diagnosis_interference",
    "diagnosis-precision": "figures.diagnosis_precision",
    "diagnosis-alarm": "figures.diagnosis_alarm",
    "diagnosis-carryover": "figures.diagnosis_carryover",
    "theory-mean": "figures.theory_mean",
    "theory-covariance": "figures.theory_covariance",
    "theory-tracking": "figures.theory_tracking",
    "theory-warmup": "figures.theory_warmup",
    "theory-forgetting": "figures.theory_forgetting",
    "theory-lag": "figures.theory_lag",
    "theory-interference": "figures.theory_interference",
    "theory-closed-loop": "figures.theory_closed_loop",
    "theory-noise": "figures.theory_noise",
    "theory-nas": "figures.theory_nas",
}


class Drawn(Protocol):
    """What every figure's file offers.

    A module may also have ``markdown(frame) -> str``, written beside the picture, and ``PARTIAL = True``: it is drawn from
    the runs that succeeded when others failed.

    Attributes
    ----------
    TITLE : str
        One line, for listings and for the metadata of the picture.
    """

    __file__: str
    TITLE: str

    def draw(self, frame: pd.DataFrame) -> Figure:
        """The picture of that table."""
        ...

    def verdicts(self, frame: pd.DataFrame) -> list[Verdict]:
        """What the table says about the paper's claims."""
        ...


class FigureModule(Drawn, Protocol):
    """A figure made of runs of the testbed: `NEEDS` says which."""

    NEEDS: Needs

    def prepare(self, runs: Sequence[ArmRun]) -> pd.DataFrame:
        """The tidy table behind the figure."""
        ...


class TheoryModule(Drawn, Protocol):
    """A figure made of simulated cells."""

    def cells(self, quick: bool) -> list[Cell]:
        """The work, at one of the two scales."""
        ...

    def prepare(self, cells: Sequence[Cell], results: Sequence[Result]) -> pd.DataFrame:
        """The tidy table behind the figure, from the cells and their results in the same order."""
        ...


def simulated(one: FigureModule | TheoryModule) -> TypeGuard[TheoryModule]:
    """Whether a figure is made of simulated cells."""
    return hasattr(one, "cells")


def module(name: str) -> FigureModule | TheoryModule:
    """The figure of an id.

    Raises
    ------
    KeyError
        There is no such figure.
    """
    return cast(FigureModule | TheoryModule, importlib.import_module(FIGURES[name]))
