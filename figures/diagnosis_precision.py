r"""What rounding to the weights' dtype keeps of the updates, at every learning rate, and whether quality notices.

An update D is asked for, and R is what the stored weights took. Kept is :math:`\langle R, D \rangle / \|D\|_F^2`: 1 all, 0 nothing.
The ratio of the norms alone does not tell them apart, because what rounding adds in other directions lengthens R.

* *Of one step*: as recorded at every measured target step. With a float32 master the weights take at one step what earlier steps
  left in the master, so that a single step may look lossy although nothing is lost.
* *Of the whole run*: with the sum of all updates as D and last minus first weights as R.
* *Expected*: weights and update independent, both Gaussian, the update of the recorded relative size; the update rounded to
  bfloat16 and added, the sum rounded to the nearest, as in-place writing does. It holds for any model: only the size of an
  update over that of the weight enters.

A master helps from step to step: what it collects reaches the weights once it exceeds half the distance to the next bfloat16. At
the end of a short run at a small rate part of it never has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from figures import diagnosis_frame
from figures.frames import ArmRun, per_module
from figures.variants import Variant, Variants
from figures.verdict import Verdict, judge
from stablediag import plots
from stablediag.errors import DataError
from stablediag.stats import bands, compare
from stablediag.stats.compare import Interval
from stablediag.store.state import load_state

TITLE = "What the weights keep of an update, by dtype and learning rate"
SINGLE, MASTER, PLACE = "fp32", "bf16_master", "bf16_place"
#: precision -> what differs from float32 weights
PRECISIONS = {
    SINGLE: (),
    MASTER: ("model.dtype=bfloat16", "editor.params.master=fp32"),
    PLACE: ("model.dtype=bfloat16", "editor.params.master=model"),
}
RATES = (1e-4, 3e-4, 1e-3, 1.3e-2, 1e-1)
QUICK_RATES = (1e-4, 1.3e-2)
#: coherence keeps the sum of what was to be written, and of float32 weights the first value
RECORDED = ("recorders=[update_norm, realised_update, coherence]", "evaluation.subsample=300")
#: a share of the update that is worth a word, points of score that are, and how closely the expected share is to be met
LOST, POINTS, CLOSE = 0.1, 1.0, 0.05
#: draws behind the expected share, and their seed
_DRAWS, _SEED = 1 << 16, 0
#: panels: column, title, label of the y axis
PANELS = (
    ("kept", "kept of one step", "share of the update"),
    ("kept_total", "kept of the whole run", "share of the sum"),
    ("unchanged", "entries left as they were", "entries (%)"),
    ("score", "score", "score (%)"),
    ("difference", "score minus float32's", "points"),
    ("locality_kl", "locality divergence", "KL (nats)"),
)

#: lines of reference and their entries in the legend
_LINES = {"expected": "expected in place: Gaussian weights and update", "unedited": "unedited model"}
_STYLES = {"expected": ("#4D4D4D", (0, (1, 1))), "unedited": (plots.GREY, (0, (3, 1.5)))}


def _variants(rates: Sequence[float]) -> tuple[Variant, ...]:
    return tuple(
        Variant(f"{precision}:{rate:g}", "stableedit", (*RECORDED, *changes, f"editor.params.lr={rate:g}"))
        for precision, changes in PRECISIONS.items()
        for rate in rates
    )


NEEDS = Variants(full=_variants(RATES), quick=_variants(QUICK_RATES))


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """What was kept, and the quality at the end, by precision and rate.

    Returns
    -------
    DataFrame
        One row per run: precision, rate, seed, kept, realised_ratio, realised_cosine (means over target steps and modules),
        unchanged (percent), relative (norm of an update over that of its weight, root mean square), expected (share kept of
        one step; NaN but in place), kept_total (NaN for float32 weights: rounding there is far below anything drawn),
        efficacy, generalization, specificity, score (percent), difference (points, from float32 weights at the same rate and
        seed), locality_kl (nats), unedited (score of the model before any edit, percent).

    Raises
    ------
    DataError
        There is no run with float32 weights to compare with.
    """
    quality = diagnosis_frame.quality(runs).set_index(["arm", "seed"])
    before = diagnosis_frame.unedited(runs).set_index("seed")["score"]
    first = {one.seed: _first_weights(one) for one in runs if one.arm.startswith(f"{SINGLE}:")}
    rows = []
    for one in runs:
        precision, rate = one.arm.split(":")
        if one.seed not in first:
            raise DataError(f"precision: seed {one.seed} has no run with float32 weights: make one at any rate")
        taken = _steps(one)
        rows.append(
            {
                "precision": precision,
                "rate": float(rate),
                "seed": one.seed,
                **taken,
                "expected": taken["expected"] if precision == PLACE else math.nan,
                "kept_total": math.nan if precision == SINGLE else _total(one, first[one.seed]),
                **quality.loc[
                    (one.arm, one.seed), ["efficacy", "generalization", "specificity", "score", "locality_kl"]
                ],
                "unedited": before[one.seed],
            }
        )
    frame = pd.DataFrame(rows).sort_values(["precision", "rate", "seed"], ignore_index=True)
    single = frame[frame["precision"] == SINGLE].set_index(["rate", "seed"])["score"]
    keys = pd.MultiIndex.from_frame(frame[["rate", "seed"]])
    return frame.assign(difference=frame["score"].to_numpy() - single.reindex(keys).to_numpy())


def _steps(one: ArmRun) -> dict[str, float]:
    names = ["norm", "weight_norm", "realised_ratio", "realised_cosine", "unchanged_fraction"]
    table = per_module([one], "updates", names).dropna(subset=["realised_ratio"])
    # Where nothing at all was written the ratio is 0 and the cosine does not exist.
    kept = table["realised_ratio"] * table["realised_cosine"].fillna(0.0)
    relative = (table["norm"] / table["weight_norm"]) ** 2
    by_module = np.sqrt(relative.groupby(table["module"]).mean().to_numpy())
    return {
        "kept": float(kept.mean()),
        "realised_ratio": float(table["realised_ratio"].mean()),
        "realised_cosine": float(table["realised_cosine"].mean()),
        "unchanged": 100 * float(table["unchanged_fraction"].mean()),
        "relative": float(np.sqrt(relative.mean())),
        "expected": float(np.mean([expected_kept(float(size)) for size in by_module])),
    }


def _checkpoint(one: ArmRun) -> dict[str, NDArray[np.float32]]:
    """Tensors of the last checkpoint, by name, as float32."""
    pointer = one.run.checkpoint
    if pointer is None:
        raise DataError(f"precision: run {one.arm}, seed {one.seed}, has no checkpoint: make it again")
    wanted = ("recorder/coherence/kept/", "weights/")
    return {name: t.float().numpy() for name, t in load_state(pointer[1])[0].items() if name.startswith(wanted)}


def _first_weights(one: ArmRun) -> dict[str, NDArray[np.float32]]:
    prefix = "recorder/coherence/kept/"
    return {name.removeprefix(prefix): t for name, t in _checkpoint(one).items() if name.startswith(prefix)}


def _total(one: ArmRun, first: dict[str, NDArray[np.float32]]) -> float:
    """Share of the sum of all updates that the last weights hold, over all modules; the weights began as bfloat16."""
    state, inner, energy = _checkpoint(one), 0.0, 0.0
    for module, start in first.items():
        wanted = state[f"recorder/coherence/kept/{module}"].astype(np.float64)
        # Linear layers store their weight as [d_out, d_in].
        moved = state[f"weights/{module}.weight"].T.astype(np.float64) - to_bfloat16(start)
        inner += float((moved * wanted).sum())
        energy += float((wanted**2).sum())
    return inner / energy if energy > 0 else math.nan


def to_bfloat16(values: ArrayLike) -> NDArray[np.float32]:
    """Finite numbers rounded to the nearest bfloat16, ties to even, held as float32."""
    bits = np.array(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.asarray(rounded, np.uint32).view(np.float32)


def expected_kept(relative: float) -> float:
    """Share of one update that bfloat16 weights take in place: Gaussian weights and update, sizes in the ratio `relative`."""
    rng = np.random.default_rng(_SEED)
    weights = to_bfloat16(rng.standard_normal(_DRAWS))
    update = np.float32(relative) * rng.standard_normal(_DRAWS).astype(np.float32)
    taken = to_bfloat16(weights + to_bfloat16(update)) - weights
    return float((taken * update).sum(dtype=np.float64) / (update**2).sum(dtype=np.float64))


def expected_sizes(levels: Sequence[float]) -> list[float]:
    """Sizes of an update over that of the weights at which the expected shares kept are `levels`, from 0.1 to 0.95."""
    sizes = np.geomspace(1e-4, 1e-2, 25)
    kept = np.maximum.accumulate([expected_kept(float(size)) for size in sizes])
    return [float(np.exp(np.interp(level, kept, np.log(sizes)))) for level in levels]


def draw(frame: pd.DataFrame) -> Figure:
    """Above: what is kept; below: what it costs. Bands span the seeds."""
    figure, axes = plots.canvas(2, 3, height=4.2)
    for ax, (column, title, label) in zip(axes.flat, PANELS, strict=True):
        shown = frame[frame["precision"] != SINGLE] if column == "difference" else frame
        plots.band_lines(bands.band(shown, x="rate", y=column, by=["precision"]), ax, x="rate", by="precision")
        ax.set_title(title)
        ax.set_ylabel(label)
        ax.set_xlabel("learning rate")
        ax.set_xscale("log")
    _line(frame, axes[0, 0], "expected", "rate")
    for ax in (axes[0, 0], axes[0, 1]):
        ax.axhline(1.0, color=plots.GREY, linewidth=0.6, zorder=1)
        ax.set_ylim(0, max(1.1, 1.05 * ax.get_ylim()[1]))
    axes[0, 2].set_ylim(-4, 104)
    axes[1, 1].axhline(0.0, color=plots.GREY, linewidth=0.6, zorder=1)
    _line(frame, axes[1, 0], "unedited", "rate")
    axes[1, 0].set_ylim(bottom=0)
    axes[1, 2].set_yscale("log")
    plots.panel_letters(axes)
    entries = [*plots.handles([name for name in PRECISIONS if name in set(frame["precision"])])]
    entries += [_handle(column, label) for column, label in _LINES.items()]
    return plots.legend_below(figure, entries, columns=3)


def _line(frame: pd.DataFrame, ax: Axes, column: str, x: str) -> None:
    known = frame.dropna(subset=[column]).groupby(x)[column].mean()
    color, line = _STYLES[column]
    ax.plot(known.index, known.to_numpy(), color=color, linestyle=line, linewidth=1.2, zorder=4)


def _handle(column: str, label: str) -> Line2D:
    color, line = _STYLES[column]
    return Line2D([], [], color=color, linestyle=line, linewidth=1.2, label=label)


def crossing(frame: pd.DataFrame, level: float) -> Interval:
    """Rate below which less than `level` of a step is kept in place, over seeds (geometric mean and t interval).

    It lies on the line between two rates, over the logarithm of the rate. Left out are seeds that keep more at every rate, or
    less, or that cross the level between rates more than a factor 10 apart.
    """
    found = []
    for _, run in frame[frame["precision"] == PLACE].groupby("seed"):
        curve = run.sort_values("rate")
        rates, kept = np.log(curve["rate"].to_numpy()), curve["kept"].to_numpy()
        below = np.flatnonzero(kept < level)
        i = int(below[-1]) if len(below) else len(kept)
        if i + 1 < len(kept) and rates[i + 1] - rates[i] < math.log(10.5):
            found.append(float(np.interp(level, kept[i : i + 2], rates[i : i + 2])))
    logs = compare.t_interval(found)
    return Interval(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high), logs.n)


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Below which rate the weights lose the update, whether a master mends it, and whether quality follows.

    Raises
    ------
    DataError
        A precision is missing.
    """
    missing = [name for name in PRECISIONS if name not in set(frame["precision"])]
    if missing:
        raise DataError(f"precision: no runs of {', '.join(missing)}: make them at the same rates")
    lowest = float(frame["rate"].min())
    best = _best(frame)
    return [
        _lost(
            frame, lowest, "kept", f"at rate {lowest:g} bfloat16 in place loses over a tenth of a step", crossed=True
        ),
        _lost(frame, best, "kept", f"at the best rate, {best:g}, bfloat16 in place loses over a tenth of a step"),
        _lost(frame, lowest, "kept_total", f"at rate {lowest:g} bfloat16 in place loses over a tenth of the whole run"),
        _mends(frame, lowest),
        _explained(frame),
        _follows(frame),
        _costs(frame, best),
        _noise(frame, lowest),
    ]


