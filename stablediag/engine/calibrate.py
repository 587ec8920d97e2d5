"""Step sizes that transfer: a learning rate found by its effect, and factors that match another run's norms.

A learning rate times d_in does not transfer between models, so `calibrate` looks for the smallest rate with a given
immediate efficacy on held-out edits. It relies on an LN update being linear in the learning rate: one capture and one
solve per group of edits serve every candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stablediag.editors.base import Proposal, Tracked
from stablediag.editors.ln import LNEditor
from stablediag.editors.ln_params import Calibration
from stablediag.engine.view import ModelView
from stablediag.errors import NumericalError
from stablediag.evaluation.metrics import CachedPairs, score_cached
from stablediag.maths.update import UpdateT
from stablediag.types import Edit, EditBatch, Phase

#: relative update norms ||Delta||/||W|| that the coarse search visits, as powers of two
_GRID = range(-9, 2)
#: most times that the search halves a learning rate below its grid; float32 weights stop moving long before
_HALVINGS = 40


@dataclass(frozen=True)
class Calibrated:
    """A learning rate, the immediate efficacy measured there, and whether the wanted efficacy was reached."""

    lr: float
    efficacy: float
    reached: bool


def calibrate(editor: LNEditor, view: ModelView, edits: Sequence[Edit], *, phase: Phase, group: int) -> Calibrated:
    """Find the smallest learning rate whose immediate efficacy reaches ``params.calibration.efficacy``.

    Parameters
    ----------
    editor, view : LNEditor, ModelView
        The editor in its present state; neither its state nor the weights differ afterwards.
    edits : Sequence of Edit
        Held-out edits, taught in groups of `group` (the stream's edits per step), each from the same weights.
    phase : str
        Phase that the learning rate is for; it decides how the gradients are normalised. Updates are taken at the
        norm that they have once the statistics are settled, so that a cold start does not inflate the rate.

    Returns
    -------
    Calibrated
        Where the wanted efficacy is out of reach: the best learning rate visited, ``reached`` False.

    Raises
    ------
    NumericalError
        If the update at these edits is zero or not finite, or the unedited model has the wanted efficacy already.
    """
    groups = [tuple(edits[i : i + group]) for i in range(0, len(edits), group)]
    directions = [_direction(editor, view, edits, phase) for edits in groups]
    pairs = [CachedPairs.build([(e.prompt, e.target) for e in edits], view.tokenizer) for edits in groups]
    ratios = [float(update.norm()) / view.weight_norm(name) for found in directions for name, update in found.items()]
    unit = max(ratios)
    # max() overlooks a NaN that is not the first.
    if not all(map(math.isfinite, ratios)) or unit == 0:
        raise NumericalError(
            "calibration: the update of the held-out edits is zero or not finite: look at the gradients"
        )

    def efficacy(lr: float) -> float:
        total = 0.0
        for direction, cached in zip(directions, pairs, strict=True):
            with view.patched({name: update.scaled(lr) for name, update in direction.items()}):
                total += float(score_cached(view.model, cached).token_match.sum())
        return total / len(edits)

    return _smallest(efficacy, [2.0**k / unit for k in _GRID], editor.params.calibration)


def _direction(editor: LNEditor, view: ModelView, edits: tuple[Edit, ...], phase: Phase) -> dict[str, UpdateT]:
    """The updates of one step at learning rate 1 with settled statistics; the editor's state is not committed."""
    captures = view.capture_edits(edits, editor.needs, minibatch=editor.minibatch)
    lr, editor.lr = editor.lr, 1.0
    try:
        batch = EditBatch(index=-1, phase=phase, edits=edits)
        proposals = list(editor.step(view, batch, captures))
    finally:
        editor.lr = lr
    scopes = {scope: tracked for one in proposals for scope, tracked in one.tracked.items()}
    return {one.module: one.update.scaled(_settled(one, scopes[editor.scope_of(one.module)])) for one in proposals}


def _settled(proposal: Proposal, tracked: Tracked) -> float:
    """What the update of a young covariance lacks in norm.

    A row that is part of its own covariance has the whitened energy ``d (1 - (d + 1)/nu)`` on average, almost nothing
    just past ``nu = d + 1``. A rate found there would be far too large a few steps later.
    """
    older = tracked.whitener_nu == tracked.before_nu
    if proposal.whitener is None or not proposal.whitener.active or older:
        return 1.0
    nu, d = tracked.whitener_nu, proposal.update.shape[-1]
    return math.sqrt(nu / (nu - d - 1))


def _smallest(efficacy: Callable[[float], float], grid: Sequence[float], goal: Calibration) -> Calibrated:
    """Coarse ascent over `grid`, then bisection in log(lr) of the first bracket that crosses the goal.

    Where the first rate of the grid reaches the goal already, the grid goes on downwards until one does not.
    """
    wanted = goal.efficacy
    visited: list[Calibrated] = []
    for lr in grid:
        visited.append(_at(lr, efficacy, wanted))
        if visited[-1].reached:
            break
    best = visited[-1]
    if not best.reached:
        return max(visited, key=lambda one: one.efficacy)
    below = visited[-2].lr if len(visited) > 1 else None
    if below is None:
        best, below = _descend(best, efficacy, wanted)
    while best.lr / below > 1 + goal.tolerance:
        middle = _at(math.sqrt(best.lr * below), efficacy, wanted)
        if middle.reached:
            best = middle
        else:
            below = middle.lr
    return best


def _at(lr: float, efficacy: Callable[[float], float], wanted: float) -> Calibrated:
    value = efficacy(lr)
    return Calibrated(lr, value, value >= wanted)


def _descend(first: Calibrated, efficacy: Callable[[float], float], wanted: float) -> tuple[Calibrated, float]:
    """Halve a rate that reaches the goal until one does not: the smallest that does, and the one below it."""
    best = first
    for _ in range(_HALVINGS):
        lower = _at(best.lr / 2, efficacy, wanted)
        if not lower.reached:
            return best, lower.lr
        best = lower
    raise NumericalError(
        f"calibration: the unedited model has an efficacy of {best.efficacy:.3f} on the held-out edits, {wanted} is wanted: "
        "name other edits under `calibration`, or give editor.params.lr a number"
    )


def mean_match(
    run_target: Callable[[], Mapping[str, float]],
    wanted: Mapping[str, float],
    start: Mapping[str, float],
    assign: Callable[[Mapping[str, float]], None],
    *,
    tolerance: float = 0.02,
    rounds: int = 6,
) -> Mapping[str, float]:
    """Fixed-point search for the factors whose pilot run has the wanted mean norms.

    Parameters
    ----------
    run_target : callable
        Runs the pilot from the saved state with the assigned factors; returns the mean norm per module.
    wanted, start : mapping of str to float
        Mean norms of the reference run; factors of the first pilot.
    assign : callable
        Puts factors into the editor.
    tolerance, rounds : float, int
        Largest relative deviation that ends the search; most pilots to run.

    Raises
    ------
    NumericalError
        If a norm is zero or not finite, or the deviation is still larger than the tolerance after `rounds` pilots.
    """
    factors = dict(start)
    _refuse_useless(wanted, "reference run")
    for _ in range(rounds):
        assign(factors)
        got = run_target()
        _refuse_useless(got, "pilot")
        deviation = max(abs(got[name] / wanted[name] - 1) for name in wanted)
        if deviation <= tolerance:
            return factors
        factors = {name: factors[name] * wanted[name] / got[name] for name in wanted}
    raise NumericalError(
        f"match mode mean: norms still {deviation:.1%} off after {rounds} pilots: the run collapses; use mode first or every"
    )


def _refuse_useless(norms: Mapping[str, float], where: str) -> None:
    for name, norm in norms.items():
        if not (math.isfinite(norm) and norm > 0):
            raise NumericalError(
                f"match mode mean: the mean update norm of {name} in the {where} is {norm:g}, which nothing can be scaled "
                "to match: use mode first or every"
            )
