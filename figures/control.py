"""Statistics of the running estimates beside their pure-noise control: what Figures 7, 8, 13 and 14 share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.frames import ArmRun, chosen, final_spectra, over_modules, per_module, steps, width
from figures.needs import Needs
from figures.verdict import Verdict, judge
from stablediag import plots
from stablediag.stats import bands, compare, spectra

ARMS = ("stableedit", "no_warmup")
NEEDS = Needs(arms=ARMS, settings=("stress",))
TITLES = {"stableedit": "with warm-up", "no_warmup": "without warm-up"}
KEYS = ["setting", "arm", "seed", "series", "target_step", "edits"]
#: simulations behind each control curve
REPEATS = 3
#: statistic -> (column of the table `tracking`, column of `spectra.noise_curves`)
COLUMNS = {
    "condition": ("condition_raw", "condition"),
    "eig_max": ("eig_max", "eig_max"),
    "mean_shift": ("mean_shift", "mean_shift"),
    "cov_shift": ("cov_shift", "cov_shift"),
}


def prepare(runs: Sequence[ArmRun], statistic: str) -> pd.DataFrame:
    """One statistic, measured and under two null models, as means over the modules.

    The control ``stationary`` redraws every row of every step from a Gaussian with the covariance that the run estimated
    at its end, so that nothing moves; ``isotropic`` is the Marchenko-Pastur value for identity covariance (condition
    number and largest eigenvalue only, the latter times the mean eigenvalue).

    Returns
    -------
    DataFrame
        Columns setting, arm, seed, series (measured, stationary, isotropic), target_step, edits, nu, d, value, and for
        the condition number `floored`.
    """
    column, simulated = COLUMNS[statistic]
    extra = ["condition_floored"] if statistic == "condition" else []
    parts = []
    for one in chosen(runs, ARMS):
        values = over_modules(per_module([one], "tracking", [column, "nu", *extra]), [column, "nu", *extra])
        measured = values.assign(series="measured", value=values[column], d=width(one))
        measured = measured.rename(columns={"condition_floored": "floored"})
        keep = [*KEYS, "nu", "d", "value", *(["floored"] if extra else [])]
        parts += [measured[keep], _controls(one, measured, statistic, simulated)]
    return pd.concat(parts, ignore_index=True)


def _controls(one: ArmRun, measured: pd.DataFrame, statistic: str, simulated: str) -> pd.DataFrame:
    table = steps(one)
    rows = table["rows"].fillna(0).astype(int).tolist()
    prior = float(one.run.spec["editor"]["params"].get("prior", 0.0))
    eigenvalues = final_spectra(one)
    curves = [
        spectra.noise_curves(rows, values, seed=1000 * one.seed + i, repeats=REPEATS, prior=prior)[simulated].to_numpy()
        for i, values in enumerate(eigenvalues.values())
    ]
    target = (table["phase"] == "target").to_numpy()
    null = measured.assign(series="stationary", value=np.mean(curves, axis=0)[target] if curves else np.nan)
    found = [null]
    if statistic in ("condition", "eig_max"):
        low, high = spectra.mp_edges(measured["nu"], width(one))
        scale = float(np.mean([values.mean() for values in eigenvalues.values()])) if eigenvalues else float("nan")
        found.append(
            measured.assign(series="isotropic", value=high / low if statistic == "condition" else high * scale)
        )
    return pd.concat(found)[[*KEYS, "nu", "d", "value"]]


def with_ratio(frame: pd.DataFrame) -> pd.DataFrame:
    """Measured over stationary noise of the same run and step."""
    keys = [key for key in KEYS if key != "series"]
    null = frame.loc[frame["series"] == "stationary", [*keys, "value"]].rename(columns={"value": "null"})
    merged = frame[frame["series"] == "measured"].merge(null, on=keys)
    return merged.assign(ratio=merged["value"] / merged["null"])


def draw(frame: pd.DataFrame, *, ylabel: str, log_x: bool, floored: bool = False) -> Figure:
    """Above: measured and noise; below: their ratio. One column with and one without warm-up."""
    figure, axes = plots.canvas(2, len(TITLES), height=4.2, sharey="row")
    ratios = with_ratio(frame)
    for column, (arm, title) in enumerate(TITLES.items()):
        top, bottom = axes[0, column], axes[1, column]
        part = frame[frame["arm"] == arm]
        shown = part.assign(look=part["series"].replace("measured", arm))
        plots.band_lines(bands.band(shown, x="target_step", y="value", by=["look"]), top, x="target_step", by="look")
        if floored and part["floored"].notna().any():
            curve = bands.band(part, x="target_step", y="floored", by=["series"])
            top.plot(curve["target_step"], curve["mean"], color="#000000", linewidth=0.6, zorder=4)
        plots.band_lines(
            bands.band(ratios[ratios["arm"] == arm], x="target_step", y="ratio", by=["arm"]), bottom, x="target_step"
        )
        bottom.axhline(1.0, color=plots.look("stationary").color, linestyle=plots.look("stationary").line, zorder=1)
        top.set_title(title)
        bottom.set_title(f"{title}, over noise")
        bottom.set_xlabel("target step")
        for ax in (top, bottom):
            plots.log_axis(ax.xaxis) if log_x else plots.whole_steps(ax)
    for row in axes:
        plots.log_axis(row[0].yaxis)
    axes[0, 0].set_ylabel(ylabel)
    axes[1, 0].set_ylabel("measured / noise")
    plots.panel_letters(axes)
    nulls = [name for name in ("stationary", "isotropic") if name in set(frame["series"])]
    entries = plots.handles([*ARMS, *nulls])
    if floored:
        entries.append(plots.Line2D([], [], color="#000000", linewidth=0.6, label="after the floor"))
    return plots.legend_below(figure, entries, columns=3)


def falls(frame: pd.DataFrame) -> pd.DataFrame:
    """By how much a statistic falls from the first step with at least 2 d rows to the last: columns arm, seed, series, fall."""
    rows = []
    for key, run in frame.groupby(["arm", "seed", "series"], sort=False):
        usable = run[(run["nu"] >= 2 * run["d"]) & run["value"].notna()].sort_values("target_step")
        if len(usable) > 1:
            rows.append((*key, usable["value"].iloc[0] / usable["value"].iloc[-1]))
    return pd.DataFrame(rows, columns=["arm", "seed", "series", "fall"])


def slopes(frame: pd.DataFrame) -> pd.DataFrame:
    """Log-log slope against the number of rows, over steps with at least 2 d rows: columns arm, seed, series, slope."""
    rows = []
    for key, run in frame.groupby(["arm", "seed", "series"], sort=False):
        usable = run[run["nu"] >= 2 * run["d"]]
        rows.append((*key, bands.slope(usable["nu"], usable["value"])))
    return pd.DataFrame(rows, columns=["arm", "seed", "series", "slope"])


def fall_verdicts(frame: pd.DataFrame, what: str) -> list[Verdict]:
    """Does the statistic fall by more than noise makes it fall?"""
    table = falls(frame)
    found = []
    for arm, title in TITLES.items():
        mine = table[table["arm"] == arm]
        gap = compare.ratio(mine, value="fall", arm="series", first="measured", second="stationary")
        factors = {name: mine.loc[mine["series"] == name, "fall"].mean() for name in ("measured", "stationary")}
        share = np.log(factors["stationary"]) / np.log(factors["measured"])
        name = (
            f"falls by a factor of {factors['measured']:.3g}, noise alone by {factors['stationary']:.3g} "
            f"({100 * share:.0f} % of the fall in logarithms); ratio"
        )
        found.append(judge(f"{title}: {what} falls by more than noise alone", gap, name=name, shown_above=1.0))
    return found


def slope_verdicts(frame: pd.DataFrame, what: str) -> list[Verdict]:
    """Does the surrogate decay faster than averaging makes it decay?"""
    table = slopes(frame)
    found = []
    for arm, title in TITLES.items():
        mine = table[table["arm"] == arm]
        gap = compare.paired(mine, value="slope", arm="series", first="stationary", second="measured")
        means = {name: mine.loc[mine["series"] == name, "slope"].mean() for name in ("measured", "stationary")}
        name = f"log-log slope {means['measured']:.3f}, noise alone {means['stationary']:.3f}; difference"
        found.append(
            judge(
                f"{title}: {what} decays faster than averaging alone (it also does when gradients shrink)",
                gap,
                name=name,
                shown_above=0.0,
            )
        )
    return found
