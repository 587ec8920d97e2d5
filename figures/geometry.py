"""Norms and adjacent cosines of updates: what Figures 4, 11 and 12 share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from figures.frames import ArmRun, over_modules, per_module, width
from figures.verdict import Verdict, judge
from stablediag import plots
from stablediag.stats import bands, compare

#: share of a run over which its first and its last norms are averaged
EDGE = 0.2
#: a mean cosine this far from another counts as "far from 0"
FAR = 0.1


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """Norm and cosine by run and target step: mean, least and greatest over the modules; `d` is the gradients' width."""
    frame = over_modules(per_module(runs, "updates", ["norm", "cosine"]), ["norm", "cosine"])
    dimension = {(one.setting, one.arm, one.seed): width(one) for one in runs}
    return frame.assign(
        d=[dimension[key] for key in frame[["setting", "arm", "seed"]].itertuples(index=False, name=None)]
    )


def draw_norms(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Norms on a logarithmic axis; a band spans the seeds."""
    ax.set_yscale("log")
    return plots.band_lines(bands.band(frame, x="target_step", y="norm", by=["arm"]), ax, x="target_step")


def draw_cosines(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Cosines in front of the widest band that independent updates can have; the axis fits the cosines, not the band."""
    plots.band_lines(bands.band(frame, x="target_step", y="cosine", by=["arm"]), ax, x="target_step")
    ax.axhspan(-null_limit(frame), null_limit(frame), color="0.93", linewidth=0, zorder=0)
    return ax


def fit_cosines(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Symmetric limits that hold every seed's cosines, of an axis that may be shared."""
    per_seed = frame.groupby(["setting", "arm", "seed", "target_step"])["cosine"].mean()
    reach = max(0.02, 1.15 * float(per_seed.abs().max()))
    ax.set_ylim(-reach, reach)
    return ax


def null_limit(frame: pd.DataFrame) -> float:
    """1.96 / sqrt(d): independent whitened gradients give a cosine of sd kappa / sqrt(d) with key overlap kappa <= 1."""
    return 1.96 / math.sqrt(float(frame["d"].iloc[0]))


def null_label(frame: pd.DataFrame) -> str:
    """Legend entry of the band."""
    return f"independent whitened updates: 95 % within ±{null_limit(frame):.2f} or less"


def edges(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean of a column over the first and the last part of each run: columns setting, arm, seed, first, last."""
    rows = []
    for key, run in frame.groupby(["setting", "arm", "seed"], sort=False):
        values = run.sort_values("target_step")[column].dropna().to_numpy()
        n = max(1, round(EDGE * len(values)))
        if len(values):
            rows.append((*key, values[:n].mean(), values[-n:].mean()))
    return pd.DataFrame(rows, columns=["setting", "arm", "seed", "first", "last"])


def mean_cosine(frame: pd.DataFrame) -> pd.DataFrame:
    """Absolute value of the mean cosine of each run: columns setting, arm, seed, size."""
    means = frame.groupby(["setting", "arm", "seed"], sort=False, as_index=False)["cosine"].mean()
    return means.assign(size=means["cosine"].abs())


def cosine_verdicts(frame: pd.DataFrame, setting: str, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
    """For pairs (without LN, with LN): is the cosine farther from 0 without?"""
    sizes = mean_cosine(frame[frame["setting"] == setting])
    found = []
    for without, ln in pairs:
        gap = compare.paired(sizes, value="size", arm="arm", first=without, second=ln)
        levels = {arm: compare.t_interval(sizes.loc[sizes["arm"] == arm, "cosine"]) for arm in (without, ln)}
        name = f"mean cosine {levels[without].mean:.3f} without and {levels[ln].mean:.3f} with LN; difference of sizes"
        claim = f"{setting}: adjacent cosine near 0 with LN ({label(ln)}), far from 0 without ({label(without)})"
        found.append(judge(claim, gap, name=name, shown_above=FAR, opposite_below=-FAR))
    return found


def norm_verdicts(
    frame: pd.DataFrame, setting: str, arms: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> list[Verdict]:
    """Do norms fall along the stream, and are they close to zero without LN at the same rate?"""
    ends = edges(frame[frame["setting"] == setting], "norm")
    found = []
    for arm in arms:
        logs = np.log((ends["first"] / ends["last"])[ends["arm"] == arm])
        fall = compare.t_interval(logs)
        claim = f"{setting}: update norms of {label(arm)} stay bounded and drift down"
        found.append(judge(claim, _exp(fall), name="first over last norm", shown_above=1.0))
    for without, ln in pairs:
        gap = compare.ratio(ends, value="last", arm="arm", first=ln, second=without)
        claim = f"{setting}: without LN at the same rate ({label(without)}) the norms are near zero"
        found.append(judge(claim, gap, name=f"norm of {label(ln)} over it", shown_above=10.0, opposite_below=1.0))
    return found


def _exp(interval: compare.Interval) -> compare.Interval:
    return compare.Interval(math.exp(interval.mean), math.exp(interval.low), math.exp(interval.high), interval.n)


def label(arm: str) -> str:
    """The arm's label in legends."""
    return plots.look(arm).label