def _best(frame: pd.DataFrame) -> float:
    """The rate with the highest score of float32 weights."""
    means = frame[frame["precision"] == SINGLE].groupby("rate")["score"].mean()
    return float(means.index.to_numpy()[int(np.argmax(means.to_numpy()))])


def _of(frame: pd.DataFrame, precision: str, rate: float, column: str) -> Interval:
    rows = frame[(frame["precision"] == precision) & (frame["rate"] == rate)]
    return compare.t_interval(rows[column].astype(float))


def _lost(frame: pd.DataFrame, rate: float, column: str, claim: str, *, crossed: bool = False) -> Verdict:
    kept = _of(frame, PLACE, rate, column)
    relative = _of(frame, PLACE, rate, "relative").mean
    told = f"updates of {relative:.2g} of the weights' norm; "
    for level in (0.9, 0.5) if crossed else ():
        place = crossing(frame, level)
        told += f"less than {level:g} of a step is kept below rate {place}; " if place.n else ""
    lost = Interval(1 - kept.mean, 1 - kept.high, 1 - kept.low, kept.n)
    return judge(claim, lost, name=f"{told}share lost", shown_above=LOST)


def _mends(frame: pd.DataFrame, rate: float) -> Verdict:
    there = frame[frame["rate"] == rate]
    gap = compare.paired(there, value="kept_total", arm="precision", first=MASTER, second=PLACE)
    whole = {name: _of(frame, name, rate, "kept_total").mean for name in (MASTER, PLACE)}
    step = {name: _of(frame, name, rate, "kept").mean for name in (MASTER, PLACE)}
    name = (
        f"with {whole[MASTER]:.2f} of the run ({step[MASTER]:.2f} of a step), in place {whole[PLACE]:.2f} "
        f"({step[PLACE]:.2f}); difference over the run"
    )
    claim = f"at rate {rate:g} bfloat16 weights keep more of a run with a float32 master than in place"
    return judge(claim, gap, name=name)


