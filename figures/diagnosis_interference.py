"""What an update does at the keys of earlier edits, and whether updates that are orthogonal leave earlier edits alone.

Energies are those of the recorder ``interference``: squared change of a module's output at the key of an edit, for a sample
of 256 earlier edits, over the same number at the keys of the step's own edits. What an update of that norm and a random
direction would do there is the chance level. Editors that capture no keys (fine-tuning, MEMIT) have neither; of them
only the inner products of whole updates are shown.

Two controls have StableEdit's norms at every step: ``uncentred`` subtracts no mean, so that Theorem 3.8(c) does not cover
it, and ``no_ln_every`` normalises nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from figures.frames import ArmRun, over_modules, per_module, steps
from figures.variants import Variant, Variants
from figures.verdict import Verdict, judge
from stablediag import plots
from stablediag.errors import DataError
from stablediag.stats import bands, compare

TITLE = "What updates do at the keys of earlier edits"
#: arm -> its look; those of `MAPPED` have maps
LOOKS = {
    "stableedit": plots.Look("StableEdit", "#0072B2", "o", "-"),
    "uncentred": plots.Look("not centred", "#E69F00", "D", (0, (4, 1.5))),
    "no_ln_every": plots.Look("no LN", "#009E73", "X", (0, (2, 1))),
    "ft": plots.Look("FT-L", "#000000", "s", (0, (1, 1.2))),
    "memit": plots.Look("MEMIT", "#CC79A7", "^", (0, (5, 1, 1, 1))),
}
MAPPED = ("stableedit", "uncentred", "no_ln_every")
_SAME_NORMS = "editor.params.match={run: '@stableedit', mode: every}"
_ARMS = (
    Variant("stableedit", "stableedit"),
    Variant("uncentred", "stableedit", ("editor.params.center=false", _SAME_NORMS)),
    Variant("no_ln_every", "no_ln_every"),
    Variant("ft", "editors/ft_last_prompt"),
    Variant("memit", "editors/memit"),
)
NEEDS = Variants(full=_ARMS, quick=_ARMS[:3])
COLUMNS = ("setting", "arm", "seed", "quantity", "writer", "reader", "value")
#: columns of the table `interference` that make the curves, and what they are called here
COURSES = ("moved", "chance", "own_way")
ENDS = ("coherence", "coherence_low", "coherence_high", "cosine")
#: what comes after this share of the stream is late: the sample of earlier edits is full by then
LATE = 1 / 3
#: distance of the coherence from 1 within which updates count as orthogonal
NEAR = 0.05
_CHANCE = (0, (1, 1))


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    r"""Maps, curves and totals of every run, as means over its modules.

    Returns
    -------
    DataFrame
        Columns setting, arm, seed, quantity, writer, reader (text: a number of edits, or a relation; empty where there is
        none) and value. Quantities:

        * ``time``: energy at edits that were written in block `reader`, by the updates of block `writer`, over the energy at
          the writers' own keys; a block is named by the number of edits written at its end;
        * ``kind``: energy at an edit of relation `reader` by the part of an update that edits of relation `writer` gave, over
          the mean of that map;
        * along the stream (`writer`: edits written): ``moved`` and ``chance``, energy at earlier edits and at random over own;
          ``own_way``, :math:`|\sum_t k\Delta_t|^2 / \sum_t |k\Delta_t|^2` at the earlier keys, 1 where changes are orthogonal;
        * at the end: ``cosine``, mean of consecutive updates; ``coherence``
          :math:`|\sum_t\Delta_t|^2/\sum_t|\Delta_t|^2` of whole updates and the 95 % interval that it has without any,
          ``coherence_low`` and ``coherence_high`` (LN family alone).

    Raises
    ------
    DataError
        No run, or a run of `MAPPED` that did not record interference.
    """
    rows = [row for one in runs for part in _parts(one) for row in part]
    if not rows:
        raise DataError("diagnosis-interference: no runs: build it with figures.build")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _parts(one: ArmRun) -> Iterator[Iterator[tuple[Any, ...]]]:
    yield _ends(one)
    if one.arm not in MAPPED:
        return
    if "interference" not in one.run.tables():
        raise DataError(f"run {one.arm}, seed {one.seed}: no table interference: record it (recorders: full)")
    yield _courses(one)
    yield _time(one)
    yield _kinds(one)


def _row(one: ArmRun, quantity: str, value: float, writer: object = "", reader: object = "") -> tuple[Any, ...]:
    return one.setting, one.arm, one.seed, quantity, str(writer), str(reader), float(value)


def _ends(one: ArmRun) -> Iterator[tuple[Any, ...]]:
    table = per_module([one], "updates", ENDS)
    for name in ENDS:
        known = table.dropna(subset=[name])
        # The coherence is of all updates so far, the cosine of two.
        last = known if name == "cosine" else known[known["target_step"] == known["target_step"].max()]
        yield _row(one, name, last[name].astype(float).mean())


def _courses(one: ArmRun) -> Iterator[tuple[Any, ...]]:
    names = ["moved", "moved_null", "drift_sq", "path_sq"]
    table = per_module([one], "interference", names)
    table = table.assign(
        chance=table["moved_null"],
        own_way=table["drift_sq"] / table["path_sq"],
    )
    means = over_modules(table, list(COURSES))
    for name in COURSES:
        for edits, value in zip(means["edits"], means[name], strict=True):
            if np.isfinite(value):
                yield _row(one, name, value, int(edits))


def _time(one: ArmRun) -> Iterator[tuple[Any, ...]]:
    """The map by time, target blocks alone; a block that has no pairs is left out."""
    table = steps(one)
    last, total = int(table["step"].max()), len(table)
    own = one.run.table("interference").pivot(index="step", columns="module", values="own_sq").astype(float)
    maps, written = [], {}
    for module in own.columns:
        energy = one.run.array(f"interference/{module}", last)
        block = np.minimum(len(energy) - 1, own.index.to_numpy() * len(energy) // total)
        target = own.index.isin(table.loc[table["phase"] == "target", "step"])
        means = own.loc[target, module].groupby(block[target]).mean().reindex(range(len(energy))).to_numpy()
        maps.append(energy / means[:, None])
        written = table.set_index("step").loc[own.index[target], "edits_done"].groupby(block[target]).max().to_dict()
    for writer, reader in np.argwhere(np.isfinite(mean := np.mean(maps, axis=0))):
        yield _row(one, "time", mean[writer, reader], int(written[writer]), int(written[reader]))


def _kinds(one: ArmRun) -> Iterator[tuple[Any, ...]]:
    table = one.run.table("interference_kinds")
    table = table[table["step"] == table["step"].max()].astype({"energy": float})
    table = table.assign(value=table["energy"] / table.groupby("module")["energy"].transform("mean"))
    for (writer, reader), value in table.groupby(["writer", "reader"])["value"].mean().items():
        yield _row(one, "kind", value, writer, reader)


def table_of(frame: pd.DataFrame, quantity: str, arm: str) -> pd.DataFrame:
    """A map of an arm as writers by readers, mean over seeds."""
    part = frame[(frame["quantity"] == quantity) & (frame["arm"] == arm)]
    part = part if quantity == "kind" else part.astype({"writer": int, "reader": int})
    return part.pivot_table(index="writer", columns="reader", values="value", aggfunc="mean")


def course(frame: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """A curve as columns arm, seed, edits and value."""
    part = frame[frame["quantity"] == quantity]
    return part.assign(edits=part["writer"].astype(int))[["arm", "seed", "edits", "value"]]


def late(frame: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """Mean of a curve over its late part: columns arm, seed and value."""
    part = course(frame, quantity)
    part = part[part["edits"] > LATE * part["edits"].max()]
    return part.groupby(["arm", "seed"], sort=False, as_index=False)["value"].mean()


def draw(frame: pd.DataFrame) -> Figure:
    """Above: maps by time; middle: by relation; below: curves, and inner products of whole updates."""
    arms = [arm for arm in MAPPED if arm in set(frame["arm"])]
    figure = Figure(figsize=(plots.WIDTHS["double"], 7.4), layout="constrained")
    parts = np.asarray(figure.subfigures(3, 1, height_ratios=[1.05, 1.3, 1.15]))
    counts = (len(arms), len(arms), 3)
    rows = [np.atleast_1d(part.subplots(1, n)) for part, n in zip(parts, counts, strict=True)]
    _maps(frame, rows[0], arms)
    _relations(frame, rows[1], arms)
    _curves(frame, rows[2])
    plots.panel_letters(np.concatenate(rows))
    there = [one for arm, one in LOOKS.items() if arm in set(frame["arm"])]
    entries = [Line2D([], [], color=o.color, linestyle=o.line, marker=o.marker, label=o.label) for o in there]
    entries.append(
        Line2D([], [], color="#000000", linewidth=0.9, linestyle=_CHANCE, label="chance, in the arm's colour")
    )
    entries.append(Line2D([], [], color=plots.GREY, linewidth=4, alpha=0.5, label="95 % if updates are independent"))
    return plots.legend_below(figure, entries, columns=4)


def _maps(frame: pd.DataFrame, axes: np.ndarray, arms: Sequence[str]) -> None:
    found = {arm: table_of(frame, "time", arm) for arm in arms}
    values = np.concatenate([one.to_numpy().ravel() for one in found.values()])
    norm = Normalize(0.0, float(np.nanquantile(values, 0.99)))
    for ax, arm in zip(axes, arms, strict=True):
        edges = np.array(sorted({*found[arm].index, *found[arm].columns}), float)
        square = found[arm].reindex(index=edges, columns=edges).to_numpy()
        sides = np.concatenate([[0.0], edges])
        mesh = ax.pcolormesh(sides, sides, square, cmap="cividis", norm=norm, rasterized=True)
        mine = frame[frame["arm"] == arm]
        told = "\n".join(
            f"{name} {late(mine, key)['value'].mean():.2g}" for name, key in (("mean", "moved"), ("chance", "chance"))
        )
        ax.text(0.97, 0.05, told, transform=ax.transAxes, ha="right", va="bottom", fontsize=6.5)
        ax.set(title=LOOKS[arm].label, xlabel="disturbed: edit number")
        ax.grid(False)
    axes[0].set_ylabel("update: edit number")
    bar = axes[0].figure.colorbar(mesh, ax=axes.tolist(), aspect=14, extend="max")
    bar.set_label("energy at the earlier key\n/ energy at own keys", fontsize=7)


def _relations(frame: pd.DataFrame, axes: np.ndarray, arms: Sequence[str]) -> None:
    found = {arm: table_of(frame, "kind", arm) for arm in arms}
    values = np.concatenate([one.to_numpy().ravel() for one in found.values()])
    norm = LogNorm(float(np.nanquantile(values, 0.01)), float(np.nanquantile(values, 0.99)))
    for ax, arm in zip(axes, arms, strict=True):
        names = [name.replace("_", " ") for name in found[arm].columns]
        mesh = ax.pcolormesh(found[arm].to_numpy(), cmap="cividis", norm=norm, rasterized=True)
        ax.set_xticks(np.arange(len(names)) + 0.5, names, rotation=90, fontsize=5)
        ax.set_yticks(np.arange(len(names)) + 0.5, names if ax is axes[0] else [""] * len(names), fontsize=5)
        ax.tick_params(length=0)
        ax.invert_yaxis()
        ax.set(title=LOOKS[arm].label, xlabel="disturbed: relation")
        ax.grid(False)
    axes[0].set_ylabel("update: relation")
    bar = axes[0].figure.colorbar(mesh, ax=axes.tolist(), aspect=14, extend="both")
    bar.set_label("energy / its mean", fontsize=7)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())


def _curves(frame: pd.DataFrame, axes: np.ndarray) -> None:
    for quantity, ax, line in (("moved", axes[0], None), ("chance", axes[0], _CHANCE), ("own_way", axes[1], None)):
        found = bands.band(course(frame, quantity), x="edits", y="value", by=["arm"])
        for arm, curve in found.groupby("arm", sort=False):
            one = LOOKS[str(arm)]
            every = None if line else max(1, len(curve) // 6)
            ax.plot(
                curve["edits"], curve["mean"], color=one.color, linestyle=line or one.line, linewidth=0.9 if line else 1.2,
                marker=None if line else one.marker, markevery=every,
            )  # fmt: skip
            if curve["n"].max() > 1 and not line:
                ax.fill_between(curve["edits"], curve["min"], curve["max"], color=one.color, alpha=0.18, linewidth=0)
        ax.set_xlabel("edits written")
    axes[0].set(title="earlier keys", ylabel="energy / energy at own keys")
    axes[1].set(title="changes at an earlier key", ylabel="energy of their sum\n/ sum of their energies")
    axes[1].axhline(1.0, color="#000000", linewidth=0.6, zorder=1)
    plots.log_axis(axes[0].yaxis)
    plots.log_axis(axes[1].yaxis)
    _whole(frame, axes[2])


def _whole(frame: pd.DataFrame, ax: Axes) -> None:
    arms = [arm for arm in LOOKS if arm in set(frame["arm"])]
    for place, arm in enumerate(arms):
        values = {name: frame.loc[(frame["arm"] == arm) & (frame["quantity"] == name), "value"] for name in ENDS}
        found = compare.t_interval(values["coherence"])
        low, high = values["coherence_low"].mean(), values["coherence_high"].mean()
        if np.isfinite(low):
            ax.plot(
                [low, high], [place, place], color=plots.GREY, linewidth=4, alpha=0.5, solid_capstyle="butt", zorder=1
            )
        if found.n > 1:
            ax.plot([max(found.low, 1e-3), found.high], [place, place], color=LOOKS[arm].color, linewidth=1.0, zorder=2)
        ax.plot([found.mean], [place], color=LOOKS[arm].color, marker=LOOKS[arm].marker, markersize=4, zorder=3)
    ax.axvline(1.0, color="#000000", linewidth=0.6, zorder=1)
    ax.set_yticks(range(len(arms)), [LOOKS[arm].label for arm in arms])
    ax.set_ylim(len(arms) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set(title="whole updates", xlabel="coherence $\\Gamma_T$ of all updates")
    plots.log_axis(ax.xaxis)


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Theorem 3.8(c): are updates orthogonal, are earlier edits spared, and is it LN that does it?"""
    found = []
    for arm in [name for name in LOOKS if name in set(frame["arm"])]:
        found += _orthogonal(frame, arm)
        found += _spared(frame, arm) if arm in MAPPED else []
    moved, adding = late(frame, "moved"), late(frame, "own_way")
    for other in [arm for arm in MAPPED[1:] if arm in set(frame["arm"])]:
        gap = compare.ratio(moved, value="value", arm="arm", first=other, second="stableedit")
        claim = f"{LOOKS[other].label}: earlier edits are moved more than by StableEdit"
        found.append(judge(claim, gap, name="energy at earlier over own edits, ratio to StableEdit's", shown_above=1.0))
        gap = compare.ratio(adding, value="value", arm="arm", first=other, second="stableedit")
        claim = f"{LOOKS[other].label}: changes at an earlier key add up more than with StableEdit"
        found.append(
            judge(claim, gap, name="energy of the sum over sum of energies, ratio to StableEdit's", shown_above=1.0)
        )
    return found


