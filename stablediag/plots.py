"""The visuals: each takes a DataFrame and an axes, draws, and returns the axes. Nothing here computes a statistic.

Every editor has one look (`LOOKS`) in every figure: a colour from the Okabe-Ito palette, a marker and a line style, so that
curves stay apart for colour-blind readers and on a grey printer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis, YAxis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse as EllipsePatch
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from stablediag.stats.embed import covariance_ellipse

Sharing = Literal["none", "row", "col", "all"]
STYLE = Path(__file__).with_name("style.mplstyle")
#: figure widths of a two-column paper, inches
WIDTHS = {"single": 3.35, "double": 6.9}
GREY = "#8a8a8a"


@dataclass(frozen=True)
class Look:
    """How one arm appears everywhere: label, colour, marker, line style."""

    label: str
    color: str
    marker: str
    line: Any


#: arm -> look; the order is the order of legends and tables
LOOKS: dict[str, Look] = {
    "unedited": Look("unedited model", "#000000", "|", (0, (1, 1))),
    "stableedit": Look("StableEdit", "#0072B2", "o", "-"),
    "no_warmup": Look("no warm-up", "#56B4E9", "s", (0, (6, 1.5))),
    "stats_only_warmup": Look("statistics-only warm-up", "#3B528B", "P", (0, (6, 1.5, 1, 1.5))),
    "no_whitening": Look("no whitening", "#E69F00", "D", (0, (4, 1, 1, 1, 1, 1))),
    "no_h_norm": Look("no key norm", "#B8A000", "v", (0, (3, 1))),
    "ultraedit": Look("ULTRAEDIT", "#D55E00", "^", (0, (4, 1.5))),
    "no_ln": Look("no LN, same rate", "#000000", "x", (0, (1, 1.2))),
    "ultraedit_no_ln": Look("ULTRAEDIT without LN, same rate", "#6B6B6B", "+", (0, (1, 2.5))),
    "no_ln_first": Look("no LN, norm matched at step 1", "#CC79A7", "*", (0, (5, 1, 1, 1))),
    "no_ln_every": Look("no LN, norm matched every step", "#009E73", "X", (0, (2, 1))),
    "scalar": Look("centring and one scale", "#117733", "h", (0, (5, 1, 1, 1, 1, 1))),
    "center": Look("centring only", "#AA4499", "p", (0, (2.5, 1))),
    "shuffled": Look("shuffled statistics", "#882255", "<", (0, (3, 1, 1, 1))),
    "frozen": Look("statistics frozen after the warm-up", "#2F8F83", ">", (0, (1.5, 1))),
    "centred": Look("centred", "#0072B2", "d", "-"),
    "not_centred": Look("not centred", "#D55E00", "8", (0, (2, 1.5))),
    "fp32": Look("float32 weights", "#000000", "H", (0, (8, 1))),
    "bf16_master": Look("bfloat16 weights, float32 master", "#0072B2", "2", (0, (4, 2))),
    "bf16_place": Look("bfloat16 weights, in place", "#D55E00", "1", (0, (1.5, 1.5))),
    "stationary": Look("noise: final covariance, held constant", "#4D4D4D", "", (0, (3, 1.5))),
    "isotropic": Look("noise: identity (Marchenko-Pastur)", "#9A9A9A", "", (0, (1, 1))),
}


def look(arm: str) -> Look:
    """The look of an arm; unknown arms share a neutral one under their own name."""
    return LOOKS.get(arm, Look(arm, GREY, ".", "-"))


def ordered(arms: Sequence[str]) -> list[str]:
    """Distinct arms in the order of `LOOKS`, unknown ones last."""
    ranks = {arm: i for i, arm in enumerate(LOOKS)}
    return sorted(dict.fromkeys(arms), key=lambda arm: ranks.get(arm, len(ranks)))


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib settings of this project, for the duration of a block."""
    with mpl.rc_context(), matplotlib.style.context(STYLE):
        yield


def canvas(
    rows: int,
    columns: int,
    *,
    width: Literal["single", "double"] = "double",
    height: float,
    sharex: Sharing = "none",
    sharey: Sharing = "none",
) -> tuple[Figure, np.ndarray]:
    """An empty figure of one of the two paper widths (`height` in inches), and its axes as an array [rows, columns]."""
    figure = Figure(figsize=(WIDTHS[width], height), layout="constrained")
    return figure, np.asarray(figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey))


def whole_steps(ax: Axes) -> Axes:
    """Ticks of the x axis at whole numbers only."""
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    return ax


def log_axis(axis: Axis) -> Axis:
    """Logarithmic scale; plain numbers at 1, 2 and 5 below two decades, at even steps below a factor 5. Call it last."""
    axis.axes.set(**{f"{'y' if isinstance(axis, YAxis) else 'x'}scale": "log"})
    low, high = sorted(axis.get_view_interval())
    if low > 0 and high / low < 100:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if high / low > 5 else MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
        if high / low <= 5:
            axis.set_minor_locator(NullLocator())
    return axis


