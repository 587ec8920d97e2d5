"""The gradients of a step, stacked by statistic and grouped by edit, made once for all recorders that need them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from stablediag.recorders.base import StepView
from stablediag.recorders.scopes import Scope, captured_scopes


@dataclass(frozen=True, eq=False)
class Groups:
    """Rows that belong together.

    Attributes
    ----------
    edits : Tensor, int64, shape [m]
        Edit of each row.
    order : Tensor, int64, shape [m]
        Rows in rising order of their edits.
    counts : Tensor, int64, shape [n]
        Rows of each edit.
    """

    edits: Tensor
    order: Tensor
    counts: Tensor

    @classmethod
    def of(cls, edits: Tensor) -> Groups:
        """Group rows by their edits [m]."""
        ordered, order = torch.sort(edits, stable=True)
        return cls(edits, order, torch.unique_consecutive(ordered, return_counts=True)[1])

    @property
    def n(self) -> int:
        """Number of edits."""
        return len(self.counts)

    @cached_property
    def unit(self) -> Tensor:
        """Place of each row's edit among the edits in rising order, int64 [m]."""
        places = torch.arange(self.n, device=self.edits.device).repeat_interleave(self.counts)
        return torch.empty_like(self.order).scatter_(0, self.order, places)

    def sums(self, rows: Tensor) -> Tensor:
        """Sums over the rows of each edit, [n, d], always added in the same order."""
        return torch.segment_reduce(rows[self.order], "sum", lengths=self.counts, axis=0)


@dataclass(frozen=True, eq=False)
class Batch:
    """The rows behind one statistic of a step; nothing of it may be written to.

    Attributes
    ----------
    scope : Scope
    grads : Tensor, shape [m, d]
    groups : Groups
    """

    scope: Scope
    grads: Tensor
    groups: Groups

    @property
    def known(self) -> Tensor | None:
        """The tracked mean before the step, on the device of the rows in its own dtype; None where none is tracked."""
        tracked = self.scope.tracked
        return None if tracked is None else tracked.before_mean.to(self.grads.device)

    @cached_property
    def rows(self) -> Tensor:
        """Rows less the mean that was known before the step, where there was one."""
        return self.grads if self.known is None else self.grads - self.known.to(self.grads)

    @cached_property
    def sums(self) -> Tensor:
        """Sums of `rows` over the edits, [n, d]."""
        return self.groups.sums(self.rows)


@dataclass
class StepRows:
    """The batches of a step, made once for all recorders that hold the same object; they go when the step does."""

    _step: weakref.ref[StepView] | None = field(default=None, init=False, repr=False)
    _made: Sequence[Batch] = field(default=(), init=False, repr=False)

    def of(self, step: StepView) -> Sequence[Batch]:
        """Every statistic of the step that has rows, then every captured module that none covers."""
        if self._step is None or self._step() is not step:
            self._made = _batches(step)
            self._step = weakref.ref(step, self._forget)
        return self._made

    def _forget(self, gone: weakref.ref[StepView]) -> None:
        if gone is self._step:
            self._step, self._made = None, ()


def _batches(step: StepView) -> list[Batch]:
    made: list[Batch] = []
    for scope in captured_scopes(step):
        edits = scope.stacked("edit_ids")
        # Modules mostly see the same rows of the same edits.
        groups = next((batch.groups for batch in made if _same(batch.groups.edits, edits)), None)
        made.append(Batch(scope, scope.stacked("grads"), groups or Groups.of(edits)))
    return made


def _same(left: Tensor, right: Tensor) -> bool:
    return left.device == right.device and torch.equal(left, right)
