"""General capability: classification by label words, which editing should leave alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from stablediag.errors import DataError
from stablediag.evaluation.metrics import CachedPairs, labelled_logits, score_pairs
from stablediag.types import Probe


class ChoiceTask(Protocol):
    """A task with label words, such as `stablediag.testbed.CapabilityTask`."""

    @property
    def labels(self) -> Sequence[str]: ...

    @property
    def test(self) -> Sequence[Probe]: ...


@torch.no_grad()
def score_choice(
    model: Any, tokenizer: Any, probes: Sequence[Probe], labels: Sequence[str], *, token_budget: int = 8192
) -> float:
    """Accuracy of the label word with the highest mean log-probability per token.

    This is the released ``f1_new`` score without its weighting; no text is generated, so there are no invalid answers.

    Parameters
    ----------
    model, tokenizer : PreTrainedModel, PreTrainedTokenizerBase
        The model is not changed.
    probes : sequence of Probe
        Prompts, each with one of the labels as its answer.
    labels : sequence of str
        Label words, without leading spaces. Ties go to the first.
    token_budget : int
        Tokens, padding included, in one forward pass.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    DataError
        There are no probes, or a probe's answer is none of the labels.
    """
    if not probes:
        raise DataError("a capability task has no probes: leave the task out")
    for probe in probes:
        if probe.answer not in labels:
            raise DataError(f"probe {probe.id!r} has the answer {probe.answer!r}, which is none of {', '.join(labels)}")
    words = CachedPairs.build([(probes[0].prompt, label) for label in labels], tokenizer).tokens
    scores = np.zeros((len(probes), len(labels)))
    if max(words.answer_lengths) == 1:
        # One forward pass a prompt: the label words compete at the same position.
        first = CachedPairs.build([(probe.prompt, labels[0]) for probe in probes], tokenizer)
        columns = [row[-1] for row in words.labels]
        for chunk, logits, _ in labelled_logits(model, first, token_budget=token_budget):
            scores[np.asarray(chunk)] = logits.log_softmax(dim=-1)[:, columns].double().cpu().numpy()
    else:
        for column, label in enumerate(labels):
            pairs = [(probe.prompt, label) for probe in probes]
            scores[:, column] = -score_pairs(model, tokenizer, pairs, token_budget=token_budget).nll
    gold = np.asarray([list(labels).index(probe.answer) for probe in probes])
    return float((scores.argmax(axis=1) == gold).mean())


def capability(
    model: Any, tokenizer: Any, tasks: Mapping[str, ChoiceTask], *, token_budget: int = 8192
) -> dict[str, tuple[float, int]]:
    """Accuracy and number of test items of every task.

    Parameters
    ----------
    model, tokenizer : PreTrainedModel, PreTrainedTokenizerBase
        The model is not changed.
    tasks : mapping of str to ChoiceTask
        For instance `stablediag.testbed.capability_tasks()`.
    token_budget : int
        Tokens, padding included, in one forward pass.

    Returns
    -------
    dict of str to (float, int)
    """
    return {
        name: (score_choice(model, tokenizer, task.test, task.labels, token_budget=token_budget), len(task.test))
        for name, task in tasks.items()
    }
