"""What the figures of the simulated theory share: one look per kind of curve, and the drawing of measured against computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from stablediag.plots import GREY, Look

#: kind of curve -> look; measured values are markers with bars of two standard errors, computed ones are lines
SERIES: dict[str, Look] = {
    "measured": Look("measured (± 2 standard errors)", "#000000", "o", "none"),
    "exact": Look("exact", "#000000", "", "-"),
    "tight": Look("sharper bound", "#0072B2", "", (0, (5, 1.5))),
    "paper": Look("bound of the paper", "#D55E00", "", (0, (4, 1, 1, 1))),
    "reference": Look("no drift", GREY, "", (0, (1, 1.2))),
}
#: colours for curves that differ by a parameter, apart for colour-blind readers, with a marker and a line each
PALETTE: tuple[tuple[str, str, object], ...] = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", (0, (5, 1.5))),
    ("#009E73", "^", (0, (4, 1, 1, 1))),
    ("#CC79A7", "D", (0, (2, 1))),
    ("#E69F00", "v", (0, (6, 1, 1, 1, 1, 1))),
    ("#56B4E9", "P", (0, (1, 1))),
)


def lines(frame: pd.DataFrame, ax: Axes, *, x: str, kinds: Sequence[str] = tuple(SERIES)) -> Axes:
    """Curves of one setting, by kind.

    Parameters
    ----------
    frame : DataFrame
        Columns `x`, ``kind`` (a key of `SERIES`), ``value`` and ``se`` (NaN or zero for computed values).
    """
    for kind in kinds:
        part = frame[(frame["kind"] == kind) & np.isfinite(frame["value"])].sort_values(x)
        if not len(part):
            continue
        look = SERIES[kind]
        if kind == "measured":
            points(part, ax, x=x, color=look.color, marker=look.marker)
        else:
            ax.plot(part[x], part["value"], color=look.color, linestyle=look.line, zorder=3)
    return ax


def points(part: pd.DataFrame, ax: Axes, *, x: str, color: str, marker: str) -> Axes:
    """Measured values with bars of two standard errors."""
    bars = 2 * part["se"].fillna(0.0)
    ax.errorbar(part[x], part["value"], yerr=bars, color=color, marker=marker, linestyle="none", markersize=3, zorder=4)
    return ax


def handles(kinds: Sequence[str]) -> list[Line2D]:
    """Legend entries of kinds of curves."""
    return [
        Line2D(
            [],
            [],
            color=SERIES[k].color,
            linestyle=SERIES[k].line,
            marker=SERIES[k].marker or None,
            label=SERIES[k].label,
        )
        for k in kinds
    ]


def palette_handles(labels: Sequence[str]) -> list[Line2D]:
    """Legend entries of curves that differ by a parameter, in the order of `PALETTE`."""
    return [
        Line2D([], [], color=color, linestyle=line, marker=marker, label=label)  # type: ignore[arg-type]
        for label, (color, marker, line) in zip(labels, PALETTE, strict=False)
    ]


def plain(text: str) -> str:
    """A label without its mathematical markup, for verdicts."""
    for markup, word in (("\\lambda", "lambda"), ("\\Sigma", "Sigma"), ("\\,", " "), ("$", ""), ("{", ""), ("}", "")):
        text = text.replace(markup, word)
    return text
