from __future__ import annotations

import numpy as np
import pytest

from stablediag.errors import DataError
from stablediag.evaluation.capability import capability, score_choice
from stablediag.evaluation.metrics import score_pairs
from stablediag.models import load_model
from stablediag.testbed.tasks import CapabilityTask
from stablediag.types import Probe

ONE_TOKEN = ("w1", "w2", "w3")
MANY_TOKENS = ("w1", "w2 w5", "w3 w1 w4")


@pytest.fixture(scope="module")
def loaded(llama_dir):
    return load_model(llama_dir, modules=["layers.1.mlp.down_proj"], device="cpu")


def probes(labels, count=40):
    rng = np.random.default_rng(1)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 290, rng.integers(2, 9))) for _ in range(count)]
    return [Probe(text, labels[i % len(labels)], "capability", f"p{i}") for i, text in enumerate(texts)]


def slow_choices(loaded, asked, labels):
    """The label with the highest mean log-probability, every prompt and label on its own."""
    return [
        labels[int(np.argmin([score_pairs(loaded.model, loaded.tokenizer, [(p.prompt, w)]).nll[0] for w in labels]))]
        for p in asked
    ]


@pytest.mark.parametrize("labels", [ONE_TOKEN, MANY_TOKENS], ids=["one token", "many tokens"])
def test_accuracy_equals_the_slow_twin(loaded, labels):
    asked = probes(labels)
    choices = slow_choices(loaded, asked, labels)
    assert len(set(choices)) > 1
    expected = np.mean([choice == probe.answer for choice, probe in zip(choices, asked, strict=True)])
    accuracy = score_choice(loaded.model, loaded.tokenizer, asked, labels, token_budget=64)
    assert accuracy == pytest.approx(expected)
    told = [Probe(p.prompt, choice, "capability", p.id) for p, choice in zip(asked, choices, strict=True)]
    assert score_choice(loaded.model, loaded.tokenizer, told, labels) == 1.0


def test_capability_has_accuracy_and_size_of_every_task(loaded):
    tasks = {
        name: CapabilityTask(name, labels, train=(), test=tuple(probes(labels, n)))
        for name, labels, n in (("a", ONE_TOKEN, 12), ("b", MANY_TOKENS, 6))
    }
    found = capability(loaded.model, loaded.tokenizer, tasks)
    assert {name: n for name, (_, n) in found.items()} == {"a": 12, "b": 6}
    for name, task in tasks.items():
        assert found[name][0] == score_choice(loaded.model, loaded.tokenizer, task.test, task.labels)


def test_wrong_probes_are_named(loaded):
    with pytest.raises(DataError, match="no probes"):
        score_choice(loaded.model, loaded.tokenizer, [], ONE_TOKEN)
    with pytest.raises(DataError, match=r"probe 'p7' has the answer 'w9', which is none of w1, w2, w3"):
        score_choice(loaded.model, loaded.tokenizer, [Probe("w1", "w9", "capability", "p7")], ONE_TOKEN)
