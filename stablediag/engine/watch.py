"""The same records from somebody else's loop: weights are compared between its steps, and nothing of it is changed.

::

    with watch(model, ["layers.[28-31].mlp.down_proj"], run="runs/theirs") as w:
        for requests in loader:
            their_edit(model, requests)
            w.step([request["case_id"] for request in requests])
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

from stablediag.editors.base import Applied, Proposal
from stablediag.engine.rows import step_rows
from stablediag.engine.watch_prepare import check, information, questions, tables
from stablediag.engine.watch_recorders import WatchedView, own_rows
from stablediag.engine.watch_weights import Change, WatchedWeights, find_modules
from stablediag.errors import DataError
from stablediag.recorders.alarm import Alarm
from stablediag.recorders.base import Array, Item, Recorder, Row, RunView, SnapshotView, StepView
from stablediag.recorders.registry import share
from stablediag.recorders.updates import AdjacentCosine, RealisedUpdate, UpdateNorm
from stablediag.stats.sequential_alarm import Verdict
from stablediag.store.run import Run, RunWriter
from stablediag.types import Edit, EditBatch, Phase, StepRecord

_P = ParamSpec("_P")
_R = TypeVar("_R")
EditOrId = Edit | str | int


class Watch:
    """A run that is written while somebody else edits the model. Made by `watch`; a context manager that closes it.

    Attributes
    ----------
    path : Path
        The run's directory.
    steps : int
        Steps recorded so far.
    """

    def __init__(
        self,
        writer: RunWriter,
        *,
        view: WatchedView,
        recorders: Sequence[Recorder],
        stream: Sequence[Edit] = (),
        steps: int = 1000,
        every: int = 0,
    ) -> None:
        self._writer = writer
        self.path = writer.path
        self.view = view
        self._weights = view.weights
        self._recorders = list(recorders)
        self._stream = stream
        self._known = {edit.id: edit for edit in reversed(stream)}
        self._total, self._every = steps, every
        self.steps = 0
        self._targets = 0
        self._broken: set[str] = set()
        self._done: list[Edit] = []
        self._last: SnapshotView | None = None
        self._open = True
        try:
            with writer.transaction(-1) as tx, view.evaluating():
                self._ask(tx, lambda recorder: recorder.on_run_start(self._run_view()))
        except BaseException as error:
            self._abandon(error)
            raise
        self._ended_at = time.perf_counter()

    def step(
        self,
        edits: EditOrId | Iterable[EditOrId] | None = None,
        *,
        phase: Phase = "target",
        intended: Mapping[str, Tensor] | None = None,
        model: nn.Module | None = None,
    ) -> Verdict:
        """Record what the loop did to the weights since the last call.

        Parameters
        ----------
        edits : Edit, id, or several of them, optional
            What was just written. Ids of the stream stand for its edits; without a stream, any will do. Without
            `edits` the step counts as one edit that is named by its number.
        phase : {"target", "warmup"}
            A warm-up counts neither for adjacent cosines nor for the alarm.
        intended : mapping of str to Tensor, optional
            The change that was meant, by module, in the layout in which the weight is stored: then the run also knows
            how much of it the weight's type kept.
        model : nn.Module, optional
            The edited model where the loop has made another one of it.

        Returns
        -------
        {"quiet", "warning", "alarm"}
            What the early warning says now.

        Raises
        ------
        StoreError
            The watch is closed.
        ModelError
            A watched weight is gone or has another shape, or `intended` does not fit.
        DataError
            An id that the stream does not have.
        """
        began = time.perf_counter()
        batch = EditBatch(self.steps, phase, self._edits(edits))
        if model is not None:
            self._weights.model = model
        self._weights.check(intended or {})
        with self._writer.transaction(batch.index) as tx:
            changes = {n: self._weights.look(n, intended=(intended or {}).get(n)) for n in self.view.modules}
            self._store(tx, own_rows(batch.index, changes))
            for name, change in changes.items():
                if math.isinf(change.weight_norm) and name not in self._broken:
                    self._broken.add(name)
                    tx.event("not finite", f"the weight of {name} has entries that are not finite")
            self.view.norms = {name: change.weight_norm for name, change in changes.items()}
            step = self._step_view(batch, changes)
            with self.view.evaluating():
                self._record(tx, step, asking=False)
                recorded = time.perf_counter()
                self._record(tx, step, asking=True)
                if phase == "target":
                    self._done += batch.edits
                self._last = self._snapshot_view(batch, total=max(self._total, batch.index + 2))
                if self._every and (batch.index + 1) % self._every == 0:
                    last = self._last
                    self._ask(tx, lambda recorder: recorder.on_snapshot(last))
            ended = time.perf_counter()
            record = StepRecord(
                step=batch.index,
                phase=phase,
                edits=len(batch.edits),
                rows=0,
                loss=math.nan,
                skipped=None,
                seconds=ended - self._ended_at,
                seconds_capture=math.nan,
                seconds_editor=began - self._ended_at,
                seconds_record=recorded - began,
                seconds_evaluate=ended - recorded,
            )
            written = any(change.changed for change in changes.values())
            self._store(tx, step_rows(record, step.target_step, written, 0))
        self.steps += 1
        self._targets += phase == "target"
        self._ended_at = time.perf_counter()
        return self.verdict

    def wrap(
        self, edit: Callable[_P, _R], *, ids: Callable[_P, EditOrId | Iterable[EditOrId]] | None = None
    ) -> Callable[_P, _R]:
        """Their editing function, with a `step` after every call that returns.

        Parameters
        ----------
        edit : callable
        ids : callable, optional
            From the arguments of a call to the edits that it writes. By default a call counts as one edit.

        Returns
        -------
        callable
            Takes and returns what `edit` does. A model among what it returns is not looked for: call `step` with it.
        """

        @functools.wraps(edit)
        def watched(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            result = edit(*args, **kwargs)
            self.step(None if ids is None else ids(*args, **kwargs))
            return result

        return watched

    @property
    def verdict(self) -> Verdict:
        """What the early warning says; a loop may stop at "alarm"."""
        return next((one.verdict for one in self._recorders if isinstance(one, Alarm)), "quiet")

    @property
    def run(self) -> Run:
        """The run as it stands."""
        return Run.open(self.path)

    def close(self) -> Run:
        """Ask the last questions, and complete the run; harmless when repeated."""
        if self._open:
            try:
                self._finish()
            except BaseException as error:
                self._abandon(error)
                raise
        return self.run

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
        else:
            self._abandon(error)

    def _finish(self) -> None:
        last = self.steps - 1
        with self._writer.transaction(last) as tx, self.view.evaluating():
            if self._last is not None:
                # The number of steps is known only now: what is told of the last one alone is due.
                batch = EditBatch(last, "target", tuple(self._last.new_edits))
                final = self._snapshot_view(batch, total=self.steps)
                asked = bool(self._every) and self.steps % self._every == 0
                # Arrays of a step are written once.
                kept = Row if asked else (Row, Array)
                self._ask(tx, lambda recorder: [one for one in recorder.on_snapshot(final) if isinstance(one, kept)])
            self._ask(tx, lambda recorder: recorder.on_run_end(self._run_view()))
        self._open = False
        self._writer.finish("complete")

    def _abandon(self, error: BaseException) -> None:
        """A foreign loop cannot be resumed from here: what it left is readable, and said to be given up."""
        if self._open:
            self._open = False
            kind = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            self._writer.journal(kind, " ".join(f"{type(error).__name__}: {error}".split()))
            self._writer.finish("broken")

    def _edits(self, given: EditOrId | Iterable[EditOrId] | None) -> tuple[Edit, ...]:
        if given is None:
            given = f"step {self.steps}"
        several = [given] if isinstance(given, Edit | str) or not isinstance(given, Iterable) else list(given)
        return tuple(one if isinstance(one, Edit) else self._edit(str(one)) for one in several)

    def _edit(self, name: str) -> Edit:
        if name in self._known:
            return self._known[name]
        if self._known:
            raise DataError(f"step {self.steps}: the stream has no edit {name!r}: give its own ids, or Edit objects")
        return Edit(id=name, prompt="", target="")

    def _run_view(self) -> RunView:
        return RunView(step=self.steps - 1, total=self.steps, view=cast(Any, self.view), stream=self._stream)

    def _step_view(self, batch: EditBatch, changes: Mapping[str, Change]) -> StepView:
        applied = [Applied(Proposal(name, change.update), change.realised) for name, change in changes.items()]
        return StepView(
            step=batch.index,
            total=max(self._total, batch.index + 2),
            phase=batch.phase,
            target_step=self._targets if batch.phase == "target" else None,
            batch=batch,
            captures={},
            applied=applied,
            # A step that changed nothing has an update of length 0: that, too, is seen.
            written=True,
            view=cast(Any, self.view),
        )

    def _snapshot_view(self, batch: EditBatch, *, total: int) -> SnapshotView:
        new = batch.edits if batch.phase == "target" else ()
        view = cast(Any, self.view)
        return SnapshotView(
            step=batch.index, total=total, evaluate=True, snapshot=True, edits_done=self._done, new_edits=new, view=view
        )

    def _record(self, tx: Any, step: StepView, *, asking: bool) -> None:
        for recorder in self._recorders:
            if (recorder.name == "quality") == asking and recorder.schedule(step.step, step.total):
                self._store(tx, recorder.on_step(step))

    def _ask(self, tx: Any, question: Callable[[Recorder], Iterable[Item]]) -> None:
        for recorder in self._recorders:
            self._store(tx, question(recorder))

    def _store(self, tx: Any, items: Iterable[Item]) -> None:
        for item in items:
            if isinstance(item, Array):
                tx.array(item.name, item.step, item.data)
            else:
                tx.row(item.table, dict(item.key), dict(item.values))


def watch(
    model: nn.Module,
    modules: Sequence[str],
    *,
    run: str | Path,
    name: str = "watched",
    steps: int = 1000,
    stream: Sequence[Edit] = (),
    tokenizer: Any = None,
    prompts: Sequence[str] = (),
    hidden: Callable[[], Tensor] | None = None,
    every: int = 0,
    recorders: Sequence[Recorder] = (),
    device: str | torch.device | None = None,
    sketch: int | None = 1 << 18,
    seed: int = 0,
) -> Watch:
    r"""Record what a loop that is not ours does to a model, in a run like any other.

    Nothing of the loop or of the model is changed, and torch alone is needed for the geometry. The weights are compared
    with a copy at every `Watch.step`, in row blocks, so that it does not matter how they were written, and between which
    calls: whatever moved since the last step is the update.

    Recorded are, at every step and for every module: ``norm``, ``weight_norm``, ``weight_ratio``, ``changed_fraction`` (share of
    the entries that differ), all exact; ``inner``, ``cosine`` of consecutive updates and ``coherence``
    :math:`\Gamma_t = \|W_t - W_0\|_F^2 / \sum_{s \le t} \|W_s - W_{s-1}\|_F^2`, from sketches; ``realised_ratio``,
    ``realised_cosine``, ``unchanged_fraction`` where `intended` changes are told; the early warning of update geometry, table
    ``alarms``; which edit came when, table ``edits``. Beside these, where they are asked for, quality and hidden states. What
    needs keys, value gradients or statistics of an editor is not there, and the doctor calls it unknown.

    Parameters
    ----------
    model : nn.Module
    modules : sequence of str
        Patterns of the modules that are watched, see `stablediag.models.resolve_modules`; any module with a matrix as its
        weight will do.
    run : path
        The run's directory, new or empty.
    name : str
        Of the run, as `stablediag ls` shows it.
    steps : int
        Steps that are planned, about: up to so many the alarm holds its level. A run may be longer or shorter.
    stream : sequence of Edit
        All edits in their order. With a tokenizer, their quality is measured before the first step and at the end, and
        each edit's immediate success at its step (`stablediag.recorders.quality.Quality`, with its defaults).
    tokenizer
        Of transformers, for a model of transformers.
    prompts : sequence of str
        Prompts of which final hidden states are stored, before the first step and at the end; needs the tokenizer.
    hidden : callable
        The same for any model: a function without arguments that returns the states of fixed inputs, [prompts, width].
    every : int
        Ask for quality and hidden states every so many steps, too; 0: at the start and the end alone.
    recorders : sequence of Recorder
        Further ones. They see no captures, and of updates sketches [1, m] that have their norms and inner products.
    device : str or torch.device, optional
        Where the copies are kept, "cpu" for instance; by default beside the weights.
    sketch : int or None
        Most numbers m of a sketch. A cosine is off by at most :math:`2/\sqrt m` (one standard deviation; about half of it
        for updates that have nothing to do with each other). A sketch never has more than a 32nd of the entries (or two
        numbers a column). None: no sketch; angles are exact, for four float64 numbers an entry on top of the copy.
    seed : int
        Of the sketches.

    Returns
    -------
    Watch
        A context manager. Without an exception the run is complete when it closes, else "broken": readable, with the
        reason in the table ``journal``. It cannot be resumed, as the loop is not ours.

    Raises
    ------
    SpecError
        Numbers out of range, prompts without a tokenizer, or two recorders of one column.
    ModelError
        A pattern without a module, or a weight that is quantised, parametrised or offloaded.
    StoreError
        The directory holds something.

    See Also
    --------
    stablediag.engine.watch_weights.Sketch : the error of the sketches, and where it comes from.

    Notes
    -----
    Of weights narrower than float32 the update is what the stored weights did, rounding included. A loop that takes an edit
    back between steps shows the sum of both. Memory: one copy of the watched weights (in their type), about 20 m bytes
    of sketches a module, and blocks of some ten megabytes. After an exception in a step the watch should be closed.
    """
    check(steps=steps, every=every, sketch=sketch, prompts=prompts, hidden=hidden, tokenizer=tokenizer)
    found = find_modules(model, modules)
    weights = WatchedWeights(model, found, device=torch.device(device) if device else None, sketch=sketch, seed=seed)
    view = WatchedView(weights, tokenizer)
    asking = questions(recorders, stream=stream, tokenizer=tokenizer, prompts=prompts, hidden=hidden)
    listed: list[Any] = [UpdateNorm(), AdjacentCosine(), RealisedUpdate(), Alarm(), *asking]
    share(listed)
    columns, keys = tables(listed)
    asked = {"name": name, "modules": list(modules), "steps": steps, "every": every, "seed": seed}
    info = information(view, asked, stream, listed)
    writer = Run.create(run, info=info, columns=columns, keys=keys)
    return Watch(writer, view=view, recorders=listed, stream=stream, steps=steps, every=every)
