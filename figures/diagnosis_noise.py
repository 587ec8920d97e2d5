r"""Figures 7, 13 and 14 of StableEdit against four controls: how much of each fall would be there if nothing were learnt.

The condition number of the covariance estimate, the step of its mean and the step of the covariance itself all fall along
an edit stream. A pooled estimate of more rows does that by itself. Controls, from the farthest to the nearest:

* ``isotropic``: identity covariance in the limit of large matrices (Marchenko and Pastur 1967; condition number only);
* ``stationary``: simulated Gaussian rows whose covariance is the run's own at its end, shrunk, and never moves;
* ``scaled``: the same, each step's covariance times the trace that the run measured at that step over its mean: only the
  size of the gradients moves, their directions do not;
* ``frozen``: a real run of the same model and facts, drawn independently and with replacement, whose updates are computed
  and not written: tokens, tails and dependence within an edit are real, and nothing moves. The facts are a finite pool, so
  that its condition number ends above that of as many different facts, and falls by a little less.

Estimated are the final spectrum (shrunk, `stablediag.stats.spectra.shrunk_spectrum`), the trace of each step (unbiased,
recorder `prequential`) and no more. Comparisons start at 2 d rows, where the estimate has an inverse worth the name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import control
from figures.frames import ArmRun, final_spectra, over_modules, per_module, steps, width
from figures.variants import Variant, Variants
from figures.verdict import Verdict, judge
from stablediag import plots
from stablediag.errors import DataError
from stablediag.maths.niw import NIW
from stablediag.maths.spectral import covariance_shift
from stablediag.plots import Look
from stablediag.stats import bands, compare, spectra

TITLE = "Condition number and drift surrogates of a real run against pure noise and frozen weights"
#: all that the tracking error needs, of every step
RECORDERS = (
    "recorders=[update_norm, adjacent_cosine, conditioning, drift_surrogates, prequential, variogram, "
    "{name: paired_probes, schedule: {every: 1}, params: {sample: 64}}]"
)
FULL = ("data.size=2000", RECORDERS)
QUICK = ("data.size=500", "edits_per_step=50", "warmup.size=200", RECORDERS)
#: nothing is written, and every fact is drawn anew
FROZEN = ("data.arrange=iid", "editor.params.target_apply=false", "editor.params.warmup_apply=false")
TITLES = {"no_warmup": "without warm-up", "stableedit": "with warm-up"}


def pairs(arms: Sequence[str], changes: Sequence[str]) -> tuple[Variant, ...]:
    """Each arm and its control with frozen weights."""
    real = [Variant(arm, arm, tuple(changes)) for arm in arms]
    return (*real, *(Variant(f"{arm}_frozen", arm, (*changes, *FROZEN)) for arm in arms))


NEEDS = Variants(full=pairs(list(TITLES), FULL), quick=pairs(list(TITLES), QUICK))
#: statistic -> (column of `tracking`, axis label, name in verdicts, figure of the paper)
STATISTICS = {
    "condition": ("condition_raw", "condition number of $\\hat\\Sigma_t$", "the condition number", "Figure 7"),
    "mean_shift": ("mean_shift", "$\\|m_t - m_{t-1}\\|_2$", "the step of the mean", "Figure 13"),
    "cov_shift": (
        "cov_shift",
        "$\\|\\hat\\Sigma_t - \\hat\\Sigma_{t-1}\\|_2$",
        "the step of the covariance",
        "Figure 14",
    ),
}
SERIES: dict[str, Look] = {
    "measured": Look("edited model", "#0072B2", "o", "-"),
    "frozen": Look("frozen weights, i.i.d. stream", "#D55E00", "s", (0, (5, 1.5))),
    "scaled": Look("simulated noise, gradients of the run's size", "#009E73", "", (0, (4, 1, 1, 1))),
    "stationary": Look("simulated noise, constant covariance", "#4D4D4D", "", (0, (2, 1))),
    "isotropic": Look("identity covariance (Marchenko-Pastur)", "#9A9A9A", "", (0, (1, 1))),
}
#: those that a fall has to exceed; identity covariance is not what the gradients have
CONTROLS = ("frozen", "scaled", "stationary")
#: what verdicts call the controls
NAMES = {
    "isotropic": "Marchenko-Pastur",
    "stationary": "constant noise",
    "scaled": "scaled noise",
    "frozen": "frozen weights",
}
#: simulations behind each curve of noise
REPEATS = 3
KEYS = ["arm", "seed", "series", "target_step", "pooled", "nu", "d"]


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """The three statistics, measured and under the controls, as means over the modules.

    Returns
    -------
    DataFrame
        Columns arm, seed, series, target_step, pooled (edits behind the estimate, warm-up included), nu (rows behind it), d,
        statistic, value.

    Raises
    ------
    DataError
        A run without its control, or without what the recorders `conditioning`, `drift_surrogates` or `prequential` write.
    """
    known = {(one.arm, one.seed): one for one in runs}
    parts = []
    for one in runs:
        if one.arm not in TITLES:
            continue
        twin = known.get((f"{one.arm}_frozen", one.seed))
        if twin is None:
            raise DataError(f"run {one.arm}, seed {one.seed}: no control with frozen weights: make {one.arm}_frozen")
        measured = _measured(one)
        parts += [measured.assign(series="measured"), _measured(twin).assign(arm=one.arm, series="frozen")]
        parts += _simulated(one, measured)
    if not parts:
        raise DataError(f"no run of {' or '.join(TITLES)}: make the runs that this figure needs")
    long = pd.concat(parts, ignore_index=True).melt(KEYS, list(STATISTICS), "statistic", "value")
    return long[(long["series"] != "isotropic") | (long["statistic"] == "condition")].reset_index(drop=True)


def _measured(one: ArmRun) -> pd.DataFrame:
    columns = {column: name for name, (column, *_) in STATISTICS.items()}
    table = per_module([one], "tracking", [*columns, "nu", "trace"])
    lost = [column for column in (*columns, "nu", "trace") if table[column].isna().all()]
    if lost:
        raise DataError(
            f"run {one.arm}, seed {one.seed}: no values of {', '.join(lost)}: record conditioning, drift_surrogates and "
            "prequential over enough steps"
        )
    values = over_modules(table, [*columns, "nu"]).rename(columns=columns)
    return values.assign(pooled=values["edits"] + one.run.spec["warmup"]["size"], d=width(one))[
        [*(key for key in KEYS if key != "series"), *STATISTICS]
    ]


def _simulated(one: ArmRun, measured: pd.DataFrame) -> list[pd.DataFrame]:
    """The curves of noise at the run's own numbers of rows."""
    table = steps(one)
    rows = table["rows"].fillna(0).astype(int).tolist()
    prior = float(one.run.spec["editor"]["params"]["prior"])
    traces = one.run.table("tracking").pivot(index="step", columns="module", values="trace").astype(float)
    curves: dict[str, list[np.ndarray]] = {"stationary": [], "scaled": []}
    for i, (scope, eigenvalues) in enumerate(spectrum_of(one).items()):
        seed = 1000 * one.seed + i
        still = spectra.noise_curves(rows, eigenvalues, seed=seed, repeats=REPEATS, prior=prior)
        curves["stationary"].append(still[list(STATISTICS)].to_numpy())
        size = traces[scope].reindex(table["step"]).interpolate(limit_direction="both").to_numpy()
        curves["scaled"].append(scaled_noise(rows, size, eigenvalues, seed=seed, repeats=REPEATS, prior=prior))
    target = (table["phase"] == "target").to_numpy()
    found = []
    for series, values in curves.items():
        means = np.mean(values, axis=0)[target]
        found.append(measured.assign(series=series, **dict(zip(STATISTICS, means.T, strict=True))))
    low, high = spectra.mp_edges(measured["nu"], width(one))
    return [*found, measured.assign(series="isotropic", condition=high / low)]


