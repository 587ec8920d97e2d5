"""What the doctor says of every editor's run, beside what the quality tables say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from figures import editors_arms, editors_draw, editors_frame
from figures.editors_arms import UNEDITED, arm
from figures.editors_frame import COLLAPSED, at_end
from figures.frames import ArmRun
from figures.verdict import Verdict, judge
from stablediag import plots
from stablediag.stats import compare
from stablediag.stats.doctor import RULES, diagnose

TITLE = "The doctor on the editors of the papers"
NEEDS = editors_arms.NEEDS
#: an editor whose run breaks down is left out, not the table
PARTIAL = True
#: prefix of a rule's id in the column `metric`
RULE = "rule:"
IDS = tuple(rule.id for rule in RULES)
#: rules that see the answers themselves, what the quality tables say instead (percent), and the limit of both
OUTCOMES: dict[str, tuple[str, float]] = {
    "efficacy": ("immediate efficacy below", 60.0),
    "forgetting": ("immediate less retained efficacy above", 20.0),
    "locality": ("specificity below", 90.0),
    "capability": ("capability lost above", 5.0),
}
#: rules of what may cause bad answers: all that stand before the early warning, which sums some of them up
CAUSES = IDS[: IDS.index("early_warning")]
#: rule that answers wherever the editor shows gradients
GRADIENTS = "distribution_switch"
#: rows of the quality tables that the comparison needs
QUALITY = ("score", "immediate", "efficacy", "specificity", "capability")
#: editors of the short table of the page docs/doctor.md
SHORT = (
    "stableedit", "ultraedit", "no_ln_matched", "no_ln", "ft_last_prompt", "ft_teacher_forcing", "rledit", "memit", "alphaedit", "nas",
)  # fmt: skip
COLUMNS = ("setting", "arm", "seed", "metric", "edits", "value", "low", "high", "verdict", "where", "hint")
#: share of runs on which doctor and tables must agree, at least
AGREED, HALF = 0.8, 0.5
#: words of a claim about runs by their score
GOOD, POOR = f"score of at least {COLLAPSED:g}", f"score below {COLLAPSED:g}"


@dataclass(frozen=True)
class Mark:
    """How a verdict looks: a letter, the colour of its cell and of the letter. Cells differ in lightness, too."""

    letter: str
    cell: str
    ink: str


MARKS: dict[str, Mark] = {
    "bad": Mark("B", "#A8321A", "white"),
    "info": Mark("i", "#F2C078", "black"),
    "ok": Mark("o", "#DCEBF5", "#4A5A66"),
    "unknown": Mark("-", "white", "#9A9A9A"),
}


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """Every rule of every run, and the quality at its end.

    Returns
    -------
    DataFrame
        Columns setting, arm, seed, metric, edits, value, low, high, verdict, where, hint. Rows with `metric` ``rule:ID`` are
        the doctor's; those of `QUALITY` are `editors_frame.prepare`'s, in percent, those of the unedited model included.
    """
    ends = editors_frame.prepare(runs)
    said = [_diagnosed(one) for one in runs]
    return pd.concat([*said, ends[ends["metric"].isin(QUALITY)]], ignore_index=True).reindex(columns=list(COLUMNS))


def _diagnosed(one: ArmRun) -> pd.DataFrame:
    found = diagnose(one.run)
    limits = [(math.nan, math.nan) if pair is None else pair for pair in found["interval"]]
    return found[["value", "verdict", "where", "hint"]].assign(
        setting=one.setting,
        arm=one.arm,
        seed=one.seed,
        metric=RULE + found["rule"],
        edits=0,
        low=[low for low, _ in limits],
        high=[high for _, high in limits],
    )


def _said(frame: pd.DataFrame, name: str) -> dict[str, list[str]]:
    """Rule -> verdicts of an editor's runs, by seed."""
    mine = frame[(frame["arm"] == name) & frame["metric"].str.startswith(RULE)].sort_values("seed")
    grouped = mine.groupby("metric")["verdict"]
    return {rule: grouped.get_group(RULE + rule).tolist() for rule in IDS} if len(mine) else {}


def first_causes(frame: pd.DataFrame, name: str) -> list[str]:
    """The first bad rule of each of an editor's runs, by seed; empty where nothing is bad."""
    said = _said(frame, name)
    seeds = len(next(iter(said.values()), []))
    return [next((rule for rule in IDS if said[rule][i] == "bad"), "") for i in range(seeds)]


