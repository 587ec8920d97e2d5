"""This package's edit step, composed of the very functions that its editor calls.

The editor class itself needs pydantic, which a bare GPU machine lacks; a test holds the two equal, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reproduce.bench.timing import Clock
from reproduce.bench.workload import RELEASED_EPS, Recipe, Workload
from stablediag.engine.capture import CaptureNeeds, capture
from stablediag.engine.guard import guard
from stablediag.engine.weights import WeightWriter
from stablediag.errors import NumericalError
from stablediag.maths.ln import key_coefficient, ln_update
from stablediag.maths.niw import NIW, DiagNIW
from stablediag.maths.update import LowRank
from stablediag.maths.whiten import Floor, Whitener, diagonal_whitener, gradient_whitener
from stablediag.tokens import IGNORE, length_chunks
from stablediag.types import Capture, Edit, EditBatch

NEEDS = CaptureNeeds(loss="released", tokens="answer")
# Rows of history per column of the covariance, and the share of its isotropic part.
_HISTORY = 8
_ISOTROPIC = 0.1


@dataclass(frozen=True)
class Stats:
    """Moments of keys and value gradients, pooled over the edited modules (they have one shape)."""

    keys: DiagNIW
    grads: DiagNIW
    niw: NIW | None


@dataclass(frozen=True)
class Outcome:
    """What a step leaves behind."""

    updates: Mapping[str, LowRank]
    captures: Mapping[str, Capture]
    before: Stats
    after: Stats
    whitener: Whitener
    factor: Tensor | None

    def shifts(self) -> dict[str, Tensor]:
        """The updates as matrices [d_in, d_out]."""
        return {name: update.dense() for name, update in self.updates.items()}


def edit_batch(count: int) -> EditBatch:
    """Edits in name only: the tokens are made elsewhere."""
    return EditBatch(0, "target", tuple(Edit(id=str(i), prompt="", target="") for i in range(count)))


def history(captures: Mapping[str, Capture], recipe: Recipe) -> Stats:
    """Statistics as an earlier stream would have left them, so that full whitening is on and well posed.

    Means and variances of the captured rows, counted as eight rows per column; a covariance of lower rank than its
    width is filled up with an isotropic part of a tenth.
    """
    keys = torch.cat([c.keys for c in captures.values()]).double()
    grads = torch.cat([c.grads for c in captures.values()]).double()
    d = grads.shape[1]
    count = float(_HISTORY * d)
    centred = grads - grads.mean(dim=0)
    scale = (1 - _ISOTROPIC) * (centred.T @ centred) / len(grads)
    scale.diagonal().add_(_ISOTROPIC * centred.square().sum() / len(grads) / d)
    niw = NIW(grads.mean(dim=0), count, count * scale, count)
    key_scale = count * keys.var(dim=0, correction=0)
    return Stats(
        keys=DiagNIW(keys.mean(dim=0), count, key_scale, count),
        grads=niw.diag(),
        niw=niw if recipe.kind == "full" else None,
    )


def updated(stats: Stats, captures: Mapping[str, Capture], recipe: Recipe) -> tuple[Stats, Tensor | None]:
    """Statistics with the step's rows in them, and the factor by which the scatter grew."""
    keys = torch.cat([c.keys for c in captures.values()])
    grads = torch.cat([c.grads for c in captures.values()])
    blocks = None
    if recipe.block_var == "sample":
        blocks = torch.cat([c.block_ids * len(captures) + i for i, c in enumerate(captures.values())])
    options: dict[str, Any] = {"block_ids": blocks, "block_var": recipe.block_var}
    niw = factor = None
    if stats.niw is not None:
        factor = stats.niw.factor(grads)
        niw = stats.niw.update(grads, **options)
    return Stats(stats.keys.update(keys, **options), stats.grads.update(grads, **options), niw), factor


@dataclass
class OursArm:
    """Capture in chunks of a token budget, one merge, one root, dual ridge, low-rank update in place."""

    work: Workload
    writer: WeightWriter
    recipe: Recipe
    start: Stats
    saved: Mapping[str, Tensor]
    outcome: Outcome | None = field(default=None, init=False)

    def prepare(self) -> None:
        """Put the weights back."""
        self.outcome = None
        self.writer.restore(dict(self.saved))

    def run(self, clock: Clock) -> None:
        """One step."""
        work, recipe = self.work, self.recipe
        with clock.part("capture"):
            captures: Mapping[str, Capture] = capture(
                work.model, work.modules, work.tokens, NEEDS, token_budget=work.token_budget
            )
        with clock.part("guard"):
            captures = guard(captures, edit_batch(len(work.tokens)), policy="raise").captures
        with clock.part("statistics"):
            stats, factor = updated(self.start, captures, recipe)
        with clock.part("root"):
            floor = Floor("absolute", recipe.floor)
            whitener = gradient_whitener(stats.niw, stats.grads, kind=recipe.kind, floor=floor, eps=RELEASED_EPS)
            key_whitener = diagonal_whitener(stats.keys, eps=RELEASED_EPS)
        updates: dict[str, LowRank] = {}
        for name, rows in captures.items():
            with clock.part("ridge"):
                updates[name] = ln_update(
                    rows.keys,
                    rows.grads,
                    whitener=whitener,
                    coefficient=key_coefficient(rows.keys, key_whitener),
                    lr=recipe.lr,
                    ridge=recipe.ridge,
                )
            with clock.part("guard"):
                _require_finite(updates[name])
            with clock.part("apply"):
                self.writer.apply(name, updates[name])
        self.outcome = Outcome(updates, captures, self.start, stats, whitener, factor)


def _require_finite(update: LowRank) -> None:
    if not all(bool(torch.isfinite(part).all()) for part in (update.left, update.right)):
        raise NumericalError("the update is not finite: the random model is not fit for this benchmark")


@dataclass
class FloorArm:
    """The forward and backward pass that any editor of this family needs, in our chunks, keeping nothing."""

    work: Workload

    def prepare(self) -> None:
        """Nothing to put back."""

    def run(self, clock: Clock) -> None:
        """Forward without a graph below the lowest edited module, head at answer positions, backward to the outputs."""
        work, tokens = self.work, self.work.tokens
        answers: dict[int, int] = {}
        for block, length in zip(tokens.block_ids, tokens.answer_lengths, strict=True):
            answers[block] = answers.get(block, 0) + length
        with clock.part("capture"):
            for chunk in length_chunks(tokens.lengths, token_budget=work.token_budget):
                ids, mask, labels = (tensor.to(work.device) for tensor in tokens.padded(chunk))
                valid = labels != IGNORE
                weights = torch.tensor([1 / answers[tokens.block_ids[i]] for i in chunk], device=work.device)
                outputs: list[Tensor] = []

                def keep(_: Any, __: Any, output: Tensor, outputs: list[Tensor] = outputs) -> None:
                    outputs.append(output if output.requires_grad else output.requires_grad_())

                with ExitStack() as stack:
                    for entry in work.modules.values():
                        stack.callback(entry.module.register_forward_hook(keep).remove)
                    hidden = work.model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
                logits = work.model.lm_head(hidden[valid]).float()
                entropy = F.cross_entropy(logits, labels[valid], reduction="none")
                loss = (weights.repeat_interleave(valid.sum(dim=1)) * entropy).sum()
                torch.autograd.grad(loss, outputs)
