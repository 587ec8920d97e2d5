"""Norm feedback of locate-and-edit, and how anchoring the norm of the target stops it.

An edit that interpolates exactly is an orthogonal projection in the norm ``tr(W C W^T)`` weighted by the covariance C of
the keys, so the norm changes by what the new values have more than the old ones. The weights below are edited in
earnest, with a covariance that is far from the identity; only the size of the new values is prescribed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stablediag.maths import dual_ridge
from stablediag.stats.theory import nas_anchored, nas_growth, nas_step_identity
from synthetic.certify import Row, equality, identical, row
from synthetic.claims import NAS, Claim, Scale
from synthetic.grid import Cell, Result
from synthetic.reduce import mean_se

ID = "nas"
HERE = "synthetic.claims.nas"
#: relative to the squared norm before the edit; the covariance below has condition number 100
TOLERANCE = 1e-10
CONDITION = 100.0
#: squared norm of the weights before the first edit
START = 9.0
#: 1/|k|^2 in the norm of the inverse covariance, the same for every key
K = 0.5
WIDTH, INPUTS = 8, 32
#: keys without a preferred direction see the squared norm of the weights spread over all inputs: b_old = 0
S_OLD = 1 / (K * INPUTS)

Params = dict[str, float]

EXPONENTIAL = "s_new > s_old: exponential"
#: what the squared norm of a new value is: s_new |W|^2 + b_new on average, or the anchor tau^2 surely
REGIMES: Mapping[str, Params] = {
    EXPONENTIAL: {"s_new": 1.7 * S_OLD, "b_new": 0.1},
    "s_new = s_old: linear": {"s_new": S_OLD, "b_new": 0.8},
    "s_new < s_old: saturating": {"s_new": 0.3 * S_OLD, "b_new": 2.0},
    "anchored: saturating": {"tau": 1.8},
}


def edit(weight: Tensor, keys: Tensor, values: Tensor, root: Tensor, *, ridge: float = 0.0) -> Tensor:
    """Locate-and-edit: the smallest change in the weighted norm that maps every key to its value.

    Parameters
    ----------
    weight : Tensor, shape [..., d, p]
    keys : Tensor, shape [..., n, p]
        Linearly independent.
    values : Tensor, shape [..., n, d]
    root : Tensor, shape [p, p]
        Lower triangular root L of the covariance ``C = L L^T`` of the keys.
    ridge : float, optional
        Anything above zero no longer interpolates.

    Returns
    -------
    Tensor, shape [..., d, p]
        ``W + (V - W K)(K^T C^-1 K + ridge I)^-1 K^T C^-1``, keys and values as columns.
    """
    white = _solve_rows(root.mT, keys, upper=True)
    dual = dual_ridge(white, values - keys @ weight.mT, ridge)
    return weight + _solve_rows(root, dual.mT @ white, upper=False)


def _solve_rows(root: Tensor, rows: Tensor, *, upper: bool) -> Tensor:
    """``rows root^-1`` as one system: batched, the solver would copy the root for every replicate."""
    flat = rows.reshape(-1, rows.shape[-1])
    return torch.linalg.solve_triangular(root, flat, upper=upper, left=False).reshape(rows.shape)


def weighted_norm(weight: Tensor, root: Tensor) -> Tensor:
    """``tr(W C W^T)``, shape [...]."""
    return (weight @ root).square().sum(dim=(-2, -1))


def _root(p: int, generator: torch.Generator) -> Tensor:
    """Root of a covariance with log-spaced eigenvalues and a random basis."""
    basis = torch.linalg.qr(torch.randn(p, p, generator=generator, dtype=torch.float64)).Q
    values = torch.logspace(0, -math.log10(CONDITION), p, dtype=torch.float64)
    return torch.linalg.cholesky((basis * values) @ basis.mT)


def measure_identity(*, seed: int, edits: int, trials: int, ridge: float, weighted: bool) -> dict[str, Any]:
    """Largest gap between the change of the squared norm by an edit of `edits` keys at once and its closed form.

    Returns
    -------
    dict
        ``largest``, ``smallest``: over the trials, relative to the squared norm before the edit; ``missed``: largest
        entry of what interpolation leaves.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(trials, *shape, generator=generator, dtype=torch.float64)

    root = _root(INPUTS, generator)
    weight, keys, values = normal(WIDTH, INPUTS), normal(edits, INPUTS) @ root.mT, normal(edits, WIDTH)
    after = edit(weight, keys, values, root, ridge=ridge)
    metric = root if weighted else torch.eye(INPUTS, dtype=torch.float64)
    before = weighted_norm(weight, metric)
    change = nas_step_identity(values.numpy(), (keys @ weight.mT).numpy(), keys.numpy(), (root @ root.mT).numpy())
    gap = np.abs((weighted_norm(after, metric) - before).numpy() - change) / before.numpy()
    missed = (keys @ after.mT - values).abs().max()
    return {"largest": gap.max(), "smallest": gap.min(), "missed": float(missed)}


