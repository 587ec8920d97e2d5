"""What the edits did to the model's answers: immediate success, retention, side effects, general capability."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stablediag.errors import SpecError
from stablediag.evaluation.capability import capability_rows
from stablediag.evaluation.divergence import Kept, keep
from stablediag.evaluation.evaluate import Answers, Reference, ask, check_metrics, summarise
from stablediag.evaluation.glue import load_tasks
from stablediag.evaluation.measured import Measured
from stablediag.evaluation.questions import Asked, Questions, check_probes
from stablediag.evaluation.tasks import ChoiceTask, Task
from stablediag.evaluation.teacher_forced import score_pairs
from stablediag.recorders.base import Array, BaseRecorder, Item, Row, RunView, SnapshotView, SqlType, StepView
from stablediag.recorders.past import Past
from stablediag.spec import GenerationSpec
from stablediag.types import Edit

if TYPE_CHECKING:
    from stablediag.engine.view import ModelView


@dataclass
class Quality(BaseRecorder):
    """Quality of the edited model, over all past target edits or a fixed subsample of them.

    Table ``quality``: one row per step (-1: the unedited model, over the whole stream), metric and kind, with the value,
    the number of records, standard error and 95% interval over records, and the protocol. A record's questions of one
    kind are averaged first, then the records. Under teacher forcing the kinds are ``token`` (share of answer tokens) and
    ``exact`` (share of whole answers), of generated answers ``generated_exact`` and ``generated_contained``. Specificity
    is accuracy on the gold answer of the locality probe; ``specificity_agreement`` and ``specificity_kl`` compare with
    the unedited model at the same positions. ``efficacy_last_target`` leaves out edits that a later one of the same
    prompt has superseded. ``capability:<task>`` rows count test items in ``n``. What is not finite is NULL.

    Table ``edits``: when each target edit was written, its success just after (``immediate``, a token share, and
    ``immediate_exact``) and at the end of the run (``retained``, ``retained_exact``). Arrays ``retained_efficacy``
    (float32) and ``retained_position`` (int64, place in the target stream) hold the token share of each evaluated edit
    at every evaluation.

    Parameters
    ----------
    probes : sequence of str
        Of `stablediag.evaluation.questions.PROBES`.
    metrics : sequence of str
        Of `stablediag.evaluation.evaluate.METRICS`: ``generation``, ``kl``, ``probability``, on top. ``kl`` keeps, in
        every checkpoint, what entered the output head at the answer positions of the locality probes: their number
        times the hidden size.
    generation : GenerationSpec
        How answers are generated.
    subsample : int, optional
        Evaluate only this many edits of the stream, drawn once; all by default.
    seed : int
        Of the subsample.
    capability : bool
        Run the capability tasks at every evaluation.
    tasks : mapping of str to Task, optional
        Capability tasks; the testbed's by default.
    capability_generation : bool
        Also let the model write its answers to the tasks.
    immediate_every : int
        Measure immediate success at every k-th target step; 0: never. It costs one forward pass over the step's edits.
    token_budget, batch_size : int
        Tokens, padding included, and sequences in one forward pass, at most.
    """

    probes: Sequence[str] = ("efficacy", "generalization", "specificity")
    metrics: Sequence[str] = ()
    generation: GenerationSpec = field(default_factory=GenerationSpec)
    subsample: int | None = None
    seed: int = 0
    capability: bool = False
    tasks: Mapping[str, Task | ChoiceTask] | None = None
    capability_generation: bool = False
    immediate_every: int = 1
    token_budget: int = 8192
    batch_size: int | None = None
    name = "quality"
    version = 2
    columns: Mapping[str, Mapping[str, SqlType]] = field(
        default_factory=lambda: {
            "quality": {
                "value": "REAL",
                "n": "INTEGER",
                "se": "REAL",
                "low": "REAL",
                "high": "REAL",
                "protocol": "TEXT",
            },
            "edits": {
                "edit_id": "TEXT",
                "step": "INTEGER",
                "immediate": "REAL",
                "immediate_exact": "REAL",
                "retained": "REAL",
                "retained_exact": "REAL",
            },
        },
        init=False,
    )
    _past: Past = field(default_factory=lambda: Past(np.zeros(0, np.int64), {}), init=False, repr=False)
    _questions: Questions = field(init=False, repr=False)
    _reference: Reference | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            check_probes(self.probes)
            check_metrics(self.metrics, probes=self.probes)
        except SpecError as error:
            raise SpecError(f"recorder quality: {error}") from None
        self._questions = self._no_questions()

    def on_run_start(self, run: RunView) -> Iterable[Item]:
        """The unedited model on the whole stream; what later evaluations compare with is kept."""
        edits = _chosen(run.stream, self.subsample, self.seed)
        self._past = Past.of(run.stream, edits)
        self._questions.add(edits, run.view.tokenizer)
        asked = self._questions.about(edits)
        answers = self._ask(run.view, asked)
        if "specificity" in self.probes:
            self._reference = Reference.of(answers, self._keep(run.view, asked) if "kl" in self.metrics else None)
        yield from _rows(-1, summarise(answers))
        yield from self._capability(run.view, -1)

    def on_step(self, step: StepView) -> Iterable[Item]:
        """Immediate success of the step's own edits."""
        if step.phase != "target":
            return
        edits = step.batch.edits
        places = self._past.add(edits)
        success: list[dict[str, float | None]] = [{"immediate": None, "immediate_exact": None}] * len(edits)
        if self.immediate_every and step.target_step is not None and step.target_step % self.immediate_every == 0:
            scores = score_pairs(
                step.view.model,
                step.view.tokenizer,
                [(edit.prompt, edit.target) for edit in edits],
                token_budget=self.token_budget,
                batch_size=self.batch_size,
            )
            success = [
                {"immediate": token, "immediate_exact": float(exact)}
                for token, exact in zip(scores.token_match.tolist(), scores.exact.tolist(), strict=True)
            ]
        for place, edit, values in zip(places, edits, success, strict=True):
            yield Row("edits", {"position": place}, {"edit_id": edit.id, "step": step.step, **values})

    def on_snapshot(self, snapshot: SnapshotView) -> Iterable[Item]:
        """All past target edits (of the subsample), when the evaluation schedule is due."""
        if not snapshot.evaluate or snapshot.step < 0:
            return
        view, step = snapshot.view, snapshot.step
        self._past = self._past.caught_up(snapshot.edits_done)
        new = {place: snapshot.edits_done[i] for place, i in self._past.done if place not in self._questions}
        self._questions.add(new, view.tokenizer)
        answers = self._ask(view, self._questions.about(self._past.places))
        yield from _rows(step, summarise(answers, last=self._past.current))
        yield from _retained(answers, step, final=step == snapshot.total - 1)
        yield from self._capability(view, step)

    def _no_questions(self) -> Questions:
        return Questions(self.probes, compared="probability" in self.metrics)

    def _ask(self, view: ModelView, asked: Asked) -> Answers:
        return ask(
            view.model,
            view.tokenizer,
            asked,
            generation=self.generation if "generation" in self.metrics else None,
            reference=self._reference,
            token_budget=self.token_budget,
            batch_size=self.batch_size,
        )

    def _keep(self, view: ModelView, asked: Asked) -> Kept | None:
        group = asked.groups.get("specificity")
        if group is None:
            return None
        pairs, _, _ = group.distinct()
        return keep(view.model, asked.cached.take(pairs), token_budget=self.token_budget, batch_size=self.batch_size)

    def _capability(self, view: ModelView, step: int) -> Iterator[Row]:
        if not self.capability:
            return
        found = capability_rows(
            view.model,
            view.tokenizer,
            load_tasks(True) if self.tasks is None else self.tasks,
            generate=self.capability_generation,
            token_budget=self.token_budget,
            batch_size=self.batch_size,
        )
        yield from _rows(step, found)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The past, and what is kept of the unedited model."""
        tensors, meta = self._past.state_dict()
        reference = self._reference
        if reference is not None:
            tensors |= {
                "before/owner": torch.from_numpy(reference.owners.copy()),
                "before/length": torch.tensor([len(p) for p in reference.predictions], dtype=torch.int64),
                "before/token": torch.tensor([t for p in reference.predictions for t in p], dtype=torch.int64),
            }
            if isinstance(reference.before, Kept):
                tensors["before/rows"] = reference.before.rows
                tensors["before/start"] = torch.from_numpy(reference.before.starts.copy())
                meta["head"] = reference.before.head
        return tensors, meta

    def load_state_dict(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore the state; questions are tokenised again when they are next asked."""
        self._past = Past.from_state(tensors, meta)
        self._questions, self._reference = self._no_questions(), None
        if "before/owner" in tensors:
            lengths = tensors["before/length"].tolist()
            tokens = iter(tensors["before/token"].tolist())
            predictions = tuple(tuple(next(tokens) for _ in range(length)) for length in lengths)
            before = None
            if "before/rows" in tensors:
                starts = tensors["before/start"].cpu().numpy().copy()
                before = Kept(tensors["before/rows"].cpu(), starts, np.asarray(lengths, np.int64), bool(meta["head"]))
            self._reference = Reference(tensors["before/owner"].cpu().numpy().copy(), predictions, before)


