"""The recorder protocol, the schedules, and the loop's events written down once.

The loop, with every call that a recorder can receive in its place::

    open the run, load the model, plan the steps
    for recorder in recorders: rows <- recorder.on_run_start(RunView)        # before any weight changes
    for step in plan:
        captures = capture(model, batch)                                      # keys and value gradients
        guard(captures)                                                       # non-finite rows: raise | drop | skip
        for proposal in editor.step(view, batch, captures):
            realised = weights.apply(proposal.update)                         # the only write
        editor.commit(view, applied)                                          # the only change of the editor's state
        for recorder in recorders, if recorder.schedule(step, total):
            rows <- recorder.on_step(StepView)
        if the evaluation or snapshot schedule says so:
            for recorder in recorders: rows <- recorder.on_snapshot(SnapshotView)
        one transaction: StepRecord, rows, arrays, checkpoint pointer
    for recorder in recorders: rows <- recorder.on_run_end(RunView)

Recorders return rows; they never write, never see the store and never touch weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from stablediag.editors.base import Applied
from stablediag.types import Capture, Edit, EditBatch, Phase

if TYPE_CHECKING:
    from torch import Tensor

    from stablediag.engine.view import ModelView

#: ``schedule(step, total)``: is this zero-based step of `total` due?
Schedule = Callable[[int, int], bool]
SqlType = Literal["REAL", "INTEGER", "TEXT"]


@dataclass(frozen=True)
class Row:
    """Values for one row of a table; rows of the same key, from whichever recorder, become one wide row."""

    table: str
    key: Mapping[str, Any]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Array:
    """An array that is stored beside the tables, under its name and step."""

    name: str
    step: int
    data: np.ndarray


Item = Row | Array


@dataclass(frozen=True)
class RunView:
    """The run at its start or end: `step` is -1 before the first step, the last index after it."""

    step: int
    total: int
    view: ModelView
    stream: Sequence[Edit]


@dataclass(frozen=True)
class StepView:
    """One finished step, read-only.

    Attributes
    ----------
    step, total : int
        Global zero-based index and number of planned steps, warm-up included.
    target_step : int or None
        Index among the target steps; None in the warm-up.
    applied : tuple of Applied
        What was proposed and written; empty realised measurements where they were not due.
    written : bool
        False where the step changed no weight (a statistics-only warm-up).
    """

    step: int
    total: int
    phase: Phase
    target_step: int | None
    batch: EditBatch
    captures: Mapping[str, Capture]
    applied: Sequence[Applied]
    written: bool
    view: ModelView


@dataclass(frozen=True)
class SnapshotView:
    """A moment at which the model is questioned.

    Attributes
    ----------
    step : int
        Global index of the last finished step; -1 before the first.
    evaluate, snapshot : bool
        Which of the two schedules is due.
    edits_done : Sequence of Edit
        Target edits written so far, in stream order.
    new_edits : Sequence of Edit
        Those of the last step (for immediate success).
    """

    step: int
    total: int
    evaluate: bool
    snapshot: bool
    edits_done: Sequence[Edit]
    new_edits: Sequence[Edit]
    view: ModelView


@runtime_checkable
class Recorder(Protocol):
    """One family of measurements. See the module's docstring for when each method is called."""

    name: str
    version: int
    schedule: Schedule
    columns: Mapping[str, Mapping[str, SqlType]]

    def on_run_start(self, run: RunView) -> Iterable[Item]: ...

    def on_step(self, step: StepView) -> Iterable[Item]: ...

    def on_snapshot(self, snapshot: SnapshotView) -> Iterable[Item]: ...

    def on_run_end(self, run: RunView) -> Iterable[Item]: ...

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]: ...

    def load_state_dict(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None: ...


@dataclass
class BaseRecorder:
    """A recorder that records nothing; subclasses override what they need."""

    schedule: Schedule = field(default_factory=lambda: every(1))
    name = "base"
    version = 1
    #: key columns of tables that are the recorder's own: table -> column -> type
    keys: ClassVar[Mapping[str, Mapping[str, SqlType]]] = {}
    columns: Mapping[str, Mapping[str, SqlType]] = field(default_factory=dict, init=False)

    def on_run_start(self, run: RunView) -> Iterable[Item]:
        """Called once, before any weight changes."""
        return ()

    def on_step(self, step: StepView) -> Iterable[Item]:
        """Called after every due step, when the weights are written."""
        return ()

    def on_snapshot(self, snapshot: SnapshotView) -> Iterable[Item]:
        """Called when the evaluation or the snapshot schedule is due."""
        return ()

    def on_run_end(self, run: RunView) -> Iterable[Item]:
        """Called once, after the last step."""
        return ()

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What must survive an interruption: nothing, unless overridden."""
        return {}, {}

    def load_state_dict(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


def every(k: int) -> Schedule:
    """Every k-th step, and the last one."""
    return lambda step, total: (step + 1) % k == 0 or step == total - 1


def first(n: int) -> Schedule:
    """The first n steps."""
    return lambda step, total: step < n


def at(steps: Iterable[int]) -> Schedule:
    """Exactly these zero-based steps; negative ones count from the end."""
    wanted = frozenset(steps)
    return lambda step, total: step in wanted or step - total in wanted


def log_spaced(n: int) -> Schedule:
    """About n steps, evenly spaced in the logarithm of the step count, the last one included."""

    @lru_cache(maxsize=1)  # a run asks at every step, always with the same total
    def steps(total: int) -> frozenset[int]:
        return frozenset((np.geomspace(1, total, n).round().astype(int) - 1).tolist())

    return lambda step, total: step == total - 1 or step in steps(total)


def at_end() -> Schedule:
    """The last step only."""
    return lambda step, total: step == total - 1


def never() -> Schedule:
    """No step."""
    return lambda step, total: False


def any_of(schedules: Sequence[Schedule]) -> Schedule:
    """Due when any of the schedules is."""
    return lambda step, total: any(schedule(step, total) for schedule in schedules)
