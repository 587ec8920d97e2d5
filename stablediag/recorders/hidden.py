"""Hidden states of fixed prompts, before the first edit and at every snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stablediag.evaluation.metrics import hidden_states
from stablediag.recorders.base import Array, BaseRecorder, Item, RunView, SnapshotView


@dataclass
class HiddenStates(BaseRecorder):
    """Final hidden states at the last token of each prompt: array ``hidden``, float32, [prompts, hidden width].

    Step -1 is the unedited model.

    Parameters
    ----------
    prompts : sequence of str
        The same prompts at every snapshot; they should have nothing to do with the edits.
    token_budget : int
        Tokens, padding included, in one forward pass.
    """

    prompts: Sequence[str] = ()
    token_budget: int = 8192
    name = "hidden_states"

    def on_run_start(self, run: RunView) -> Iterable[Item]:
        """The unedited model."""
        return [self._array(run, -1)]

    def on_snapshot(self, snapshot: SnapshotView) -> Iterable[Item]:
        """The model as it is now, when the snapshot schedule is due."""
        return [self._array(snapshot, snapshot.step)] if snapshot.snapshot and snapshot.step >= 0 else []

    def _array(self, moment: RunView | SnapshotView, step: int) -> Array:
        view = moment.view
        states = hidden_states(view.model, view.tokenizer, self.prompts, token_budget=self.token_budget)
        return Array("hidden", step, states)
