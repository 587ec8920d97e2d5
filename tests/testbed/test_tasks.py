"""Capability tasks: sizes, balance, disjointness, and labels that follow from the text."""

from __future__ import annotations

from collections import Counter

import pytest

from stablediag.testbed import capability_tasks
from stablediag.testbed.tasks import TEST_ITEMS, TRAIN_ITEMS

NAMES = ("sentiment", "paraphrase", "acceptability", "entailment", "inference")


def test_there_are_five():
    assert tuple(capability_tasks()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_items_are_disjoint_and_balanced(name):
    task = capability_tasks()[name]
    assert (len(task.train), len(task.test)) == (TRAIN_ITEMS, TEST_ITEMS) == (4000, 200)
    prompts = {probe.prompt for probe in task.train + task.test}
    assert len(prompts) == TRAIN_ITEMS + TEST_ITEMS
    for part in (task.train, task.test):
        counts = Counter(probe.answer for probe in part)
        assert set(counts) == set(task.labels)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_tasks_follow_from_their_seed():
    again = capability_tasks.__wrapped__()
    assert again == capability_tasks()
    assert capability_tasks.__wrapped__(1) != again


def test_negation_decides_sentiment():
    task = capability_tasks()["sentiment"]
    for probe in task.train[:500]:
        words = probe.prompt.split()
        negated = "not" in words or "never" in words
        good = any(word in words for word in ("wonderful", "brilliant", "superb", "lovely"))
        bad = any(word in words for word in ("dull", "boring", "awful", "stale"))
        if good or bad:
            assert probe.answer == ("positive" if good != negated else "negative")
