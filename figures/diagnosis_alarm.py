"""Early warning on runs that stay well, runs that break down, and a stream that changes: when it sounds, and what quality does.

The detectors of the recorder ``alarm`` test whether the law of the gradients stays as it was, at a level of 5 % for the whole
run. That is not the same as asking whether the model is well, and the arms tell the two apart:

* ``unmoved``: nothing is written, so that nothing can move: every alarm is a false one;
* ``stable``: StableEdit at the rate at which it works;
* ``rate_3``, ``rate_10``: three and ten times that rate, at which the model breaks down slowly and at once;
* ``switch``: from half of the stream on another kind of fact (medical in place of persons).

Every arm is run on several sets of facts with several seeds each; the edits after the switch are the same for all seeds of a
set. The score *falls* at the first evaluation at which it is 10 points below that of the stable run on the same facts. It is over
all edits so far, so that it lags: what the edits of a step achieve (immediate efficacy) drops at the switch itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

from figures.frames import ArmRun, steps
from figures.variants import Variant, Variants
from figures.verdict import Answer, Verdict
from stablediag import plots
from stablediag.errors import DataError
from stablediag.stats import bands, compare, horizon

TITLE = "Early warning and quality"
#: arm -> heading
TITLES = {
    "unmoved": "nothing written",
    "stable": "StableEdit",
    "rate_3": "rate x 3",
    "rate_10": "rate x 10",
    "switch": "change of facts",
}
CAUSES = ("rate_3", "rate_10", "switch")
#: detector -> colour, line, label
DETECTORS: dict[str, tuple[str, Any, str]] = {
    "innovations": ("#D55E00", "-", "e-process, innovations"),
    "updates": ("#000000", (0, (1, 1.2)), "e-process, adjacent updates"),
    "tracking": ("#0072B2", (0, (4, 1.5)), "CUSUM, tracking excess"),
    "growth": ("#009E73", (0, (5, 1, 1, 1)), "CUSUM, growth"),
    "shrinkage": ("#CC79A7", (0, (2, 1)), "CUSUM, shrinkage"),
}
QUALITY: dict[str, tuple[str, Any, str]] = {
    "immediate": ("#E69F00", (0, (1, 1)), "immediate efficacy"),
    "specificity": ("#56B4E9", (0, (4, 1.5)), "specificity"),
    "score": ("#000000", "-", "score"),
}
COLUMNS = ("setting", "arm", "seed", "quantity", "edits", "value", "text")
#: points of the score below the stable run that count as a fall
FALL = 10.0
#: edits within which an alarm should follow a switch
PROMPT = 250
#: level of the alarm: its rate of false alarms in a whole run, at most
LEVEL = 0.05
#: what separates the arm from the set of facts in a label
_SET = "/"
_COMMON = (
    "edits_per_step=25",
    "evaluation.schedule={every: 4}",
    "evaluation.subsample=200",
    "evaluation.metrics=[]",
    "recorders=[alarm]",
)
_RATE = 1.3e-2


def _variants(first: int, *, size: int, name: str) -> tuple[Variant, ...]:
    """All arms on the facts after the first `first` of the pool; half of `size` comes before the switch."""
    half = size // 2
    own = (*_COMMON, f"data.offset={first}")
    other = f"data.then=[{{source: testbed, stream: medical, size: {half}, seed: {first}}}]"
    changes = {
        "unmoved": ("editor.params.target_apply=false", "editor.params.warmup_apply=false"),
        "stable": (),
        "rate_3": (f"editor.params.lr={3 * _RATE:g}",),
        "rate_10": (f"editor.params.lr={10 * _RATE:g}",),
        "switch": (f"data.size={half}", other),
    }
    return tuple(Variant(f"{arm}{_SET}{name}", "stableedit", (*own, *changes[arm])) for arm in TITLES)


NEEDS = Variants(
    full=(*_variants(0, size=1000, name="a"), *_variants(1000, size=1000, name="b")),
    quick=tuple(one for one in _variants(0, size=200, name="a") if not one.label.startswith("rate_3")),
)


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """Quality, evidence and alarms of every run along its target edits.

    Returns
    -------
    DataFrame
        Columns setting, arm, seed (100 times the number of the set of facts, plus the seed), quantity, edits, value, text.
        Along the stream: score, specificity and immediate (percent); the evidence of each of `DETECTORS` over its limit, of
        wealths by their logarithms, so that an alarm sounds at 1; ``index``, the gradient variance over its past. Of the
        run: ``alarm`` and ``warning``, edits at the first of them (NaN: none), the detector in `text`; ``cause``, edits
        before that which should be noticed; ``total``.

    Raises
    ------
    DataError
        No runs, or a run without the recorder alarm.
    """
    if not runs:
        raise DataError("diagnosis-alarm: no runs: build it with figures.build")
    sets = sorted({one.arm.partition(_SET)[2] for one in runs})
    rows = []
    for one in runs:
        arm, _, name = one.arm.partition(_SET)
        place = (one.setting, arm, 100 * sets.index(name) + one.seed)
        rows += [(*place, *row) for row in _rows(one)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(one: ArmRun) -> Iterator[tuple[str, int, float, str]]:
    if "alarms" not in one.run.tables():
        raise DataError(f"run {one.arm}, seed {one.seed}: no table alarms: record it (recorders: standard or full)")
    table = steps(one)
    done = table[table["phase"] == "target"].set_index("step")["edits_done"].astype(int)
    scores = horizon.scores(one.run)
    for _, row in scores[scores["edits"] > 0].iterrows():
        for name in ("score", "specificity"):
            yield name, int(row["edits"]), float(row[name]), ""
    edits = one.run.table("edits")
    immediate = edits.assign(immediate=edits["immediate"].astype(float)).groupby("step")["immediate"].mean()
    known = immediate.dropna()
    for count, value in zip(done.loc[known.index], known, strict=True):
        yield "immediate", int(count), 100 * float(value), ""
    alarms = one.run.table("alarms").set_index("step")
    for name, ratios in evidence(alarms).items():
        known = ratios.dropna()
        for count, ratio in zip(done.loc[known.index], known, strict=True):
            yield name, int(count), float(ratio), ""
    for name, state in (("warning", 1), ("alarm", 2)):
        hit = alarms[alarms["state"] >= state]
        first = int(done[hit.index[0]]) if len(hit) else 0
        yield (
            name,
            first,
            float(first) if len(hit) else np.nan,
            str(hit["which"].iloc[0]).split()[0] if len(hit) else "",
        )
    data = one.run.spec["data"]
    yield "cause", 0, float(data["size"] if data.get("then") else 0), ""
    yield "total", 0, float(done.iloc[-1]), ""


def evidence(alarms: pd.DataFrame) -> dict[str, pd.Series]:
    """Evidence over its limit, and the index, from the table ``alarms``."""
    numbers = alarms.drop(columns=["which", "state"]).astype(float)
    wealth = np.log(numbers["e_limit"])
    return {
        "innovations": np.log(numbers["e_innovation"]) / wealth,
        "updates": np.log(numbers["e_update"]) / wealth,
        "tracking": numbers["cusum"] / numbers["cusum_limit"],
        "growth": numbers["growth"] / numbers["scale_limit"],
        "shrinkage": numbers["shrinkage"] / numbers["scale_limit"],
        "index": numbers["index"],
    }


def events(frame: pd.DataFrame) -> pd.DataFrame:
    """When things happen in every run, in edits: columns arm, seed, cause, warning, alarm, detector, fall, total.

    `fall` is NaN where the score stays within 10 points of the stable run's, and for arms that are compared with none.
    """
    ends = frame[frame["quantity"].isin(["cause", "warning", "alarm", "total"])]
    found = ends.pivot(index=["arm", "seed"], columns="quantity", values="value").reset_index()
    detector = frame[frame["quantity"] == "alarm"].set_index(["arm", "seed"])["text"]
    found["detector"] = [detector[arm, seed] for arm, seed in zip(found["arm"], found["seed"], strict=True)]
    scores = frame[frame["quantity"] == "score"]
    healthy = scores.loc[scores["arm"] == "stable", ["seed", "edits", "value"]].rename(columns={"value": "healthy"})
    both = scores.merge(healthy, on=["seed", "edits"])
    low = both[both["healthy"] - both["value"] >= FALL]
    falls = low.groupby(["arm", "seed"])["edits"].min().rename("fall").reset_index()
    found = found.merge(falls, on=["arm", "seed"], how="left").astype({"fall": float})
    found.loc[~found["arm"].isin(CAUSES), "fall"] = np.nan
    return found[["arm", "seed", "cause", "warning", "alarm", "detector", "fall", "total"]]


def draw(frame: pd.DataFrame) -> Figure:
    """One column per arm: quality, evidence over its limit, index; alarms as lines, falls of the score as triangles."""
    arms = [arm for arm in TITLES if arm in set(frame["arm"])]
    figure, axes = plots.canvas(3, len(arms), height=5.0, sharex="col", sharey="row")
    when = events(frame)
    for column, arm in enumerate(arms):
        part = frame[frame["arm"] == arm]
        _lines(part, axes[0, column], QUALITY)
        _lines(part, axes[1, column], DETECTORS)
        _lines(part, axes[2, column], {"index": ("#000000", "-", "")})
        axes[1, column].axhline(1.0, color="#000000", linewidth=0.8)
        axes[2, column].axhline(1.0, color=plots.GREY, linewidth=0.6)
        for ax in axes[:, column]:
            _events(when[when["arm"] == arm], ax, quality=ax is axes[0, column])
            ax.set_xlim(0, part["edits"].max())
        axes[0, column].set_title(TITLES[arm])
        axes[0, column].set_ylim(0, 104)
        axes[1, column].set_ylim(-0.5, 5)
        axes[2, column].set_xlabel("edits written")
    for ax, label in zip(
        axes[:, 0], ("percent", "evidence / its limit", "gradient variance\n/ its past, $I_t$"), strict=True
    ):
        ax.set_ylabel(label)
    plots.log_axis(axes[2, 0].yaxis)
    plots.panel_letters(axes)
    looks = [*QUALITY.values(), *DETECTORS.values()]
    entries = [Line2D([], [], color=color, linestyle=line, label=label) for color, line, label in looks]
    entries.append(Line2D([], [], color="#8B0000", linewidth=0.8, label="alarm, one line per run"))
    entries.append(Line2D([], [], color="#8B0000", marker="v", linestyle="", label="score falls, one mark per run"))
    entries.append(Line2D([], [], color=plots.GREY, linewidth=2.5, alpha=0.6, label="cause begins"))
    return plots.legend_below(figure, entries, columns=4)


def _lines(part: pd.DataFrame, ax: Axes, looks: dict[str, tuple[str, Any, str]]) -> None:
    for name, (color, line, _) in looks.items():
        curve = bands.band(part[part["quantity"] == name], x="edits", y="value", by=["arm"])
        ax.plot(curve["edits"], curve["mean"], color=color, linestyle=line, linewidth=1.1, zorder=3)
        if len(curve) and curve["n"].max() > 1:
            ax.fill_between(curve["edits"], curve["min"], curve["max"], color=color, alpha=0.13, linewidth=0, zorder=2)


def _events(when: pd.DataFrame, ax: Axes, *, quality: bool) -> None:
    for edits in when["alarm"].dropna():
        ax.axvline(edits, color="#8B0000", linewidth=0.6, alpha=0.8, zorder=1)
    if when["cause"].max() > 0:
        ax.axvline(when["cause"].max(), color=plots.GREY, linewidth=2.5, alpha=0.6, zorder=0)
    if quality:
        falls = when["fall"].dropna().sort_values().to_numpy()
        ax.plot(falls, 4 + 5 * np.arange(len(falls)), color="#8B0000", marker="v", markersize=3, linestyle="", zorder=4)


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Does the alarm stay silent where it should, and does it come before the score falls?"""
    when = events(frame)
    found = []
    for arm, claim in (
        ("unmoved", "None of the runs alarms where nothing is written"),
        ("stable", "None of the stable runs alarms"),
    ):
        if arm in set(when["arm"]):
            found.append(_silence(when[when["arm"] == arm], claim))
    for arm in [name for name in CAUSES if name in set(when["arm"])]:
        found += _cause(when, arm)
    return found


