"""Teacher-forced metrics of (prompt, answer) pairs, and hidden states of prompts.

A pair is scored as the released StableEdit, UltraEdit and MALMEN code does: prompt and answer are tokenised apart, the
gold answer is fed, and the prediction at every answer position is compared with the answer. The papers' formulas ask
for the whole answer (`exact`); the code reports the share of tokens (`token_match`). Both are returned, always.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stablediag.engine.capture import answer_logits
from stablediag.errors import DataError, ModelError
from stablediag.tokens import IGNORE, TokenBatch, encode_pairs, length_chunks, rows_mask

Pair = tuple[str, str]

# A hidden state is read at the last prompt token, which the tokens of an answer cannot influence: any answer will do.
_PLACEHOLDER = "."


@dataclass(frozen=True, slots=True)
class Scores:
    """Teacher-forced scores of n pairs, in their order.

    Attributes
    ----------
    token_match : ndarray, float32, shape [n]
        Share of answer tokens that are the model's first choice, in [0, 1].
    exact : ndarray, bool, shape [n]
        Whether all of them are.
    nll : ndarray, float32, shape [n]
        Mean negative log-probability of the answer tokens, nats.
    predictions : tuple of tuple of int
        The first choices themselves at the answer positions.
    """

    token_match: np.ndarray
    exact: np.ndarray
    nll: np.ndarray
    predictions: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class CachedPairs:
    """Pairs that were tokenised once, to be scored at every evaluation of a run."""

    tokens: TokenBatch

    @classmethod
    def build(cls, pairs: Sequence[Pair], tokenizer: Any) -> CachedPairs:
        """Tokenise pairs of (prompt, answer); the answer carries no leading space.

        Raises
        ------
        DataError
            A pair has an empty answer, or a part that yields no tokens.
        """
        for index, (prompt, answer) in enumerate(pairs):
            if not answer.strip():
                raise DataError(f"pair {index} ({prompt!r}) has an empty answer: leave it out or give it one")
        return cls(encode_pairs(pairs, tokenizer))

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, indices: Sequence[int]) -> CachedPairs:
        """These pairs only, in this order."""
        t, n = self.tokens, len(indices)
        inputs, labels = tuple(t.input_ids[i] for i in indices), tuple(t.labels[i] for i in indices)
        return CachedPairs(TokenBatch(inputs, labels, tuple(range(n)), (0,) * n))

    def extended(self, other: CachedPairs) -> CachedPairs:
        """These pairs, then the other ones."""
        a, b, n = self.tokens, other.tokens, len(self) + len(other)
        return CachedPairs(TokenBatch(a.input_ids + b.input_ids, a.labels + b.labels, tuple(range(n)), (0,) * n))


def score_pairs(model: Any, tokenizer: Any, pairs: Sequence[Pair] | CachedPairs, *, token_budget: int = 8192) -> Scores:
    """Score (prompt, answer) pairs under teacher forcing.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model; it is not changed.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer; not used for pairs that are tokenised already.
    pairs : sequence of (str, str), or CachedPairs
        Prompts and answers.
    token_budget : int
        Tokens, padding included, in one forward pass. The scores do not depend on it beyond rounding.

    Returns
    -------
    Scores
        In the order of the pairs. Logits are compared in at least float32; on ties the smallest token id wins.

    Raises
    ------
    DataError
        A pair has an empty answer.

    Notes
    -----
    Only the answer positions pass through the output head.
    """
    cached = pairs if isinstance(pairs, CachedPairs) else CachedPairs.build(pairs, tokenizer)
    return score_cached(model, cached, token_budget=token_budget)


@torch.no_grad()
def score_cached(model: Any, cached: CachedPairs, *, token_budget: int = 8192) -> Scores:
    """`score_pairs` of pairs that are tokenised already."""
    n = len(cached)
    token_match, exact, nll = np.zeros(n, np.float32), np.zeros(n, bool), np.zeros(n, np.float32)
    predictions: list[tuple[int, ...]] = [()] * n
    lengths = cached.tokens.answer_lengths
    for chunk, logits, labels in labelled_logits(model, cached, token_budget=token_budget):
        choice = logits.argmax(dim=-1)
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none").double().cpu().numpy()
        hits, chosen = (choice == labels).cpu().numpy(), choice.cpu().tolist()
        counts = [lengths[i] for i in chunk]
        starts = np.cumsum([0, *counts[:-1]])
        where = np.asarray(chunk)
        token_match[where] = np.add.reduceat(hits.astype(np.float64), starts) / counts
        exact[where] = np.logical_and.reduceat(hits, starts)
        nll[where] = np.add.reduceat(losses, starts) / counts
        for index, start, count in zip(chunk, starts.tolist(), counts, strict=True):
            predictions[index] = tuple(chosen[start : start + count])
    return Scores(token_match, exact, nll, tuple(predictions))


def labelled_logits(
    model: Any, cached: CachedPairs, *, token_budget: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Logits at the answer positions, chunk by chunk of pairs of similar length.

    Yields
    ------
    indices : list of int
        The pairs of the chunk.
    logits : Tensor, at least float32, shape [answer tokens of the chunk, vocabulary]
        Pair after pair, in the order of `indices`.
    labels : Tensor, int64, shape [answer tokens of the chunk]
        The answer tokens themselves.
    """
    device = next(model.parameters()).device
    for chunk in length_chunks(cached.tokens.lengths, token_budget=token_budget):
        input_ids, attention_mask, labels = (tensor.to(device) for tensor in cached.tokens.padded(chunk))
        answer = labels != IGNORE
        logits = answer_logits(model, input_ids, attention_mask, answer)
        yield chunk, logits, labels[answer].to(logits.device)


