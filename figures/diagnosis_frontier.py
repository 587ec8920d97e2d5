"""Efficacy against specificity over learning rates: what each LN variant and control buys with its best rates.

At one rate two editors differ in the size of their updates first of all. A curve over rates takes size out of the comparison:
an editor is better where its curve lies above the other's. Every curve begins at the unedited model, which is rate 0.
All write the warm-up's edits besides those of the stream, at the same rate, but ULTRAEDIT, which has no warm-up: its curve
holds fewer edits in the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from figures import diagnosis_frame
from figures.diagnosis_frame import LABELS
from figures.frames import ArmRun
from figures.variants import Variant, Variants
from figures.verdict import Verdict, judge
from stablediag import plots
from stablediag.errors import DataError
from stablediag.stats import compare

TITLE = "Efficacy against specificity over learning rates"
REFERENCE = "stableedit"
#: where every curve begins
START = "unedited"
#: the arm without LN, and those with less of LN than StableEdit that are compared with it
UNSCALED, LESSER = "no_ln", ("no_whitening", "scalar", "center")
METRICS = ("efficacy", "specificity", "locality_kl")


#: arm and seed
Key = tuple[str, int]
#: efficacy and specificity along a curve, percent
Points = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Curve:
    """One editor at several rates.

    Attributes
    ----------
    arm : str
        Label in the figure and key of its look.
    file : str
        Spec file.
    rates : tuple of float
        Learning rates, ascending; `quick` those of the quick scale.
    changes : tuple of str
        Overrides on top of the rate.
    """

    arm: str
    file: str
    rates: tuple[float, ...]
    quick: tuple[float, ...] = ()
    changes: tuple[str, ...] = ()

    def variants(self, rates: Sequence[float]) -> list[Variant]:
        """One per rate. StableEdit at the rate of its file is the plain run that other figures have, too."""
        return [
            Variant(REFERENCE, REFERENCE)
            if (self.arm, rate) == (REFERENCE, RATE)
            else Variant(f"{self.arm}:{rate:g}", self.file, (f"editor.params.lr={rate:g}", *self.changes))
            for rate in rates
        ]


#: learning rate of the spec file of StableEdit
RATE = 1.3e-2
RATES = (7e-3, RATE, 2.2e-2, 6e-2)
#: the same steps in updates of about the same norms: unscaled gradients are small, and their rates large
UNSCALED_RATES = (1.0, 2.0, 3.5, 10.0)
#: the right scales in the wrong places make updates tens of times longer
SHUFFLED_RATES = (3e-4, 8e-4, 2e-3, 6e-3)
TRACKED = "editor.params.track_covariance=true"
CURVES = (
    Curve(REFERENCE, REFERENCE, RATES, quick=(RATE, 6e-2)),
    Curve("no_whitening", "no_whitening", RATES),
    Curve("scalar", REFERENCE, RATES, changes=("editor.params.normaliser=scalar", TRACKED)),
    Curve("center", REFERENCE, UNSCALED_RATES, changes=("editor.params.normaliser=center", TRACKED)),
    Curve("no_ln", "no_ln", UNSCALED_RATES, quick=(2.0, 10.0)),
    Curve("shuffled", REFERENCE, SHUFFLED_RATES, changes=("editor.params.statistics=shuffled",)),
    Curve("frozen", REFERENCE, RATES, changes=("editor.params.statistics=frozen",)),
    Curve("ultraedit", "ultraedit", RATES),
)
#: panels: what the value gradients are divided by, and where the statistics come from
PANELS = {
    "normalisers": (REFERENCE, "no_whitening", "scalar", "center", "no_ln"),
    "statistics, and ULTRAEDIT": (REFERENCE, "shuffled", "frozen", "ultraedit", "no_ln"),
}
#: names where those of the looks speak of one rate
NAMES = {"no_ln": "no LN", "no_whitening": "diagonal (no whitening)", "scalar": "scalar", "frozen": "frozen statistics"}
NEEDS = Variants(
    full=tuple(one for curve in CURVES for one in curve.variants(curve.rates)),
    quick=tuple(one for curve in CURVES for one in curve.variants(curve.quick)),
)


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """Quality of every editor at every rate, and of the unedited model.

    Returns
    -------
    DataFrame
        Columns arm, seed, rate (0 for the unedited model), and `METRICS`; rows by arm, seed and rate.
    """
    rates = {(one.arm, one.seed): float(one.run.spec["editor"]["params"]["lr"]) for one in runs}
    found = diagnosis_frame.quality(runs)
    found["rate"] = [rates[key] for key in zip(found["arm"], found["seed"], strict=True)]
    found["arm"] = found["arm"].str.partition(":")[0]
    start = diagnosis_frame.unedited(runs).assign(rate=0.0, locality_kl=0.0)
    table = pd.concat([found, start])[["arm", "seed", "rate", *METRICS]]
    return table.sort_values(["arm", "seed", "rate"], ignore_index=True)


def draw(frame: pd.DataFrame) -> Figure:
    """Above specificity, below the locality KL, against efficacy: means over seeds, crosses from least to greatest."""
    drawn = {title: [arm for arm in arms if arm in set(frame["arm"])] for title, arms in PANELS.items()}
    drawn = {title: arms for title, arms in drawn.items() if set(arms) - {REFERENCE}}
    figure, axes = plots.canvas(2, len(drawn), height=5.2, sharex="all", sharey="row")
    grouped = frame.groupby(["arm", "rate"])[list(METRICS)]
    ends = [grouped.mean(), grouped.min().add_suffix("_low"), grouped.max().add_suffix("_high")]
    points = pd.concat(ends, axis=1).reset_index()
    start = points[points["arm"] == START]
    for column, (title, arms) in enumerate(drawn.items()):
        mine = points[points["arm"].isin(arms)]
        # The unedited model has no divergence from itself: no place on a logarithmic axis.
        curves = pd.concat([pd.concat([start.assign(arm=arm), mine[mine["arm"] == arm]]) for arm in arms])
        plots.crosses(curves, axes[0, column], x="efficacy", y="specificity", sizes=(2.8, 5.2))
        plots.crosses(mine, axes[1, column], x="efficacy", y="locality_kl", sizes=(2.8, 5.2))
        axes[0, column].set_title(title)
        axes[1, column].set_title(f"{title}: cost in divergence")
        axes[1, column].set_xlabel(LABELS["efficacy"])
    axes[0, 0].set_ylabel(LABELS["specificity"])
    axes[1, 0].set_ylabel(LABELS["locality_kl"])
    axes[0, 0].set_xlim(0, 100)
    axes[0, 0].set_ylim(-2, 104)
    plots.log_axis(axes[1, 0].yaxis)
    plots.panel_letters(axes)
    shown = plots.ordered([arm for arms in drawn.values() for arm in arms])
    entries = plots.handles(shown)
    for entry, arm in zip(entries, shown, strict=True):
        entry.set_label(_name(arm))
    note = "markers: one learning rate each, larger towards higher rates; means over seeds, crosses from smallest to largest"
    return plots.legend_below(figure, entries, note=note)


def _name(arm: str) -> str:
    return NAMES.get(arm, plots.look(arm).label)


def attained(efficacy: NDArray[np.float64], specificity: NDArray[np.float64], level: float) -> float:
    """Best specificity at an efficacy of at least `level` along a curve of straight lines; NaN where it is not reached.

    Parameters
    ----------
    efficacy, specificity : ndarray, shape [rates + 1]
        In the order of the rates, the unedited model first; percent.
    level : float
        Percent.
    """
    reached = [float(s) for e, s in zip(efficacy, specificity, strict=True) if e >= level]
    for i in range(len(efficacy) - 1):
        (e0, e1), (s0, s1) = efficacy[i : i + 2], specificity[i : i + 2]
        if min(e0, e1) < level <= max(e0, e1):
            reached.append(float(s0 + (s1 - s0) * (level - e0) / (e1 - e0)))
    return max(reached, default=float("nan"))


def area(efficacy: NDArray[np.float64], specificity: NDArray[np.float64]) -> float:
    """Mean over all efficacies from 0 to 100 % of the specificity attained there, 0 where none is; percent.

    It grows with both: a curve that lies above another has the larger area. Midpoint rule at every half percent.
    """
    levels = np.arange(0.25, 100, 0.5)
    return float(np.nan_to_num([attained(efficacy, specificity, level) for level in levels]).mean())


def curves(frame: pd.DataFrame) -> dict[Key, Points]:
    """Efficacy and specificity by arm and seed, from the unedited model on in the order of the rates."""
    found = {}
    for (arm, seed), mine in frame[frame["arm"] != START].groupby(["arm", "seed"], sort=False):
        begin = frame[(frame["arm"] == START) & (frame["seed"] == seed)]
        if not len(begin):
            raise DataError(f"frontier: no unedited model of seed {seed}: prepare the table from complete runs")
        both = pd.concat([begin, mine.sort_values("rate")])
        found[str(arm), int(str(seed))] = (both["efficacy"].to_numpy(float), both["specificity"].to_numpy(float))
    return found


def common_level(frame: pd.DataFrame, arms: Sequence[str]) -> float:
    """Highest multiple of 10 % that all these arms reach in efficacy at every seed; 0 where they reach none."""
    best = frame[frame["arm"].isin(arms)].groupby(["arm", "seed"])["efficacy"].max()
    return float(10 * np.floor(best.min() / 10))


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Area under the frontier and specificity at equal efficacy: StableEdit against every other, LN against no LN."""
    there = plots.ordered([str(arm) for arm in frame["arm"].unique() if arm != START])
    if REFERENCE not in there:
        raise DataError("frontier: no run of stableedit: every other editor is compared with it")
    pairs = [(REFERENCE, arm) for arm in there if arm != REFERENCE]
    pairs += [(arm, UNSCALED) for arm in LESSER if {arm, UNSCALED} <= set(there)]
    along = curves(frame)
    areas = {key: area(*curve) for key, curve in along.items()}
    return [one for first, second in pairs for one in _against(first, second, frame, along, areas)]


def _against(
    first: str, second: str, frame: pd.DataFrame, along: Mapping[Key, Points], areas: Mapping[Key, float]
) -> list[Verdict]:
    """Two arms: areas, and specificity at the highest common level of efficacy."""
    level = common_level(frame, (first, second))
    rows = [
        {"arm": arm, "seed": seed, "area": areas[arm, seed], "specificity": attained(*curve, level)}
        for (arm, seed), curve in along.items()
        if arm in (first, second)
    ]
    table = pd.DataFrame(rows)
    means = table.groupby("arm")["area"].mean()
    gaps = {
        name: compare.paired(table, value=name, arm="arm", first=first, second=second)
        for name in ("area", "specificity")
    }
    above = f"mean specificity attained over all efficacies {means[first]:.3g} against {means[second]:.3g} %; points"
    equal = f"specificity at {level:.0f} % efficacy, the most that both reach; points"
    return [
        judge(f"the frontier of {_name(first)} lies above that of {_name(second)}", gaps["area"], name=above),
        judge(
            f"{_name(first)} is more specific than {_name(second)} at equal efficacy", gaps["specificity"], name=equal
        ),
    ]