def draw(frame: pd.DataFrame) -> Figure:
    """Rules down, editors across; a cell has one stripe a seed, and one letter where the seeds agree."""
    names = editors_draw.drawn_arms(frame)
    extra = ("first cause (rule)", "score at the end (%)", "specificity (%)")
    figure, axes = plots.canvas(1, 1, height=1.6 + editors_draw.TEXT_ROW * (len(IDS) + len(extra) + 1))
    ax = axes[0, 0]
    for column, name in enumerate(names):
        said = _said(frame, name)
        for row, rule in enumerate(IDS):
            _cell(ax, column, row, said[rule])
        for row, text in enumerate((_numbers(first_causes(frame, name)), *_ends(frame, name)), len(IDS)):
            ax.text(column, row + 0.35, text, fontsize=_size(text), ha="center", va="center")
    labels = [f"{rule.replace('_', ' ')}  {place}" for place, rule in enumerate(IDS, 1)]
    places = [*range(len(IDS)), *(len(IDS) + 0.35 + i for i in range(len(extra)))]
    ax.set_yticks(places, [*labels, *extra], fontsize=editors_draw.SMALL)
    ax.set_xticks(range(len(names)), [arm(name).label for name in names], fontsize=editors_draw.SMALL, rotation=90)
    ax.xaxis.tick_top()
    ax.set_xlim(-0.55, len(names) - 0.45)
    ax.set_ylim(len(IDS) + len(extra), -0.55)
    ax.tick_params(length=0, pad=2)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    for place in [i for i in range(1, len(names)) if arm(names[i]).family is not arm(names[i - 1]).family]:
        ax.plot([place - 0.5] * 2, [-0.5, len(IDS) + len(extra) - 0.2], color="0.35", linewidth=0.6)
    for rule in (CAUSES[-1], "early_warning", IDS[-1]):
        ax.axhline(IDS.index(rule) + 0.5, color="0.35", linewidth=0.6)
    _legend(figure, frame)
    return figure


def _cell(ax: Axes, column: int, row: int, verdicts: Sequence[str]) -> None:
    width = 0.96 / len(verdicts)
    agreed = len(set(verdicts)) == 1
    for i, verdict in enumerate(verdicts):
        mark, left = MARKS[verdict], column - 0.48 + i * width
        ax.add_patch(Rectangle((left, row - 0.46), width, 0.92, facecolor=mark.cell, edgecolor="none"))
        if not agreed:
            place = left + width / 2
            ax.text(place, row, mark.letter, fontsize=4.6, ha="center", va="center_baseline", color=mark.ink)
    ax.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, fill=False, edgecolor="0.8", linewidth=0.4))
    if agreed:
        mark = MARKS[verdicts[0]]
        bold = "bold" if verdicts[0] == "bad" else "normal"
        ax.text(
            column, row, mark.letter, fontsize=6, ha="center", va="center_baseline", color=mark.ink, fontweight=bold
        )


def _numbers(causes: Sequence[str]) -> str:
    """First causes by their rules' numbers: one where the seeds agree."""
    numbers = [str(IDS.index(cause) + 1) if cause else "none" for cause in causes]
    return "\n".join(dict.fromkeys(numbers))


def _ends(frame: pd.DataFrame, name: str) -> list[str]:
    mine = frame[frame["arm"] == name]
    return [f"{at_end(mine, metric)['value'].mean():.0f}" for metric in ("score", "specificity")]


def _size(text: str) -> float:
    return 4.6 if "\n" in text or "none" in text else editors_draw.SMALL


def _legend(figure: Figure, frame: pd.DataFrame) -> None:
    seeds = frame.loc[frame["arm"] != UNEDITED, "seed"].nunique()
    words = {"bad": "bad", "info": "info", "ok": "ok", "unknown": "unknown: not recorded, or not of this editor"}
    entries = [
        Patch(facecolor=mark.cell, edgecolor="0.6", linewidth=0.4, label=f"{mark.letter}  {words[name]}")
        for name, mark in MARKS.items()
    ]
    title = (
        f"One letter: all {seeds} seeds agree; several: one a seed. Lines set off causes, early warning and answers."
    )
    figure.legend(
        handles=entries, loc="outside lower center", ncols=4, fontsize=editors_draw.SMALL, title=title,
        title_fontsize=editors_draw.SMALL, handlelength=1.2,
    )  # fmt: skip


def markdown(frame: pd.DataFrame) -> str:
    """All editors with their causes, then the rules of some of them."""
    names = editors_draw.drawn_arms(frame)
    lines = [f"# {TITLE}", "", "| editor | first cause | bad besides | info | score | specificity |", "|" + "---|" * 6]
    for name in names:
        causes, said = first_causes(frame, name), _said(frame, name)
        besides = [
            _counted(rule, [v if rule != c else "" for v, c in zip(said[rule], causes, strict=True)], "bad")
            for rule in IDS
        ]
        told = [_counted(rule, said[rule], "info") for rule in IDS]
        first = ", ".join(_counted(cause, causes, cause) for cause in dict.fromkeys(causes))
        row = (
            arm(name).label,
            first,
            *(", ".join(filter(None, some)) or "-" for some in (besides, told)),
            *_ends(frame, name),
        )
        lines.append(f"| {' | '.join(row)} |")
    shown = [name for name in SHORT if name in names]
    lines += ["", "| rule | " + " | ".join(arm(name).label for name in shown) + " |", "|" + "---|" * (1 + len(shown))]
    table = {name: _said(frame, name) for name in shown}
    for rule in IDS:
        lines.append(f"| {rule} | " + " | ".join(_text(table[name][rule]) for name in shown) + " |")
    return "\n".join([*lines, ""])


