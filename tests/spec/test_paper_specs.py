"""The specs of published runs: they load, they are the presets with little on top, and every line of their own has a source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from stablediag.editors.base import resolve_params
from stablediag.model_outline import KNOWN, outline
from stablediag.spec import load, load_many
from stablediag.spec.presets import preset_tree

ROOT = Path(__file__).parents[2] / "reproduce" / "specs" / "paper"
FILES = sorted(ROOT.rglob("*.yaml"))
MODELS = ("gpt-j-6b", "llama-3-8b", "mistral-7b", "qwen2.5-7b")
STREAMS = (
    "zsre", "fever", "wikibigedit_17k", "ultraeditbench_20k", "medcf", "wikibigedit_490519", "ultraeditbench_2m",
)  # fmt: skip
#: what a spec of this folder may change of its preset
OWN = {"name", "data", "warmup", "evaluation", "snapshots", "recorders", "checkpoint"}


def named(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


def leaves(tree, prefix=""):
    if isinstance(tree, dict) and tree:
        return {leaf: value for key, item in tree.items() for leaf, value in leaves(item, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): tree}


def test_every_model_has_every_stream():
    found = {named(path) for path in FILES}
    assert {f"{model}/{stream}" for model in MODELS for stream in STREAMS} <= found
    assert {f"{model}/{editor}_counterfact" for model in MODELS for editor in ("memit",)} <= found


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_spec_loads_and_says_what_its_preset_says(path):
    (spec,) = load_many(path)
    resolve_params(spec.editor.name, spec.editor.preset, spec.editor.params)
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    base = preset_tree(own.pop("preset"))
    model = path.parent.name
    assert spec.name == own["name"]
    assert model in spec.name
    assert path.stem.partition("_")[0] in spec.name
    assert set(own) <= OWN
    changed = leaves(own)
    resolved = leaves(spec.canonical())
    for dotted, value in leaves(base).items():
        replaced = [other for other in changed if dotted == other or dotted.startswith(f"{other}.")]
        if dotted not in ("name", "model.modules") and not replaced and not dotted.endswith(".target"):
            assert resolved[dotted] == value, dotted
    assert spec.model.modules == base["model"]["modules"]


@pytest.mark.parametrize("path", FILES, ids=named)
def test_every_line_of_its_own_has_a_source(path):
    """A line that sets something says who says so, or its section's comment does."""
    text = path.read_text(encoding="utf-8")
    assert re.search(r"arXiv:\d{4}\.\d{5}", text)
    for line in text.splitlines():
        setting = re.match(r"\s*(\w+): *\S", line)
        if line.startswith("#") or setting is None or setting[1] in ("name", "preset"):
            continue
        described = "#" in line or setting[1] == "layout"  # the reader's name follows from the file
        assert described, f"{named(path)}: {line}"
    body = [line for line in text.splitlines() if not line.startswith("#")]
    comments = [line.partition("# ")[2] for line in body if "#" in line]
    assert all(re.match(r"(paper|release|records|chosen here|the (paper|split))", comment) for comment in comments)


@pytest.mark.parametrize("model", MODELS)
def test_ultra_scale(model):
    wiki, bench = (load(ROOT / model / f"{stream}.yaml") for stream in ("wikibigedit_490519", "ultraeditbench_2m"))
    assert (wiki.data.size, bench.data.size) == (490_519, 2_000_000)
    # Warm-up as launched: 170 and 200 steps of 100.
    assert (wiki.warmup.size, bench.warmup.size) == (17_000, 20_000)
    assert wiki.warmup.data.source == "wikibigedit_train_17k.json"
    assert bench.warmup.data.source == "UltraEditBench_train_20k.json"
    for spec in (wiki, bench):
        assert spec.evaluation.subsample == 20_000
        steps = spec.data.size / spec.edits_per_step
        (every,) = spec.evaluation.schedule.every
        assert spec.evaluation.schedule.end
        assert 9 <= steps / every <= 10
        assert steps / spec.checkpoint.every <= 40


@pytest.mark.parametrize("model", MODELS)
def test_medcf_says_that_its_split_is_a_choice(model):
    spec = load(ROOT / model / "medcf.yaml")
    assert (spec.data.size, spec.data.layout, spec.warmup.size, spec.warmup.data.layout) == (
        802,
        "medcf",
        2000,
        "medcf",
    )
    assert spec.data.source != spec.warmup.data.source
    zsre = load(ROOT / model / "zsre.yaml")
    assert (spec.model, spec.editor, spec.edits_per_step) == (zsre.model, zsre.editor, zsre.edits_per_step)
    assert "chosen here" in (ROOT / model / "medcf.yaml").read_text(encoding="utf-8").partition("name:")[0]


@pytest.mark.parametrize("path", FILES, ids=named)
def test_its_modules_are_in_the_model_it_names(path):
    spec = load(path)
    assert spec.model.path in KNOWN
    found = outline(spec.model.path, modules=spec.model.modules, dtype=spec.model.dtype)
    assert found is not None
    assert found.dtype == spec.model.dtype
    widths = {module.d_out for module in found.modules.values()}
    assert widths == {3584 if "Qwen" in spec.model.path else 4096}
