"""What the updates do to the moments and to the weights: Lemma D.1, its constant, and sums of bounded updates.

Part of `synthetic.claims.closed_loop`, with the settings and helpers that both share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike

from synthetic.certify import Row, Test, dominates, equality, lower, row, upper
from synthetic.claims import Scale
from synthetic.closed_loop import ARMS
from synthetic.grid import Cell, Result
from synthetic.loop_cells import THREE

#: by name, the knobs that differ from the defaults; "strong" has ten times the learning rate of "gentle"
SETTINGS: dict[str, dict[str, float]] = {
    "gentle": {"step": 0.1},
    "medium": {"step": 0.3},
    "strong": {"step": 1.0},
    "crowded, skewed labels": {"step": 0.1, "p": 64, "skew": 1.5},
}
CROWDED = "crowded, skewed labels"
#: of the small scale; with labels of unequal frequency the mean gradient varies less from seed to seed, so fewer suffice
SMALL = {"p": 192, "n": 16, "steps": 32, "classes": 24, "population": 240, "held_out": 64, "skew": 1.0}
CELLS = "synthetic.loop_cells"


def loop_cell(
    scale: Scale, name: str, arms: Sequence[str], knobs: Mapping[str, float], reps: tuple[int, int] = (24, 24)
) -> Cell:
    """A run of the loop; claims that ask for the same one share it."""
    params = {
        "reps": scale.replicates(*reps),
        "arms": list(arms),
        "size": scale.pick({}, SMALL),
        "knobs": dict(knobs),
    }
    return Cell(f"{CELLS}:measure_loop", params, scale.seed_of("closed loop", name), cost=4.0 * len(arms))


def settings(scale: Scale, names: Sequence[str] = tuple(SETTINGS)) -> list[Cell]:
    """The named settings, of those that the scale has."""
    kept = [name for name in names if not scale.quick or name in ("gentle", CROWDED)]
    arms = {name: tuple(ARMS) if name == "gentle" else THREE for name in kept}
    return [loop_cell(scale, name, scale.pick(arms[name], THREE[:2]), SETTINGS[name]) for name in kept]


def title(cell: Cell, *more: str) -> str:
    """Setting of a cell of the loop, with its number of seeds."""
    knobs = cell.params["knobs"]
    names = [name for name, setting in SETTINGS.items() if setting == knobs]
    name = names[0] if names else ", ".join(f"{key} {value:g}" for key, value in knobs.items())
    small = ["small model"] if cell.params["size"] else []
    return ", ".join([name, *small, *more, f"{cell.params['reps']} seeds"])


class Seen(TypedDict):
    """Columns of a row for a mean over replicates."""

    measured: float
    error: float


def seen(result: Result, name: str) -> Seen:
    """Mean and standard error of that name."""
    return {"measured": result.number(name), "error": result.number(f"{name} se")}


def at_most(result: Result, name: str, bound: ArrayLike, df: int) -> Test:
    """Is the mean of that name at most `bound`?"""
    return upper(result[name], result[f"{name} se"], bound, df=df)


def at_least(result: Result, name: str, bound: ArrayLike, df: int) -> Test:
    """Is the mean of that name at least `bound`?"""
    return lower(result[name], result[f"{name} se"], bound, df=df)


def equals(result: Result, name: str, exact: ArrayLike, df: int) -> Test:
    """Is the mean of that name equal to `exact`?"""
    return equality(result[name], result[f"{name} se"], exact, df=df)


# Lemma D.1 and its constant


def lemma_cells(scale: Scale) -> list[Cell]:
    hidden = loop_cell(scale, "unseen layer", ("full",), {"step": 0.1, "unseen": 9.0}, (8, 8))
    pair = Cell(f"{CELLS}:measure_pair", {"move": 0.01}, scale.seed_of("pair"), cost=0.1)
    return [hidden, pair, *settings(scale)]


def lemma_rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    """At every step of every replicate, so that nothing is left to chance."""
    hidden, pair, *runs = results
    rows = []
    for cell, result in zip(cells[2:], runs, strict=True):
        for arm in cell.params["arms"]:
            for what, checks, tight, paper in (
                ("drift", ("over probe", "over bound"), "probe", "lipschitz"),
                ("cov", ("over probe", "over sharp", "over paper"), None, "paper constant"),
            ):
                shift = {"drift": "mean", "cov": "covariance"}[what]
                rows.append(
                    row(
                        "lemma-D.1",
                        title(cell, arm, f"shift of the {shift} per unit of update"),
                        [dominates(1.0, result.number(f"{arm}/{what} {check}")) for check in checks],
                        measured=result.number(f"{arm}/{what}"),
                        tight=result.number(f"{arm}/{tight}") if tight else None,
                        paper=result.number(f"{arm}/{paper}"),
                        seconds=result.seconds,
                        note="largest over steps and seeds; L holds for all weights",
                    )
                )
    found, bound = pair.number("cov"), pair.number("sharp")
    for planted, at in ((False, bound), (True, pair.number("planted"))):
        rows.append(
            row(
                "lemma-D.1",
                "one dimension, two mirror requests" + (": factor 2 of the covariance bound left out" * planted),
                [dominates(at, found)],
                measured=found,
                tight=at,
                planted=planted,
                note="" if planted else "2 sqrt(lmax) L |DW| is attained as |DW| goes to zero",
            )
        )
    # The probe measures this layer's own Lipschitz constant; the others move the mean as well.
    reference = next(r for c, r in zip(cells[2:], runs, strict=True) if title(c).startswith("gentle"))
    probe, drift = reference.number("full/probe"), hidden.number("full/drift")
    rows.append(
        row(
            "lemma-D.1",
            "nine other edited layers left out of |DW|",
            [dominates(probe, drift)],
            measured=drift,
            tight=probe,
            planted=True,
            seconds=hidden.seconds,
        )
    )
    return rows


def constant_rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    rows = []
    for cell, result in zip(cells, results, strict=True):
        least = result["full/least loose"]
        for planted, name in ((False, "paper over sharp"), (True, "planted over sharp")):
            ratio = result[f"full/{name}"]
            at = int(np.argmin(ratio / least))
            rows.append(
                row(
                    "audit-7",
                    title(cell, *(["G^2 taken for the largest eigenvalue"] if planted else [])),
                    [dominates(ratio, least)],
                    measured=float(ratio[at]),
                    tight=float(least[at]),
                    slack=float(ratio[at] / least[at]),
                    planted=planted,
                    seconds=result.seconds,
                    note="4 G L over 2 sqrt(lmax) L, where it comes closest to 2 sqrt(tr/lmax)",
                )
            )
    return rows


# Sums of bounded updates


def diffusion_cells(scale: Scale) -> list[Cell]:
    size = {"reps": scale.replicates(400, 200), "steps": scale.pick(300, 80), "d": 8, "p": 16, "n": 4}
    return [
        Cell(
            f"{CELLS}:measure_diffusion",
            {**size, "mean": mean, "centred": mean == 0},
            scale.seed_of("diffusion", mean),
            cost=5.0,
        )
        for mean in (0.0, 0.5)
    ]


def diffusion_rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    rows = []
    for cell, result in zip(cells, results, strict=True):
        df, steps, planted = cell.params["reps"] - 1, result["steps"], not cell.params["centred"]
        rows.append(
            row(
                "audit-10",
                "updates of norm one: |W_T - W_0|^2 is the number of updates"
                + (", with a common mean left in" * planted),
                [equals(result, "distance", steps, df)],
                measured=float(result["distance"][-1]),
                error=float(result["distance se"][-1]),
                exact=float(steps[-1]),
                planted=planted,
                seconds=result.seconds,
            )
        )
        if not planted:
            rows.append(
                row(
                    "audit-10",
                    "bounded orthogonal updates keep the weights bounded: no growth from the first checkpoint on",
                    [at_most(result, "growth", 0.0, df)],
                    **seen(result, "growth"),
                    expected="false",
                    seconds=result.seconds,
                )
            )
    return rows
