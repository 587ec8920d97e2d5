"""The tokenizer: every text of the testbed is known to it, and answers continue prompts."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from stablediag.testbed import capability_tasks, edit_stream, snapshot_probes
from stablediag.testbed.tokenizer import SPECIAL, build_tokenizer, vocabulary
from stablediag.testbed.world import build_world


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(build_world())


def test_vocabulary_is_small_and_ordered():
    words = vocabulary(build_world())
    assert tuple(words[:4]) == SPECIAL
    assert len(words) == len(set(words)) < 2000


def test_no_unknown_word_anywhere(tokenizer):
    texts = [fact.object for fact in build_world().facts]
    for kind in ("new", "counterfactual", "claims", "medical"):
        for edit in edit_stream(kind, 800, 5):
            texts += [edit.prompt, edit.target, *edit.rephrases]
            for probe in (*edit.locality, *edit.persona, *edit.multihop):
                texts += [probe.prompt, probe.answer]
    texts += [text for probe in snapshot_probes() for text in (probe.prompt, probe.answer)]
    for task in capability_tasks().values():
        texts += [*task.labels, *(text for probe in task.train + task.test for text in (probe.prompt, probe.answer))]
    assert not any(tokenizer.unk_token_id in ids for ids in tokenizer(sorted(set(texts)))["input_ids"])


def test_answers_continue_prompts(tokenizer):
    whole = tokenizer("what is the pet of X ? grey cat")["input_ids"]
    prompt = tokenizer("what is the pet of X ?")["input_ids"]
    assert prompt[0] == tokenizer.bos_token_id
    assert whole == prompt + tokenizer(" grey cat", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(whole[1:5]) == "what is the pet"


def test_labels_are_single_tokens(tokenizer):
    for task in capability_tasks().values():
        assert all(len(tokenizer(label, add_special_tokens=False)["input_ids"]) == 1 for label in task.labels)


def test_subjects_have_two_tokens_that_offsets_find(tokenizer):
    for edit in edit_stream("new", 100, 1):
        encoding = tokenizer(edit.prompt, return_offsets_mapping=True)
        start = edit.prompt.index(edit.subject)
        inside = [o for o in encoding["offset_mapping"] if o[0] >= start and o[1] <= start + len(edit.subject) and o[1]]
        assert len(inside) == 2


def test_saved_tokenizer_loads_as_auto(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = edit_stream("new", 1)[0].prompt
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    special = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    assert [getattr(again, name) for name in special] == [1, 2, 0, 3]