def spectrum_of(one: ArmRun) -> dict[str, np.ndarray]:
    """Spectra at the end of a run, of which there must be one."""
    found = final_spectra(one)
    if not found:
        raise DataError(
            f"run {one.arm}, seed {one.seed}: no covariance at its end: edit more facts, with full whitening or "
            "track_covariance"
        )
    return found


def scaled_noise(
    rows: Sequence[int], sizes: np.ndarray, eigenvalues: np.ndarray, *, seed: int, repeats: int, prior: float
) -> np.ndarray:
    """Statistics of the estimate on Gaussian rows whose covariance keeps its directions and changes its size.

    Parameters
    ----------
    rows : sequence of int
        Rows of each step.
    sizes : ndarray, shape [T]
        Size of the covariance at each step; their mean over the rows is taken for 1.
    eigenvalues : ndarray, shape [d]
        Spectrum at size 1.
    seed, repeats : int, int
        Repetitions are averaged (geometric mean for the condition number).
    prior : float
        As the editor's, relative to the first step's scatter.

    Returns
    -------
    ndarray, float64, shape [T, 3]
        Condition number, step of the mean, step of the covariance; NaN where there is none yet. It runs the code that edits,
        `stablediag.maths.niw.NIW`.
    """
    root = np.sqrt(np.outer(sizes / np.average(sizes, weights=rows), eigenvalues))
    rng = np.random.default_rng([seed, 1])
    made = np.stack([_one_scaled(rows, root, rng, prior) for _ in range(repeats)])
    made[..., 0] = np.log(made[..., 0])
    means = made.mean(axis=0)
    means[:, 0] = np.exp(means[:, 0])
    found: np.ndarray = means
    return found


