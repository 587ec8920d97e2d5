"""What the edits did to the model's answers: immediate success, retention, side effects, general capability."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stablediag.errors import DataError, SpecError
from stablediag.evaluation.capability import ChoiceTask, capability
from stablediag.evaluation.metrics import CachedPairs, Pair, Scores, agreement, score_cached, score_pairs
from stablediag.recorders.base import Array, BaseRecorder, Item, Row, RunView, SnapshotView, SqlType, StepView
from stablediag.testbed import capability_tasks
from stablediag.types import Edit

if TYPE_CHECKING:
    from stablediag.engine.view import ModelView

PROBES = ("efficacy", "generalization", "specificity", "persona", "multihop")


def probe_pairs(edit: Edit, probe: str) -> list[Pair]:
    """The (prompt, answer) pairs that ask one edit for one quality; none where its record has no such probe."""
    if probe == "efficacy":
        return [(edit.prompt, edit.target)]
    if probe == "generalization":
        return [(prompt, edit.target) for prompt in edit.rephrases]
    asked = {"specificity": edit.locality, "persona": edit.persona, "multihop": edit.multihop}
    return [(p.prompt, p.answer) for p in asked[probe]]


@dataclass
class _Stream:
    """Places in the target stream, found again by edit id: steps may be skipped, and a resumed run has no stream."""

    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, edits: Sequence[Edit]) -> _Stream:
        return cls(np.fromiter((_key(edit) for edit in edits), np.int64, len(edits)))

    def locate(self, edits: Sequence[Edit], start: int) -> list[int]:
        """Places of `edits`, at or after `start` and in order; consecutive ones where the stream is not known."""
        if not len(self.keys):
            return list(range(start, start + len(edits)))
        places = []
        for edit in edits:
            key = _key(edit)
            while start < len(self.keys) and self.keys[start] != key:
                start += 1
            if start == len(self.keys):
                raise DataError(f"edit {edit.id!r} is not where the target stream had it: use the run's own data")
            places.append(start)
            start += 1
        return places


def _key(edit: Edit) -> int:
    return int.from_bytes(hashlib.blake2b(edit.id.encode(), digest_size=8).digest(), "little", signed=True)


@dataclass
class _Asked:
    """The tokenised questions of one probe, each with the place of its edit in the stream."""

    pairs: CachedPairs
    owners: np.ndarray

    @classmethod
    def of(cls, edits: Mapping[int, Edit], probe: str, tokenizer: Any) -> _Asked:
        pairs = {place: probe_pairs(edit, probe) for place, edit in edits.items()}
        owners = [place for place, asked in pairs.items() for _ in asked]
        listed = [pair for asked in pairs.values() for pair in asked]
        return cls(CachedPairs.build(listed, tokenizer), np.array(owners, np.int64))

    def extended(self, other: _Asked) -> _Asked:
        return _Asked(self.pairs.extended(other.pairs), np.concatenate([self.owners, other.owners]))

    def of_places(self, places: Sequence[int]) -> _Asked:
        """The questions about the edits at these places only."""
        chosen = np.flatnonzero(np.isin(self.owners, places))
        return _Asked(self.pairs.take(chosen.tolist()), self.owners[chosen])

    def per_edit(self, values: np.ndarray) -> np.ndarray:
        """Mean over the questions of each edit, float64, in stream order."""
        _, index, counts = np.unique(self.owners, return_inverse=True, return_counts=True)
        return np.bincount(index, weights=values) / counts


@dataclass
class Quality(BaseRecorder):
    """Teacher-forced quality of the edited model, over all past target edits or a fixed subsample of them.

    Table ``quality``: one row per step (-1: the unedited model, over the whole stream), metric and kind (``token``:
    share of answer tokens, ``exact``: share of whole answers). A record's probes of one kind are averaged first, then
    the records; ``n`` counts records. Specificity is accuracy on the gold answer of the locality probe, and
    ``specificity_agreement`` the match with the unedited model's own prediction at the same positions.
    ``capability:<task>`` and ``capability_mean`` are label-word accuracies; their ``n`` counts test items.

    Table ``edits``: when each target edit was written, its success just after (``immediate``) and at the end of the run
    (``retained``), both token shares. Arrays ``retained_efficacy`` (float32) and ``retained_position`` (int64, place in
    the target stream) hold the success of each evaluated edit at every evaluation.

    Parameters
    ----------
    probes : sequence of str
        Of `PROBES`.
    subsample : int, optional
        Evaluate only this many edits of the stream, drawn once; all by default.
    seed : int
        Of the subsample.
    capability : bool
        Run the capability tasks at every evaluation.
    immediate_every : int
        Measure immediate success at every k-th target step; 0: never. It costs one forward pass over the step's edits.
    token_budget : int
        Tokens, padding included, in one forward pass.
    tasks : mapping of str to ChoiceTask, optional
        Capability tasks; the testbed's by default.
    """

    probes: Sequence[str] = ("efficacy", "generalization", "specificity")
    subsample: int | None = None
    seed: int = 0
    capability: bool = False
    immediate_every: int = 1
    token_budget: int = 8192
    tasks: Mapping[str, ChoiceTask] | None = None
    name = "quality"
    columns: Mapping[str, Mapping[str, SqlType]] = field(
        default_factory=lambda: {
            "quality": {"value": "REAL", "n": "INTEGER"},
            "edits": {"edit_id": "TEXT", "step": "INTEGER", "immediate": "REAL", "retained": "REAL"},
        },
        init=False,
    )
    _stream: _Stream = field(default_factory=_Stream, init=False, repr=False)
    _chosen: frozenset[int] | None = field(default=None, init=False, repr=False)
    _asked: dict[str, _Asked] = field(default_factory=dict, init=False, repr=False)
    _known: set[int] = field(default_factory=set, init=False, repr=False)
    _before: dict[int, list[tuple[int, ...]]] = field(default_factory=dict, init=False, repr=False)
    _done: list[int] = field(default_factory=list, init=False, repr=False)
    _next: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        unknown = [probe for probe in self.probes if probe not in PROBES]
        if unknown:
            raise SpecError(f"unknown probe {unknown[0]!r} of recorder quality: use {', '.join(PROBES)}")

    def on_run_start(self, run: RunView) -> Iterable[Item]:
        """The unedited model on the whole stream, whose predictions are kept for the agreement."""
        self._stream = _Stream.of(run.stream)
        self._chosen = self._draw(len(run.stream))
        places = self._ask(range(len(run.stream)), run.stream, run.view.tokenizer)
        for probe, asked, scores in self._scored(run.view, places):
            yield from self._rows(-1, probe, asked, scores.token_match, scores.exact)
            if probe == "specificity":
                for place, prediction in zip(asked.owners.tolist(), scores.predictions, strict=True):
                    self._before.setdefault(place, []).append(prediction)
        yield from self._capability(run.view, -1)

    def on_step(self, step: StepView) -> Iterable[Item]:
        """Immediate success of the step's own edits."""
        if step.phase != "target" or not step.written:
            return
        edits = step.batch.edits
        places = self._stream.locate(edits, self._next)
        self._next = places[-1] + 1 if places else self._next
        success: list[float | None] = [None] * len(edits)
        if self.immediate_every and step.target_step is not None and step.target_step % self.immediate_every == 0:
            pairs = [(edit.prompt, edit.target) for edit in edits]
            scores = score_pairs(step.view.model, step.view.tokenizer, pairs, token_budget=self.token_budget)
            success = scores.token_match.tolist()
        for place, edit, immediate in zip(places, edits, success, strict=True):
            yield Row("edits", {"position": place}, {"edit_id": edit.id, "step": step.step, "immediate": immediate})

    def on_snapshot(self, snapshot: SnapshotView) -> Iterable[Item]:
        """All past target edits (of the subsample), when the evaluation schedule is due."""
        if not snapshot.evaluate or snapshot.step < 0:
            return
        view, step = snapshot.view, snapshot.step
        fresh = snapshot.edits_done[len(self._done) :]
        self._done += self._stream.locate(fresh, self._done[-1] + 1 if self._done else 0)
        places = self._ask(self._done, snapshot.edits_done, view.tokenizer)
        for probe, asked, scores in self._scored(view, places):
            yield from self._rows(step, probe, asked, scores.token_match, scores.exact)
            if probe == "specificity" and self._before:
                same = agreement(scores, [p for place in places for p in self._before.get(place, ())])
                yield from self._rows(step, "specificity_agreement", asked, same, same == 1)
            if probe == "efficacy":
                yield Array("retained_efficacy", step, scores.token_match)
                yield Array("retained_position", step, asked.owners)
                if step == snapshot.total - 1:
                    for place, value in zip(asked.owners.tolist(), scores.token_match.tolist(), strict=True):
                        yield Row("edits", {"position": place}, {"retained": value})
        yield from self._capability(view, step)

    def _draw(self, size: int) -> frozenset[int] | None:
        if self.subsample is None or self.subsample >= size:
            return None
        return frozenset(np.random.default_rng(self.seed).choice(size, self.subsample, replace=False).tolist())

    def _ask(self, places: Iterable[int], edits: Sequence[Edit], tokenizer: Any) -> list[int]:
        """The places that are to be evaluated; their questions are tokenised unless they have been."""
        chosen = {p: edit for p, edit in zip(places, edits, strict=True) if self._chosen is None or p in self._chosen}
        new = {place: edit for place, edit in chosen.items() if place not in self._known}
        if new:
            for probe in self.probes:
                asked = _Asked.of(new, probe, tokenizer)
                self._asked[probe] = self._asked[probe].extended(asked) if probe in self._asked else asked
            self._known.update(new)
        return list(chosen)

    def _scored(self, view: ModelView, places: Sequence[int]) -> Iterator[tuple[str, _Asked, Scores]]:
        """Each probe's questions about the edits at `places`, with the model's present scores."""
        for probe in self.probes if places else ():
            asked = self._asked[probe].of_places(places)
            if len(asked.pairs):
                yield probe, asked, score_cached(view.model, asked.pairs, token_budget=self.token_budget)

    @staticmethod
    def _rows(step: int, metric: str, asked: _Asked, token: np.ndarray, exact: np.ndarray) -> Iterator[Row]:
        for kind, values in (("token", token), ("exact", exact)):
            edits = asked.per_edit(values)
            key = {"step": step, "metric": metric, "kind": kind}
            yield Row("quality", key, {"value": float(edits.mean()), "n": len(edits)})

    def _capability(self, view: ModelView, step: int) -> Iterator[Row]:
        if not self.capability:
            return
        tasks: Mapping[str, ChoiceTask] = self.tasks if self.tasks is not None else capability_tasks()
        found = capability(view.model, view.tokenizer, tasks, token_budget=self.token_budget)
        mean = float(np.mean([accuracy for accuracy, _ in found.values()]))
        results = {f"capability:{task}": result for task, result in found.items()}
        results["capability_mean"] = (mean, sum(n for _, n in found.values()))
        for metric, (value, n) in results.items():
            yield Row("quality", {"step": step, "metric": metric, "kind": "exact"}, {"value": value, "n": n})

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The stream's keys, the place reached, and the unedited model's predictions."""
        predictions = [(place, p) for place, listed in self._before.items() for p in listed]
        tensors = {
            "stream": torch.from_numpy(self._stream.keys.copy()),
            "before/place": torch.tensor([place for place, _ in predictions], dtype=torch.int64),
            "before/length": torch.tensor([len(p) for _, p in predictions], dtype=torch.int64),
            "before/token": torch.tensor([token for _, p in predictions for token in p], dtype=torch.int64),
        }
        return tensors, {"next": self._next}

    def load_state_dict(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore the state; questions are tokenised again when they are next asked."""
        self._stream = _Stream(tensors["stream"].cpu().numpy().copy())
        self._chosen = self._draw(len(self._stream.keys))
        self._asked, self._known, self._done, self._before = {}, set(), [], {}
        self._next = int(meta["next"])
        start, tokens = 0, tensors["before/token"].tolist()
        for place, length in zip(tensors["before/place"].tolist(), tensors["before/length"].tolist(), strict=True):
            self._before.setdefault(place, []).append(tuple(tokens[start : start + length]))
            start += length
