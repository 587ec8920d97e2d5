"""Does a learning rate that was tuned at one setting stay tuned elsewhere, with and without LN?

Every editor is run over a ladder of rates at the setting where it is tuned (the stream's own edits per step, loss summed per
edit, three layers) and at settings that differ in one thing: smaller and larger steps, the loss as the mean over mini-batches
of ten edits, one layer. The score is the harmonic mean of efficacy, generalization and specificity.

What a rate loses at a setting is the best score there minus its own. Both rates, the tuned one and the setting's best, are
chosen on the mean over the *other* seeds and compared on the seed that was left out, so that a choice is never judged on the
data that made it: a loss may come out negative. Rates are as fine as the ladder, steps of about a factor 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.frames import ArmRun
from figures.variants import Variant, Variants
from figures.verdict import Verdict, judge
from stablediag import plots
from stablediag.errors import DataError
from stablediag.stats import bands, compare, horizon
from stablediag.stats.compare import Interval

TITLE = "Transfer of a tuned learning rate"
TUNED = "tuned"
#: a rate that loses at most so many points of score has stayed tuned
POINTS = 5.0


@dataclass(frozen=True)
class Condition:
    """A setting: its name in titles and in tables, and what differs from the one at which rates are tuned."""

    title: str
    short: str
    changes: tuple[str, ...] = ()


CONDITIONS: dict[str, Condition] = {
    TUNED: Condition("where rates are tuned", "where tuned"),
    "few": Condition("20 edits a step", "20 a step", ("edits_per_step=20",)),
    "many": Condition("500 edits a step", "500 a step", ("edits_per_step=500",)),
    "released": Condition(
        "loss: mean over 10 edits", "mean over 10", ("editor.params.loss=released", "editor.params.minibatch=10")
    ),
    "one": Condition("one layer for three", "one layer", ("model.modules=[layers.2.mlp.down_proj]",)),
}
#: editor -> name in this figure, where every editor has its own rate
METHODS = {
    "stableedit": "LN, full whitening (StableEdit)",
    "no_whitening": "LN, diagonal",
    "no_ln": "without LN",
}
WITHOUT = "no_ln"
#: the one setting that changes the size of the gradients by itself, and what is said of those that do not
RESCALED, SAME_LOSS = "released", " where the loss is the same"
#: elsewhere: the score and nothing more
SCORED = ("recorders=none", "evaluation.metrics=[]", "evaluation.subsample=300")
_LN, _LN_ONE = (7e-3, 1.3e-2, 2.2e-2), (1.3e-2, 2.2e-2, 4e-2, 8e-2)
_RAW = (1.0, 2.0, 3.5)
#: editor -> condition -> rates; each holds the rates that may turn out to be the tuned one
RATES: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "stableedit": {**dict.fromkeys(CONDITIONS, _LN), "one": _LN_ONE},
    "no_whitening": {**dict.fromkeys(CONDITIONS, _LN), "one": (1.3e-2, 2.5e-2, 5e-2)},
    "no_ln": {
        **dict.fromkeys(CONDITIONS, _RAW),
        "released": (2.0, 8.0, 16.0, 32.0, 60.0),
        "one": (2.0, 3.5, 7.0, 14.0),
    },
}
_QUICK: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "stableedit": {TUNED: (1.3e-2,), "released": (1.3e-2, 2.2e-2)},
    "no_ln": {TUNED: (2.0,), "released": (2.0, 32.0)},
}


def _variants(rates: Mapping[str, Mapping[str, Sequence[float]]]) -> tuple[Variant, ...]:
    return tuple(
        Variant(f"{method}:{condition}:{rate:g}", method, _changes(condition, rate))
        for method, by_condition in rates.items()
        for condition, ladder in by_condition.items()
        for rate in ladder
    )


def _changes(condition: str, rate: float) -> tuple[str, ...]:
    # At the tuning setting all is recorded as elsewhere, so that other figures share these runs.
    scored = () if condition == TUNED else SCORED
    return (*scored, *CONDITIONS[condition].changes, f"editor.params.lr={rate:g}")


NEEDS = Variants(full=_variants(RATES), quick=_variants(_QUICK))


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """Score of every editor at every setting and rate.

    Returns
    -------
    DataFrame
        One row per run: method, condition, rate, seed, efficacy, generalization, specificity and score, in percent.
    """
    rows = []
    for one in runs:
        method, condition, rate = one.arm.split(":")
        last = horizon.scores(one.run).iloc[-1]
        place = {"method": method, "condition": condition, "rate": float(rate), "seed": one.seed}
        rows.append(place | {name: float(last[name]) for name in (*horizon.PARTS, "score")})
    order = ["method", "condition", "rate", "seed"]
    return pd.DataFrame(rows).sort_values(order, ignore_index=True)


def best_rate(frame: pd.DataFrame, method: str, condition: str) -> float:
    """The rate with the highest score, mean over the seeds of the table.

    Raises
    ------
    DataError
        The editor was not run at this setting.
    """
    means = _cell(frame, method, condition).groupby("rate")["score"].mean()
    return float(means.index.to_numpy()[int(np.argmax(means.to_numpy()))])


def _cell(frame: pd.DataFrame, method: str, condition: str) -> pd.DataFrame:
    found = frame[(frame["method"] == method) & (frame["condition"] == condition)]
    if not len(found):
        raise DataError(f"transfer: no runs of {method} at setting {condition}: make them, or leave the editor out")
    return found


def losses(frame: pd.DataFrame) -> pd.DataFrame:
    """What the tuned rate loses at every other setting, each seed judged by the rates that the others chose.

    Returns
    -------
    DataFrame
        Columns method, condition, seed, tuned and best (rates), loss (points of score; between rates of the ladder the score
        is taken on the line over the logarithm of the rate).

    Raises
    ------
    DataError
        There are fewer than two seeds or rates, or the tuned rate lies outside a setting's ladder.
    """
    seeds = sorted(set(frame["seed"]))
    if len(seeds) < 2:
        raise DataError(
            f"transfer: {len(seeds)} seed: rates are chosen on the other seeds, so make runs of two or more"
        )
    rows = []
    for method, condition in _elsewhere(frame):
        for seed in seeds:
            others = frame[frame["seed"] != seed]
            rates = best_rate(others, method, TUNED), best_rate(others, method, condition)
            mine = _cell(frame[frame["seed"] == seed], method, condition)
            tuned, best = (_score(mine, rate) for rate in rates)
            rows.append((method, condition, seed, *rates, best - tuned))
    return pd.DataFrame(rows, columns=["method", "condition", "seed", "tuned", "best", "loss"])


def _elsewhere(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Editors and settings other than the one of tuning, in the order of the figure."""
    there = set(zip(frame["method"], frame["condition"], strict=True))
    return [(method, name) for name in CONDITIONS if name != TUNED for method in METHODS if (method, name) in there]


