from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from stablediag.errors import DataError, SpecError
from stablediag.tokens import TokenBatch, encode, encode_pairs, length_chunks, rows_mask
from stablediag.types import Edit


@pytest.fixture(scope="module")
def tokenizer(llama_dir):
    return AutoTokenizer.from_pretrained(llama_dir)


def edits(*pairs):
    return [Edit(id=f"e{index}", prompt=prompt, target=target) for index, (prompt, target) in enumerate(pairs)]


def test_label_shift_by_hand(tokenizer):
    # ids: <bos> is 1, "?" is 4, word wN is 5 + N
    batch = encode(edits(("w0 w1 ?", "w2 w3"), ("w4", "w5")), tokenizer)
    assert batch.input_ids == ((1, 5, 6, 4, 7), (1, 9))
    assert batch.labels == ((-100, -100, -100, 7, 8), (-100, 10))
    assert batch.edit_ids == (0, 1)
    assert batch.block_ids == (0, 0)
    assert batch.lengths == (5, 2)
    assert batch.answer_lengths == (2, 1)


def test_prompt_of_one_token_has_no_ignored_label(gpt2_dir):
    batch = encode(edits(("w0", "w1 w2")), AutoTokenizer.from_pretrained(gpt2_dir))
    assert batch.input_ids == ((5, 6),)
    assert batch.labels == ((6, 7),)


def test_sort_is_longest_first_and_stable_and_blocks_follow_the_sort(tokenizer):
    given = edits(("w0", "w1"), ("w0 w1", "w2"), ("w3", "w4"), ("w0 w1 w2", "w3 w4"), ("w5 w6", "w7"))
    batch = encode(given, tokenizer, minibatch=2, sort=True)
    assert batch.edit_ids == (3, 1, 4, 0, 2)
    assert batch.block_ids == (0, 0, 1, 1, 2)
    assert batch.lengths == tuple(sorted(batch.lengths, reverse=True))
    unsorted = encode(given, tokenizer, minibatch=2)
    assert unsorted.edit_ids == (0, 1, 2, 3, 4)


def test_padding_uses_zero_zero_and_minus_100_in_the_order_asked(tokenizer):
    batch = encode(edits(("w0", "w1"), ("w0 w1", "w2 w3")), tokenizer)
    input_ids, attention_mask, labels = batch.padded([1, 0])
    assert input_ids.tolist() == [[1, 5, 6, 7], [1, 5, 0, 0]]
    assert attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert labels.tolist() == [[-100, -100, 7, 8], [-100, 6, -100, -100]]
    assert batch.padded()[0].shape == (2, 4)


def test_rows_mask_kinds(tokenizer):
    batch = encode(edits(("w0", "w1"), ("w0 w1", "w2 w3")), tokenizer)
    _, attention_mask, labels = batch.padded()
    select = {kind: rows_mask(labels, attention_mask, kind=kind).int().tolist() for kind in ("answer", "all")}
    assert select == {"answer": [[0, 1, 0, 0], [0, 0, 1, 1]], "all": [[1, 1, 0, 0], [1, 1, 1, 1]]}
    assert rows_mask(labels, attention_mask, kind="last_prompt").int().tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    with pytest.raises(SpecError, match="use answer, all or last_prompt"):
        rows_mask(labels, attention_mask, kind="first")  # type: ignore[arg-type]


def test_pairs_are_encoded_as_edits_are(tokenizer):
    pairs = [("w0 w1 ?", "w2 w3"), ("w4", "w5")]
    assert encode_pairs(pairs, tokenizer) == encode(edits(*pairs), tokenizer)
    assert len(encode_pairs([], tokenizer)) == 0


@pytest.mark.parametrize("target", ["", "  ", "\n"])
def test_empty_target_names_the_edit(tokenizer, target):
    with pytest.raises(DataError, match=r"edit 'e1' \(number 1 of the step\) has an empty target") as caught:
        encode(edits(("w0", "w1"), ("w0", target)), tokenizer)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="pair 1 has an empty target"):
        encode_pairs([("w0", "w1"), ("w0", target)], tokenizer)


def test_prompt_without_tokens_is_refused(gpt2_dir):
    with pytest.raises(DataError, match=r"edit 'e0'.*the prompt yields no tokens"):
        encode(edits(("", "w1")), AutoTokenizer.from_pretrained(gpt2_dir))


@pytest.mark.parametrize("minibatch", [0, -3])
def test_bad_minibatch(tokenizer, minibatch):
    with pytest.raises(SpecError, match="minibatch"):
        encode(edits(("w0", "w1")), tokenizer, minibatch=minibatch)


def test_length_chunks_cover_everything_once_within_the_budget():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 40, (137,), generator=generator).tolist()
    for budget in (1, 40, 100, 10_000):
        chunks = length_chunks(lengths, token_budget=budget)
        assert sorted(index for chunk in chunks for index in chunk) == list(range(137))
        for chunk in chunks:
            assert len(chunk) == 1 or len(chunk) * max(lengths[i] for i in chunk) <= budget
            assert max(lengths[i] for i in chunk) <= 1.25 * min(lengths[i] for i in chunk)
    assert len(length_chunks([8, 9, 10] * 5, token_budget=10_000)) == 1
    assert length_chunks([], token_budget=5) == []
    with pytest.raises(SpecError, match="token_budget"):
        length_chunks([1], token_budget=0)


def test_batches_compare_by_value():
    assert TokenBatch(((1,),), ((2,),), (0,), (0,)) == TokenBatch(((1,),), ((2,),), (0,), (0,))
