"""Text to token ids: the one place where prompts and answers are tokenised, shifted, sorted and padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from stablediag.errors import DataError, SpecError
from stablediag.types import Edit

IGNORE = -100
#: largest ratio of lengths inside a chunk
_STRETCH = 1.25
RowKind = Literal["answer", "all", "last_prompt"]


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Sequences of one step, one entry per edit, unpadded.

    Attributes
    ----------
    input_ids : tuple of tuple of int
        Prompt tokens followed by the answer tokens without the last one.
    labels : tuple of tuple of int
        Same shape; aligned with the logits (no shift is due), ``-100`` where nothing is predicted.
    edit_ids : tuple of int
        Index of each sequence's edit in the list that was encoded.
    block_ids : tuple of int
        Mini-batch of the loss that each sequence belongs to.
    """

    input_ids: tuple[tuple[int, ...], ...]
    labels: tuple[tuple[int, ...], ...]
    edit_ids: tuple[int, ...]
    block_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of input tokens of each sequence."""
        return tuple(len(ids) for ids in self.input_ids)

    @property
    def answer_lengths(self) -> tuple[int, ...]:
        """Number of answer tokens (labels) of each sequence."""
        return tuple(sum(label != IGNORE for label in row) for row in self.labels)

    def padded(self, indices: Sequence[int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Pad sequences on the right.

        Parameters
        ----------
        indices : sequence of int, optional
            Which sequences, in which order; all of them by default.

        Returns
        -------
        input_ids, attention_mask, labels : Tensor, int64, shape [len(indices), longest]
            Padded with 0, 0 and -100. Padding uses token id 0 whatever the tokenizer says: the mask hides it.
        """
        chosen = range(len(self)) if indices is None else indices
        width = max((len(self.input_ids[i]) for i in chosen), default=0)

        def fill(rows: list[tuple[int, ...]], pad: int) -> Tensor:
            return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], dtype=torch.int64)

        inputs = [self.input_ids[i] for i in chosen]
        ones = [(1,) * len(row) for row in inputs]
        return fill(inputs, 0), fill(ones, 0), fill([self.labels[i] for i in chosen], IGNORE)


def encode(edits: Sequence[Edit], tokenizer: Any, *, minibatch: int | None = None, sort: bool = False) -> TokenBatch:
    """Tokenise the (prompt, target) pairs of one step.

    The prompt is tokenised with the tokenizer's own special tokens, the answer apart, after one space and without
    special tokens: with prompt ids ``P`` and answer ids ``A`` the input is ``P + A[:-1]`` and the labels are
    ``[-100] * (len(P) - 1) + A``. This is the label shift of the released StableEdit, UltraEdit and MALMEN code.

    Parameters
    ----------
    edits : sequence of Edit
        The step's edits.
    tokenizer : PreTrainedTokenizerBase
        Any tokenizer of `transformers`; a padding token is not needed.
    minibatch : int, optional
        Number of sequences in a mini-batch of the loss; one mini-batch for the whole step by default. Released: 10.
    sort : bool
        Longest sequence first (stable) before cutting mini-batches, as the released code does.

    Returns
    -------
    TokenBatch

    Raises
    ------
    DataError
        An edit has an empty target, or a prompt or a target that yields no tokens.
    SpecError
        `minibatch` is not positive.
    """
    if minibatch is not None and minibatch < 1:
        raise SpecError(f"minibatch must be a positive number of edits, not {minibatch}")
    names = [f"edit {edit.id!r} (number {index} of the step)" for index, edit in enumerate(edits)]
    inputs, labels = _encode([(edit.prompt, edit.target) for edit in edits], names, tokenizer)
    order = list(range(len(inputs)))
    if sort:
        order.sort(key=lambda i: -len(inputs[i]))
    return TokenBatch(
        input_ids=tuple(inputs[i] for i in order),
        labels=tuple(labels[i] for i in order),
        edit_ids=tuple(order),
        block_ids=tuple(0 if minibatch is None else place // minibatch for place in range(len(order))),
    )


def encode_pairs(pairs: Sequence[tuple[str, str]], tokenizer: Any) -> TokenBatch:
    """Tokenise (prompt, answer) pairs for evaluation: the same construction as `encode`, in the order given.

    Raises
    ------
    DataError
        A pair has an empty answer, or a prompt or an answer that yields no tokens.
    """
    inputs, labels = _encode(pairs, [f"pair {index}" for index in range(len(pairs))], tokenizer)
    return TokenBatch(tuple(inputs), tuple(labels), tuple(range(len(inputs))), (0,) * len(inputs))


def rows_mask(labels: Tensor, attention_mask: Tensor, *, kind: RowKind = "answer") -> Tensor:
    """Select token positions of a padded batch.

    Parameters
    ----------
    labels, attention_mask : Tensor, int64, shape [batch, length]
        As `TokenBatch.padded` gives them.
    kind : {"answer", "all", "last_prompt"}
        Positions that predict an answer token; every token that is not padding; the last prompt token.

    Returns
    -------
    Tensor, bool, shape [batch, length]
    """
    answer = labels != IGNORE
    if kind == "answer":
        return answer
    if kind == "all":
        return attention_mask.bool()
    if kind == "last_prompt":
        return answer & (answer.cumsum(dim=1) == 1)
    raise SpecError(f"unknown kind of token rows {kind!r}: use answer, all or last_prompt")


def length_chunks(lengths: Sequence[int], *, token_budget: int) -> list[list[int]]:
    """Cut sequences into chunks of similar length for one forward pass each.

    Longest first (stable), so that the largest memory demand comes at once; a chunk holds at least one sequence and
    otherwise at most `token_budget` tokens including padding. No sequence is padded by more than a quarter of its
    length: on a CPU padding costs as much as tokens.
    """
    if token_budget < 1:
        raise SpecError(f"token_budget must be a positive number of tokens, not {token_budget}")
    chunks: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[chunks[-1][0]] if chunks else 0
        if chunks and (len(chunks[-1]) + 1) * longest <= token_budget and longest <= _STRETCH * lengths[index]:
            chunks[-1].append(index)
        else:
            chunks.append([index])
    return chunks


def _encode(
    pairs: Sequence[tuple[str, str]], names: Sequence[str], tokenizer: Any
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    for (_, answer), name in zip(pairs, names, strict=True):
        if not answer.strip():
            raise DataError(f"{name} has an empty target: remove the record or give it an answer")
    if not pairs:
        return [], []
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    answers = tokenizer([f" {answer}" for _, answer in pairs], add_special_tokens=False)["input_ids"]
    inputs, labels = [], []
    for prompt, answer, name in zip(prompts, answers, names, strict=True):
        if not prompt or not answer:
            part = "answer" if prompt else "prompt"
            raise DataError(f"{name}: the {part} yields no tokens with this tokenizer: remove or mend the record")
        inputs.append((*prompt, *answer[:-1]))
        labels.append((*[IGNORE] * (len(prompt) - 1), *answer))
    return inputs, labels
