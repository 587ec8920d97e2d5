"""Centring and scaling of the value gradients, crossed, at matched update norms.

Every cell is StableEdit with another treatment of the value gradients: centred or not, and scaled by nothing, one number,
one number per feature, or the full covariance. Keys, ridge, warm-up, stream and evaluation are the same in all, and the
norm of each update is tied to that of StableEdit's run (centred, full) in one of two ways:

* ``first``: one factor per module, fixed at the first target step, which is a learning rate: sizes are comparable, and
  a cell may still let its updates grow or fade along the stream, as its scaling makes them;
* ``every``: each step's update has the norm of StableEdit's: cells differ in the direction of their updates alone. One
  number per step cannot change a direction, so that scaling by one number is no scaling here; that the two agree checks
  the matching.

The difference of the two is what a scaling does by steadying the size of the updates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures import diagnosis_frame
from figures.diagnosis_frame import LABELS
from figures.frames import ArmRun
from figures.variants import Variant, Variants
from figures.verdict import Verdict, judge
from stablediag import plots
from stablediag.errors import DataError
from stablediag.stats.compare import Interval, t_interval

TITLE = "Centring and scaling at matched update norms"
REFERENCE = "stableedit"
MATCHINGS = {"first": "norm matched at first step", "every": "norm matched at every step"}
SCALINGS = ("none", "scalar", "diagonal", "full")
METRICS = ("efficacy", "locality_kl", "retention")
#: metrics that are compared as ratios, because they range over decades
RATIOS = ("locality_kl",)
CENTRED = {True: "centred", False: "not_centred"}


@dataclass(frozen=True)
class Cell:
    """One treatment of the value gradients under one matching."""

    matching: str
    scaling: str
    centred: bool

    @property
    def arm(self) -> str:
        """Label of its runs."""
        full = self.scaling == "full" and self.centred
        return REFERENCE if full else f"{self.matching}_{self.scaling}_{CENTRED[self.centred]}"

    def variant(self) -> Variant:
        """StableEdit with this treatment; StableEdit itself needs no matching."""
        if self.arm == REFERENCE:
            return Variant(REFERENCE, REFERENCE)
        normaliser = self.scaling if not self.centred or self.scaling != "none" else "center"
        changes = [
            f"editor.params.normaliser={normaliser}",
            f"editor.params.match={{run: '@{REFERENCE}', mode: {self.matching}}}",
            "editor.params.track_covariance=true",
        ]
        if not self.centred and self.scaling != "none":
            changes.append("editor.params.center=false")
        return Variant(self.arm, REFERENCE, tuple(changes))


CELLS = tuple(Cell(m, s, c) for m in MATCHINGS for s in SCALINGS for c in CENTRED)
QUICK = tuple(Cell("every", s, c) for s in ("none", "full") for c in CENTRED)
NEEDS = Variants(
    full=tuple({cell.arm: cell.variant() for cell in CELLS}.values()),
    quick=tuple({cell.arm: cell.variant() for cell in QUICK}.values()),
)


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """Quality and mean update norm of every cell.

    Returns
    -------
    DataFrame
        Columns matching, scaling, centred, seed, metric (those of `METRICS`, specificity and ``norm_mean``) and value. The
        cell of StableEdit is in both matchings.
    """
    wide = diagnosis_frame.quality(runs).merge(diagnosis_frame.geometry(runs), on=list(diagnosis_frame.KEYS))
    parts = [
        wide[wide["arm"] == cell.arm].assign(matching=cell.matching, scaling=cell.scaling, centred=cell.centred)
        for cell in CELLS
    ]
    there = [part for part in parts if len(part)]
    if not there:
        raise DataError(f"factorial: no run of {CELLS[0].arm} or of another cell: build the runs of this figure first")
    found = diagnosis_frame.long(pd.concat(there), [*METRICS, "specificity", "norm_mean"])
    # StableEdit alone makes no factorial: its copy in a matching without other cells goes.
    others = found.loc[found["arm"] != REFERENCE, "matching"]
    found = found[found["matching"].isin(others)]
    return found[["matching", "scaling", "centred", "seed", "metric", "value"]].reset_index(drop=True)


def draw(frame: pd.DataFrame) -> Figure:
    """One row per matching, one column per metric: scaling along the axis, centred or not by colour and marker."""
    matchings = [name for name in MATCHINGS if name in set(frame["matching"])]
    figure, axes = plots.canvas(len(matchings), len(METRICS), height=0.75 + 1.85 * len(matchings), sharey="col")
    places = {name: place for place, name in enumerate(SCALINGS)}
    for row, matching in zip(axes, matchings, strict=True):
        for ax, metric in zip(row, METRICS, strict=True):
            part = frame[(frame["matching"] == matching) & (frame["metric"] == metric)]
            grouped = part.groupby(["centred", "scaling"])["value"]
            table = grouped.agg(value="mean", value_low="min", value_high="max").reset_index()
            # Side by side, so that neither bar hides the other.
            place = table["scaling"].map(places) + np.where(table["centred"], -0.06, 0.06)
            table = table.assign(arm=table["centred"].map(CENTRED), place=place).sort_values("place")
            plots.crosses(table, ax, x="place", y="value")
            ax.set_xlim(-0.4, len(SCALINGS) - 0.6)
            ax.set_xticks(list(places.values()), list(SCALINGS))
            ax.grid(axis="x", visible=False)
            ax.set_ylabel(LABELS[metric])
            ax.set_title(MATCHINGS[matching])
    for ax, metric in zip(axes[0], METRICS, strict=True):
        if metric in RATIOS:
            plots.log_axis(ax.yaxis)
    for ax in axes[-1]:
        ax.set_xlabel("scaling of the value gradients")
    plots.panel_letters(axes)
    for ax in axes.flat:
        ax.set_title(ax.get_title(), fontsize=7)
    note = "mean over seeds, bars from the smallest to the largest"
    return plots.legend_below(figure, plots.handles(list(CENTRED.values())), note=note)


def effect(frame: pd.DataFrame, metric: str, matching: str, weights: Mapping[tuple[str, bool], float]) -> Interval:
    """A contrast of cells with its t interval over seeds.

    Parameters
    ----------
    frame : DataFrame
        From `prepare`.
    metric, matching : str
        Which rows.
    weights : mapping of (str, bool) to float
        (scaling, centred) to its weight; a seed without one of these cells is left out.

    Returns
    -------
    Interval
        For `RATIOS` a factor: the exponential of the contrast of logarithms.
    """
    part = frame[(frame["metric"] == metric) & (frame["matching"] == matching)]
    cells = part.pivot(index="seed", columns=["scaling", "centred"], values="value").astype(float)
    missing = [key for key in weights if key not in cells]
    if missing:
        raise DataError(
            f"factorial: no cell {missing[0][0]}, {CENTRED[missing[0][1]]}, {matching}: build its runs first"
        )
    if metric in RATIOS:
        cells = cells.where(cells > 0).apply(np.log)
    total = sum(weight * cells[key] for key, weight in weights.items())
    found = t_interval(np.asarray(total, float))
    if metric not in RATIOS:
        return found
    return Interval(math.exp(found.mean), math.exp(found.low), math.exp(found.high), found.n)


def centring(scalings: Sequence[str]) -> dict[tuple[str, bool], float]:
    """Main effect of centring: centred minus not centred, mean over these scalings."""
    return {(s, c): (1 if c else -1) / len(scalings) for s in scalings for c in CENTRED}


def scaling(name: str) -> dict[tuple[str, bool], float]:
    """Main effect of a scaling: with it minus without, mean over centred and not."""
    return {(s, c): sign / 2 for s, sign in ((name, 1), ("none", -1)) for c in CENTRED}


def interaction(name: str) -> dict[tuple[str, bool], float]:
    """Effect of centring without scaling minus the effect of centring with this scaling."""
    return {(s, c): (1 if c else -1) * sign for s, sign in (("none", 1), (name, -1)) for c in CENTRED}


def contrasts(metric: str, scalings: Sequence[str]) -> dict[str, tuple[str, dict[tuple[str, bool], float]]]:
    """Claims about a metric: what is said to change it, how that is measured, and the weights of the cells.

    Efficacy is asked about every scaling, the others about the full covariance; retention about no interaction.
    """
    asked = [name for name in scalings if name != "none"] if metric == "efficacy" else ["full"]
    found = {"centring": ("mean over scalings", centring(scalings))}
    found |= {f"scaling ({name})": ("mean over centred and not", scaling(name)) for name in asked}
    if metric != "retention":
        found["centring without scaling, more than with full scaling,"] = (
            "one effect against the other",
            interaction("full"),
        )
    return found


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Main effects and interaction, by matching and metric.

    Every claim names the direction that it asks for. Intervals are at 95 % each, for one claim at a time.
    """
    found = []
    for matching in (name for name in MATCHINGS if name in set(frame["matching"])):
        there = [name for name in SCALINGS if name in set(frame.loc[frame["matching"] == matching, "scaling"])]
        # At every step one number is no scaling: it would count that cell twice.
        distinct = [name for name in there if matching != "every" or name != "scalar"]
        for metric in METRICS:
            noun = LABELS[metric].split(" (")[0]
            for what, (how, weights) in contrasts(metric, distinct).items():
                if metric in RATIOS:
                    gap = effect(frame, metric, matching, {key: -weight for key, weight in weights.items()})
                    name, verb, limit = f"factor by which it falls, {how}", "lowers", 1.0
                else:
                    gap = effect(frame, metric, matching, weights)
                    name, verb, limit = f"points, {how}", "raises", 0.0
                found.append(judge(f"{MATCHINGS[matching]}: {what} {verb} {noun}", gap, name=name, shown_above=limit))
    return found
