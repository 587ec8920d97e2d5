"""Claims about the energy of an update: its bias, its characteristic part, the whitened rows, and the start-up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stablediag.stats import theory
from synthetic.certify import Row, Test, dominates, equality, lower, row, upper
from synthetic.claims import STABLEEDIT, Claim
from synthetic.claims import _updates_measure as measure
from synthetic.claims._updates_measure import N_ROWS, D
from synthetic.grid import Cell, Result

Floats = NDArray[np.float64]

#: what is exact for Gaussian rows only is certified for others within this factor
SKEWED = 1.15


class Exact(NamedTuple):
    """Names in a result: what was measured, its exact value, and the gap between the two given the features."""

    measured: str
    exact: str
    gap: str


BIAS_EXACT = Exact("bias", "hotelling", "bias_gap")
ENERGY_EXACT = Exact("update", "energy", "energy_gap")
#: the value for statistics with the step's own rows, whatever the stream has
ALGORITHM = Exact("update", "algorithm", "algorithm_gap")


def df(cell: Cell) -> int:
    """Degrees of freedom of a cell's standard errors."""
    return int(cell.params["reps"]) - 1


def within(mean: float, se: float, exact: float, factor: float, *, df: int) -> list[Test]:
    """Is the expectation certainly between ``exact/factor`` and ``exact * factor``?"""
    return [upper(mean, se, exact * factor, df=df), lower(mean, se, exact / factor, df=df)]


def vanishes(result: Result, name: str, *, df: int) -> Test:
    """Is the expectation zero at every point?"""
    return equality(result[name], result[f"{name}_se"], 0.0, df=df)


def bias_bound(result: Result, *, constant: float = theory.PAPER_EIGHTH, lipschitz: float = 1.0) -> Floats:
    """``C_a E_t`` with the exact E_t and the moments of the stream, [K]; times the squared Lipschitz constant."""
    C_a = theory.paper_C_a(N_ROWS, result["M_phi"], result["M_S"], constant=constant)
    return np.asarray(lipschitz**2 * C_a * result["mse"])


def char_bound(result: Result) -> Floats:
    """C_b with the moments of the stream, whose largest eigenvalue is one, [K]."""
    return np.asarray(theory.paper_C_b(N_ROWS, D, 1.0, result["M_phi"], result["M_S"]))


def spread(result: Result) -> str:
    """The numbers of rows of a cell, for the name of a setting."""
    rows = result["rows"]
    return f"N = {rows[0]}" + (f" ... {rows[-1]}" if len(rows) > 1 else "")


def exact_row(
    claim: str,
    setting: str,
    cell: Cell,
    result: Result,
    of: Exact,
    *,
    expected: Literal["holds", "false"] = "holds",
    planted: bool = False,
    note: str = "",
) -> Row:
    """Equality at every recorded step, by the gap given the features; the numbers shown are those of the first step."""
    ratio = result[of.measured] / result[of.exact]
    return row(
        claim,
        f"{setting}, {spread(result)}",
        [vanishes(result, of.gap, df=df(cell))],
        measured=result[of.measured][0],
        error=result[f"{of.gap}_se"][0],
        exact=result[of.exact][0],
        expected=expected,
        planted=planted,
        seconds=result.seconds,
        note=note or "measured/exact " + ", ".join(f"{x:.3f}" for x in ratio),
    )


def bound_row(
    claim: str,
    setting: str,
    cell: Cell,
    result: Result,
    *,
    name: str,
    paper: Floats,
    tight: Floats | None = None,
) -> Row:
    """A bound at every recorded step; the numbers shown are those of the step where it is sharpest."""
    slack = paper / result[name]
    k = int(np.argmin(slack))
    bounds = [paper] if tight is None else [paper, tight]
    return row(
        claim,
        f"{setting}, {spread(result)}",
        [upper(result[name], result[f"{name}_se"], bound, df=df(cell)) for bound in bounds],
        measured=result[name][k],
        error=result[f"{name}_se"][k],
        tight=None if tight is None else tight[k],
        paper=paper[k],
        seconds=result.seconds,
        note=f"slack {slack.min():.0f} to {slack.max():.0f}",
    )


