"""What every recorder must satisfy, as one function that anybody can run on their own class."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stablediag.editors.base import Applied, Proposal, Tracked
from stablediag.engine.capture import CaptureNeeds
from stablediag.engine.view import ModelView
from stablediag.engine.weights import WeightWriter
from stablediag.maths.niw import NIW
from stablediag.maths.update import LowRank
from stablediag.maths.whiten import gradient_whitener
from stablediag.models import LoadedModel, load_model
from stablediag.recorders.base import Array, Item, Recorder, Row, RunView, SnapshotView, StepView
from stablediag.recorders.registry import TABLE_KEYS
from stablediag.tokens import encode
from stablediag.types import Capture, Edit, EditBatch, Phase, Probe

_KINDS: Mapping[str, tuple[type, ...]] = {"REAL": (float, int), "INTEGER": (int,), "TEXT": (str,)}
_PER_STEP = 3
#: phase of every step, whether it writes, and whether the model is questioned after it
_PLAN: Sequence[tuple[Phase, bool, bool]] = (
    ("warmup", False, False),
    ("target", True, False),
    ("target", True, True),
    ("warmup", True, False),
    ("target", True, False),
    ("target", True, True),
)


def check_recorder(recorder: Recorder, *, loaded: LoadedModel | None = None) -> list[Item]:
    """Run a recorder through a tiny run and check that it keeps the rules.

    The run has a statistics-only warm-up step, a mid-stream warm-up, two evaluations with snapshots, and covariances
    that come into existence on the way. The rules: only declared columns and plain values; the same items every time;
    nothing of the model, the captures, the editor's statistics or the global random state changes; a state that, saved
    at any step and loaded into a fresh recorder, continues bit for bit and whose values are JSON.

    Parameters
    ----------
    recorder : Recorder
        A fresh recorder that can be deep-copied; it is not changed itself.
    loaded : LoadedModel, optional
        A small model with at least one edited module, restored afterwards; the testbed's by default.

    Returns
    -------
    list of Row or Array
        What the recorder recorded.

    Raises
    ------
    AssertionError
        One line: the rule that is broken, and where.
    """
    _check_declaration(recorder)
    loaded = loaded if loaded is not None else load_model("testbed", modules=["layers.1.mlp.down_proj"])
    run = _FakeRun(loaded)
    items, states = run.drive(copy.deepcopy(recorder))
    for item in items:
        _check_item(recorder, item)
    _check_twice(items)
    again, _ = run.drive(copy.deepcopy(recorder))
    _rule(_same(items, again), recorder, "two identical runs give different items: use no unseeded randomness")
    for step, (tensors, meta, recorded) in states.items():
        resumed = copy.deepcopy(recorder)
        resumed.load_state_dict({key: tensor.clone() for key, tensor in tensors.items()}, json.loads(meta))
        rest, _ = run.drive(resumed, start=step + 1)
        where = f"after the state of step {step} is loaded"
        _rule(_same(items[recorded:], rest), recorder, f"the items differ {where}: keep all of the state in state_dict")
    return items


def _rule(kept: bool, recorder: Recorder, broken: str) -> None:
    if not kept:
        raise AssertionError(f"recorder {getattr(recorder, 'name', type(recorder).__name__)}: {broken}")


def _check_declaration(recorder: Recorder) -> None:
    _rule(isinstance(recorder, Recorder), recorder, "it lacks a member of the Recorder protocol")
    _rule(isinstance(recorder.name, str) and bool(recorder.name), recorder, "its name is not a string")
    _rule(isinstance(recorder.version, int), recorder, "its version is not a whole number")
    for table, columns in recorder.columns.items():
        for column, kind in columns.items():
            _rule(kind in _KINDS, recorder, f"column {table}.{column} has the unknown type {kind!r}")
            _rule(column not in TABLE_KEYS.get(table, {}), recorder, f"column {table}.{column} is a key of its table")


def _check_item(recorder: Recorder, item: Item) -> None:
    if isinstance(item, Array):
        numeric = isinstance(item.data, np.ndarray) and item.data.dtype.kind in "biuf"
        _rule(numeric, recorder, f"array {item.name!r} is not a numeric numpy array")
        _rule(-1 <= item.step < len(_PLAN), recorder, f"array {item.name!r} has the impossible step {item.step}")
        return
    _rule(isinstance(item, Row), recorder, f"it returned a {type(item).__name__}, not a Row or an Array")
    _rule(item.table in recorder.columns, recorder, f"it writes the undeclared table {item.table!r}")
    keys = TABLE_KEYS.get(item.table)
    keyed = keys is None or set(item.key) == set(keys)
    _rule(keyed, recorder, f"a row of {item.table!r} has the key {sorted(item.key)}")
    for column, value in item.values.items():
        kind = recorder.columns[item.table].get(column)
        _rule(kind is not None, recorder, f"it writes the undeclared column {item.table}.{column}")
        plain = value is None or (type(value) is not bool and isinstance(value, _KINDS[str(kind)]))
        _rule(plain, recorder, f"{item.table}.{column} is a {type(value).__name__}, not a plain {kind}")


def _check_twice(items: Iterable[Item]) -> None:
    seen: dict[tuple[str, str, str], Any] = {}
    for item in items:
        if isinstance(item, Row):
            for column, value in item.values.items():
                place = (item.table, str(sorted(item.key.items())), column)
                if not _equal(seen.setdefault(place, value), value):
                    raise AssertionError(f"{item.table}.{column} is given two values at {dict(item.key)}")


def _same(left: Sequence[Item], right: Sequence[Item]) -> bool:
    return len(left) == len(right) and all(_same_item(a, b) for a, b in zip(left, right, strict=True))


def _same_item(a: Item, b: Item) -> bool:
    if isinstance(a, Row) and isinstance(b, Row):
        named = (a.table, dict(a.key), list(a.values)) == (b.table, dict(b.key), list(b.values))
        return named and all(_equal(a.values[column], b.values[column]) for column in a.values)
    if isinstance(a, Array) and isinstance(b, Array):
        alike = (a.name, a.step, a.data.shape, a.data.dtype) == (b.name, b.step, b.data.shape, b.data.dtype)
        return alike and a.data.tobytes() == b.data.tobytes()
    return False


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b) or (a != a and b != b)


#: tensors and JSON of `state_dict`, and how many items had been recorded by then
_State = tuple[dict[str, Tensor], str, int]


@dataclass(frozen=True)
class _Step:
    batch: EditBatch
    captures: dict[str, Capture]
    applied: tuple[Applied, ...]
    written: bool


class _FakeRun:
    """A scripted run: the same updates, statistics and captures whoever records them."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.writer = WeightWriter(loaded.modules)
        self.view = ModelView(loaded, self.writer)
        words = _words(loaded.tokenizer)
        edits = [_edit(index, words) for index in range(_PER_STEP * len(_PLAN))]
        batches = [
            EditBatch(index, phase, tuple(edits[index * _PER_STEP : (index + 1) * _PER_STEP]))
            for index, (phase, _, _) in enumerate(_PLAN)
        ]
        self.stream = [edit for batch in batches if batch.phase == "target" for edit in batch.edits]
        generator = torch.Generator().manual_seed(0)
        tracked = {name: NIW.empty(module.d_out, device=loaded.device) for name, module in loaded.modules.items()}
        self.steps = [self._script(batch, tracked, generator) for batch in batches]

    def _script(self, batch: EditBatch, tracked: dict[str, NIW], generator: torch.Generator) -> _Step:
        captures = self.view.capture(encode(batch.edits, self.loaded.tokenizer), CaptureNeeds())
        written = _PLAN[batch.index][1]
        applied = []
        for name, module in self.loaded.modules.items():
            noise = partial(_noise, generator=generator, device=self.loaded.device)
            before, rows = tracked[name], noise(module.d_out // 2, module.d_out)
            tracked[name] = after = before.update(rows)
            size = 0.02 * self.view.initial_norm(name) / (module.d_in * module.d_out * _PER_STEP) ** 0.5
            proposal = Proposal(
                module=name,
                update=LowRank(noise(_PER_STEP, module.d_in).mT, size * noise(_PER_STEP, module.d_out)),
                tracked={name: Tracked(after, before.nu, before.mean, before.factor(rows), after.nu)},
                whitener=gradient_whitener(after, after.diag()),
            )
            applied.append(Applied(proposal, None))
        return _Step(batch, captures, tuple(applied), written)

    def drive(self, recorder: Recorder, *, start: int = 0) -> tuple[list[Item], dict[int, _State]]:
        """All items from step `start` on, and the state after every step."""
        snapshot = self.writer.snapshot()
        try:
            return self._drive(recorder, start)
        finally:
            self.writer.restore(snapshot)

    def _drive(self, recorder: Recorder, start: int) -> tuple[list[Item], dict[int, _State]]:
        items: list[Item] = []
        states: dict[int, _State] = {}
        total = len(self.steps)
        if start == 0:
            with self._untouched(recorder):
                items += recorder.on_run_start(RunView(step=-1, total=total, view=self.view, stream=self.stream))
        done: list[Edit] = []
        for index, step in enumerate(self.steps):
            applied = self._write(step)
            if index >= start:
                with self._untouched(recorder):
                    if recorder.schedule(index, total):
                        items += recorder.on_step(self._step_view(index, step, applied))
            done += step.batch.edits if step.batch.phase == "target" else ()
            if index >= start:
                if _PLAN[index][2]:
                    with self._untouched(recorder):
                        items += recorder.on_snapshot(self._snapshot_view(index, step, done))
                tensors, meta = recorder.state_dict()
                copied = {key: tensor.detach().clone() for key, tensor in tensors.items()}
                states[index] = (copied, self._json(recorder, meta), len(items))
        with self._untouched(recorder):
            items += recorder.on_run_end(RunView(step=total - 1, total=total, view=self.view, stream=self.stream))
        return items, states

    @staticmethod
    def _json(recorder: Recorder, meta: Mapping[str, Any]) -> str:
        try:
            return json.dumps(meta, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"recorder {recorder.name}: the values of state_dict are not JSON ({error})") from None

    def _write(self, step: _Step) -> tuple[Applied, ...]:
        if not step.written:
            return step.applied
        proposals = [applied.proposal for applied in step.applied]
        return tuple(Applied(p, self.writer.apply(p.module, p.update, measure=True)) for p in proposals)

    def _step_view(self, index: int, step: _Step, applied: tuple[Applied, ...]) -> StepView:
        phase = step.batch.phase
        earlier = sum(other == "target" for other, _, _ in _PLAN[:index])
        return StepView(
            step=index,
            total=len(self.steps),
            phase=phase,
            target_step=earlier if phase == "target" else None,
            batch=step.batch,
            captures=step.captures,
            applied=applied,
            written=step.written,
            view=self.view,
        )

    def _snapshot_view(self, index: int, step: _Step, done: Sequence[Edit]) -> SnapshotView:
        return SnapshotView(
            step=index,
            total=len(self.steps),
            evaluate=True,
            snapshot=True,
            edits_done=tuple(done),
            new_edits=step.batch.edits,
            view=self.view,
        )

    @contextmanager
    def _untouched(self, recorder: Recorder) -> Iterator[None]:
        """Fails when the block changed the model, a capture, a statistic or the global random state."""
        watched = self._watched()
        before = {where: tensor.detach().clone() for where, tensor in watched.items()}
        mode, rng = self.loaded.model.training, (random.getstate(), torch.get_rng_state())
        numpy_rng = np.random.get_state(legacy=False)  # noqa: NPY002 - the global state is what must not move
        yield
        for where, tensor in watched.items():
            same = torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(before[where]))
            _rule(same, recorder, f"it changed {where}: recorders are read-only")
        _rule(self.loaded.model.training == mode, recorder, "it changed the model's mode")
        moved = random.getstate() != rng[0] or not torch.equal(torch.get_rng_state(), rng[1])
        now = np.random.get_state(legacy=False)  # noqa: NPY002
        moved = moved or str(now) != str(numpy_rng)
        _rule(not moved, recorder, "it drew from a global random generator: use a seeded one of your own")

    def _watched(self) -> dict[str, Tensor]:
        watched = {f"weight {name}": parameter for name, parameter in self.loaded.model.named_parameters()}
        for index, step in enumerate(self.steps):
            for name, capture in step.captures.items():
                watched |= {f"the keys of {name} at step {index}": capture.keys}
                watched |= {f"the gradients of {name} at step {index}": capture.grads}
            for applied in step.applied:
                proposal = applied.proposal
                assert isinstance(proposal.update, LowRank)
                watched |= {f"the update of {proposal.module} at step {index}": proposal.update.right}
                for scope, tracked in proposal.tracked.items():
                    watched |= {f"the statistic {scope} at step {index}": tracked.after.scale}
        return watched


def _noise(*shape: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randn(*shape, generator=generator).to(device)


def _words(tokenizer: Any) -> list[str]:
    """Words that the tokenizer knows, for prompts of any model."""
    found = [tokenizer.decode([index]).strip() for index in range(min(len(tokenizer), 400))]
    words = [word for word in found if word.isalpha()]
    return words if len(words) >= 20 else ["one", "two", "three", "four"] * 5


def _edit(index: int, words: Sequence[str]) -> Edit:
    rng = random.Random(index)

    def text(n: int) -> str:
        return " ".join(rng.choice(words) for _ in range(n))

    probe = Probe(text(5), text(1 + index % 2), "locality", f"locality-{index}")
    return Edit(f"edit-{index}", text(4 + index % 3), text(1 + index % 2), rephrases=(text(6),), locality=(probe,))
