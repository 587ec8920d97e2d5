"""Training documents as padded tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from stablediag.testbed.corpus import Document


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents as tensors; masks and targets are aligned with ``ids[:, :-1]``.

    Attributes
    ----------
    ids : Tensor, int64, shape [b, t]
    answer, counted : Tensor, bool, shape [b, t - 1]
        Positions that predict answers (and the end token), and all positions in the loss.
    claims : Tensor, int64, shape [c, 4]
        For each claim its row, its last position, the position of the stated object and the token of the true object.
    """

    ids: Tensor
    answer: Tensor
    counted: Tensor
    claims: Tensor


class Assembler:
    """Makes tensors of documents.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
        The testbed's; documents are looked up in its vocabulary word by word.
    prompt_share : float
        Share of the prompt tokens that the loss includes.
    rng : numpy.random.Generator
        Draws those prompt tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt_share: float, rng: np.random.Generator) -> None:
        self.words = tokenizer.get_vocab()
        self.pad, self.bos, self.eos = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
        self.prompt_share = prompt_share
        self.rng = rng

    def tensors(self, documents: Sequence[Document]) -> Batch:
        """One padded batch."""
        prompts = [[self.bos, *(self.words[w] for w in d.prompt.split())] for d in documents]
        answers = [[*(self.words[w] for w in d.answer.split()), self.eos] for d in documents]
        width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = np.full((len(documents), width), self.pad, dtype=np.int64)
        claims = []
        answer = np.zeros((len(documents), width - 1), dtype=bool)
        prompt = np.zeros((len(documents), width - 1), dtype=bool)
        for row, (p, a) in enumerate(zip(prompts, answers, strict=True)):
            ids[row, : len(p) + len(a)] = p + a
            prompt[row, : len(p) - 1] = True
            answer[row, len(p) - 1 : len(p) + len(a) - 1] = True
            recalled, stated = documents[row].recalled, documents[row].stated
            if recalled is not None and stated is not None:
                claims.append([row, len(p) - 1, p.index(self.words[stated]), self.words[recalled]])
        counted = answer | (prompt & (self.rng.random(prompt.shape) < self.prompt_share))
        return Batch(
            ids=torch.from_numpy(ids),
            answer=torch.from_numpy(answer),
            counted=torch.from_numpy(counted),
            claims=torch.tensor(claims, dtype=torch.int64).reshape(-1, 4),
        )


def halves(documents: list[Document]) -> Iterator[list[Document]]:
    """Short and long documents apart, because padding is what a step would mostly compute otherwise."""
    ordered = sorted(documents, key=lambda d: d.prompt.count(" ") + d.answer.count(" "))
    middle = (len(ordered) + 1) // 2
    yield from (part for part in (ordered[:middle], ordered[middle:]) if part)