def _score(cell: pd.DataFrame, rate: float) -> float:
    curve = cell.sort_values("rate")
    rates, method, condition = curve["rate"].to_numpy(), curve["method"].iloc[0], curve["condition"].iloc[0]
    if len(rates) < 2:
        raise DataError(
            f"transfer: {method} at setting {condition} has one rate, which can lose nothing: make runs of two"
        )
    if not rates[0] <= rate <= rates[-1]:
        raise DataError(
            f"transfer: {method} at setting {condition} was run at rates {rates[0]:g} to {rates[-1]:g}, and {rate:g} was "
            "tuned: extend the ladder"
        )
    return float(np.interp(np.log(rate), np.log(rates), curve["score"]))


def draw(frame: pd.DataFrame) -> Figure:
    """Score against the rate over the tuned one, a panel per setting; last, what the tuned rate loses there."""
    shown = [name for name in CONDITIONS if name in set(frame["condition"])]
    columns = 3
    rows = math.ceil((len(shown) + 1) / columns)
    figure, axes = plots.canvas(rows, columns, height=0.6 + 1.75 * rows)
    methods = _methods(frame)
    tuned = {method: best_rate(frame, method, TUNED) for method in methods}
    relative = frame.assign(times=frame["rate"] / frame["method"].map(tuned))
    curves = bands.band(relative, x="times", y="score", by=["method", "condition"])
    low, high = curves["min"].min(), curves["max"].max()
    for ax, condition in zip(axes.flat, shown, strict=False):
        plots.band_lines(curves[curves["condition"] == condition], ax, x="times", by="method")
        ax.axvline(1.0, color=plots.GREY, linewidth=0.8, linestyle=(0, (3, 1.5)), zorder=1)
        ax.set_title(CONDITIONS[condition].title)
        ax.set_ylim(low - 3, high + 3)
        ax.set_xlabel("learning rate / tuned rate")
        # One range for all, so that a peak that moves is seen to move.
        ax.set_xlim(0.8 * curves["times"].min(), 1.25 * curves["times"].max())
        plots.log_axis(ax.xaxis)
        if ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            ax.set_ylabel("score (%)")
    used = axes.flat[len(shown)]
    _draw_losses(losses(frame), used)
    for ax in axes.flat[len(shown) + 1 :]:
        ax.remove()
    plots.panel_letters(axes.flat[: len(shown) + 1])
    return plots.legend_below(figure, [_handle(method) for method in methods], columns=3)


