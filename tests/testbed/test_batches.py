"""Padded batches: what counts in the loss, where claims state their objects, how documents are split."""

from __future__ import annotations

import numpy as np
import pytest

from stablediag.testbed.batches import Assembler, halves
from stablediag.testbed.corpus import Document
from stablediag.testbed.tokenizer import build_tokenizer
from stablediag.testbed.world import build_world


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(build_world())


def test_answers_and_end_token_are_the_targets(tokenizer):
    fact = build_world().select(known=True)[0]
    documents = [Document(fact.prompts()[0], fact.object), Document("review : sentiment ?", "positive")]
    batch = Assembler(tokenizer, 0.0, np.random.default_rng(0)).tensors(documents)
    for row, document in enumerate(documents):
        targets = batch.ids[row, 1:][batch.answer[row]]
        assert tokenizer.decode(targets) == f"{document.answer} </s>"
        assert batch.ids[row, 0] == tokenizer.bos_token_id
    assert (batch.answer == batch.counted).all()
    assert len(batch.claims) == 0


def test_prompt_tokens_count_by_lot_and_padding_never(tokenizer):
    documents = [Document("what is the pet of", "true")] * 400 + [Document("what is the pet of the king ?", "false")]
    batch = Assembler(tokenizer, 0.25, np.random.default_rng(0)).tensors(documents)
    targets = batch.ids[:, 1:]
    prompt = ~batch.answer & (targets != tokenizer.pad_token_id)
    assert 0.2 < float(batch.counted[prompt].float().mean()) < 0.3
    assert not batch.counted[targets == tokenizer.pad_token_id].any()


def test_claims_are_located(tokenizer):
    fact = next(f for f in build_world().select(known=True) if " " in f.object)
    prompt = fact.claim(fact.object)
    word = fact.object.split()[-1]
    documents = [Document("what is", "true"), Document(prompt, "true", recalled=word, stated=word)]
    batch = Assembler(tokenizer, 0.0, np.random.default_rng(0)).tensors(documents)
    ((row, end, stated, recalled),) = batch.claims.tolist()
    assert row == 1
    assert tokenizer.decode(batch.ids[1, end]) == "?"
    assert tokenizer.decode(batch.ids[1, stated]) == tokenizer.decode(recalled) == word


def test_halves_part_short_from_long():
    documents = [Document("a " * n, "b") for n in (9, 1, 5, 3, 7)]
    short, long = halves(documents)
    assert max(d.prompt.count(" ") for d in short) < min(d.prompt.count(" ") for d in long)
    assert len(short) + len(long) == len(documents)
    assert [len(part) for part in halves(documents[:1])] == [1]
