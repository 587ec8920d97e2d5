"""What pure noise does to the curves of Figures 7, 13 and 14: they fall although nothing moves, and whatever moves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import theory
from figures.verdict import Verdict
from stablediag import plots
from stablediag.stats.spectra import mp_condition
from synthetic.grid import Cell, Result, derive_seed

TITLE = "Pure noise in the condition number and the drift surrogates (Figures 7, 13, 14)"
SIZE = 64
SETTINGS: dict[str, tuple[str, dict[str, object]]] = {
    "still": ("nothing moves", {}),
    "mean": ("mean drifts for ever", {"mean_size": 0.1, "mean_exponent": 0.0, "mean_direction": "random"}),
    "covariance": ("covariance moves between $I$ and $.05\\,I$ for ever", {"cov_size": 0.003, "cov_exponent": 0.0}),
}
CURVES = {
    "condition": "condition number of $\\hat\\Sigma_t$",
    "mean_step2": "$\\|m_t-m_{t-1}\\|$",
    "cov_step": "$\\|\\hat\\Sigma_t-\\hat\\Sigma_{t-1}\\|$",
}


def cells(quick: bool) -> list[Cell]:
    """One stream per setting."""
    size = {"d": SIZE, "n": 20, "steps": 200 if quick else 2000, "count": 12, "reps": 12 if quick else 30}
    return [
        Cell(
            "synthetic.claims._covariance_noise:measure_noise",
            {**size, **drift},
            derive_seed(0, "theory-noise", name),
            5.0,
        )
        for name, (_, drift) in SETTINGS.items()
    ]


def prepare(cells: Sequence[Cell], results: Sequence[Result]) -> pd.DataFrame:
    """Columns setting, curve, step, rows, value, low, high (two standard errors), slope, slope_se (second half)."""
    parts = []
    for name, result in zip(SETTINGS, results, strict=True):
        base = {"setting": name, "step": result["step"], "rows": result["rows"]}
        for curve in CURVES:
            mean, se = result[curve], result[f"{curve}_se"]
            low, high = mean - 2 * se, mean + 2 * se
            if curve == "condition":
                mean, low, high = np.exp(mean), np.exp(low), np.exp(high)
            elif curve == "mean_step2":
                mean, low, high = np.sqrt(mean), np.sqrt(low), np.sqrt(high)
            key = f"{curve.removesuffix('2')}_slope"
            known = key in result.values
            slopes = {
                "slope": result.number(key) if known else np.nan,
                "slope_se": result.number(f"{key}_se") if known else np.nan,
            }
            parts.append(pd.DataFrame({**base, "curve": curve, "value": mean, "low": low, "high": high, **slopes}))
    return pd.concat(parts, ignore_index=True)


def draw(frame: pd.DataFrame) -> Figure:
    """One panel per curve of the paper."""
    figure, axes = plots.canvas(1, len(CURVES), height=2.9)
    for ax, (curve, label) in zip(axes[0], CURVES.items(), strict=True):
        for name, (color, marker, line) in zip(SETTINGS, theory.PALETTE, strict=False):
            part = frame[(frame["setting"] == name) & (frame["curve"] == curve)]
            ax.plot(part["step"], part["value"], color=color, linestyle=line, marker=marker, markersize=3, zorder=3)
            ax.fill_between(part["step"], part["low"], part["high"], color=color, alpha=0.2, linewidth=0)
        _reference(frame[(frame["curve"] == curve) & (frame["setting"] == "still")], ax, curve)
        ax.set(xscale="log", yscale="log", xlabel="step $t$", title=label)
    plots.panel_letters(axes)
    entries = theory.palette_handles([label for label, _ in SETTINGS.values()])
    entries.append(
        plots.Line2D(
            [], [], color="#000000", linewidth=0.8, linestyle=(0, (1, 1)), label="Marchenko-Pastur; slope $-1$"
        )
    )
    return plots.legend_below(figure, entries, columns=2)


def _reference(still: pd.DataFrame, ax: Axes, curve: str) -> None:
    """The value of identity noise, or a line of slope -1 through the last point of the curve where nothing moves."""
    if curve == "condition":
        value = mp_condition(still["rows"].to_numpy(), SIZE)
    else:
        value = 0.6 * still["value"].iloc[-1] * still["step"].iloc[-1] / still["step"].to_numpy()
    ax.plot(still["step"], value, color="#000000", linewidth=0.8, linestyle=(0, (1, 1)), zorder=4)


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Does a falling surrogate show that the drift decays?"""
    found = []
    for curve, what in (("mean_step2", "mean"), ("cov_step", "covariance")):
        at = frame[frame["curve"] == curve].groupby("setting").first()
        slope, se = at.loc[what, "slope"], at.loc[what, "slope_se"]
        found.append(
            Verdict(
                f"a falling surrogate of the {what} shows that the drift decays (B.6.3)",
                "opposite" if slope + 5 * se < 0 else "shown",
                f"log-log slope {slope:.2f} (standard error {se:.2f}) although the drift never decays; "
                f"{at.loc['still', 'slope']:.2f} when nothing moves",
            )
        )
    fall = frame[(frame["curve"] == "condition") & (frame["setting"] == "still")].sort_values("step")["value"]
    found.append(
        Verdict(
            "a falling condition number shows that conditioning improves (B.3.3)",
            "opposite" if fall.iloc[0] > 2 * fall.iloc[-1] else "shown",
            f"it falls from {fall.iloc[0]:.3g} to {fall.iloc[-1]:.3g} for an identity covariance that never moves",
        )
    )
    return found
