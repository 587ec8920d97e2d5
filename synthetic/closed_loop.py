"""The editing loop closed: the gradients answer the updates, and every moment is known exactly.

The loop is the editor's own (`stablediag.maths`): running moments, whitener, key coefficient, dual ridge. Only the model is
a toy (`synthetic.softmax`). All arms edit the same requests in the same order, so arms are compared replicate by replicate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stablediag.errors import SpecError
from stablediag.maths import NIW, DiagNIW, LowRank, diagonal_whitener, gradient_whitener, key_coefficient, ln_update
from stablediag.maths.whiten import Kind, Whitener
from synthetic.grid import derive_seed
from synthetic.loop_types import ARMS, Arm, Floats, Loop, Outcome, Path, joined
from synthetic.softmax import Model, Moments, divergence, draw_model, lipschitz, log_probabilities, moments

__all__ = ["ARMS", "Arm", "Loop", "Outcome", "Path", "run_loop"]

#: replicates edited together: a population of 1,000 keys of width 384 takes 3 MB for each
BLOCK = 24


@dataclass(eq=False)
class _Series:
    """Values [R] step by step, in one block: small tensors kept between large ones that go would fragment the memory."""

    rows: Floats
    count: int = 0

    def append(self, value: Tensor) -> None:
        self.rows[self.count] = value.numpy()
        self.count += 1

    @property
    def last(self) -> Tensor:
        return torch.from_numpy(self.rows[self.count - 1])

    def array(self) -> Floats:
        """All values, [R, count]."""
        return np.ascontiguousarray(self.rows[: self.count].T)


@dataclass(eq=False)
class _State:
    """An arm on its way: running moments, the layer's output, and what was measured so far."""

    arm: Arm
    moments: NIW
    output: Tensor  # W^T h of the population [R, M, d]
    other: Tensor  # of the held-out set [R, O, d]
    now: Moments
    travelled2: Tensor
    last: LowRank | None
    series: dict[str, _Series]
    steps: int
    before: Moments | None = None

    def record(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            if name not in self.series:
                self.series[name] = _Series(np.empty((self.steps, len(value))))
            self.series[name].append(value)


def run_loop(
    loop: Loop,
    arms: Sequence[str] = ("full",),
    *,
    reps: int,
    seed: int,
    checkpoints: Sequence[int] | None = None,
    spectra: bool = True,
) -> Outcome:
    """Edit `reps` independent models, in every arm.

    Parameters
    ----------
    loop : Loop
    arms : sequence of str
        Names in `ARMS`; an arm that another is matched to must come before it.
    reps : int
        Independent models and streams. Arms share both.
    seed : int
    checkpoints : sequence of int, optional
        Steps at which feedback and divergence are measured; five by default, the last step always.
    spectra : bool, optional
        Measure `Path.top` and `Path.cov_drift`, a quarter of the time; they are NaN otherwise.

    Raises
    ------
    SpecError
        An unknown arm, or one matched to an arm that has not run; a number of replicates below one.
    """
    _check_arms(arms)
    if reps < 1:
        raise SpecError(f"reps: must be at least 1, got {reps}")
    marks = _marks(loop.steps, checkpoints)
    starts = range(0, reps, BLOCK)
    seeds = [seed if start == 0 else derive_seed(seed, "block", start) for start in starts]
    return joined(
        [
            _run_block(loop, arms, reps=min(BLOCK, reps - start), seed=one, marks=marks, spectra=spectra)
            for start, one in zip(starts, seeds, strict=True)
        ]
    )


def _run_block(loop: Loop, arms: Sequence[str], *, reps: int, seed: int, marks: set[int], spectra: bool) -> Outcome:
    """`run_loop` on replicates that fit into memory together."""
    generator = torch.Generator().manual_seed(seed)
    model = draw_model(
        reps=reps,
        d=loop.d,
        p=loop.p,
        classes=loop.classes,
        population=loop.population,
        held_out=loop.held_out,
        key_mean=loop.key_mean,
        skew=loop.skew,
        generator=generator,
    )
    # With replacement: batches are then independent draws from the population, whose moments are therefore exact.
    batches = torch.randint(loop.population, (loop.steps, reps, loop.n), generator=generator)
    start = moments(model.base, model.head, model.labels)
    unedited = log_probabilities(model.other_base, model.head)
    states = {name: _begin(ARMS[name], model, start, loop.steps) for name in arms}
    key_moments = DiagNIW.empty(loop.p, batch_shape=(reps,))
    for t, batch in enumerate(batches, start=1):
        keys = _rows(model.keys, batch)
        key_moments = key_moments.update(keys)
        weight = key_coefficient(keys, diagonal_whitener(key_moments))
        overlap = model.keys @ keys.mT
        reach = model.other_keys @ keys.mT
        rate = loop.step * t**-loop.decay / loop.p
        for state in states.values():
            whitener = _learn(state, batch)

            def solve(
                rows: Tensor,
                whitener: Whitener = whitener,
                keys: Tensor = keys,
                weight: Tensor = weight,
                rate: float = rate,
            ) -> LowRank:
                return ln_update(keys, rows, whitener=whitener, coefficient=weight, lr=rate, ridge=loop.ridge)

            update = solve(_rows(state.now.rows, batch))
            if state.arm.matched is not None:
                target = states[state.arm.matched].series["norm"].last
                update = LowRank(update.left, update.right * (target / update.norm())[:, None, None])
            if t in marks and state.arm.centred:
                alone = solve(state.now.mean.unsqueeze(-2).expand(-1, loop.n, -1))
                state.record(_feedback(state, model, overlap @ alone.right))
            _measure(state, update, batch, spectra)
            state.output = state.output + (1 + loop.unseen) * (overlap @ update.right)
            state.other = state.other + (1 + loop.unseen) * (reach @ update.right)
            state.before, state.now = state.now, moments(model.base + state.output, model.head, model.labels)
            fresh = state.now.correct.gather(-1, batch)
            state.record({"efficacy": fresh.mean(dim=-1), "accuracy": (fresh > 0.5).double().mean(dim=-1)})
            if t in marks:
                edited = log_probabilities(model.other_base + state.other, model.head)
                state.record({"kl": divergence(unedited, edited)})
    history = batches.transpose(0, 1).reshape(reps, -1)
    paths = {name: _path(state, history) for name, state in states.items()}
    return Outcome(loop, paths, np.array(sorted(marks)), lipschitz(model).numpy())


def _check_arms(arms: Sequence[str]) -> None:
    for i, name in enumerate(arms):
        if name not in ARMS:
            raise SpecError(f"arms: unknown arm {name!r}; one of {', '.join(ARMS)}")
        matched = ARMS[name].matched
        if matched is not None and matched not in arms[:i]:
            raise SpecError(f"arms: {name!r} is matched to {matched!r}, which must come before it")


def _marks(steps: int, checkpoints: Sequence[int] | None) -> set[int]:
    if checkpoints is None:
        checkpoints = [max(2, round(steps * share)) for share in (0.1, 0.25, 0.5, 0.75)]
    return {t for t in checkpoints if 1 <= t <= steps} | {steps}


def _rows(values: Tensor, batch: Tensor) -> Tensor:
    """Rows `batch` [R, n] of `values` [R, M, k]."""
    return values.gather(-2, batch.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _begin(arm: Arm, model: Model, start: Moments, steps: int) -> _State:
    reps, _, d = model.base.shape
    return _State(
        arm=arm,
        moments=NIW.empty(d, batch_shape=(reps,)),
        output=torch.zeros_like(model.base),
        other=torch.zeros_like(model.other_base),
        now=start,
        travelled2=torch.zeros(reps, dtype=torch.float64),
        last=None,
        series={},
        steps=steps,
    )


def _learn(state: _State, batch: Tensor) -> Whitener:
    """Take the batch into the running moments, measure their error, and return the arm's normalisation."""
    previous = state.moments.mean
    state.moments = state.moments.update(_rows(state.now.rows, batch))
    state.record(
        {
            "error2": (state.moments.mean - state.now.mean).square().sum(dim=-1),
            "prediction2": (previous - state.now.mean).square().sum(dim=-1),
        }
    )
    kind: Kind = state.arm.kind
    if kind == "none" and state.arm.centred:
        kind = "center"
    whitener = gradient_whitener(state.moments, kind=kind)
    return whitener if state.arm.centred else replace(whitener, mean=torch.zeros_like(whitener.mean))


def _feedback(state: _State, model: Model, shift: Tensor) -> dict[str, Tensor]:
    """How the update due to the error of the mean alone moves the mean: `shift` [R, M, d] is what it does to x."""
    error = state.moments.mean - state.now.mean
    moved = moments(model.base + state.output + shift, model.head, model.labels).mean - state.now.mean
    along = (error * moved).sum(dim=-1)
    return {"feedback": along, "gain": along / error.square().sum(dim=-1)}


def _measure(state: _State, update: LowRank, batch: Tensor, spectra: bool) -> None:
    """Geometry of the update, and of the drift that the one before it caused."""
    norm = update.norm()
    # <W, DW> = <HW, B> for DW = H^T B: the layer's output on the batch holds all that is needed of W.
    state.travelled2 = (
        state.travelled2 + 2 * (_rows(state.output, batch) * update.right).sum(dim=(-2, -1)) + norm.square()
    )
    now, before = state.now, state.before
    if before is None:
        drift = moved = torch.zeros_like(norm)
    else:
        drift = torch.linalg.vector_norm(now.mean - before.mean, dim=-1)
        moved = (now.rows - before.rows).square().sum(dim=-1).mean(dim=-1).sqrt()
    top = cov_drift = torch.full_like(norm, math.nan)
    if spectra:
        shift = now.cov - (now.cov if before is None else before.cov)
        cov_drift = torch.linalg.eigvalsh(shift).abs().amax(dim=-1)
        top = torch.linalg.eigvalsh(now.cov).amax(dim=-1)
    state.record(
        {
            "norm": norm,
            "travelled": state.travelled2.clamp_min(0).sqrt(),
            "cosine": torch.full_like(norm, math.nan) if state.last is None else update.cosine(state.last),
            "drift": drift,
            "cov_drift": cov_drift,
            "moved": moved,
            "trace": now.cov.diagonal(dim1=-2, dim2=-1).sum(dim=-1),
            "top": top,
            "mean2": now.mean.square().sum(dim=-1),
        }
    )
    state.last = update


def _path(state: _State, history: Tensor) -> Path:
    edited = state.now.correct.gather(-1, history)
    series = {name: values.array() for name, values in state.series.items()}
    if not state.arm.centred:
        series |= {name: np.full_like(series["kl"], np.nan) for name in ("feedback", "gain")}
    return Path(
        **series,
        retention=edited.mean(dim=-1).numpy(),
        retained=(edited > 0.5).double().mean(dim=-1).numpy(),
    )