def bias_rows(done: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    """Theorem 3.8(a): the paper's bound, the equality of Gaussian rows, and how far other laws are from it."""
    found = dict(zip(BIAS, zip(done, results, strict=True), strict=True))
    claim, table = "theorem-3.8a", []
    for name in ("gauss", "drift"):
        cell, result = found[name]
        paper, sharp = bias_bound(result), bias_bound(result, constant=theory.SHARP_EIGHTH)
        table.append(bound_row(claim, f"C_a E_t, {name}", cell, result, name="bias", paper=paper, tight=sharp))
    table.append(exact_row(claim, "equality, gauss", *found["gauss"], BIAS_EXACT))
    for name, k in (("student", 0), ("exponential", -1)):
        cell, result = found[name]
        bias, se, exact = (result[key][k] for key in ("bias", "bias_gap_se", "hotelling"))
        table.append(
            row(
                claim,
                f"Gaussian value within {SKEWED - 1:.0%}, {name}, N = {result['rows'][k]}",
                within(bias, se, exact, SKEWED, df=df(cell)),
                measured=bias,
                error=se,
                exact=exact,
                seconds=result.seconds,
                note=f"off by {bias / exact - 1:+.1%}",
            )
        )
    cell, result = found["exponential"]
    off = ", ".join(f"{x:+.1%}" for x in result["bias"] / result["hotelling"] - 1)
    table.append(
        exact_row(
            claim, "equality, exponential", cell, result, BIAS_EXACT, expected="false", note=f"O(skewness/N): {off}"
        )
    )
    cell, result = found["uncentred"]
    stays, falls = (", ".join(f"{x:.3g}" for x in result[name]) for name in ("bias", "hotelling"))
    table.append(
        exact_row(
            claim, "planted: no centring", cell, result, BIAS_EXACT, planted=True, note=f"{stays} instead of {falls}"
        )
    )
    return table


def char_rows(done: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    """Theorem 3.8(b): the upper bound that is proved."""
    return [
        bound_row("theorem-3.8b", f"C_b, {name}", cell, result, name="char", paper=char_bound(result))
        for name, cell, result in zip(CHAR, done, results, strict=True)
    ]


def energy_rows(done: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    """Corollary 3.9: the paper's bound, and the equality of any exchangeable law."""
    found = dict(zip(ENERGY, zip(done, results, strict=True), strict=True))
    claim, table = "corollary-3.9", []
    for name in ("gauss", "drift"):
        cell, result = found[name]
        paper = 2 * (char_bound(result) + bias_bound(result))
        table.append(bound_row(claim, f"2(C_b + C_a E_t), {name}", cell, result, name="update", paper=paper))
    for name in ("gauss", "student", "exponential", "pool"):
        table.append(exact_row(claim, f"equality, {name}", *found[name], ENERGY_EXACT))
    setting = "planted: statistics from before the step"
    table.append(exact_row(claim, setting, *found["before"], ALGORITHM, planted=True))
    return table


def norm_rows(done: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    """Whitened rows: their energy in and out of sample, the sure bound, and the divisor that would be wrong."""
    claim, table = "whitened-norm", []
    for name, cell, result in zip(NORM, done, results, strict=True):
        rows, fresh, planted = result["rows"], name == "before", name == "divisor"
        exact = (theory.whitened_norm_out if fresh else theory.whitened_norm)(D, rows)
        setting = "planted: divisor N - 1" if planted else "out of sample, gauss" if fresh else name
        table.append(
            row(
                claim,
                f"{setting}, {spread(result)}",
                [equality(result["row"], result["row_se"], exact, df=df(cell))],
                measured=result["row"][0],
                error=result["row_se"][0],
                exact=exact[0],
                planted=planted,
                seconds=result.seconds,
                note="measured/exact " + ", ".join(f"{x:.3f}" for x in result["row"] / exact),
            )
        )
        if name in ("gauss", "student", "pool"):
            largest = float(result["sure"].max())
            table.append(
                row(
                    claim,
                    f"sure bound of |DW|, {name}, {spread(result)}",
                    [dominates(1.0, largest)],
                    measured=largest,
                    tight=1.0,
                    seconds=result.seconds,
                    note=f"largest ratio of {cell.params['reps'] * len(rows)}",
                )
            )
    return table


def parts_rows(done: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    """Cross term of the two parts: minus twice the bias energy with the algorithm's statistics, zero with those before."""
    claim, table = "pythagoras", []
    for name, cell, result in zip(PARTS, done, results, strict=True):
        before = name == "before"
        variants = [("cross", 0.0, False), ("balance", -2.0, True)] if before else [("balance", -2.0, False)]
        for gap, exact, planted in variants:
            ratio = result["cross"] / result["bias"]
            setting = "gauss, statistics from before the step" if before else name
            table.append(
                row(
                    claim,
                    f"planted: cross term -2 of {setting}" if planted else f"{setting}, {spread(result)}",
                    [vanishes(result, gap, df=df(cell))],
                    measured=ratio[0],
                    error=(result[f"{gap}_se"] / result["bias"])[0],
                    exact=exact,
                    planted=planted,
                    seconds=result.seconds,
                    note="cross/bias " + ", ".join(f"{x:.2f}" for x in ratio),
                )
            )
    return table


def floor_rows(done: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    """Remark D.9: the lower bound that is true, the uniform one that is not, and the notch where the covariance begins."""
    claim, table = "remark-D.9", []
    for name, cell, result in zip(("before", "drift before"), done, results, strict=False):
        bound = theory.char_lower(result["phi_sq"], result["inflation"], d=D)
        k = int(np.argmin(result["char"] / bound))
        table.append(
            row(
                claim,
                f"lower bound with the inflation of Sh, {name}, {spread(result)}",
                [lower(result["char"], result["char_se"], bound, df=df(cell))],
                measured=result["char"][k],
                error=result["char_se"][k],
                tight=bound[k],
                slack=float(result["char"][k] / bound[k]),
                seconds=result.seconds,
                note="measured/bound " + ", ".join(f"{x:.2f}" for x in result["char"] / bound),
            )
        )
    cell, result = done[-1], results[-1]
    first, begun = (int(rows) for rows in result["rows"])
    norms, errors = result["row"], result["row_se"]
    exact = np.array([D * (1 - 1 / first), float(theory.whitened_norm(D, begun))])
    table.append(
        row(
            claim,
            f"uniform lower bound d/2 of E|v~|^2, N = {begun}",
            [lower(norms[1], errors[1], D / 2, df=df(cell))],
            measured=norms[1],
            error=errors[1],
            exact=exact[1],
            paper=D / 2,
            expected="false",
            seconds=result.seconds,
        )
    )
    notch = float(np.sqrt(norms[1] / norms[0]))
    table.append(
        row(
            claim,
            f"start-up notch of the norm, diagonal at N = {first}, full at N = {begun}",
            [equality(norms, errors, exact, df=df(cell))],
            measured=notch,
            error=notch * float(np.hypot(*(errors / norms))) / 2,
            exact=float(np.sqrt(exact[1] / exact[0])),
            seconds=result.seconds,
            note=f"sqrt(1 - (d+1)/N) = {np.sqrt(1 - (D + 1) / begun):.3f}",
        )
    )
    return table


#: settings of each claim
BIAS = ("gauss", "drift", "student", "exponential", "uncentred")
CHAR = ("gauss", "drift")
ENERGY = ("gauss", "drift", "student", "exponential", "pool", "before")
NORM = ("gauss", "student", "exponential", "pool", "before", "divisor")
PARTS = ("gauss", "student", "exponential", "before")

CLAIMS = (
    Claim(
        "theorem-3.8a",
        "the bias energy is at most C_a E_t; for Gaussian rows it is |Phi|^2 (d/N)(N-d-1)/(N-d-2)",
        f"{STABLEEDIT}, Theorem 3.8(a)",
        lambda scale: [measure.energies(scale, name) for name in BIAS],
        bias_rows,
    ),
    Claim(
        "theorem-3.8b",
        "the energy of the characteristic part is at most C_b",
        f"{STABLEEDIT}, Theorem 3.8(b)",
        lambda scale: [measure.energies(scale, name) for name in CHAR],
        char_rows,
    ),
    Claim(
        "corollary-3.9",
        "E|DW|^2 is at most 2(C_b + C_a E_t); exactly d(1-(d+1)/N)(N sum|phi|^2 - |Phi|^2)/(N-1), any exchangeable law",
        f"{STABLEEDIT}, Corollary 3.9",
        lambda scale: [measure.energies(scale, name) for name in ENERGY],
        energy_rows,
    ),
    Claim(
        "whitened-norm",
        "E|v~|^2 = d(1-(d+1)/N) for any exchangeable law, d(1+1/N)(N-d-1)/(N-d-2) out of sample; |DW| is bounded surely",
        "derived here",
        lambda scale: [measure.energies(scale, name) for name in NORM],
        norm_rows,
    ),
    Claim(
        "pythagoras",
        "the cross term of the parts is -2 E|DW_bias|^2, so E|DW|^2 = E|DW_char|^2 - E|DW_bias|^2",
        "derived here",
        lambda scale: [measure.energies(scale, name) for name in PARTS],
        parts_rows,
    ),
    Claim(
        "remark-D.9",
        "updates have a lower bound only through the inflation of Sh: at N = d + 2 next to nothing is left",
        f"{STABLEEDIT}, Remark D.9",
        lambda scale: [*(measure.energies(scale, name) for name in ("before", "drift before")), measure.startup(scale)],
        floor_rows,
    ),
)
