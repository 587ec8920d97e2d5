"""The check: it passes the shipped weights, as their recipe says, and fails weights that were spoilt."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stablediag.errors import ModelError
from stablediag.testbed import WEIGHTS
from stablediag.testbed.check import CheckRow, check, format_rows, measure


@pytest.fixture(scope="module")
def shipped():
    return json.loads((WEIGHTS / "recipe.json").read_text())


@pytest.fixture(scope="module")
def rows():
    return {row.name: row for row in check(WEIGHTS, share=0.1)}


def test_shipped_weights_keep_what_their_recipe_says(shipped, rows):
    recorded = {row["name"]: row for row in shipped["checks"]}
    for name, row in rows.items():
        if row.threshold is None:
            continue
        # A tenth of the facts: the recorded value less four standard errors at the threshold.
        slack = 4 * (row.threshold * (1 - row.threshold) / row.items) ** 0.5
        assert row.value >= recorded[name]["value"] - slack, name
        assert recorded[name]["used_in_studies"] == (recorded[name]["value"] >= row.threshold)


def test_shipped_weights_recall_and_have_capabilities(shipped):
    for row in shipped["checks"]:
        if row["name"].startswith(("recall template", "recall held-out", "recall unseen", "capability")):
            assert row["passed"], row["name"]


def test_untrained_facts_are_guessed_no_better_than_chance(rows):
    assert rows["guesses of untrained facts"].value < 0.1


def test_shipped_folder_is_small_and_complete():
    names = {path.name for path in WEIGHTS.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "recipe.json"} <= names
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 6_000_000


def test_spoilt_weights_are_caught():
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
    spoilt = {row.name: row for row in measure(model.eval(), AutoTokenizer.from_pretrained(WEIGHTS), share=0.05)}
    assert not spoilt["recall template 0"].passed
    assert "MISSED" in format_rows(list(spoilt.values()))


def test_rows_without_threshold_pass():
    assert CheckRow("x", 0.0, None, 1).passed
    assert not CheckRow("x", 0.98, 0.99, 1).passed
    assert "MISSED" not in format_rows([CheckRow("x", 0.0, None, 1)])


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ModelError):
        check(tmp_path)


def test_a_share_too_small_for_some_rows_still_measures_the_rest():
    rows = {row.name: row for row in check(WEIGHTS, share=1e-6)}
    assert rows["recall template 0"].items == 1
    assert rows["capability sentiment"].items == 200