def _explained(frame: pd.DataFrame) -> Verdict:
    place = frame[frame["precision"] == PLACE]
    gaps = place.assign(gap=(place["kept"] - place["expected"]).abs()).groupby("seed")["gap"].max()
    largest = compare.t_interval(gaps.astype(float))
    claim = f"rounding of Gaussian weights and updates explains the share kept in place to {CLOSE:g}"
    nearness = Interval(-largest.mean, -largest.high, -largest.low, largest.n)
    tenth, half = expected_sizes((0.9, 0.5))
    name = (
        f"expected: a tenth is lost of updates of {tenth:.2g} of the weights' norm, half at {half:.2g}; largest difference over "
        "rates, sign turned,"
    )
    return judge(claim, nearness, name=name, shown_above=-CLOSE)


def _follows(frame: pd.DataFrame) -> Verdict:
    claim = f"quality follows: where bfloat16 in place loses over a tenth of a step, it scores {POINTS:g} point less"
    kept = frame[frame["precision"] == PLACE].groupby("rate")["kept"].mean()
    lossy = kept.index[kept < 1 - LOST].tolist()
    if not lossy:
        return Verdict(claim, "not shown", "no rate loses that much")
    there = frame[frame["rate"].isin(lossy)]
    means = there.groupby(["precision", "seed"])["score"].mean().reset_index()
    gap = compare.paired(means, value="score", arm="precision", first=SINGLE, second=PLACE)
    level, before = means.loc[means["precision"] == SINGLE, "score"].mean(), there["unedited"].mean()
    rates = f"rates {', '.join(f'{rate:g}' for rate in lossy)}"
    told = f"{rates}: float32 scores {level:.1f} there, the unedited model {before:.1f}"
    if level - before < POINTS:
        return Verdict(claim, "not shown", f"{told}: nothing to lose")
    return judge(claim, gap, name=f"{told}; points lost", shown_above=POINTS)


def _costs(frame: pd.DataFrame, rate: float) -> Verdict:
    there = frame[frame["rate"] == rate]
    gap = compare.paired(there, value="score", arm="precision", first=SINGLE, second=PLACE)
    level = there.loc[there["precision"] == SINGLE, "score"].mean()
    claim = f"at the best rate, {rate:g}, bfloat16 in place costs over {POINTS:g} point of score"
    return judge(claim, gap, name=f"float32 scores {level:.1f}; points lost", shown_above=POINTS)


def _noise(frame: pd.DataFrame, rate: float) -> Verdict:
    there = frame[frame["rate"] == rate]
    gap = compare.ratio(there, value="locality_kl", arm="precision", first=PLACE, second=SINGLE)
    levels = {name: there.loc[there["precision"] == name, "locality_kl"].mean() for name in (PLACE, SINGLE)}
    name = f"{levels[PLACE]:.2g} nats against {levels[SINGLE]:.2g}; ratio"
    return judge(
        f"at rate {rate:g} rounding in place adds to the divergence on locality prompts",
        gap,
        name=name,
        shown_above=1.0,
    )