def _draw_losses(table: pd.DataFrame, ax: Axes) -> None:
    """Mean and 95 % interval over seeds, one row per setting, editors beside each other."""
    names, methods = list(dict.fromkeys(table["condition"])), _methods(table)
    found = compare.summary(table, value="loss", by=["method", "condition"])
    for place, method in enumerate(methods):
        look = plots.look(method)
        offset = 0.22 * (place - (len(methods) - 1) / 2)
        mine = found[found["method"] == method].set_index("condition")
        for condition, point in mine.iterrows():
            y = names.index(str(condition)) + offset
            if np.isfinite(point["low"]):
                ax.plot([point["low"], point["high"]], [y, y], color=look.color, linewidth=1.0, zorder=2)
            ax.plot([point["mean"]], [y], color=look.color, marker=look.marker, markersize=4, linestyle="", zorder=3)
    ax.axvline(0.0, color=plots.GREY, linewidth=0.8, zorder=1)
    ax.set_yticks(range(len(names)), [CONDITIONS[name].short for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_title("lost by the tuned rate")
    ax.set_xlabel("points of score")


def _handle(method: str) -> Line2D:
    look = plots.look(method)
    return Line2D([], [], color=look.color, linestyle=look.line, marker=look.marker, label=METHODS[method])


def _methods(frame: pd.DataFrame) -> list[str]:
    return [method for method in METHODS if method in set(frame["method"])]


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Does the rate transfer better with LN, over all settings and at each; and does it stay tuned at all?"""
    table = losses(frame)
    with_ln = [method for method in _methods(table) if method != WITHOUT]
    return [
        *(_over_all(table, method) for method in with_ln),
        *(_over_all(table[table["condition"] != RESCALED], method, SAME_LOSS) for method in with_ln),
        *(_against(frame, table, method, condition) for method in with_ln for condition in _shared(table, method)),
        *(_stays(frame, table, method, condition) for method, condition in _elsewhere(frame)),
    ]


def _shared(table: pd.DataFrame, method: str) -> list[str]:
    """Settings at which both this editor and the one without LN were run."""
    names = [set(table.loc[table["method"] == one, "condition"]) for one in (method, WITHOUT)]
    return [name for name in CONDITIONS if name in names[0] & names[1]]


def _over_all(table: pd.DataFrame, method: str, where: str = "") -> Verdict:
    claim = f"a tuned rate transfers better with LN than without{where} ({METHODS[method]})"
    shared = _shared(table, method)
    if not shared:
        return Verdict(claim, "not shown", "no such setting was run")
    kept = table[table["condition"].isin(shared)]
    means = kept.groupby(["method", "seed"])["loss"].mean().reset_index()
    gap = compare.paired(means, value="loss", arm="method", first=WITHOUT, second=method)
    levels = {name: means.loc[means["method"] == name, "loss"].mean() for name in (method, WITHOUT)}
    name = (
        f"mean over settings ({len(shared)}) of the points lost: {levels[method]:.1f} with, {levels[WITHOUT]:.1f} without; "
        "difference"
    )
    return judge(claim, gap, name=name)


def _against(frame: pd.DataFrame, table: pd.DataFrame, method: str, condition: str) -> Verdict:
    mine = table[table["condition"] == condition]
    gap = compare.paired(mine, value="loss", arm="method", first=WITHOUT, second=method)
    levels = {name: mine.loc[mine["method"] == name, "loss"].mean() for name in (method, WITHOUT)}
    moved = [best_rate(frame, one, condition) / best_rate(frame, one, TUNED) for one in (method, WITHOUT)]
    name = (
        f"best over tuned rate {moved[0]:.2g} with, {moved[1]:.2g} without; points lost {levels[method]:.1f} and "
        f"{levels[WITHOUT]:.1f}; difference"
    )
    claim = f"{CONDITIONS[condition].title}: the tuned rate loses less with LN than without ({METHODS[method]})"
    return judge(claim, gap, name=name)


def _stays(frame: pd.DataFrame, table: pd.DataFrame, method: str, condition: str) -> Verdict:
    loss = compare.t_interval(
        table.loc[(table["method"] == method) & (table["condition"] == condition), "loss"].astype(float)
    )
    best, ladder = best_rate(frame, method, condition), _cell(frame, method, condition)["rate"]
    edge = ", the end of the ladder, so that more may be lost" if best in (ladder.min(), ladder.max()) else ""
    times = best / best_rate(frame, method, TUNED)
    name = f"best rate {times:.2g} times the tuned one{edge}; change in score"
    claim = f"{CONDITIONS[condition].title}: the tuned rate loses at most {POINTS:g} points ({METHODS[method]})"
    # A loss below the limit is what the claim asks for: judged with its sign turned.
    change = Interval(-loss.mean, -loss.high, -loss.low, loss.n)
    return judge(claim, change, name=name, shown_above=-POINTS)
