"""A tiny training run: a loadable folder, reproducible, honest about what it missed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from stablediag.errors import SpecError
from stablediag.testbed.recipe import Recipe, build_model, fit, train
from stablediag.testbed.tokenizer import build_tokenizer
from stablediag.testbed.world import build_world

TINY = Recipe(steps=3, batch=16, hidden=32, layers=2, heads=2, intermediate=64, threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("testbed") / "weights"
    train(out, TINY, progress=False)
    return out


def test_folder_loads_and_is_complete(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    logits = model(**tokenizer("what is the pet of X ?", return_tensors="pt")).logits
    assert logits.shape[-1] == len(tokenizer)
    assert torch.isfinite(logits).all()
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.float16}
    assert [path.name for path in folder.parent.iterdir()] == ["weights"]


def test_report_marks_what_missed_as_unused(folder):
    report = json.loads((folder / "recipe.json").read_text())
    assert report["recipe"]["steps"] == 3
    assert report["account"]["tokens"] > 0
    rows = {row["name"]: row for row in report["checks"]}
    assert not rows["recall template 0"]["passed"]
    assert not rows["recall template 0"]["used_in_studies"]


def test_training_replaces_an_earlier_folder(folder):
    before = load_file(folder / "model.safetensors")
    train(folder, replace(TINY, seed=1), progress=False)
    after = load_file(folder / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert [path.name for path in folder.parent.iterdir()] == ["weights"]


def test_training_follows_from_its_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first, second = (fit(TINY, progress=False)[0].state_dict() for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_default_recipe_is_small():
    model = build_model(Recipe(), build_tokenizer(build_world()))
    assert 1.0e6 < sum(p.numel() for p in model.parameters()) < 1.4e6
    assert model.config.tie_word_embeddings


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"hidden": 33}, {"mix_then": (0.5, 0.5)}, {"mix_first": (1, 1, 1, 1)}])
def test_senseless_recipes_are_refused(tmp_path, wrong):
    with pytest.raises(SpecError):
        train(tmp_path / "weights", replace(TINY, **wrong), progress=False)
    assert not list(tmp_path.iterdir())
