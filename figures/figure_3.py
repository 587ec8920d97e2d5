"""Figure 3: hidden states of unrelated facts before and after editing, in a plane fitted on the unedited model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.frames import ArmRun, chosen
from figures.needs import Needs
from figures.verdict import Verdict, judge
from stablediag import plots
from stablediag.stats import compare, embed

TITLE = "Hidden states of unrelated facts before and after editing (UMAP)"
ARMS = ("stableedit", "ultraedit", "no_ln_first", "no_ln")
NEEDS = Needs(arms=ARMS, settings=("healthy", "stress"))
ROWS = {"healthy": "healthy horizon", "stress": "stress horizon"}
COLUMNS = ["setting", "arm", "seed", "cloud", "prompt", "x", "y", "cka", "shift"]


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """Planar points of the first seed, and the numbers that need no plane for every seed.

    Returns
    -------
    DataFrame
        Rows with cloud ``before`` (arm ``unedited``) and ``after``: x, y by prompt; rows with cloud ``numbers``: linear CKA
        and the shift of the cloud's centre over its radius, by run.
    """
    used = chosen(runs, ARMS)
    first = min(one.seed for one in used)
    reference = _hidden(used[0], start=True)
    parts, clouds = [], {}
    for one in used:
        after = _hidden(one, start=False)
        numbers = {"cka": embed.linear_cka(reference, after), "shift": embed.mean_shift(reference, after)}
        parts.append(pd.DataFrame([{**_place(one), "cloud": "numbers", "prompt": -1, **numbers}]))
        if one.seed == first:
            clouds[f"{one.setting}/{one.arm}"] = (one, after)
    plane, placed = embed.umap_plane(reference, {key: after for key, (_, after) in clouds.items()})
    parts.append(_points({"setting": "", "arm": "unedited", "seed": first, "cloud": "before"}, plane))
    parts += [_points({**_place(one), "cloud": "after"}, placed[key]) for key, (one, _) in clouds.items()]
    return pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)


def _hidden(one: ArmRun, *, start: bool) -> np.ndarray:
    """Hidden states of the unedited (`start`) or of the edited model, [prompts, width]."""
    steps = [step for name, step in one.run.arrays() if name == "hidden"]
    return one.run.array("hidden", min(steps) if start else max(steps))


def _place(one: ArmRun) -> dict[str, object]:
    return {"setting": one.setting, "arm": one.arm, "seed": one.seed}


def _points(place: dict[str, object], plane: np.ndarray) -> pd.DataFrame:
    x, y = plane.astype(np.float64).T
    return pd.DataFrame({**place, "prompt": np.arange(len(plane)), "x": x, "y": y})


def draw(frame: pd.DataFrame) -> Figure:
    """One row per horizon, one column per arm; the numbers stand under each panel."""
    figure, axes = plots.canvas(len(ROWS), len(ARMS), height=4.4)
    before = frame[frame["cloud"] == "before"]
    limits = _limits(frame)
    for row, (setting, title) in enumerate(ROWS.items()):
        for column, arm in enumerate(ARMS):
            ax = axes[row, column]
            mine = frame[(frame["setting"] == setting) & (frame["arm"] == arm)]
            plots.clouds(pd.concat([before, mine[mine["cloud"] == "after"]]), ax, arm=arm)
            ax.set_xlim(*limits[0])
            ax.set_ylim(*limits[1])
            numbers = mine[mine["cloud"] == "numbers"]
            ax.set_title("\n".join(_two_lines(plots.look(arm).label)) if row == 0 else "")
            ax.set_xlabel(f"CKA {numbers['cka'].mean():.2f}, shift {numbers['shift'].mean():.2f}", fontsize=7)
            for spine in ax.spines.values():
                spine.set_visible(True)
        axes[row, 0].set_ylabel(title)
    entries = [
        plots.Line2D(
            [], [], color=plots.GREY, linestyle=(0, (2, 1)), marker=".", label="unedited model (UMAP fitted here)"
        ),
        plots.Line2D([], [], color="#000000", linestyle="-", marker=".", label="edited model, in the arm's colour"),
    ]
    return plots.legend_below(figure, entries, columns=2)


def _limits(frame: pd.DataFrame) -> list[tuple[float, float]]:
    """The same window for every panel: it holds all points and all ellipses."""
    low, high = [], []
    for _, points in frame[frame["cloud"] != "numbers"].groupby(["setting", "arm"]):
        e = embed.covariance_ellipse(points[["x", "y"]].to_numpy())
        turn = np.radians(e.angle)
        reach = np.hypot(
            e.width / 2 * np.array([np.cos(turn), np.sin(turn)]), e.height / 2 * np.array([np.sin(turn), np.cos(turn)])
        )
        centre = np.array([e.x, e.y])
        low += [centre - reach, points[["x", "y"]].to_numpy().min(axis=0)]
        high += [centre + reach, points[["x", "y"]].to_numpy().max(axis=0)]
    start, end = np.min(low, axis=0), np.max(high, axis=0)
    margin = 0.03 * (end - start)
    return [(float(start[i] - margin[i]), float(end[i] + margin[i])) for i in range(2)]


def _two_lines(label: str) -> list[str]:
    """A title that fits a quarter of the page: cut at the comma, and of two lines always."""
    head, _, tail = label.partition(", ")
    return [head, tail or " "]


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Does the cloud shift more without LN (at matched norm, and at the same rate) than with it?"""
    numbers = frame[frame["cloud"] == "numbers"]
    found = []
    for setting, title in ROWS.items():
        mine = numbers[numbers["setting"] == setting]
        kept = mine[mine["arm"] == "stableedit"]
        overlap = f"{title}: StableEdit's cloud stays on the unedited one (its centre moves by less than 0.25 radii)"
        name = f"linear CKA {kept['cka'].mean():.2f}; 1 - shift"
        near = compare.t_interval(1 - kept["shift"])
        found.append(judge(overlap, near, name=name, shown_above=0.75, opposite_below=0.75))
        for arm in ("no_ln_first", "no_ln"):
            gap = compare.paired(mine, value="shift", arm="arm", first=arm, second="stableedit")
            levels = {a: mine.loc[mine["arm"] == a, "shift"].mean() for a in (arm, "stableedit")}
            name = f"shift {levels[arm]:.2f} against {levels['stableedit']:.2f} with LN; difference"
            claim = f"{title}: the cloud's centre moves more without LN ({plots.look(arm).label})"
            found.append(judge(claim, gap, name=name, shown_above=0.0))
            closer = compare.paired(mine, value="cka", arm="arm", first="stableedit", second=arm)
            claim = f"{title}: hidden states stay more similar with LN, by linear CKA ({plots.look(arm).label})"
            found.append(judge(claim, closer, name="difference of CKA", shown_above=0.0))
    return found
