"""Error of the running mean: measured, exact, and bounded, by the direction of the drift."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from figures import theory
from figures.theory_cells import cell
from figures.verdict import Verdict
from stablediag import plots
from synthetic.grid import Cell, Result
from synthetic.process import MeanDrift, Process
from synthetic.tracks import checkpoints

TITLE = "Mean: measured, exact, sharper and paper's bound, by direction of the drift"
DIRECTIONS = {"fixed": "fixed direction", "random": "random directions", "rotating": "rotating direction"}
#: inside the paper's assumption, and a drift that it excludes
ALPHAS = (1.25, 0.5)
KINDS = {"exact_mse": "exact", "worst_mse": "tight", "paper_mse_closed": "paper"}


def cells(quick: bool) -> list[Cell]:
    """One process per direction and exponent."""
    steps = 300 if quick else 2000
    found = []
    for alpha, direction in itertools.product(ALPHAS, DIRECTIONS):
        process = Process(steps=steps, mean=MeanDrift(C=0.3, alpha=alpha, direction=direction))  # type: ignore[arg-type]
        marks = checkpoints(steps, count=16)
        found.append(
            cell("measure_bounds", "theory-mean", process, reps=60 if quick else 400, steps=marks, bounds=list(KINDS))
        )
    return found


def prepare(cells: Sequence[Cell], results: Sequence[Result]) -> pd.DataFrame:
    """Columns alpha, direction, step, kind, value, se."""
    parts = []
    for one, result in zip(cells, results, strict=True):
        process = Process.from_params(one.params["process"])
        steps = one.params["steps"]
        base = {"alpha": process.mean.alpha, "direction": process.mean.direction, "step": steps}
        parts.append(pd.DataFrame({**base, "kind": "measured", "value": result["measured"], "se": result["se"]}))
        parts += [pd.DataFrame({**base, "kind": kind, "value": result[name]}) for name, kind in KINDS.items()]
        still = [process.traces()[0] / (process.n * step) for step in steps]
        parts.append(pd.DataFrame({**base, "kind": "reference", "value": still}))
    return pd.concat(parts, ignore_index=True)


def draw(frame: pd.DataFrame) -> Figure:
    """One column per direction, one row per exponent."""
    figure, axes = plots.canvas(len(ALPHAS), len(DIRECTIONS), height=4.3, sharex="col", sharey="row")
    for (i, alpha), (j, direction) in itertools.product(enumerate(ALPHAS), enumerate(DIRECTIONS)):
        ax = axes[i, j]
        theory.lines(frame[(frame["alpha"] == alpha) & (frame["direction"] == direction)], ax, x="step")
        ax.set(title=f"{DIRECTIONS[direction]}, $\\alpha={alpha:g}$", xscale="log", yscale="log")
        if j == 0:
            ax.set_ylabel("$E\\|m_t-\\mu_t\\|^2$")
        if i == len(ALPHAS) - 1:
            ax.set_xlabel("step $t$")
    plots.panel_letters(axes)
    return plots.legend_below(figure, theory.handles(list(theory.SERIES)), columns=3)


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Is the bound of Theorem 3.5 within a factor of two at the last step?"""
    last = frame[frame["step"] == frame["step"].max()]
    found = []
    for alpha, (direction, title) in itertools.product(ALPHAS, DIRECTIONS.items()):
        at = last[(last["alpha"] == alpha) & (last["direction"] == direction)].set_index("kind")
        slack = at.loc["paper", "value"] / at.loc["measured", "value"]
        found.append(
            Verdict(
                f"{title}, drift .3 t^-{alpha:g}: the bound of Theorem 3.5 is within a factor 2 of the error",
                "shown" if slack <= 2 else "not shown",
                f"bound / measured {slack:.3g}, sharper bound / measured "
                f"{at.loc['tight', 'value'] / at.loc['measured', 'value']:.3g}, exact / measured "
                f"{at.loc['exact', 'value'] / at.loc['measured', 'value']:.3f} "
                f"(standard error {at.loc['measured', 'se'] / at.loc['measured', 'value']:.3f}), t = {last['step'].iloc[0]}",
            )
        )
    return found
