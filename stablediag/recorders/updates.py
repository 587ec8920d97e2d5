"""Geometry of the updates: norms, angles between consecutive ones, and what the weight's dtype kept of them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from stablediag.maths.update import Dense, LowRank, UpdateT, concat
from stablediag.recorders.base import BaseRecorder, Item, Row, Schedule, SqlType, StepView, every

#: a matrix of at most so many entries is preferred to factors unless it has so many times theirs
_SMALL, _TIMES = 1 << 23, 4


def number(value: Tensor | float) -> float | None:
    """A plain float for the store, None for NaN: what does not exist is null, never a number."""
    plain = float(value)
    return None if math.isnan(plain) else plain


def module_updates(step: StepView) -> dict[str, UpdateT]:
    """What the step added to each module, in one piece even where an editor wrote twice."""
    found: dict[str, list[UpdateT]] = {}
    for applied in step.applied if step.written else ():
        found.setdefault(applied.proposal.module, []).append(applied.proposal.update)
    return {name: _total(updates) for name, updates in found.items()}


def multiplied_out(update: UpdateT) -> bool:
    """Whether `compact` makes a matrix of these factors."""
    if not isinstance(update, LowRank):
        return False
    (p, d), n = update.shape[-2:], update.left.shape[-1]
    return n * (p + d) * (_TIMES if p * d <= _SMALL else 1) > p * d


def compact(update: UpdateT) -> UpdateT:
    """The form that is compared sooner, and for large updates the one with fewer entries.

    Scalars of factors take float64 products n x n of all their columns, those of a matrix one pass over it. The matrix is
    multiplied out in the dtype of the factors: its rounding is not aligned with the update, so that a norm or an angle
    keeps more digits than the entries have.
    """
    return Dense(update.dense()) if multiplied_out(update) else update


def _total(updates: list[UpdateT]) -> UpdateT:
    if len(updates) == 1:
        return updates[0]
    thin = [update for update in updates if isinstance(update, LowRank)]
    if len(thin) == len(updates):
        return concat(thin)
    return Dense(torch.stack([update.dense() for update in updates]).sum(dim=0))


@dataclass(frozen=True, eq=False)
class Sized:
    """An update in its compact form and in a layout that a checkpoint can restore: the layout decides the last bits.

    Attributes
    ----------
    update : LowRank or Dense
    own : bool
        Whether its tensors are nobody else's.
    """

    update: UpdateT
    own: bool

    @classmethod
    def of(cls, update: UpdateT) -> Sized:
        """The update as it is where it needs no change."""
        small = compact(update)
        if isinstance(small, LowRank):
            return cls(LowRank(small.left.mT.contiguous().mT, small.right.contiguous()), own=False)
        matrix = small.matrix if small.matrix.mT.is_contiguous() else small.matrix.contiguous()
        return cls(Dense(matrix), own=small is not update or matrix is not small.matrix)

    @cached_property
    def norm(self) -> float:
        """Frobenius norm."""
        return float(self.update.norm())


@dataclass
class StepUpdates:
    """The compact updates of a step, made once for all recorders that hold the same object.

    They go when the step does: nothing keeps its captures longer.
    """

    _step: weakref.ref[StepView] | None = field(default=None, init=False, repr=False)
    _made: dict[str, Sized] = field(default_factory=dict, init=False, repr=False)

    def of(self, step: StepView) -> Mapping[str, Sized]:
        """What the step added to each module."""
        if self._step is None or self._step() is not step:
            kept = _changes(step)
            self._made = {
                module: Sized(Dense(kept[module]), own=True) if module in kept else Sized.of(update)
                for module, update in module_updates(step).items()
            }
            self._step = weakref.ref(step, self._forget)
        return self._made

    def _forget(self, gone: weakref.ref[StepView]) -> None:
        if gone is self._step:
            self._step, self._made = None, {}


@dataclass
class UpdateNorm(BaseRecorder):
    r"""Frobenius norms of the update and of the weight after it, per module.

    ``weight_ratio`` is :math:`R_n = \|W_n\|_F / \|W_0\|_F` (NAS). Warm-up steps that write are recorded as well; the
    table `steps` tells the phases apart.
    """

    name = "update_norm"
    columns: Mapping[str, Mapping[str, SqlType]] = field(
        default_factory=lambda: {"updates": {"norm": "REAL", "weight_norm": "REAL", "weight_ratio": "REAL"}}, init=False
    )
    updates: StepUpdates = field(default_factory=StepUpdates, init=False, repr=False)

    def on_step(self, step: StepView) -> Iterable[Item]:
        """One row per module that was written."""
        for module, sized in self.updates.of(step).items():
            weight, initial = step.view.weight_norm(module), step.view.initial_norm(module)
            values = {
                "norm": number(sized.norm),
                "weight_norm": number(weight),
                "weight_ratio": number(weight / initial) if initial > 0 else None,
            }
            yield Row("updates", {"step": step.step, "module": module}, values)


@dataclass
class AdjacentCosine(BaseRecorder):
    r"""Inner product :math:`\langle\Delta_t, \Delta_{t-1}\rangle_F` and cosine of a module's consecutive updates.

    Only target updates count, and only neighbours: null after a step that was skipped. The previous one is kept as its
    two factors, or as a matrix where that is smaller.

    Parameters
    ----------
    report : Schedule
        Steps that get a row; the recorder itself must see every step, else the updates would not be adjacent.
    reset_after_warmup : bool
        True: the first cosine after a warm-up, wherever the warm-up stands, is null. False: it compares with the last
        update before a mid-stream warm-up, as the released StableEdit does.

    Notes
    -----
    StableEdit (arXiv:2605.11836), Figures 4, 11 and 12. The cosine with a zero update is null.
    """

    report: Schedule = field(default_factory=lambda: every(1))
    reset_after_warmup: bool = True
    name = "adjacent_cosine"
    columns: Mapping[str, Mapping[str, SqlType]] = field(
        default_factory=lambda: {"updates": {"inner": "REAL", "cosine": "REAL"}}, init=False
    )
    updates: StepUpdates = field(default_factory=StepUpdates, init=False, repr=False)
    #: whether others ask for the values of steps that get no row
    asked: bool = field(default=False, init=False, repr=False)
    _previous: dict[str, UpdateT] = field(default_factory=dict, init=False, repr=False)
    _norms: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _place: int | None = field(default=None, init=False, repr=False)
    _step: weakref.ref[StepView] | None = field(default=None, init=False, repr=False)
    _found: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict, init=False, repr=False)

    def on_step(self, step: StepView) -> Iterable[Item]:
        """One row per module, of a due target step."""
        if step.phase == "warmup":
            return
        due = self.report(step.step, step.total)
        found = self.compare(step, wanted=due)
        for module, values in found.items() if due else ():
            yield Row("updates", {"step": step.step, "module": module}, values)

    def compare(self, step: StepView, *, wanted: bool = True) -> Mapping[str, Mapping[str, float | None]]:
        """Take a target step; asked again about the same step, it gives the same answer.

        Parameters
        ----------
        step : StepView
        wanted : bool
            False: the values are not asked for, and computed only for a recorder that is `asked` by others.

        Returns
        -------
        mapping of str to mapping of str to float or None
            Inner product and cosine by module; empty where they were not computed.
        """
        if self._step is None or self._step() is not step:
            self._found, self._step = self._advance(step, compare=wanted or self.asked), weakref.ref(step)
        return self._found

    def _advance(self, step: StepView, *, compare: bool) -> dict[str, dict[str, float | None]]:
        # A step that was skipped is never seen here, so that adjacency is a matter of the count.
        place = step.step if self.reset_after_warmup else step.target_step
        if self._place is None or place != self._place + 1:
            self._previous.clear()
            self._norms.clear()
        self._place = place
        found: dict[str, dict[str, float | None]] = {}
        for module, sized in self.updates.of(step).items():
            if compare:
                found[module] = self._compare(module, sized)
            else:
                self._norms.pop(module, None)
            self._previous[module] = sized.update if sized.own else _kept(sized.update)
        return found

    def _compare(self, module: str, sized: Sized) -> dict[str, float | None]:
        previous, before = self._previous.get(module), self._norms.get(module)
        self._norms[module] = sized.norm
        if previous is None:
            return {"inner": None, "cosine": None}
        inner = float(sized.update.inner(_moved(previous, sized.update)))
        norms = sized.norm * (float(previous.norm()) if before is None else before)
        return {"inner": number(inner), "cosine": number(inner / norms) if norms > 0 else None}

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The previous updates, by module."""
        tensors: dict[str, Tensor] = {}
        for module, update in self._previous.items():
            if isinstance(update, LowRank):
                tensors |= {f"{module}/left_t": update.left.mT, f"{module}/right": update.right}
            elif update.matrix.is_contiguous():
                tensors[f"{module}/matrix"] = update.matrix
            else:
                tensors[f"{module}/matrix_t"] = update.matrix.mT
        return tensors, {"modules": list(self._previous), "place": self._place}

    def load_state_dict(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore the previous updates in the layout in which they were kept: the layout decides the last bits."""
        self._previous, self._norms, self._place, self._step = {}, {}, meta["place"], None
        for module in meta["modules"]:
            if f"{module}/matrix" in tensors:
                self._previous[module] = Dense(_copy(tensors[f"{module}/matrix"]))
            elif f"{module}/matrix_t" in tensors:
                self._previous[module] = Dense(_copy(tensors[f"{module}/matrix_t"]).mT)
            else:
                left_t, right = tensors[f"{module}/left_t"], tensors[f"{module}/right"]
                self._previous[module] = LowRank(_copy(left_t).mT, _copy(right))


@dataclass
class RealisedUpdate(BaseRecorder):
    r"""What rounding to the stored weights left of an update.

    The session has the weight writer measure it only where this recorder is due, so a thin schedule saves time. With
    D asked for and R written, ``realised_ratio * realised_cosine`` :math:`= \langle R, D \rangle / \|D\|_F^2` is how much of
    the update the weights kept: 1 all of it, 0 none (the cosine is null where nothing was written at all). The ratio
    alone exceeds that by what rounding added in other directions.
    """

    name = "realised_update"
    columns: Mapping[str, Mapping[str, SqlType]] = field(
        default_factory=lambda: {
            "updates": {"realised_ratio": "REAL", "realised_cosine": "REAL", "unchanged_fraction": "REAL"}
        },
        init=False,
    )

    def on_step(self, step: StepView) -> Iterable[Item]:
        """One row per module that was measured; of a module written twice in a step, its last write."""
        measured = {a.proposal.module: a.realised for a in step.applied if a.realised is not None}
        for module, realised in measured.items() if step.written else ():
            values = {
                "realised_ratio": number(realised.norm_ratio),
                "realised_cosine": number(realised.cosine),
                "unchanged_fraction": number(realised.unchanged_fraction),
            }
            yield Row("updates", {"step": step.step, "module": module}, values)


def _changes(step: StepView) -> dict[str, Tensor]:
    """What the writer kept, of modules that were written once."""
    names = [applied.proposal.module for applied in step.applied]
    once = [applied for applied in step.applied if names.count(applied.proposal.module) == 1]
    return {applied.proposal.module: applied.change for applied in once if applied.change is not None}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _kept(update: UpdateT) -> UpdateT:
    """A copy in the same layout, which frees the step's captures."""
    if isinstance(update, LowRank):
        return LowRank(_copy(update.left.mT).mT, _copy(update.right))
    turned = not update.matrix.is_contiguous()
    return Dense(_copy(update.matrix.mT).mT if turned else _copy(update.matrix))


def _moved(previous: UpdateT, like: UpdateT) -> UpdateT:
    """The previous update on the device of the present one: a checkpoint is loaded on the CPU."""
    device = like.left.device if isinstance(like, LowRank) else like.matrix.device
    if isinstance(previous, LowRank):
        return LowRank(previous.left.to(device), previous.right.to(device))
    return Dense(previous.matrix.to(device))