def measure_growth(*, seed: int, reps: int, points: list[int], target: Params, spread: float) -> dict[str, Any]:
    """Squared norm of the weights after as many edits as `points` say.

    Parameters
    ----------
    target : dict
        ``tau``, or ``s_new`` and ``b_new``, of the new values.
    spread : float
        Below 1. ``1/|k|^2`` is ``K (1 +- spread)`` with equal chances, of mean K.

    Returns
    -------
    dict
        ``mean``, ``se`` of the squared norm at `points`.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(reps, *shape, generator=generator, dtype=torch.float64)

    root = _root(INPUTS, generator)
    weight = normal(WIDTH, INPUTS)
    weight *= (START / weighted_norm(weight, root)).sqrt()[:, None, None]
    norms = []
    for step in range(1, max(points) + 1):
        inverse = K * (1 + spread * torch.sign(normal(1, 1)))
        keys = _unit(normal(1, INPUTS)) / inverse.sqrt() @ root.mT
        values = normal(1, WIDTH)
        if "tau" in target:
            values = target["tau"] * _unit(values)
        else:
            mean_square = target["s_new"] * weighted_norm(weight, root) + target["b_new"]
            values *= (mean_square / WIDTH).sqrt()[:, None, None]
        weight = edit(weight, keys, values, root)
        if step in points:
            norms.append(weighted_norm(weight, root).numpy())
    mean, error = mean_se(np.stack(norms, axis=1))
    return {"mean": mean, "se": error}


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def predicted(points: Sequence[int], target: Params, *, rate: float = K, s_old: float = S_OLD) -> NDArray[np.float64]:
    """Expected squared norm after so many edits."""
    if "tau" in target:
        return nas_anchored(points, START, K=rate, tau=target["tau"], s_old=s_old, b_old=0.0)
    return nas_growth(points, START, K=rate, s_new=target["s_new"], b_new=target["b_new"], s_old=s_old, b_old=0.0)


#: setting, keys at once, ridge, weighted norm; a ridge or the plain norm is a violation
IDENTITIES = (
    ("change of the norm by one key", 1, 0.0, True),
    ("change of the norm by 12 keys at once", 12, 0.0, True),
    ("planted: a ridge, so that nothing is interpolated", 12, 0.3, True),
    ("planted: the norm not weighted by the covariance", 1, 0.0, False),
)
#: of the violation in which K and the old value vary together
SPREAD = 0.5


def cells(scale: Scale) -> list[Cell]:
    """Identities, then one cell for every regime, then keys of two lengths."""
    trials, reps = scale.pick(200, 50), scale.replicates(2000, 400)
    points = scale.pick([10, 30, 100, 200], [10, 30, 80])
    found = []
    for setting, edits, ridge, weighted in IDENTITIES:
        params = {"edits": edits, "trials": trials, "ridge": ridge, "weighted": weighted}
        found.append(Cell(f"{HERE}:measure_identity", params, scale.seed_of(ID, setting), cost=0.1))
    work = [(target, 0.0) for target in REGIMES.values()] + [(REGIMES[EXPONENTIAL], SPREAD)]
    for target, spread in work:
        growth: dict[str, Any] = {"reps": reps, "points": points, "target": target, "spread": spread}
        seed = scale.seed_of(ID, sorted(target.items()), spread)
        found.append(Cell(f"{HERE}:measure_growth", growth, seed, cost=reps * max(points) * 1e-5))
    return found


def rows(done: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    """One row per identity and regime; violations: ridge, plain norm, K inverted, K correlated with the old value."""
    split = len(IDENTITIES)
    table = [
        _identity_row(setting, cell, result)
        for (setting, *_), cell, result in zip(IDENTITIES, done[:split], results[:split], strict=True)
    ]
    grown = list(zip([*REGIMES, EXPONENTIAL], done[split:], results[split:], strict=True))
    for regime, cell, result in grown[:-1]:
        table.append(_growth_row(regime, cell, result, K, S_OLD, planted=False))
    label = "planted: 1/K for K, the exponential regime"
    table.append(_growth_row(label, *grown[0][1:], 1 / K, S_OLD, planted=True))
    # A longer key sees a larger old value and weighs it less: the averages of the two factors do not multiply.
    label = "planted: keys of two lengths, K and s_old averaged apart"
    table.append(_growth_row(label, *grown[-1][1:], K, S_OLD / (1 - SPREAD**2), planted=True))
    return table


def _identity_row(setting: str, cell: Cell, result: Result) -> Row:
    planted = cell.params["ridge"] > 0 or not cell.params["weighted"]
    # A violation must show in every trial, as the statement must hold in every one.
    gap = result.number("smallest" if planted else "largest")
    return row(
        ID,
        setting,
        [identical(gap, TOLERANCE)],
        measured=gap,
        exact=0.0,
        planted=planted,
        seconds=result.seconds,
        note=f"relative to the norm before; values missed by {result.number('missed'):.1e}",
    )


def _growth_row(setting: str, cell: Cell, result: Result, rate: float, s_old: float, *, planted: bool) -> Row:
    """Equality at every point; the numbers shown are those of the last."""
    points = cell.params["points"]
    exact = predicted(points, cell.params["target"], rate=rate, s_old=s_old)
    return row(
        ID,
        setting,
        [equality(result["mean"], result["se"], exact, df=cell.params["reps"] - 1)],
        measured=result["mean"][-1],
        error=result["se"][-1],
        exact=exact[-1],
        planted=planted,
        seconds=result.seconds,
        note=f"|W|^2 after {points[-1]} edits, {START:g} before the first",
    )


CLAIMS = (
    Claim(
        ID,
        "exact edits feed the norm: |W_n|^2 grows as r^n, r = 1 + K(s_new - s_old); an anchored norm saturates",
        NAS,
        cells,
        rows,
    ),
)