def _one_scaled(rows: Sequence[int], root: np.ndarray, rng: np.random.Generator, prior: float) -> np.ndarray:
    niw, found = NIW.empty(root.shape[1]), np.full((len(rows), 3), np.nan)
    for step, n in enumerate(rows):
        x = torch.from_numpy(rng.standard_normal((n, root.shape[1])) * root[step])
        before, factor = niw, niw.factor(x)
        niw = niw.update(x)
        if step == 0:
            niw = niw.with_prior(prior * float(niw.scale.diagonal().mean()))
        else:
            found[step, 1:] = float((niw.mean - before.mean).norm()), covariance_shift(niw, before.nu, factor)
        if niw.exists:
            eigenvalues = np.linalg.eigvalsh(niw.cov.numpy())
            found[step, 0] = eigenvalues[-1] / eigenvalues[0]
    return found


def relative(frame: pd.DataFrame) -> pd.DataFrame:
    """Measured over a control, each over its own value at the first step with 2 d rows: below 1, it fell by more."""
    usable = frame[(frame["nu"] >= 2 * frame["d"]) & frame["value"].notna()].sort_values("target_step")
    keys = ["statistic", "arm", "seed"]
    first = usable.groupby([*keys, "series"])["value"].transform("first")
    wide = usable.assign(value=usable["value"] / first).pivot(
        index=[*keys, "target_step", "pooled"], columns="series", values="value"
    )
    parts = [
        (wide["measured"] / wide[name]).rename("value").reset_index().assign(over=name) for name in ("frozen", "scaled")
    ]
    return pd.concat(parts, ignore_index=True)


def draw(frame: pd.DataFrame) -> Figure:
    """A column per statistic; rows: without warm-up, with warm-up, and measured over its controls."""
    figure, axes = plots.canvas(3, len(STATISTICS), height=6.2, sharex="row")
    ratios = relative(frame)
    for column, (statistic, (_, label, *_)) in enumerate(STATISTICS.items()):
        for row, (arm, title) in enumerate(TITLES.items()):
            ax = axes[row, column]
            for series, look in SERIES.items():
                _line(frame[_is(frame, statistic, arm) & (frame["series"] == series)], ax, look)
            ax.set(title=title, ylabel=label)
            _log(ax)
        ax = axes[2, column]
        for arm in TITLES:
            for over in ("frozen", "scaled"):
                _line(ratios[_is(ratios, statistic, arm) & (ratios["over"] == over)], ax, _ratio_look(arm, over))
        ax.axhline(1.0, color="0.6", linewidth=0.8, zorder=1)
        ax.set(title="fall, over that of a control", ylabel="measured / control", xlabel="edits behind the estimate")
        _log(ax)
    plots.panel_letters(axes)
    entries = [_handle(look) for look in SERIES.values()]
    entries += [_handle(_ratio_look(arm, over)) for arm in TITLES for over in ("frozen", "scaled")]
    return plots.legend_below(figure, entries, columns=2)


def _is(frame: pd.DataFrame, statistic: str, arm: str) -> pd.Series:
    return (frame["statistic"] == statistic) & (frame["arm"] == arm)


