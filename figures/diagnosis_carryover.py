"""The positive cumulative effect with its two controls: what do earlier edits leave behind that helps later ones?

The same late edits are taught four times: after nothing (``alone``), with the statistics that the early edits left but the
first weights (``statistics``), with the edited weights but statistics that have not seen them (``weights``), and with both, as one
long stream has it. StableEdit begins with a warm-up in all four: the first edits of the stream, taught and then carried over.
ULTRAEDIT begins with nothing.

Two ways to tell a better step from a longer one. ``matched`` is ``both`` with every update scaled to the norm that the same step has
in ``alone``. And all arms are run at a second rate, so that specificity can be compared at equal efficacy; at the tuned one there
are two parts of the pool for every seed, at the other rate one.

Questions are those of the late edits alone. What the early edits did to the locality probes stays in the weights, so that
``weights`` and ``both`` start with a loss of specificity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import diagnosis_frame
from figures.frames import ArmRun
from figures.variants import Variant, Variants
from figures.verdict import Verdict, judge
from stablediag import plots
from stablediag.errors import DataError
from stablediag.stats import compare

TITLE = "What earlier edits leave to later ones"
EDITORS = ("stableedit", "ultraedit")
#: arm -> label, colour, marker
ARMS: dict[str, plots.Look] = {
    "alone": plots.Look("alone", "#000000", "o", (0, (1, 1.2))),
    "statistics": plots.Look("statistics", "#E69F00", "D", (0, (4, 1.5))),
    "weights": plots.Look("weights", "#56B4E9", "s", (0, (5, 1, 1, 1))),
    "both": plots.Look("both", "#0072B2", "^", "-"),
    "matched": plots.Look("both, same norms", "#CC79A7", "v", (0, (2, 1))),
}
#: rate over the tuned one -> how its marker is filled
FILLS: dict[float, Literal["none", "full"]] = {1.0: "full", 2.0: "none"}
RATE = 1.3e-2
#: metric -> label of what an arm has more of than `alone`
METRICS = {
    "efficacy": "efficacy, points\nover alone",
    "generalization": "generalization,\npoints over alone",
    "specificity": "specificity, points\nover alone",
    "norm": "update norm\nover alone's",
}
COLUMNS = ("setting", "editor", "rate", "arm", "seed", "metric", "value")


def _label(editor: str, rate: float, name: str, facts: str) -> str:
    return f"{editor}/{rate:g}/{name}/{facts}"


@dataclass(frozen=True)
class _Facts:
    """A part of the pool: edits before it, those of the warm-up, and as many early as late ones."""

    name: str
    first: int
    warm: int
    size: int

    @property
    def early(self) -> int:
        """Edits before the early ones, which are the same for an editor without a warm-up."""
        return self.first + self.warm

    @property
    def late(self) -> int:
        """Edits before the late ones."""
        return self.early + self.size


def _editor(editor: str, rate: float, facts: _Facts, *, matched: bool) -> Iterator[Variant]:
    """All runs of an editor at a rate on one part of the pool."""
    warm = editor == "stableedit"
    base, early = (_label(editor, rate, name, facts.name) for name in ("warm-up", "early"))
    common = ("recorders=light", "warmup.size=0", f"editor.params.lr={rate * RATE:g}")
    # What comes before is not asked about: nearly all the time of a run goes into questions.
    before = (*common, f"data.size={facts.size}", "evaluation.subsample=10")
    late = (*common, f"data.size={facts.size}", f"data.offset={facts.late}", f"evaluation.subsample={facts.size // 2}")
    first = _starts(base, base) if warm else ()
    if warm:
        yield Variant(base, editor, (*before, f"data.size={facts.warm}", f"data.offset={facts.first}"))
    yield Variant(early, editor, (*before, f"data.offset={facts.early}", *first))
    starts = {
        "alone": first,
        "statistics": _starts(base if warm else None, early),
        "weights": _starts(early, base if warm else None),
        "both": _starts(early, early),
    }
    for arm, start in starts.items():
        yield Variant(_label(editor, rate, arm, facts.name), editor, (*late, *start))
    if matched:
        norms = f"editor.params.match={{run: '@{_label(editor, rate, 'alone', facts.name)}', mode: every}}"
        yield Variant(_label(editor, rate, "matched", facts.name), editor, (*late, *starts["both"], norms))


def _starts(weights: str | None, statistics: str | None) -> tuple[str, ...]:
    named = {"weights_from": weights, "stats_from": statistics}
    return tuple(f"init.{key}='@{label}'" for key, label in named.items() if label is not None)


#: every part has its own facts; the second tightens the intervals of what is asked at the tuned rate
_PARTS = (_Facts("a", 0, 350, 500), _Facts("b", 1500, 350, 500))
_FULL = tuple(
    variant
    for editor in EDITORS
    for rate, facts in ((1.0, _PARTS[0]), (2.0, _PARTS[0]), (1.0, _PARTS[1]))
    for variant in _editor(editor, rate, facts, matched=rate == 1)
)
NEEDS = Variants(full=_FULL, quick=tuple(_editor("ultraedit", 1.0, _Facts("a", 0, 100, 100), matched=False)))


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """Quality of the late edits at the end of every late run, percent, and the mean norm of its updates.

    Returns
    -------
    DataFrame
        Columns setting, editor, rate (over the tuned one), arm, seed (100 times the number of the part of the pool, plus
        the seed), metric (of `METRICS`, and immediate) and value.

    Raises
    ------
    DataError
        No late runs; or arms of one seed were not taught the same edits, or edits that came early.
    """
    late = [one for one in runs if _name(one) in ARMS]
    if not late:
        raise DataError("diagnosis-carryover: no late runs: build it with figures.build")
    _check_edits(runs)
    quality = diagnosis_frame.quality(late)
    quality["norm"] = diagnosis_frame.geometry(late)["norm_mean"]
    parts = quality["arm"].str.split("/", expand=True)
    place = pd.Categorical(parts[3]).codes.astype(int)
    quality = quality.assign(
        editor=parts[0], rate=parts[1].astype(float), arm=parts[2], seed=100 * place + quality["seed"]
    )
    kept = [name for name in COLUMNS if name not in ("metric", "value")]
    return quality.melt(id_vars=kept, value_vars=[*METRICS, "immediate"], var_name="metric")[list(COLUMNS)]


def _name(one: ArmRun) -> str:
    return one.arm.split("/")[2]


def _check_edits(runs: Sequence[ArmRun]) -> None:
    taught: dict[tuple[str, str, int], list[str]] = {}
    for one in runs:
        ids = one.run.table("edits").sort_values("position")["edit_id"].tolist()
        when, facts = ("late" if _name(one) in ARMS else _name(one)), one.arm.split("/")[3]
        if taught.setdefault((when, facts, one.seed), ids) != ids:
            raise DataError(
                f"run {one.arm}, seed {one.seed}: other {when} edits than the arms before it: make it again"
            )
    for (when, facts, seed), ids in taught.items():
        if when != "late" and set(ids) & set(taught.get(("late", facts, seed), ())):
            raise DataError(f"seed {seed}: {when} and late edits overlap: choose sizes that keep them apart")


def draw(frame: pd.DataFrame) -> Figure:
    """One row per editor: paired differences to `alone` by arm and rate, and specificity against efficacy."""
    editors = [name for name in EDITORS if name in set(frame["editor"])]
    figure, axes = plots.canvas(len(editors), len(METRICS) + 1, height=1.3 + 1.6 * len(editors), sharex="col")
    for row, editor in enumerate(editors):
        mine = frame[frame["editor"] == editor]
        arms = [arm for arm in ARMS if arm in set(mine["arm"])]
        for ax, metric in zip(axes[row], METRICS, strict=False):
            _differences(mine[mine["metric"] == metric], ax, arms[1:], ratio=metric == "norm")
            ax.set_yticks(range(len(arms) - 1), [ARMS[arm].label if ax is axes[row, 0] else "" for arm in arms[1:]])
            ax.set_title(plots.look(editor).label if ax is axes[row, 0] else "")
        _plane(mine, axes[row, -1], arms)
    for ax, name in zip(axes[-1], [*METRICS.values(), "efficacy (%)"], strict=True):
        ax.set_xlabel(name)
    plots.panel_letters(axes)
    rates = sorted(frame["rate"].unique())
    entries = [
        Line2D([], [], color="#000000", marker="o", linestyle="", fillstyle=_fill(rate), label=f"rate x {rate:g}")
        for rate in rates
    ]
    shown = [one for arm, one in ARMS.items() if arm in set(frame["arm"])]
    entries += [Line2D([], [], color=o.color, marker=o.marker, linestyle=o.line, label=o.label) for o in shown]
    return plots.legend_below(figure, entries, columns=4)


def _fill(rate: float) -> Literal["none", "full"]:
    return FILLS.get(rate, "full")


def _differences(part: pd.DataFrame, ax: Axes, arms: Sequence[str], *, ratio: bool) -> None:
    """Paired over seeds, with 95 % intervals; of norms the ratio."""
    rates = sorted(part["rate"].unique())
    compared = compare.ratio if ratio else compare.paired
    for place, arm in enumerate(arms):
        for i, rate in enumerate(rates):
            mine = part[part["rate"] == rate]
            if arm not in set(mine["arm"]):
                continue
            found = compared(mine, value="value", arm="arm", first=arm, second="alone")
            y, one = place + 0.24 * (i - (len(rates) - 1) / 2), ARMS[arm]
            if found.n > 1:
                ax.plot([found.low, found.high], [y, y], color=one.color, linewidth=1.0, zorder=2)
            ax.plot([found.mean], [y], color=one.color, marker=one.marker, fillstyle=_fill(rate), markersize=4)
    ax.axvline(1.0 if ratio else 0.0, color="#000000", linewidth=0.6, zorder=1)
    ax.set_ylim(len(arms) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)


def _plane(mine: pd.DataFrame, ax: Axes, arms: Sequence[str]) -> None:
    # A line joins means over the same facts.
    rates = mine.groupby("seed")["rate"].transform("nunique")
    means = mine[rates == rates.max()].groupby(["arm", "rate", "metric"])["value"].mean().unstack("metric")
    for arm in arms:
        points, one = means.xs(arm, level="arm"), ARMS[arm]
        ax.plot(points["efficacy"], points["specificity"], color=one.color, linestyle=one.line, linewidth=1.0)
        for rate, x, y in points.reset_index()[["rate", "efficacy", "specificity"]].to_numpy(float).tolist():
            ax.plot([x], [y], color=one.color, marker=one.marker, fillstyle=_fill(rate), markersize=4)
    ax.set_ylabel("specificity (%)")


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Is there a positive cumulative effect, what carries it, and is it more than a longer step?"""
    found = []
    for editor in [name for name in EDITORS if name in set(frame["editor"])]:
        mine, title = frame[frame["editor"] == editor], plots.look(editor).label
        found += _effects(mine[mine["rate"] == 1.0], title)
        for rate in sorted(set(mine["rate"]) - {1.0}):
            claim = f"{title}, rate x {rate:g}: early edits help later ones (efficacy)"
            found.append(
                judge(claim, _gap(mine[mine["rate"] == rate], "efficacy", "both"), name="both less alone, points")
            )
        found += _at_equal_efficacy(mine, title)
    return found


