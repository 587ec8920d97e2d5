r"""Error of the running mean on a real run: measured without ground truth, against the law without drift, the law with the
measured drift, its worst case, and the bound of Theorem 3.5.

The run has no warm-up, so that its steps are the whole recursion from a cold start (an edited warm-up of the preset `paper` is
its first steps). Beside it, the control whose updates are not written, three a seed on different facts. All is computed per
module in units of R = tr Sigma / n, the mean noise of a batch mean with edits as rows, and then averaged over modules. What is
estimated:

* the error after step t, :math:`(1 - x_t)^2 \hat E_t + x_t^2 R_t` with :math:`\hat E_t` unbiased for
  :math:`\|m_{t-1} - \mu_t\|^2` and :math:`R_t` for the noise of the batch mean (recorder `prequential`);
* without drift: :math:`V_t = (1 - x_t)^2 V_{t-1} + x_t^2 R_t` with the same :math:`R_t`;
* sizes of the drift, :math:`\varepsilon_t^2`: paired probes, 64 held-out requests before and after every update (unbiased);
  the laws take means over five neighbouring steps, and 0 where these are negative;
* how they add up: :math:`\|\mu_t - \mu_s\|^2 = (\sum_{s < j \le t} \varepsilon_j^{2/p})^p`, with one exponent p a run (1 steps
  of independent directions, 2 of one direction), fitted by least squares to the variogram of the batch means. The law with
  drift is then exact for a drift that is independent of the noise. (The error, too, is made of distances of batch means: its
  agreement with the law tests the sizes and the form with one exponent, not the level, to which p was fitted.) The law is
  :math:`\sum_j w_j \gamma(j, t) - \frac12 \sum_{ij} w_i w_j \gamma(i, j) + V_t` (derived here), w the weights of the batches;
* worst case: the same sizes, all in one direction (`stablediag.stats.theory.mean.worst_mse`);
* bound of the paper: d = width, the same sizes, and :math:`\lambda_{max}` as the largest share that an eigenvalue has of the
  shrunk spectrum at the end, times the largest mean trace of five neighbouring steps. The assumption wants a bound over all
  steps; a larger constant would only add slack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import diagnosis_noise
from figures import diagnosis_tracking_laws as laws
from figures.frames import ArmRun, steps, width
from figures.variants import Variant, Variants
from figures.verdict import Answer, Verdict, judge
from stablediag import plots
from stablediag.errors import DataError
from stablediag.plots import Look
from stablediag.stats import bands, compare
from stablediag.stats.drift import power_law

TITLE = "Error of the running mean on a real run: measured, exact, worst case and the paper's bound"
ARMS = {"no_warmup": "edited model", "no_warmup_frozen": "frozen weights, i.i.d. stream"}
#: further controls on other facts, one more replicate a seed each: the error of a single run is mostly noise
MORE = {f"no_warmup_frozen_{i}": (f"data.offset={2000 * (i - 1)}",) for i in (2, 3)}
NEEDS = Variants(
    full=(
        *diagnosis_noise.pairs(["no_warmup"], diagnosis_noise.FULL),
        *(Variant(arm, "no_warmup", (*diagnosis_noise.FULL, *diagnosis_noise.FROZEN, *at)) for arm, at in MORE.items()),
    ),
    quick=diagnosis_noise.pairs(["no_warmup"], diagnosis_noise.QUICK),
)
#: computed curves -> look
CURVES: dict[str, Look] = {
    "paper": Look("bound of Theorem 3.5", "#D55E00", "", (0, (4, 1, 1, 1))),
    "worst": Look("worst case: all of the drift in one direction", "#0072B2", "", (0, (5, 1.5))),
    "exact": Look("exact law with the measured drift", "#009E73", "", "-"),
    "noise": Look("exact law without drift", "#6B6B6B", "", (0, (1, 1.2))),
}
#: windows of a curve over which noisy estimates are averaged
WINDOWS = 7
#: columns of `tracking`, in the order of `laws.errors`
FLOATS = ["prior_error", "prior_error_null", "shadow_mean", "trace", "mean_shift", "edits"]


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """Measured and computed errors, drift and its surrogate, averaged over modules.

    Returns
    -------
    DataFrame
        Columns arm, seed, kind, target_step, value. Kinds by step, in units of R: measured, paper, worst, exact, noise, prior
        (the error before the step), prior_noise and prior_exact (its laws), shadow (noise of the split halves), drift
        (:math:`\\varepsilon_t^2`) and surrogate (:math:`\\|m_t - m_{t-1}\\|^2`). By run, at target_step 0: coherence (p), alpha
        (exponent of the drift's size) and alpha_surrogate.

    Raises
    ------
    DataError
        An arm has no run, or a run lacks a recorder.
    """
    lost = [arm for arm in ARMS if not any(one.arm == arm for one in runs)]
    if lost:
        raise DataError(f"no run of {' or '.join(lost)}: make the runs that this figure needs")
    arms = [*ARMS, *MORE]
    found = []
    for one in runs:
        if one.arm in arms:
            # Further controls are further seeds of the control.
            number = 1 + list(MORE).index(one.arm) if one.arm in MORE else 0
            arm = list(ARMS)[1] if number else one.arm
            found.append(_one(one).assign(arm=arm, seed=one.seed + 100 * number))
    return pd.concat(found, ignore_index=True)


def _one(one: ArmRun) -> pd.DataFrame:
    where = f"run {one.arm}, seed {one.seed}"
    table = steps(one)
    tracking, variogram, probes = (one.run.table(name) for name in ("tracking", "variogram", "probes"))
    short = [name for name in FLOATS if name not in tracking or tracking[name].isna().all()]
    if short or variogram.empty:
        raise DataError(
            f"{where}: no {', '.join(short) or 'variogram'}: record prequential, drift_surrogates, variogram"
        )
    if (table["phase"] != "target").any():
        raise DataError(f"{where}: it has a warm-up, which the variogram does not cover: use a run without")
    rows = table["rows"].to_numpy(np.float64)
    spectra = diagnosis_noise.spectrum_of(one)
    values, scopes = {}, []
    for scope, part in tracking.groupby("module", sort=True):
        record = part.sort_values("step")[FLOATS].astype(float).to_numpy()
        unit = float(np.nanmean(record[:, 1]))
        squares = laws.drift_squares(probes, str(scope), len(rows)) / unit
        mine = variogram[variogram["module"] == scope]
        pairs = mine[["step", "lag", "value"]].astype(float).to_numpy() / [1, 1, unit]
        share = float(spectra[str(scope)].max() / spectra[str(scope)].sum())
        scopes.append((record / [unit, unit, unit, unit, math.sqrt(unit), 1], squares, pairs, share))
    p = laws.coherence([(laws.drift_sizes(squares), pairs) for _, squares, pairs, _ in scopes])
    for i, (record, squares, _, share) in enumerate(scopes):
        values[i] = laws.errors(record, squares, p, rows, top_share=share, d=width(one))
    means = pd.concat(values.values()).groupby(level=0).mean()
    long = means.rename_axis("target_step").reset_index().melt("target_step", var_name="kind")
    numbers = {"coherence": p, **_exponents(means)}
    extra = pd.DataFrame({"target_step": 0, "kind": list(numbers), "value": list(numbers.values())})
    return pd.concat([long, extra], ignore_index=True)


def _exponents(means: pd.DataFrame) -> dict[str, float]:
    """Exponents of the drift and of its surrogate, over the same steps."""
    later = means[means.index >= 2]
    steps = later.index.to_numpy(np.float64)
    fit = power_law(steps, later["drift"].to_numpy()) if later["drift"].to_numpy().any() and len(later) >= 8 else None
    seen = later["surrogate"].notna()
    surrogate = -0.5 * bands.slope(steps[seen], later["surrogate"][seen])
    return {"alpha": math.nan if fit is None else fit.exponent.value, "alpha_surrogate": surrogate}


def windows(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over stretches of steps that grow with the step: columns arm, kind, target_step (middle), value, se.

    The standard error is that of the mean of seeds and steps, which share next to nothing.
    """
    kept = frame[(frame["target_step"] >= 2) & frame["value"].notna()]
    edges = np.unique(np.round(np.geomspace(2, kept["target_step"].max() + 1, WINDOWS)).astype(int))
    place = np.searchsorted(edges, kept["target_step"], side="right") - 1
    grouped = kept.assign(place=place).groupby(["arm", "kind", "place"])
    found = grouped.agg(
        target_step=("target_step", lambda x: math.exp(np.log(x).mean())),
        value=("value", "mean"),
        se=("value", "sem"),
    )
    return found.reset_index()


def draw(frame: pd.DataFrame) -> Figure:
    """Above: the error and its laws on the run and in the control; below: lag against noise, drift against its surrogate."""
    figure, axes = plots.canvas(2, 2, height=5.4)
    smooth = windows(frame)
    for ax, (arm, title) in zip(axes[0], ARMS.items(), strict=True):
        for kind, look in CURVES.items():
            _curve(frame[(frame["arm"] == arm) & (frame["kind"] == kind)], ax, look)
        _points(smooth[(smooth["arm"] == arm) & (smooth["kind"] == "measured")], ax, _LOOKS["measured"])
        ax.set(title=title, ylabel="squared error, in units of $R$")
    top = [ax.get_ylim() for ax in axes[0]]
    for ax in axes[0]:
        ax.set_ylim(min(low for low, _ in top), max(high for _, high in top))
    _split(frame, smooth, axes[1, 0])
    _drift(frame, smooth, axes[1, 1])
    for ax in axes.flat:
        ax.set_xlabel("target step")
        plots.log_axis(ax.xaxis)
    plots.panel_letters(axes)
    entries = [_handle(look) for look in (_LOOKS["measured"], *CURVES.values(), *list(_LOOKS.values())[1:])]
    return plots.legend_below(figure, entries, columns=2)


_LOOKS: dict[str, Look] = {
    "measured": Look("measured: window means ± standard error (open: not above 0)", "#000000", "o", "none"),
    "lag": Look("measured lag (error less noise by split halves)", "#CC79A7", "D", "none"),
    "shadow": Look("noise, by split halves", "#E69F00", "v", "-"),
    "drift": Look("drift of the mean, by paired probes", "#009E73", "^", "none"),
    "surrogate": Look("step of the running mean (Figure 13)", "#0072B2", "s", (0, (5, 1.5))),
    "surrogate_frozen": Look("the same with frozen weights (no drift)", "#56B4E9", "P", (0, (2, 1))),
}


def _split(frame: pd.DataFrame, smooth: pd.DataFrame, ax: Axes) -> None:
    """The error before each step of the edited run as noise and lag."""
    mine = frame[frame["arm"] == "no_warmup"].pivot_table(index=["seed", "target_step"], columns="kind", values="value")
    lag = (mine["prior_exact"] - mine["prior_noise"]).rename("value").reset_index()
    measured = (mine["prior"] - mine["shadow"]).rename("value").reset_index().assign(arm="", kind="lag")
    _curve(lag, ax, CURVES["exact"])
    _curve(frame[(frame["arm"] == "no_warmup") & (frame["kind"] == "prior_noise")], ax, CURVES["noise"])
    halves = smooth[(smooth["arm"] == "no_warmup") & (smooth["kind"] == "shadow")]
    ax.plot(halves["target_step"], halves["value"], **_drawn(_LOOKS["shadow"]))
    _points(windows(measured), ax, _LOOKS["lag"])
    ax.set(title="error before the step: lag and noise", ylabel="squared error, in units of $R$")


def _drift(frame: pd.DataFrame, smooth: pd.DataFrame, ax: Axes) -> None:
    """Squared sizes: what the mean really moves, and what the surrogate makes of it."""
    for name, arm in (("surrogate", "no_warmup"), ("surrogate_frozen", "no_warmup_frozen")):
        part = frame[(frame["arm"] == arm) & (frame["kind"] == "surrogate") & (frame["target_step"] >= 2)]
        _curve(part, ax, _LOOKS[name])
    _points(smooth[(smooth["arm"] == "no_warmup") & (smooth["kind"] == "drift")], ax, _LOOKS["drift"])
    ax.set(title="drift and its surrogate", ylabel="squared step, in units of $R$")


def _drawn(look: Look) -> dict[str, Any]:
    return {"color": look.color, "linestyle": look.line, "marker": look.marker or None, "markersize": 3.5}


def _curve(part: pd.DataFrame, ax: Axes, look: Look) -> None:
    curve = bands.band(part.assign(all=""), x="target_step", y="value", by=["all"])
    if len(curve):
        drawn = _drawn(look)
        ax.plot(curve["target_step"], curve["mean"], markevery=max(1, len(curve) // 6), zorder=3, **drawn)
        ax.fill_between(curve["target_step"], curve["min"], curve["max"], color=look.color, alpha=0.15, linewidth=0)
    plots.log_axis(ax.yaxis)


def _points(part: pd.DataFrame, ax: Axes, look: Look) -> None:
    """Window means with bars; those that are not positive lie on the lower edge, open."""
    up = part[part["value"] > 0]
    bars = np.stack([np.minimum(up["se"], 0.999 * up["value"]), up["se"]])
    low, high = ax.get_ylim()
    ax.errorbar(
        up["target_step"], up["value"], yerr=bars, color=look.color, marker=look.marker, linestyle="none", zorder=5
    )
    floor = min(low, 0.7 * float(up["value"].min())) if len(up) else low
    down = part[part["value"] <= 0]
    if len(down):  # an empty line that is not clipped would have its box at the figure's corner
        open_: dict[str, Any] = {
            "color": look.color,
            "marker": look.marker,
            "fillstyle": "none",
            "linestyle": "none",
            "zorder": 5,
        }
        ax.plot(down["target_step"], np.full(len(down), floor), clip_on=False, **open_)
    ax.set_ylim(floor, max(high, float(up["value"].max()) * 2) if len(up) else high)


def _handle(look: Look) -> Line2D:
    return Line2D([], [], label=look.label, **_drawn(look))


def ratios(frame: pd.DataFrame, arm: str, above: str, below: str, *, late: bool) -> compare.Interval:
    """Mean of one kind over mean of another, by seed; of the second half of the steps only where `late`."""
    start = frame["target_step"].max() / 2 if late else 1
    mine = frame[(frame["arm"] == arm) & (frame["target_step"] > start) & frame["kind"].isin([above, below])]
    means = mine.dropna(subset=["value"]).groupby(["seed", "kind"])["value"].mean().unstack()
    if means.empty:
        raise DataError(f"{arm}: no {above} or no {below} to compare: make the runs again")
    return compare.t_interval(means[above] / means[below])


def _agrees(claim: str, ratio: compare.Interval, name: str) -> Verdict:
    """Shown where the interval holds 1 and is narrower than a factor of 2 to either side."""
    inside = ratio.low <= 1 <= ratio.high
    answer: Answer = "not shown"
    if inside and ratio.low > 0.5 and ratio.high < 2:
        answer = "shown"
    elif ratio.low > 1 or ratio.high < 1:
        answer = "opposite"
    return Verdict(claim, answer, f"{name} {ratio}")


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Does the bound hold, how loose is it, what is the error made of, and does the drift decay as it should?"""
    numbers = frame[frame["target_step"] == 0].pivot(index=["arm", "seed"], columns="kind", values="value")
    mine = numbers.loc["no_warmup"]
    p, alpha = compare.t_interval(mine["coherence"]), compare.t_interval(mine["alpha"])
    gap = compare.t_interval(mine["alpha"] - mine["alpha_surrogate"])
    still = ratios(frame, "no_warmup_frozen", "prior", "prior_noise", late=False)
    exact = ratios(frame, "no_warmup", "prior", "prior_exact", late=False)
    inside = ratios(frame, "no_warmup", "measured", "paper", late=True)
    worst = ratios(frame, "no_warmup", "measured", "worst", late=True)
    slack = ratios(frame, "no_warmup_frozen", "paper", "noise", late=True)
    noise = ratios(frame, "no_warmup", "prior_noise", "prior_exact", late=True)
    halves = ratios(frame, "no_warmup", "shadow", "prior", late=True)
    room = compare.Interval(1 - inside.mean, 1 - inside.high, 1 - inside.low, inside.n)
    lag = compare.Interval(1 - halves.mean, 1 - halves.high, 1 - halves.low, halves.n)
    return [
        _agrees(
            "frozen weights: the error of the mean is tr Sigma / N, the law without drift", still, "measured over law"
        ),
        _agrees(
            "edited model: the exact law with the measured drift gives the error",
            exact,
            f"coherence p = {p}, fitted to the same batches; measured over law",
        ),
        judge("edited model: the bound of Theorem 3.5 holds", room, name="1 - measured over bound, second half"),
        judge(
            "edited model: the bound of Theorem 3.5 is within a factor of 2 of the error",
            inside,
            name=(
                f"slack {1 / inside.mean:.3g} (worst case {1 / worst.mean:.3g}; frozen weights, over the law, "
                f"{slack.mean:.3g}); measured over bound, second half"
            ),
            shown_above=0.5,
        ),
        judge(
            "edited model: lag makes more than half of the error in the second half",
            lag,
            name=f"share of the lag by the law {1 - noise.mean:.3g}; measured, 1 - noise by split halves over the error before a step,",
            shown_above=0.5,
        ),
        judge("edited model: the drift decays faster than 1/t (Assumption 3.4)", alpha, name="alpha", shown_above=1.0),
        judge(
            "the step of the running mean (Figure 13) decays no faster than the drift that it stands for",
            gap,
            name=f"exponent of the drift less that of the surrogate ({mine['alpha_surrogate'].mean():.3g})",
            shown_above=-0.1,
        ),
    ]