def _orthogonal(frame: pd.DataFrame, arm: str) -> list[Verdict]:
    ends = frame[(frame["arm"] == arm) & frame["quantity"].isin(ENDS)].pivot(
        index="seed", columns="quantity", values="value"
    )
    cosine = compare.t_interval(ends["cosine"])
    coherence = compare.t_interval(ends["coherence"])
    told = f"mean cosine of consecutive updates {cosine}, coherence {coherence}"
    limit = ends["coherence_high"].astype(float).mean()
    if np.isfinite(limit):
        told += f", of independent updates at most {limit:.3f} in 97.5 % of cases"
    gap = compare.t_interval(NEAR - (ends["coherence"].astype(float) - 1).abs())
    claim = f"{LOOKS[arm].label}: updates are orthogonal over all pairs (Theorem 3.8c), coherence within {NEAR:g} of 1"
    return [judge(claim, gap, name=f"{told}; {NEAR:g} less its distance from 1")]


def _spared(frame: pd.DataFrame, arm: str) -> list[Verdict]:
    both = pd.concat([late(frame, name).assign(what=name) for name in ("moved", "chance")])
    mine = both[both["arm"] == arm]
    gap = compare.ratio(mine, value="value", arm="what", first="chance", second="moved")
    moved = mine.loc[mine["what"] == "moved", "value"].mean()
    claim = f"{LOOKS[arm].label}: keys of earlier edits are moved no more than by chance"
    name = f"energy at earlier over own edits {moved:.3g}; chance over it"
    found = [judge(claim, gap, name=name, shown_above=0.9, opposite_below=0.9)]
    kinds = frame[(frame["arm"] == arm) & (frame["quantity"] == "kind")]
    kinds = kinds.assign(what=np.where(kinds["writer"] == kinds["reader"], "same", "other"))
    means = kinds.groupby(["seed", "what"])["value"].mean().reset_index()
    gap = compare.ratio(means, value="value", arm="what", first="same", second="other")
    claim = f"{LOOKS[arm].label}: edits of one relation disturb each other more than those of two"
    return [*found, judge(claim, gap, name="energy, same relation over another", shown_above=1.0)]