def _silence(mine: pd.DataFrame, claim: str) -> Verdict:
    alarms, n = int(mine["alarm"].notna().sum()), len(mine)
    low, high = stats.binomtest(alarms, n).proportion_ci(method="exact")
    told = f"{alarms} of {n} runs alarm (too few for a level: their rate is within {low:.2f} to {high:.2f}, Clopper-Pearson)"
    if alarms:
        told += f", after {mine['alarm'].min():g} to {mine['alarm'].max():g} edits, by {_by(mine)}"
    return Verdict(claim, "opposite" if low > LEVEL else "shown" if alarms == 0 else "not shown", told)


def _cause(when: pd.DataFrame, arm: str) -> list[Verdict]:
    mine, title = when[when["arm"] == arm], TITLES[arm]
    after = mine["alarm"] > mine["cause"]
    delay = (mine["alarm"] - mine["cause"])[after]
    told = (
        f"delay {compare.t_interval(delay)} edits, {delay.min():g} to {delay.max():g}, by {_by(mine[after])}"
        if len(delay)
        else ""
    )
    if arm == "switch":
        found = [_mostly(f"{title}: an alarm within {PROMPT} edits of the switch", delay <= PROMPT, len(mine), told)]
        early = int((mine["alarm"] <= mine["cause"]).sum())
        claim = f"{title}: no alarm before the switch"
        found.append(Verdict(claim, "not shown" if early else "shown", f"{early} of {len(mine)} runs alarm before it"))
    else:
        found = [_mostly(f"{title}: an alarm within the run", delay >= 0, len(mine), told)]
    fell = mine[mine["fall"].notna()]
    lead = (fell["fall"] - fell["alarm"]).dropna()
    told = f"the score falls in {len(fell)} of {len(mine)} runs"
    if len(fell):
        told += f", seen after {fell['fall'].min():g} to {fell['fall'].max():g} edits"
    if len(lead):
        told += f"; fall less alarm {compare.t_interval(lead)} edits where there are both"
    # An alarm before the cause is no warning of it.
    warned = fell["alarm"].between(fell["cause"], fell["fall"], inclusive="neither")
    return [*found, _mostly(f"{title}: the alarm sounds before the score falls", warned, len(fell), told)]


def _mostly(claim: str, hits: pd.Series, n: int, told: str) -> Verdict:
    """Whether something happens in more than half of n runs, by the exact interval of its rate."""
    if not n:
        return Verdict(claim, "not shown", told)
    count = int(hits.sum())
    low, high = stats.binomtest(count, n).proportion_ci(method="exact")
    answer: Answer = "shown" if low > 0.5 else "opposite" if high < 0.5 else "not shown"
    return Verdict(claim, answer, f"{count} of {n} runs (rate {low:.2f} to {high:.2f})" + (f"; {told}" if told else ""))


def _by(mine: pd.DataFrame) -> str:
    counts = mine.loc[mine["alarm"].notna(), "detector"].value_counts()
    return ", ".join(f"{name} ({count})" for name, count in counts.items())
