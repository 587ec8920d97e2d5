"""The LN editor in its released modes against the released editors: every step from tokens to final weights."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stablediag.editors.base import Applied, resolve_params
from stablediag.editors.ln import LNEditor
from stablediag.engine.view import ModelView
from stablediag.engine.weights import WeightWriter
from stablediag.models import load_model
from stablediag.tokens import encode
from stablediag.types import Edit, EditBatch

MODULES = ["layers.1.mlp.down_proj", "layers.2.mlp.down_proj", "layers.3.mlp.up_proj"]
RUNS = {
    "stable_warmup": ("released", {"lr": 1e-3}),
    "stable_cold": ("released", {"lr": 1e-3}),
    "stablerepo_original": ("ultraedit", {"lr": 3e-4, "block_var": "population"}),
    "ultraedit": ("ultraedit", {"lr": 3e-4}),
}
STEP = 20
#: the covariance exists where the count is past d + 1; the largest relative error allowed, see the golden README
SHIFT, WEIGHTS, STATISTICS = 1e-4, 1e-5, 1e-6


def batches(folder: Any, run: str) -> list[EditBatch]:
    """The recorded stream: warm-up records first, 20 a step, in file order."""
    meta = json.loads((folder / f"{run}.json").read_text())
    files = {"warmup": "zsre_train.json", "target": "zsre_eval.json"}
    records = {phase: json.loads((folder / "world" / name).read_text()) for phase, name in files.items()}
    done = {"warmup": 0, "target": 0}
    steps = []
    for entry in meta["steps"]:
        phase = entry["phase"]
        first = done[phase]
        done[phase] += STEP
        edits = [
            Edit(f"{phase}{first + i}", r["src"], r["ans"]) for i, r in enumerate(records[phase][first : first + STEP])
        ]
        steps.append(EditBatch(entry["step"], phase, tuple(edits)))
    return steps


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).norm() / b.norm())


def replay(folder: Any, run: str, *, device: str = "cpu") -> dict[str, Any]:
    """Run our editor over the recorded stream on its own weights; the worst errors, and the branch at every step."""
    preset, extra = RUNS[run]
    stored = load_file(folder / f"{run}.safetensors")
    recorded = json.loads((folder / f"{run}.json").read_text())["steps"]
    loaded = load_model(folder / "world", modules=MODULES, device=device)
    writer = WeightWriter(loaded.modules, master="model")
    view = ModelView(loaded, writer)
    editor = LNEditor(resolve_params("ln", preset, extra), loaded.modules)
    worst = {"shift": 0.0, "statistics": 0.0, "cosine": 0.0}
    counts_agree, branches, previous = True, [], {}
    for batch, entry in zip(batches(folder, run), recorded, strict=True):
        tokens = encode(batch.edits, loaded.tokenizer, minibatch=editor.minibatch, sort=True)
        captures = view.capture(tokens, editor.needs)
        applied = []
        for number, proposal in enumerate(editor.step(view, batch, captures)):
            shift = stored[f"s{batch.index:02d}.m{number}.shift"]
            worst["shift"] = max(worst["shift"], relative(proposal.update.dense(), shift))
            branches.append((batch.index, proposal.module, proposal.whitener.kind))
            logged = entry.get("logged", {}).get(f"{proposal.module}/cos_sim")
            if batch.phase == "target":
                if logged is not None:
                    worst["cosine"] = max(
                        worst["cosine"], abs(float(proposal.update.cosine(previous[number])) - logged)
                    )
                previous[number] = proposal.update
            writer.apply(proposal.module, proposal.update)
            applied.append(Applied(proposal, None))
        editor.commit(view, applied)
        for scope in editor.scopes:
            shape = scope.removeprefix("shape:")
            stats = editor.statistics(scope)
            counts_agree &= float(stats.grads.nu) == entry["normalizers"][shape]["n"]
            prefix = f"s{batch.index:02d}.norm.{shape}"
            got = {
                "mean": torch.cat([stats.keys.mean, stats.grads.mean]),
                "var": torch.cat([stats.keys.scale, stats.grads.scale]),
            }
            if stats.niw is not None:
                got["cov_value"] = stats.niw.scale
            for name, value in got.items():
                worst["statistics"] = max(worst["statistics"], relative(value, stored[f"{prefix}.{name}"]))
    final = max(relative(entry.module.weight, stored[f"final.{name}.weight"]) for name, entry in loaded.modules.items())
    return {**worst, "weights": final, "counts_agree": counts_agree, "branches": branches}


def expected_branches(folder: Any, run: str) -> list[tuple[int, str, str]]:
    """Full whitening in the target phase once the count recorded by the release is past d_out + 1; else diagonal."""
    recorded = json.loads((folder / f"{run}.json").read_text())["steps"]
    shapes = {"layers.1": "64x32", "layers.2": "64x32", "layers.3": "32x64"}
    expected = []
    for entry in recorded:
        for module in MODULES:
            shape = shapes[module.split(".mlp")[0]]
            enough = entry["normalizers"][shape]["n"] > int(shape.split("x")[1]) + 1
            full = run.startswith("stable_") and entry["phase"] == "target" and enough
            expected.append((entry["step"], f"model.{module}", "full" if full else "diagonal"))
    return expected


@pytest.mark.parametrize("run", list(RUNS))
def test_golden_run_is_reproduced(golden_dir, run, record_property):
    got = replay(golden_dir, run)
    record_property("golden", {key: value for key, value in got.items() if key != "branches"})
    assert got["counts_agree"]
    assert got["branches"] == expected_branches(golden_dir, run)
    assert got["statistics"] < STATISTICS
    assert got["shift"] < SHIFT
    assert got["weights"] < WEIGHTS
    assert got["cosine"] < 1e-4


def test_cold_run_switches_to_whitening_where_the_release_does(golden_dir):
    branches = {(step, module): kind for step, module, kind in expected_branches(golden_dir, "stable_cold")}
    assert branches[0, "model.layers.3.mlp.up_proj"] == "diagonal"
    assert branches[1, "model.layers.3.mlp.up_proj"] == "full"
    assert branches[0, "model.layers.1.mlp.down_proj"] == "full"


@pytest.mark.parametrize(
    "wrong",
    [{"stats_scope": "layer"}, {"block_var": "sample"}, {"ridge": 1.0}, {"warmup_norm": "same"}, {"floor": 1e-5}],
)
def test_a_wrong_switch_is_not_mistaken_for_the_release(golden_dir, wrong, monkeypatch):
    monkeypatch.setitem(RUNS, "stable_warmup", ("released", {"lr": 1e-3, **wrong}))
    if wrong == {"stats_scope": "layer"}:
        with pytest.raises(KeyError):
            replay(golden_dir, "stable_warmup")
        return
    assert replay(golden_dir, "stable_warmup")["shift"] > 10 * SHIFT