def band_lines(
    frame: pd.DataFrame,
    ax: Axes,
    *,
    x: str,
    by: str = "arm",
    mean: str = "mean",
    low: str = "min",
    high: str = "max",
    markers: int = 7,
) -> Axes:
    """One line per arm with a translucent band.

    Parameters
    ----------
    frame : DataFrame
        Columns `x`, `by`, `mean`, `low`, `high`; where a band is missing only the line is drawn.
    markers : int
        About how many markers a line gets.
    """
    for arm in ordered(frame[by].tolist()):
        curve = frame[frame[by] == arm].sort_values(x)
        style_of = look(arm)
        spacing = max(1, len(curve) // markers)
        ax.plot(
            curve[x],
            curve[mean],
            color=style_of.color,
            linestyle=style_of.line,
            marker=style_of.marker or None,
            markevery=spacing,
            label=style_of.label,
            zorder=3,
        )
        if low in curve and high in curve and (curve["n"] if "n" in curve else pd.Series([2])).max() > 1:
            ax.fill_between(curve[x], curve[low], curve[high], color=style_of.color, alpha=0.18, linewidth=0, zorder=2)
    return ax


def crosses(
    frame: pd.DataFrame, ax: Axes, *, x: str, y: str, by: str = "arm", sizes: tuple[float, float] = (3.6, 3.6)
) -> Axes:
    """One curve per arm through its points in the order of the rows, each point with its intervals as a cross.

    Parameters
    ----------
    frame : DataFrame
        Columns `by`, `x` and `y`; the intervals are ``<x>_low``, ``<x>_high``, ``<y>_low`` and ``<y>_high``, drawn where
        they are there and finite.
    sizes : pair of float
        Marker size at the first and at the last point of a curve, in points: unequal ones show its direction.
    """
    for arm in ordered(frame[by].tolist()):
        curve = frame[frame[by] == arm]
        style_of = look(arm)
        ax.plot(curve[x], curve[y], color=style_of.color, linestyle=style_of.line, linewidth=1.0, zorder=3)
        for (_, point), size in zip(curve.iterrows(), np.linspace(*sizes, len(curve)), strict=True):
            for name, bar in ((x, "h"), (y, "v")):
                if {f"{name}_low", f"{name}_high"} <= set(point.index) and np.isfinite(point[f"{name}_low"]):
                    ends = [point[f"{name}_low"], point[f"{name}_high"]]
                    here = [point[y if bar == "h" else x]] * 2
                    horizontal, vertical = (ends, here) if bar == "h" else (here, ends)
                    ax.plot(horizontal, vertical, color=style_of.color, linewidth=0.7, zorder=2)
            ax.plot(
                [point[x]], [point[y]], color=style_of.color, marker=style_of.marker or "o", markersize=size, zorder=4
            )
    return ax


def clouds(frame: pd.DataFrame, ax: Axes, *, arm: str, x: str = "x", y: str = "y", cloud: str = "cloud") -> Axes:
    """Planar clouds before (grey) and after (the arm's colour), each with its 95 % ellipse.

    Parameters
    ----------
    frame : DataFrame
        Columns `x`, `y` and `cloud` with the values ``before`` and ``after``.
    """
    looks = {"before": (GREY, ".", (0, (2, 1))), "after": (look(arm).color, ".", "-")}
    for name, (color, marker, line) in looks.items():
        points = frame[frame[cloud] == name]
        if not len(points):
            continue
        ax.scatter(
            points[x], points[y], s=5, color=color, marker=marker, alpha=0.5, linewidths=0, zorder=2, rasterized=True
        )
        if len(points) > 2:
            e = covariance_ellipse(points[[x, y]].to_numpy())
            patch = EllipsePatch(
                (e.x, e.y), e.width, e.height, angle=e.angle, fill=False, edgecolor=color, linestyle=line
            )
            patch.set_linewidth(1.2)
            patch.set_zorder(4)
            ax.add_patch(patch)
    ax.autoscale_view()
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    return ax


def dots(
    frame: pd.DataFrame, ax: Axes, *, by: str = "arm", mean: str = "mean", low: str = "low", high: str = "high"
) -> Axes:
    """One row per arm, top to bottom in the order of `LOOKS`: a marker at the mean and its interval as a bar."""
    arms = ordered(frame[by].tolist())
    for row, arm in enumerate(arms):
        style_of = look(arm)
        for _, point in frame[frame[by] == arm].iterrows():
            if not np.isnan(point[low]):
                ax.plot([point[low], point[high]], [row, row], color=style_of.color, linewidth=1.0, zorder=2)
            ax.plot([point[mean]], [row], color=style_of.color, marker=style_of.marker or "o", markersize=4, zorder=3)
    ax.set_yticks(range(len(arms)), [look(arm).label for arm in arms])
    ax.set_ylim(len(arms) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    return ax


def handles(arms: Sequence[str]) -> list[Line2D]:
    """Legend entries of arms, in the order of `LOOKS`."""
    return [
        Line2D([], [], color=look(a).color, linestyle=look(a).line, marker=look(a).marker or None, label=look(a).label)
        for a in ordered(arms)
    ]


def area_handle(label: str) -> Patch:
    """Legend entry of a grey area: where a null model puts the curves."""
    return Patch(facecolor="0.93", edgecolor="0.8", linewidth=0.5, label=label)


def legend_below(figure: Figure, entries: Sequence[Any], *, columns: int = 4, note: str = "") -> Figure:
    """One legend for the whole figure, under it and outside every axes, so that it can cover nothing; a note heads it."""
    legend = figure.legend(
        handles=list(entries), loc="outside lower center", ncols=min(columns, len(entries)), columnspacing=1.4
    )
    if note:
        legend.set_title(note, prop=FontProperties(size=6.5))
    return figure


def panel_letters(axes: np.ndarray) -> None:
    """(a), (b), ... in front of the titles, row by row."""
    for letter, ax in zip("abcdefghijklmnop", axes.flat, strict=False):
        ax.set_title(f"({letter}) {ax.get_title()}")