def _gap(part: pd.DataFrame, metric: str, arm: str, *, against: str = "alone") -> compare.Interval:
    values = part[part["metric"] == metric]
    return compare.paired(values, value="value", arm="arm", first=arm, second=against)


def _effects(part: pd.DataFrame, title: str) -> list[Verdict]:
    found = []
    for metric in ("efficacy", "generalization", "specificity"):
        claim = f"{title}: early edits help later ones ({metric}, Figure 1b)"
        found.append(judge(claim, _gap(part, metric, "both"), name="both less alone, points"))
    whole = _gap(part, "efficacy", "both").mean
    norms = part[part["metric"] == "norm"]
    for arm in ("statistics", "weights", "matched"):
        if arm not in set(part["arm"]):
            continue
        gap = _gap(part, "efficacy", arm)
        longer = compare.ratio(norms, value="value", arm="arm", first=arm, second="alone")
        claim = {
            "statistics": f"{title}: the statistics alone carry it (efficacy)",
            "weights": f"{title}: the weights alone carry it (efficacy)",
            "matched": f"{title}: the effect is there at equal update norms (efficacy)",
        }[arm]
        name = f"{ARMS[arm].label} less alone, points ({gap.mean:.3g} of {whole:.3g}; update norms x {longer})"
        found.append(judge(claim, gap, name=name))
    return found


def _at_equal_efficacy(mine: pd.DataFrame, title: str) -> list[Verdict]:
    """Specificity of `both` less that of `alone` at the rate that is as effective, seed by seed, on the line between rates."""
    if mine["rate"].nunique() < 2:
        return []
    table = mine.pivot_table(index=["arm", "seed", "rate"], columns="metric", values="value")
    gaps, seeds = [], sorted(mine.loc[mine["rate"] != 1, "seed"].unique())
    for seed in seeds:
        alone, both = table.loc["alone", seed].sort_values("efficacy"), table.loc["both", seed]
        within = both[both["efficacy"].between(alone["efficacy"].iloc[0], alone["efficacy"].iloc[-1])]
        if len(within):
            level = np.interp(within["efficacy"], alone["efficacy"], alone["specificity"])
            gaps.append(float((within["specificity"] - level).mean()))
    name = (
        f"specificity of both less that of alone, points, in {len(gaps)} of {len(seeds)} seeds where the rates allow it"
    )
    return [judge(f"{title}: at equal efficacy the early edits help specificity", compare.t_interval(gaps), name=name)]
