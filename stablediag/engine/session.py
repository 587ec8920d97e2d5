"""The one loop: warm-up, steps, evaluation, snapshots, transactions, checkpoints, resume.

The order of the calls inside a step is written down in `stablediag.recorders.base`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from stablediag.adapters import Adapter
from stablediag.editors.base import Applied, Editor, Proposal
from stablediag.engine.costs import peak_bytes, state_bytes
from stablediag.engine.guard import finite_update, guard
from stablediag.engine.outlook import Outlook
from stablediag.engine.prepare import Prepared, check_same
from stablediag.engine.rows import captured_loss, captured_rows, extra_row, step_rows
from stablediag.engine.start import Start
from stablediag.engine.tuning import Tuner
from stablediag.engine.view import ModelView
from stablediag.engine.weights import WeightWriter
from stablediag.errors import AlarmError, NumericalError, StablediagError, StoreError
from stablediag.recorders.base import Array, Item, RunView, SnapshotView, StepView
from stablediag.recorders.registry import keeps, measures, schedule_from
from stablediag.spec import Spec
from stablediag.store.run import Run, RunWriter
from stablediag.store.state import load_state, part, save_state
from stablediag.types import Capture, EditBatch, StepRecord


class Session:
    """One run in progress. Build it with `create` or `resume`, then call `run`.

    Parameters
    ----------
    prepared : Prepared
        Everything loaded and validated.
    writer : RunWriter
        Where it is recorded.
    outlook : Outlook
        Of the prepared recorders.
    progress : bool
        Whether to draw a progress bar.
    """

    def __init__(self, prepared: Prepared, writer: RunWriter, outlook: Outlook, *, progress: bool = True) -> None:
        self.spec = prepared.spec
        self.plan = prepared.plan
        self.target = prepared.target
        self.editor: Editor = prepared.editor
        self.recorders = prepared.recorders
        self.reports = prepared.reports
        self._writer = writer
        self._progress = progress
        self._device = prepared.loaded.device
        self._weights = WeightWriter(prepared.loaded.modules, master=self.editor.master, keeps=keeps(self.recorders))
        self.view = ModelView(prepared.loaded, self._weights, token_budget=self.spec.capture.token_budget)
        self._tuner = Tuner(
            self.editor,
            self.view,
            self._weights,
            plan=self.plan,
            held_out=prepared.calibration_edits,
            group=self.spec.edits_per_step,
            guard_policy=self.spec.guard,
            propose=self._propose,
        )
        self._evaluate = schedule_from(self.spec.evaluation.schedule)
        self._snapshot = schedule_from(self.spec.snapshots.schedule)
        targets = self.plan.steps("target")
        self._target_steps = len(targets)
        self._target_index = {index: place for place, index in enumerate(targets)}
        self._next = 0
        self._skipped: list[int] = []
        self._done = np.empty(len(self.target), np.int64)
        self._done_count = 0
        self._started = False
        self._ended = False
        self._outlook = outlook
        self._origin = prepared.start

    @classmethod
    def create(cls, spec: Spec, path: Path, *, progress: bool = True, stop_on_alarm: bool = False) -> Session:
        """Validate everything, then create the run directory.

        Raises
        ------
        StablediagError
            For a wrong spec, dataset, model or editor, before anything is written; StoreError for a used directory.
        """
        if (path / "run.sqlite").exists():
            raise StoreError(
                f"{path} holds another run: choose another directory, or continue that one with `stablediag resume {path}`"
            )
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StoreError(f"{path} is not an empty directory: choose another, or empty it")
        prepared = Prepared(spec, run_dir=path)
        outlook = Outlook.of(prepared.recorders, stop_on_alarm=stop_on_alarm)
        writer = Run.create(path, info=prepared.info, columns=prepared.columns, keys=prepared.keys)
        return cls(prepared, writer, outlook, progress=progress)

    @classmethod
    def resume(cls, path: Path, *, progress: bool = True, stop_on_alarm: bool = False) -> Session:
        """Continue an interrupted run from its last checkpoint; rows recorded after it are made again.

        Raises
        ------
        StoreError
            If the run is complete, cannot be read, or is held by another process, or its inputs have changed.
        """
        stored = Run.open(path)
        if stored.state == "complete":
            raise StoreError(f"{path} is complete: nothing to resume")
        prepared = Prepared(Spec.from_mapping(dict(stored.info.spec)), run_dir=path)
        outlook = Outlook.of(prepared.recorders, stop_on_alarm=stop_on_alarm)
        changed = check_same(stored.info, prepared.info, path)
        writer = Run.resume(path)
        if changed:
            writer.journal("versions", changed)
        session = cls(prepared, writer, outlook, progress=progress)
        session._restore()
        return session

    def run(self) -> Run:
        """Carry out the remaining steps; an interruption leaves a readable run that `resume` continues.

        Returns
        -------
        Run
            The finished run, opened for reading.

        Raises
        ------
        AlarmError
            With `stop_on_alarm`, behind the step at which the recorder `alarm` sounds; the run can be resumed.
        """
        threads = torch.get_num_threads()
        if self.spec.threads is not None:
            torch.set_num_threads(self.spec.threads)
        adapter: Adapter | None = getattr(self.editor, "adapter", None)
        try:
            if adapter is not None:
                adapter.install(self.view.modules)
            if not self._started:
                self._start()
            with tqdm(total=self._edits(len(self.plan)), unit="edit", disable=not self._progress, smoothing=0.1) as bar:
                bar.update(self._edits(self._next))
                for index in range(self._next, len(self.plan)):
                    batch = self.plan[index]
                    self._step(batch)
                    self._next = batch.index + 1
                    bar.update(len(batch.edits))
                    bar.set_postfix_str(self._outlook.told())
                    if self._outlook.stops():
                        raise AlarmError(f"step {batch.index}: {self._outlook.told()}")
            if not self._ended:
                self._end()
            self._writer.finish("complete")
        except KeyboardInterrupt:
            self._writer.journal("interrupted", f"before step {self._next}")
            raise
        except StablediagError as error:
            self._writer.journal("stopped" if isinstance(error, AlarmError) else "failed", str(error))
            raise
        finally:
            if adapter is not None:
                adapter.remove()
            torch.set_num_threads(threads)
            self._writer.close()
        return Run.open(self._writer.path)

    def _edits(self, steps: int) -> int:
        return sum(self.plan.sizes[:steps])

    def _run_view(self, step: int) -> RunView:
        return RunView(step=step, total=len(self.plan), view=self.view, stream=self.target)

    def _start(self) -> None:
        with self._writer.transaction(-1) as tx:
            for name, report in self.reports.items():
                if report.told():
                    tx.event("left out", f"{name}: {report.told()}")
            origin, self._origin = self._origin, Start()  # the weights are of no use any more
            for text in origin.told():
                tx.event("carried over", text)
            for recorder in origin.begin(self._weights, self.recorders):
                self._store(tx, recorder.on_run_start(self._run_view(-1)))
            self._cost(tx, -1, {"peak_bytes": peak_bytes(self._device)})
            self._checkpoint(tx, -1)

    def _end(self) -> None:
        last = len(self.plan) - 1
        with self._writer.transaction(last) as tx:
            self._apply(self.editor.finish(self.view), step=last, measure=False)
            if self._postponed(self._target_steps - 1):
                self._question(tx, self.plan[self.plan.steps("target")[-1]], self._target_steps - 1)
            for recorder in self.recorders:
                self._store(tx, recorder.on_run_end(self._run_view(last)))
            self._ended = True
            self._checkpoint(tx, last)

    def _step(self, batch: EditBatch) -> None:
        target_step = self._target_index.get(batch.index)
        with self._writer.transaction(batch.index) as tx:
            for kind, text in self._tuner.prepare(batch):
                tx.event(kind, text)
            began, cpu = time.perf_counter(), time.process_time()
            captures = self.view.capture_edits(batch.edits, self.editor.needs, minibatch=self.editor.minibatch)
            guarded = guard(captures, batch, policy=self.spec.guard)
            captured = time.perf_counter()
            applied: list[Applied] = []
            written = guarded.skipped is None and self.editor.writes(batch.phase)
            if guarded.skipped is None:
                applied = self._propose(batch, guarded.captures, written)
            else:
                tx.event("skipped", guarded.skipped)
            edited, cpu = time.perf_counter(), time.process_time() - cpu
            if guarded.skipped is None:
                step = StepView(
                    step=batch.index,
                    total=len(self.plan),
                    phase=batch.phase,
                    target_step=target_step,
                    batch=batch,
                    captures=guarded.captures,
                    applied=applied,
                    written=written,
                    view=self.view,
                )
                self._store(tx, (extra_row(batch.index, one.proposal) for one in applied if one.proposal.extra))
                for kind, text in (note for one in applied for note in one.proposal.notes):
                    tx.event(kind, text)
                self._record(tx, step, evaluating=False)
            recorded = time.perf_counter()
            if guarded.skipped is None:
                self._record(tx, step, evaluating=True)
            if target_step is not None:
                if guarded.skipped is not None:
                    self._skipped.append(target_step)
                else:
                    self._written(batch.index)
                if not self._postponed(target_step):
                    self._question(tx, batch, target_step)
            record = StepRecord(
                step=batch.index,
                phase=batch.phase,
                edits=len(batch.edits),
                rows=captured_rows(guarded.captures),
                loss=captured_loss(guarded.captures),
                skipped=guarded.skipped,
                seconds=time.perf_counter() - began,
                seconds_capture=captured - began,
                seconds_editor=edited - captured,
                seconds_record=recorded - edited,
                seconds_evaluate=time.perf_counter() - recorded,
            )
            self._store(tx, step_rows(record, target_step, written, guarded.dropped_rows))
            self._cost(tx, batch.index, {"seconds_cpu": cpu, "peak_bytes": peak_bytes(self._device)})
            due = (batch.index + 1) % self.spec.checkpoint.every == 0 or batch.index == len(self.plan) - 1
            if due or self._outlook.stops():
                self._checkpoint(tx, batch.index)

    def _record(self, tx: Any, step: StepView, *, evaluating: bool) -> None:
        """Ask the recorders that are due; those that run the model come apart, because their cost is evaluation."""
        for recorder in self.recorders:
            if (recorder.name == "quality") == evaluating and recorder.schedule(step.step, step.total):
                self._store(tx, recorder.on_step(step))

    def _propose(self, batch: EditBatch, captures: Mapping[str, Capture], written: bool) -> list[Applied]:
        proposals = self.editor.step(self.view, batch, captures)
        if written:
            measure = measures(self.recorders, step=batch.index, total=len(self.plan))
            applied = self._apply(proposals, step=batch.index, measure=measure)
        else:
            applied = [Applied(proposal, None) for proposal in proposals]
        self.editor.commit(self.view, applied)
        return applied

    def _apply(self, proposals: Iterable[Proposal], *, step: int, measure: bool) -> list[Applied]:
        applied = []
        for proposal in proposals:
            if not finite_update(proposal.update):
                raise NumericalError(
                    f"the update of {proposal.module} at step {step} is not finite: lower the learning rate"
                )
            written = self._weights.write(proposal.module, proposal.update, measure=measure)
            applied.append(Applied(proposal, *written))
        return applied

    def _postponed(self, target_step: int) -> bool:
        """Whether the questions after this step wait for what the editor does at the end of the run."""
        return getattr(self.editor, "finishes", False) and target_step == self._target_steps - 1

    def _question(self, tx: Any, batch: EditBatch, target_step: int) -> None:
        evaluate = self._evaluate(target_step, self._target_steps)
        snapshot = self._snapshot(target_step, self._target_steps)
        if not (evaluate or snapshot):
            return
        view = SnapshotView(
            step=batch.index,
            total=len(self.plan),
            evaluate=evaluate,
            snapshot=snapshot,
            edits_done=self.target.take(self._done[: self._done_count]),
            new_edits=() if target_step in self._skipped else batch.edits,
            view=self.view,
        )
        for recorder in self.recorders:
            self._store(tx, recorder.on_snapshot(view))

    def _written(self, step: int) -> None:
        """Count the edits of a target step among those that the model has been taught."""
        places = self.plan.places(step)
        self._done[self._done_count : self._done_count + len(places)] = places
        self._done_count += len(places)

    def _store(self, tx: Any, items: Iterable[Item]) -> None:
        immediate = []
        for item in items:
            if isinstance(item, Array):
                tx.array(item.name, item.step, item.data)
                continue
            tx.row(item.table, dict(item.key), dict(item.values))
            if item.table == "edits" and item.values.get("immediate") is not None:
                immediate.append(float(item.values["immediate"]))
        if immediate:
            self._outlook.efficacy = sum(immediate) / len(immediate)

    def _checkpoint(self, tx: Any, step: int) -> None:
        tensors: dict[str, Tensor] = {f"weights/{k}": v for k, v in self._weights.state_dict().items()}
        editor_tensors, editor_meta = self.editor.state_dict()
        tensors |= {f"editor/{k}": v for k, v in editor_tensors.items()}
        meta: dict[str, Any] = {
            "step": step,
            "ended": self._ended,
            "skipped": self._skipped,
            "editor": editor_meta,
            "initial_norms": self.view.initial_norms,
            "recorders": {},
            "adapter": getattr(self.editor, "adapter", None) is not None,
        }
        for recorder in self.recorders:
            own, own_meta = recorder.state_dict()
            tensors |= {f"recorder/{recorder.name}/{k}": v for k, v in own.items()}
            meta["recorders"][recorder.name] = own_meta
        # What the end changes must not share a folder with the last step: a kill between the two would apply it twice.
        folder = f"state/step-{step + 1 + self._ended:08d}"
        save_state(self._writer.path / folder, tensors, meta=meta)
        tx.checkpoint(step, folder)
        self._cost(tx, step, {"state_bytes": state_bytes(editor_tensors)})

    def _cost(self, tx: Any, step: int, told: Mapping[str, float | None]) -> None:
        """Add to the step's timings what the run has columns for: one that an older version began has fewer."""
        known = self._writer.columns_of("timings")
        tx.row("timings", {"step": step}, {name: value for name, value in told.items() if name in known})

    def _restore(self) -> None:
        pointer = self._writer.checkpoint()
        if pointer is None:
            self._writer.truncate_after(-2)
            return
        step, folder = pointer
        tensors, meta = load_state(folder)
        self._writer.truncate_after(step)
        self._weights.load_state_dict(part(tensors, "weights/"))
        self.view.set_initial_norms(meta["initial_norms"])
        self.editor.load_state_dict(part(tensors, "editor/"), meta["editor"])
        for recorder in self.recorders:
            own = part(tensors, f"recorder/{recorder.name}/")
            recorder.load_state_dict(own, meta["recorders"][recorder.name])
        self._next = step + 1
        self._skipped = list(meta["skipped"])
        skipped = set(self._skipped)
        for index in self.plan.steps("target"):
            if index < self._next and self._target_index[index] not in skipped:
                self._written(index)
        self._started, self._ended, self._origin = True, bool(meta["ended"]), Start()


def run(spec: Spec, path: str | Path, *, progress: bool = True, stop_on_alarm: bool = False) -> Run:
    """Carry out a spec in a new run directory; see `Session`."""
    return Session.create(spec, Path(path), progress=progress, stop_on_alarm=stop_on_alarm).run()


def resume(path: str | Path, *, progress: bool = True, stop_on_alarm: bool = False) -> Run:
    """Continue an interrupted run; see `Session.resume`."""
    return Session.resume(Path(path), progress=progress, stop_on_alarm=stop_on_alarm).run()