def _chosen(stream: Sequence[Edit], subsample: int | None, seed: int) -> dict[int, Edit]:
    """The edits that are evaluated, by their places, in order."""
    if subsample is None or subsample >= len(stream):
        return dict(enumerate(stream))
    places = np.random.default_rng(seed).choice(len(stream), subsample, replace=False)
    return {place: stream[place] for place in sorted(places.tolist())}


def _rows(step: int, found: Iterable[Measured]) -> Iterator[Row]:
    for one in found:
        values = {name: _finite(getattr(one, name)) for name in ("value", "se", "low", "high")}
        key = {"step": step, "metric": one.metric, "kind": one.kind}
        yield Row("quality", key, {**values, "n": one.n, "protocol": one.protocol})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _retained(answers: Answers, step: int, *, final: bool) -> Iterator[Item]:
    group = answers.asked.groups.get("efficacy")
    if group is None:
        return
    token, exact = answers.scores.token_match[group.pairs], answers.scores.exact[group.pairs]
    yield Array("retained_efficacy", step, token)
    yield Array("retained_position", step, group.owners)
    if final:
        for place, share, whole in zip(group.owners.tolist(), token.tolist(), exact.tolist(), strict=True):
            yield Row("edits", {"position": place}, {"retained": share, "retained_exact": float(whole)})