def agreement(scores: Scores, reference_predictions: Sequence[Sequence[int]]) -> np.ndarray:
    """Share of answer positions at which the model still says what it said before.

    Parameters
    ----------
    scores : Scores
        Scores of n pairs now.
    reference_predictions : sequence of sequence of int
        `Scores.predictions` of the same pairs before any edit: this is no gold answer.

    Returns
    -------
    ndarray, float32, shape [n]

    Raises
    ------
    DataError
        The reference belongs to other pairs.
    """
    if [len(p) for p in scores.predictions] != [len(p) for p in reference_predictions]:
        raise DataError("the reference predictions belong to other pairs: score the same pairs before and after")
    shares = [
        np.equal(now, before).mean() for now, before in zip(scores.predictions, reference_predictions, strict=True)
    ]
    return np.asarray(shares, np.float32)


@torch.no_grad()
def hidden_states(model: Any, tokenizer: Any, prompts: Sequence[str], *, token_budget: int = 8192) -> np.ndarray:
    """Final hidden states at the last token of each prompt.

    They are the base model's ``last_hidden_state``: the output of the last layer behind the final norm, which is what
    the output head reads. (StableEdit, arXiv:2605.11836, Figures 3 and 9, speaks of the last layer and does not say
    which side of the norm.)

    Parameters
    ----------
    model, tokenizer : PreTrainedModel, PreTrainedTokenizerBase
        The model is not changed.
    prompts : sequence of str
        What to ask.
    token_budget : int
        Tokens, padding included, in one forward pass.

    Returns
    -------
    ndarray, float32, shape [len(prompts), hidden]

    Raises
    ------
    DataError
        A prompt yields no tokens, or there are none.
    ModelError
        The base model returns no ``last_hidden_state``.
    """
    if not prompts:
        raise DataError("hidden states need at least one prompt: give the recorder some, or leave it out")
    tokens = encode_pairs([(prompt, _PLACEHOLDER) for prompt in prompts], tokenizer)
    device = next(model.parameters()).device
    result: np.ndarray | None = None
    for chunk in length_chunks(tokens.lengths, token_budget=token_budget):
        input_ids, attention_mask, labels = (tensor.to(device) for tensor in tokens.padded(chunk))
        output = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None:
            raise ModelError(f"{type(model).__name__} has no last_hidden_state: leave out the hidden states")
        rows = hidden[rows_mask(labels, attention_mask, kind="last_prompt").to(hidden.device)].float().cpu().numpy()
        if result is None:
            result = np.zeros((len(prompts), rows.shape[1]), np.float32)
        result[np.asarray(chunk)] = rows
    assert result is not None
    return result