def _line(part: pd.DataFrame, ax: Axes, look: Look) -> None:
    """Mean over the seeds, and the band of their extremes."""
    if not len(part):
        return
    curve = bands.band(part.assign(all=""), x="pooled", y="value", by=["all"])
    ax.plot(
        curve["pooled"],
        curve["mean"],
        color=look.color,
        linestyle=look.line,
        marker=look.marker or None,
        markevery=max(1, len(curve) // 6),
        markersize=3,
        zorder=3,
    )
    ax.fill_between(curve["pooled"], curve["min"], curve["max"], color=look.color, alpha=0.15, linewidth=0, zorder=2)


def _log(ax: Axes) -> None:
    plots.log_axis(ax.xaxis)
    plots.log_axis(ax.yaxis)


def _ratio_look(arm: str, over: str) -> Look:
    names = {"frozen": "frozen weights", "scaled": "noise of the run's size"}
    colors = {"no_warmup": "#CC79A7", "stableedit": "#000000"}
    line = "-" if over == "frozen" else (0, (1.5, 1))
    return Look(f"{TITLES[arm]}: over {names[over]}", colors[arm], "D" if over == "frozen" else "v", line)


def _handle(look: Look) -> Line2D:
    return Line2D(
        [],
        [],
        color=look.color,
        linestyle=look.line,
        marker=look.marker or None,
        markersize=3,
        label=look.label,
    )


def falls(frame: pd.DataFrame) -> pd.DataFrame:
    """Logarithm of the fall of every curve from 2 d rows on: columns statistic, arm, seed, series, fall.

    Of the condition number, first over last value; of the noisy steps, minus the log-log slope against the rows.
    """
    parts = []
    for statistic in STATISTICS:
        part = frame[frame["statistic"] == statistic]
        if statistic == "condition":
            table = control.falls(part)
            table["fall"] = np.log(table["fall"].astype(float))
        else:
            table = control.slopes(part)
            table["fall"] = -table.pop("slope")
        parts.append(table.assign(statistic=statistic))
    return pd.concat(parts, ignore_index=True)


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Does anything of Figures 7, 13 and 14 remain beyond every control, most of all the one that falls most on average?"""
    table = falls(frame)
    found = []
    for statistic, (_, _, what, figure) in STATISTICS.items():
        for arm, title in TITLES.items():
            wide = table[_is(table, statistic, arm)].pivot(index="seed", columns="series", values="fall")
            if wide.empty:
                raise DataError(f"{title}: {what} has too few steps of 2 d rows or more: edit more facts")
            # One control for all seeds: the greatest of several noisy falls would beat a run that is one of them.
            strongest = str(wide[list(CONTROLS)].mean().idxmax())
            excesses = {series: compare.t_interval(wide["measured"] - wide[series]) for series in CONTROLS}
            excess, beyond = excesses[strongest], all(one.low > 0 for one in excesses.values())
            if statistic == "condition":
                falls_by = f"falls by a factor of {math.exp(wide['measured'].mean()):.3g}"
                name, limit = f"over the strongest control ({NAMES[strongest]}), a factor of", 1.0
                excess = compare.Interval(math.exp(excess.mean), math.exp(excess.low), math.exp(excess.high), excess.n)
            else:
                falls_by = f"log-log slope {-wide['measured'].mean():.3f}"
                name, limit = f"steeper than the strongest control ({NAMES[strongest]}) by", 0.0
            claim = f"{figure}, {title}: {what} falls by more than every control does"
            one = judge(claim, excess, name=f"{falls_by}; explained: {_shares(wide)}; {name}", shown_above=limit)
            found.append(replace(one, answer="not shown") if one.answer == "shown" and not beyond else one)
    return found


def _shares(wide: pd.DataFrame) -> str:
    """Share of the fall that each control has, with intervals over seeds."""
    told = []
    for series, name in NAMES.items():
        if series in wide:
            share = compare.t_interval(100 * wide[series] / wide["measured"])
            limits = "" if math.isnan(share.low) else f" [{share.low:.0f}, {share.high:.0f}]"
            told.append(f"{name} {share.mean:.0f} %{limits}")
    return ", ".join(told)
