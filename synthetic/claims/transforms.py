"""Claims about transforms of the whitened rows, and sentences about whitening and interference that do not follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stablediag.maths import dual_ridge
from stablediag.stats import theory
from synthetic.certify import Row, dominates, equality, identical, row, upper
from synthetic.claims import STABLEEDIT, Claim, Scale
from synthetic.claims import _updates_measure as measure
from synthetic.claims._updates_energy import bias_bound, bound_row, df, vanishes, within
from synthetic.claims._updates_measure import N_ROWS, D
from synthetic.grid import Cell, Result
from synthetic.update_stream import TRANSFORMS

Floats = NDArray[np.float64]

HERE = "synthetic.claims.transforms"
BOUNDED, ODD, EVEN_PART = ("tanh", "sine", "relu"), ("tanh", "sine"), ("relu", "abs")
#: the cosine floor is that of exact whitening: certified within this factor
FLOOR_CLOSE = 1.15
#: relative to the estimate; the covariance of the outputs has condition number 100
TOLERANCE = 1e-10
#: smallest ratio of mean squared errors that would be called a gain
GAIN = 1.01
OUTPUTS, INPUTS, ROWS = 6, 5, 40


def norm_bound(result: Result, lipschitz: float, at_zero: float = 0.0) -> Floats:
    """Corollary D.7 on the energy of the whole update with gamma = 1 and a largest eigenvalue of one, [K].

    Parameters
    ----------
    result : Result
        Of `measure_energies`.
    lipschitz, at_zero : float
        Lipschitz constant, and Frobenius norm of the transform of a zero matrix.
    """
    fourth = N_ROWS**2 * 9 * np.sqrt(result["M_S"]) * D * (D + 2)
    return np.asarray(N_ROWS * np.sqrt(result["M_phi"] * 8 * (at_zero**4 + lipschitz**4 * fourth)))


def cosine_floor(name: str, result: Result) -> float:
    """Cosine that the mean of a transform of exactly whitened Gaussian rows leaves, given the features."""
    floor = theory.transform_floor(name)
    inner, own = result.number("coherence"), result.number("self_coherence")
    return float(theory.signal_cosine(floor, 1 - floor, Phi_inner=inner, phi_sq=1.0, Phi_sq=own))


def transform_cells(scale: Scale) -> list[Cell]:
    """Energies, then pairs."""
    return [
        *(measure.energies(scale, name) for name in BOUNDED),
        *(measure.pairs(scale, name) for name in (*ODD, "relu")),
    ]


def transform_rows(done: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    """Bounds for every Lipschitz transform, no interference for odd ones, a floor for ReLU."""
    claim, table = "corollary-D.7", []
    for name, cell, result in zip(BOUNDED, done, results, strict=False):
        lipschitz = TRANSFORMS[name][1]
        paper = bias_bound(result, lipschitz=lipschitz)
        sharp = bias_bound(result, lipschitz=lipschitz, constant=theory.SHARP_EIGHTH)
        table.append(bound_row(claim, f"L^2 C_a E_t, {name}", cell, result, name="bias", paper=paper, tight=sharp))
        paper = norm_bound(result, lipschitz)
        table.append(bound_row(claim, f"norm, {name}", cell, result, name="update", paper=paper))
    start = len(BOUNDED)
    for name, cell, result in zip(ODD, done[start:], results[start:], strict=False):
        table.append(_orthogonal_row(claim, f"no interference, {name}", cell, result))
    cell, result = done[-1], results[-1]
    floor = cosine_floor("relu", result)
    cosine, error = result.number("cosine"), result.number("cosine_se")
    table.append(
        row(
            claim,
            f"cosine floor of relu, within {FLOOR_CLOSE - 1:.0%}",
            within(cosine, error, floor, FLOOR_CLOSE, df=df(cell)),
            measured=cosine,
            error=error,
            exact=floor,
            seconds=result.seconds,
            note=f"1/pi x feature coherence {result.number('coherence'):.3f}, corrected for |Phi|^2",
        )
    )
    table.append(_orthogonal_row(claim, "planted: relu called orthogonal", cell, result, planted=True))
    return table


def floor_rows(done: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    """Orthogonality under every Lipschitz transform: false once the transform has an even part."""
    return [
        _orthogonal_row("audit-9", f"no interference, {name}", cell, result, floor=cosine_floor(name, result))
        for name, cell, result in zip(EVEN_PART, done, results, strict=True)
    ]


def _orthogonal_row(
    claim: str, setting: str, cell: Cell, result: Result, *, floor: float | None = None, planted: bool = False
) -> Row:
    """Zero inner products of all pairs; with a floor the statement is expected to be false."""
    note = f"mean cosine; feature coherence {result.number('coherence'):.3f}"
    return row(
        claim,
        setting,
        [vanishes(result, "inner", df=df(cell))],
        measured=result.number("cosine"),
        error=result.number("cosine_se"),
        exact=0.0,
        expected="holds" if floor is None else "false",
        planted=planted,
        seconds=result.seconds,
        note=note if floor is None else f"{note}; floor predicted {floor:.4f}",
    )


def product_rows(done: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    """With s fixed the Cauchy-Schwarz product stays, although the inner products that it bounds are zero on average."""
    claim, (cell,), (result,) = "audit-2", done, results
    steps = cell.params["steps"]
    s, t = result["s"], result["t"]
    fixed = np.flatnonzero(s == 0)
    first, last = int(fixed[0]), int(fixed[-1])
    product, error, exact = result["product"], result["product_se"], result["product_exact"]
    inner, inner_se, term, term_se = (result[name] for name in ("inner", "inner_se", "term", "term_se"))
    where = f"s = {steps[0]}, t = {', '.join(str(steps[k]) for k in t[fixed])}"
    return [
        row(
            claim,
            f"the Cauchy-Schwarz product has halved, s = {steps[0]}, t = {steps[t[first]]} to {steps[t[last]]}",
            [upper(product[last], error[last], exact[first] / 2, df=df(cell))],
            measured=product[last],
            error=error[last],
            exact=exact[last],
            paper=exact[first] / 2,
            expected="false",
            seconds=result.seconds,
            note="product " + ", ".join(f"{x:.4g}" for x in product[fixed]),
        ),
        row(
            claim,
            "the product is sqrt(E|DW_bias,s|^2 E|DW_char,t|^2) of the exact energies, all pairs",
            [equality(product, error, exact, df=df(cell))],
            measured=product[last],
            error=error[last],
            exact=exact[last],
            seconds=result.seconds,
        ),
        row(
            claim,
            f"the conclusion, E<DW_s, DW_t> = 0, {where}",
            [equality(inner[fixed], inner_se[fixed], 0.0, df=df(cell))],
            measured=inner[last],
            error=inner_se[last],
            exact=0.0,
            seconds=result.seconds,
            note=f"E<DW_bias,s, DW_char,t> {term[last]:.3g} +- {term_se[last]:.2g}",
        ),
    ]


def measure_gls(*, seed: int, trials: int, own_design: bool, ridge: float) -> dict[str, Any]:
    """Regression of several correlated outputs: each by itself, or whitened.

    With a common design the keys of a step play the design, and generalised least squares is the regression of whitened
    outputs taken back. Otherwise every output has its own regressors.

    Returns
    -------
    dict
        ``difference``: largest entry of the difference of the two estimates over the largest of the plain one, the
        ``smallest`` and the largest over the trials; ``gain`` and ``gain_se``: mean squared error of the plain
        estimate over that of the whitened one.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(trials, *shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(normal(OUTPUTS, OUTPUTS)).Q
    values = torch.logspace(0, -2, OUTPUTS, dtype=torch.float64)
    root = basis * values.sqrt().unsqueeze(-2)
    design = normal(OUTPUTS, ROWS, INPUTS) if own_design else normal(1, ROWS, INPUTS).expand(-1, OUTPUTS, -1, -1)
    truth = normal(OUTPUTS, INPUTS)
    signal = (design @ truth.unsqueeze(-1)).squeeze(-1)
    outputs = signal + root @ normal(OUTPUTS, ROWS)
    if ridge:
        plain = (design.mT @ dual_ridge(design, outputs.unsqueeze(-1), ridge)).squeeze(-1)
    else:
        plain = torch.linalg.lstsq(design, outputs.unsqueeze(-1)).solution.squeeze(-1)
    whitened = _generalised(design, outputs, torch.linalg.inv(root @ root.mT), ridge)
    difference = (whitened - plain).abs().amax(dim=(-2, -1)) / plain.abs().amax(dim=(-2, -1))
    errors = [(one - truth).square().sum(dim=(-2, -1)) for one in (plain, whitened)]
    ratio = float(errors[0].mean() / errors[1].mean())
    spread = errors[0] / errors[0].mean() - errors[1] / errors[1].mean()
    return {
        "difference": float(difference.max()),
        "smallest": float(difference.min()),
        "gain": ratio,
        "gain_se": ratio * float(spread.std()) / trials**0.5,
    }


def _generalised(design: Tensor, outputs: Tensor, precision: Tensor, ridge: float) -> Tensor:
    """Penalised generalised least squares with the whole weight matrix [R, outputs x rows, outputs x rows] spelled out.

    The penalty is that of a ridge on whitened outputs: ``precision`` times `ridge` on the coefficients.
    """
    trials, outs, _, inputs = design.shape
    normal = torch.einsum("rij,rink,rjnl->rikjl", precision, design, design)
    penalty = ridge * torch.einsum("rij,kl->rikjl", precision, torch.eye(inputs, dtype=torch.float64))
    right = torch.einsum("rij,rink,rjn->rik", precision, design, outputs)
    size = outs * inputs
    system = (normal + penalty).reshape(trials, size, size)
    return torch.linalg.solve(system, right.reshape(trials, size)).view(trials, outs, inputs)


#: setting, own design of every output, ridge
REGRESSIONS = (
    ("least squares, a common design", False, 0.0),
    ("ridge 10, a common design", False, 10.0),
    ("least squares, a design for every output", True, 0.0),
)


def gls_cells(scale: Scale) -> list[Cell]:
    """One cell for every regression."""
    trials = scale.replicates(400, 100)
    return [
        Cell(
            f"{HERE}:measure_gls",
            {"trials": trials, "own_design": own, "ridge": ridge},
            scale.seed_of("audit-8", setting),
            cost=0.1,
        )
        for setting, own, ridge in REGRESSIONS
    ]


def gls_rows(done: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    """Whitened and plain estimates are the same to rounding, so there is nothing to gain; other designs differ."""
    table = []
    for (setting, own, _), cell, result in zip(REGRESSIONS, done, results, strict=True):
        # A violation must show in every trial, the statement hold in every one.
        difference = result.number("smallest" if own else "difference")
        gain = result.number("gain")
        table.append(
            row(
                "audit-8",
                f"{'planted: ' if own else ''}whitening the outputs changes nothing: {setting}",
                [identical(difference, TOLERANCE)],
                measured=difference,
                exact=0.0,
                planted=own,
                seconds=result.seconds,
                note=f"relative difference, {cell.params['trials']} trials; ratio of mean squared errors {gain:.3f}",
            )
        )
    result = results[0]
    table.append(
        row(
            "audit-8",
            f"whitening the outputs is more efficient, by {GAIN - 1:.0%} at least: {REGRESSIONS[0][0]}",
            [dominates(result.number("gain"), GAIN)],
            measured=result.number("gain"),
            exact=1.0,
            expected="false",
            seconds=result.seconds,
            note="ratio of mean squared errors",
        )
    )
    return table


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "corollary-D.7",
        "a Lipschitz transform of the whitened rows keeps the bounds; an odd one keeps updates orthogonal",
        f"{STABLEEDIT}, Corollary D.7",
        transform_cells,
        transform_rows,
    ),
    Claim(
        "audit-2",
        "with s fixed, <DW_bias,s, DW_char,t> does not vanish by Cauchy-Schwarz as t grows; the conclusion is true",
        f"{STABLEEDIT}, Theorem 3.8(c)",
        lambda scale: [measure.pairs(scale, "gauss")],
        product_rows,
    ),
    Claim(
        "audit-8",
        "whitening the outputs of a regression with a common design makes it more efficient",
        f"{STABLEEDIT}, Remark D.9; A. Zellner, An efficient method of estimating seemingly unrelated regressions, 1962",
        gls_cells,
        gls_rows,
    ),
    Claim(
        "audit-9",
        "every Lipschitz transform keeps updates of different steps orthogonal",
        f"{STABLEEDIT}, Corollary D.7(c)",
        lambda scale: [measure.pairs(scale, name) for name in EVEN_PART],
        floor_rows,
    ),
)
