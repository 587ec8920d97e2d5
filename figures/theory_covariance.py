"""Error of the running covariance: measured, the bound that goes to zero, and the paper's bound with its floor."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from figures import theory
from figures.theory_cells import cell
from figures.verdict import Verdict
from stablediag import plots
from stablediag.stats.theory import paper_floor
from synthetic.grid import Cell, Result
from synthetic.process import CovDrift, MeanDrift, Process, Spectrum
from synthetic.tracks import checkpoints

TITLE = "Covariance: measured, the bound that goes to zero, and the paper's bound with its floor"
SETTINGS = {
    "still": ("nothing moves, $\\Sigma = I$", {"spectrum": Spectrum("iso")}),
    "mean": ("mean drifts by $.5\\,t^{-1.25}$", {"mean": MeanDrift(C=0.5, alpha=1.25)}),
    "covariance": ("$\\Sigma$ drifts by $.3\\,t^{-1.5}$", {"cov": CovDrift(C=0.3, beta=1.5, kind="folding")}),
}
KINDS = {"tight_cov": "tight", "paper_cov": "paper"}


def cells(quick: bool) -> list[Cell]:
    """One process per setting, d = 64 and 20 rows a step."""
    steps = 200 if quick else 1000
    found = []
    for _, changes in SETTINGS.values():
        process = Process(steps=steps, **changes)  # type: ignore[arg-type]
        marks = checkpoints(steps, count=14, first=5)
        found.append(
            cell(
                "measure_bounds",
                "theory-covariance",
                process,
                reps=16 if quick else 60,
                steps=marks,
                bounds=list(KINDS),
            )
        )
    return found


def prepare(cells: Sequence[Cell], results: Sequence[Result]) -> pd.DataFrame:
    """Columns setting, rows, kind, value, se; errors in units of the largest eigenvalue."""
    parts = []
    for setting, one, result in zip(SETTINGS, cells, results, strict=True):
        process = Process.from_params(one.params["process"])
        top = process.spectrum.lmax
        base = {"setting": setting, "rows": [process.n * step for step in one.params["steps"]]}
        measured = {"kind": "measured", "value": result["measured"] / top, "se": result["se"] / top}
        parts.append(pd.DataFrame({**base, **measured}))
        parts += [pd.DataFrame({**base, "kind": kind, "value": result[name] / top}) for name, kind in KINDS.items()]
        floor = paper_floor(d=process.d, n=process.n)
        parts.append(pd.DataFrame({**base, "kind": "floor", "value": floor}))
    return pd.concat(parts, ignore_index=True)


def draw(frame: pd.DataFrame) -> Figure:
    """One panel per setting, with the floor of Theorem 3.6 and the error of the estimate zero."""
    figure, axes = plots.canvas(1, len(SETTINGS), height=2.8, sharey="row")
    for ax, (setting, (title, _)) in zip(axes[0], SETTINGS.items(), strict=True):
        part = frame[frame["setting"] == setting]
        theory.lines(part, ax, x="rows")
        ax.axhline(part.loc[part["kind"] == "floor", "value"].iloc[0], **_FLOOR)
        ax.axhline(1.0, **_ZERO)
        ax.set(title=title, xlabel="rows $N$", xscale="log", yscale="log")
    axes[0, 0].set_ylabel("$E\\|\\hat\\Sigma_t-\\Sigma_t\\|\\;/\\;\\lambda_{\\max}$")
    plots.panel_letters(axes)
    entries = theory.handles(["measured", "tight", "paper"])
    entries.append(plots.Line2D([], [], label="its floor, Theorem 3.6", **_FLOOR))
    entries.append(plots.Line2D([], [], label="error of the estimate 0", **_ZERO))
    return plots.legend_below(figure, entries, columns=3)


_FLOOR = {"color": "#D55E00", "linewidth": 0.8, "linestyle": (0, (1, 1))}
_ZERO = {"color": plots.GREY, "linewidth": 0.8, "linestyle": (0, (1, 1.2))}


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Does the error stop at the paper's floor?"""
    last = frame[frame["rows"] == frame["rows"].max()]
    found = []
    for setting, (title, _) in SETTINGS.items():
        at = last[last["setting"] == setting].set_index("kind")
        measured, se, floor = at.loc["measured", "value"], at.loc["measured", "se"], at.loc["floor", "value"]
        found.append(
            Verdict(
                f"{theory.plain(title)}: the covariance error is limited by the floor of Theorem 3.6",
                "opposite" if measured + 6 * se < floor else "not shown",
                f"error {measured:.3g} (standard error {se:.1g}) at N = {last['rows'].iloc[0]}, floor {floor:.3g}, "
                f"paper / measured {at.loc['paper', 'value'] / measured:.3g}, sharper / measured "
                f"{at.loc['tight', 'value'] / measured:.3g}",
            )
        )
    return found
