"""Tokens, keys and value gradients against what the released editors computed, at every recorded step."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from stablediag.engine.capture import CaptureNeeds, capture
from stablediag.engine.weights import WeightWriter
from stablediag.maths.update import Dense
from stablediag.models import load_model
from stablediag.tokens import encode
from stablediag.types import Edit

MODULES = ["layers.1.mlp.down_proj", "layers.2.mlp.down_proj", "layers.3.mlp.up_proj"]
RUNS = ["stable_warmup", "stable_cold", "stablerepo_original", "ultraedit"]
STEP = 20


def golden_steps(golden_dir, run):
    """(step, edits) of a recorded run: warm-up records first."""
    meta = json.loads((golden_dir / f"{run}.json").read_text())
    cursor = {"warmup": 0, "target": 0}
    files = {"warmup": "zsre_train.json", "target": "zsre_eval.json"}
    records = {phase: json.loads((golden_dir / "world" / name).read_text()) for phase, name in files.items()}
    for entry in meta["steps"]:
        phase, first = entry["phase"], cursor[entry["phase"]]
        cursor[phase] += STEP
        chosen = records[phase][first : first + STEP]
        yield entry["step"], [Edit(f"{phase}{first + i}", r["src"], r["ans"]) for i, r in enumerate(chosen)]


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("run", RUNS)
def test_encode_reproduces_the_released_token_batches(golden_dir, run):
    stored = load_file(golden_dir / f"{run}.safetensors")
    tokenizer = load_model(golden_dir / "world", modules=MODULES, device="cpu").tokenizer
    checked = 0
    for step, edits in golden_steps(golden_dir, run):
        tokens = encode(edits, tokenizer, minibatch=10, sort=True)
        for block in range(2):
            batch = tokens.padded([i for i, own in enumerate(tokens.block_ids) if own == block])
            for name, tensor in zip(("input_ids", "attention_mask", "labels"), batch, strict=True):
                assert torch.equal(tensor, stored[f"s{step:02d}.mb{block}.{name}"].to(torch.int64))
                checked += 1
    assert checked == sum(key.endswith(("input_ids", "attention_mask", "labels")) for key in stored)


@pytest.mark.parametrize("token_budget", [30, 4096])
@pytest.mark.parametrize("run", ["stable_warmup", "stable_cold", "ultraedit"])
def test_keys_and_value_gradients_at_every_step(golden_dir, run, token_budget, record_property):
    stored = load_file(golden_dir / f"{run}.safetensors")
    loaded = load_model(golden_dir / "world", modules=MODULES, device="cpu")
    writer = WeightWriter(loaded.modules)
    worst = {"keys": 0.0, "vgrad": 0.0}
    for step, edits in golden_steps(golden_dir, run):
        tokens = encode(edits, loaded.tokenizer, minibatch=10, sort=True)
        got = capture(loaded.model, loaded.modules, tokens, CaptureNeeds(loss="released"), token_budget=token_budget)
        for number, (name, captured) in enumerate(got.items()):
            for block in range(2):
                own = captured.block_ids == block
                for field, values in (("keys", captured.keys), ("vgrad", captured.grads)):
                    expected = stored[f"s{step:02d}.mb{block}.m{number}.{field}"]
                    assert values[own].shape == expected.shape
                    worst[field] = max(worst[field], relative(values[own], expected))
            writer.apply(name, Dense(stored[f"s{step:02d}.m{number}.shift"]))
    record_property("worst", worst)
    assert worst["keys"] < 1e-6
    assert worst["vgrad"] < 1e-6
    for name, entry in loaded.modules.items():
        assert relative(entry.module.weight, stored[f"final.{name}.weight"]) < 1e-7