def _counted(rule: str, verdicts: Sequence[str], verdict: str) -> str:
    """A rule, and of how many seeds where not of all; nothing where of none."""
    count, named = verdicts.count(verdict), f"`{rule}`" if rule else "none"
    return "" if not count else named if count == len(verdicts) else f"{named} ({count} of {len(verdicts)})"


def _text(verdicts: Sequence[str]) -> str:
    told = dict.fromkeys(verdicts)
    if len(told) > 1:
        return ", ".join(f"{name} {list(verdicts).count(name)}" for name in told)
    return f"**{verdicts[0]}**" if verdicts[0] == "bad" else verdicts[0].replace("unknown", "-")


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Does the doctor agree with the quality tables, and do its causes tell good runs from poor ones?"""
    table = _by_run(frame)
    score, cause = table["score"], (table[list(CAUSES)] == "bad").any(axis=1)
    answers = (table[list(OUTCOMES)] == "bad").any(axis=1)
    alarm = (table["early_warning"] == "bad").where(table["early_warning"] != "unknown")
    sounds = f"The early warning sounds in more runs that end with a {POOR}"
    poor = score < COLLAPSED
    found = [
        _compared(table, "Runs with a bad cause end with a lower score", score, cause),
        _share(table, f"A run that ends with a {POOR} has a bad cause", cause.where(poor)),
        _share(table, f"A run that ends with a {GOOD} has none", (~cause).where(~poor)),
        _share(table, f"A run that ends with a {POOR} has a bad rule of its answers", answers.where(poor)),
        _compared(table, sounds, -alarm.astype(float), poor),
        _compared(
            table, f"{sounds}, of editors that show gradients", -alarm.where(~table["blind"]).astype(float), poor
        ),
    ]
    return found + [
        _share(table, f"{rule} says what the quality table says: {text} {limit:g}", _agrees(table, rule))
        for rule, (text, limit) in OUTCOMES.items()
    ]


def _by_run(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a run: its verdicts by rule, its quality, what capability it lost, and whether the early warning saw no gradients."""
    keys = ["arm", "seed"]
    rules = frame[frame["metric"].str.startswith(RULE)].assign(metric=lambda f: f["metric"].str.removeprefix(RULE))
    said = rules.pivot(index=keys, columns="metric", values="verdict")
    ends = frame[frame["metric"].isin(QUALITY)].pivot(index=keys, columns="metric", values="value")
    ends = ends.rename(columns={"efficacy": "retained", "capability": "capability_end"})
    before = ends["capability_end"].xs(UNEDITED).reindex(said.index.get_level_values("seed")).to_numpy()
    # Not by what the early warning says: that it was half blind it only says where it did not sound.
    blind = said[GRADIENTS] == "unknown"
    return said.join(ends).assign(capability_lost=lambda f: before - f["capability_end"], blind=blind)


def _agrees(table: pd.DataFrame, rule: str) -> pd.Series:
    """Whether rule and quality table say the same of each run; missing where either of them says nothing."""
    limit = OUTCOMES[rule][1]
    value, beyond = {
        "efficacy": (table["immediate"], table["immediate"] < limit),
        "forgetting": (table["immediate"] - table["retained"], table["immediate"] - table["retained"] > limit),
        "locality": (table["specificity"], table["specificity"] < limit),
        "capability": (table["capability_lost"], table["capability_lost"] > limit),
    }[rule]
    return (beyond == (table[rule] == "bad")).where(table[rule].isin(("ok", "bad")) & value.notna())


def _share(table: pd.DataFrame, claim: str, holds: pd.Series) -> Verdict:
    """Share of runs of which it holds, those left out that have no say."""
    per_seed = _per_seed(holds, lambda part: float(part.mean()))
    kept = holds.dropna().astype(bool)
    wrong = sorted({arm(str(name)).label for name, _ in kept.index[~kept]})
    also = f"; {int(kept.sum())} of {len(kept)} runs" + (f", not {', '.join(wrong)}" if wrong else "")
    return _told(claim, per_seed, "share", AGREED, HALF, also)


def _compared(table: pd.DataFrame, claim: str, value: pd.Series, which: pd.Series) -> Verdict:
    """Mean of the other runs less that of these."""
    both = pd.DataFrame({"value": value, "which": which}).dropna()

    def gap(part: pd.DataFrame) -> float:
        groups = part.groupby("which")["value"].mean()
        return float(groups.loc[0.0] - groups.loc[1.0]) if len(groups) == 2 else math.nan

    counts = both["which"].astype(bool)
    also = f"; {int(counts.sum())} runs against {int((~counts).sum())}"
    return _told(claim, _per_seed(both, gap), "difference", 0.0, None, also)


def _per_seed(values: pd.Series | pd.DataFrame, effect: Callable[..., float]) -> list[float]:
    kept = values.dropna()
    return [effect(part.astype(float)) for _, part in kept.groupby(level="seed")]


def _told(claim: str, values: Sequence[float], name: str, above: float, below: float | None, also: str) -> Verdict:
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return Verdict(claim, "not shown", "there is no such run to compare")
    found = judge(claim, compare.t_interval(finite), name=name, shown_above=above, opposite_below=below)
    return Verdict(found.claim, found.answer, found.effect + also)
