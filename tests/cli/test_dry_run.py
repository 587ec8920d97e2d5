"""`stablediag run --dry-run` without the model's weights, and what it prints for editors of different kinds."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from stablediag.spec import load
from tests.cli.command import command, refused, resolved, write_spec
from tests.engine.streams import write_stream

PAPER = Path(__file__).parents[2] / "reproduce" / "specs" / "paper"


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return write_stream(tmp_path_factory.mktemp("data") / "edits.jsonl", 60)


@pytest.fixture
def bare(llama_dir, tmp_path):
    """The model's configuration and tokenizer, no weights."""
    folder = tmp_path / "bare"
    shutil.copytree(llama_dir, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def cost(out):
    return [line for line in out.splitlines() if line.startswith("# cost")]


def test_without_weights_it_counts_the_same(bare, llama_dir, stream, tmp_path):
    there = write_spec(tmp_path / "there.yaml", llama_dir, stream)
    gone = write_spec(tmp_path / "gone.yaml", bare, stream)
    before = sorted(tmp_path.rglob("*"))
    full, shapes = (command("run", spec, "--dry-run", "--root", tmp_path / "runs") for spec in (there, gone))
    assert full.code == shapes.code == 0, shapes
    assert shapes.err == ""
    assert cost(full.out) == cost(shapes.out)
    modules = [line for line in full.out.splitlines() if line.startswith("# module:")]
    assert modules
    assert modules == [line for line in shapes.out.splitlines() if line.startswith("# module:")]
    assert f"# digest: {resolved(load(gone)).digest()}\n" in shapes.out
    assert "without its weights" in shapes.out
    assert "without its weights" not in full.out
    assert "assumed: 30 tokens" not in shapes.out
    assert sorted(tmp_path.rglob("*")) == before
    refused("run", gone, "--root", tmp_path / "runs", says=("bare",))  # an actual run needs them


def test_without_tokenizer_or_data_it_says_what_it_assumes(bare, stream, tmp_path):
    for file in bare.iterdir():
        if file.name != "config.json":
            file.unlink()
    spec = write_spec(tmp_path / "spec.yaml", bare, stream)
    blind = command("run", spec, "--dry-run")
    assert blind.code == 0, blind
    assert "# tokenizer: not at hand" in blind.out
    assert "# assumed: 30 tokens and 4 answer tokens an edit" in blind.out
    absent = command("run", spec, "data.source=nowhere.json", "--dry-run")
    assert absent.code == 0, absent
    assert "# data: nowhere.json is not there: sizes as the spec says" in absent.out
    assert cost(absent.out) == cost(blind.out)


def test_of_a_published_spec_nothing_is_needed():
    done = command("run", PAPER / "llama-3-8b/ultraeditbench_2m.yaml", "--dry-run")
    assert done.code == 0, done
    assert "# cost without evaluation: 20200 steps, 2020000 edits, about 60600000 tokens" in done.out
    assert "shapes from a table of known checkpoints; they take 15.0 GiB" in done.out
    assert re.search(r"# time on one H200: about .* of evaluation \(expected, not measured", done.out)
    assert re.search(r"# time on this machine \(\w+\): about .*measured just now", done.out)
    assert "# disk: about " in done.out
    assert "covariance" in done.out
    assert "eigendecompositions: " in done.out


def test_a_locate_and_edit_method_has_no_tracker():
    done = command("run", PAPER / "gpt-j-6b/memit_counterfact.yaml", "--dry-run")
    assert done.code == 0, done
    told = "\n".join(line for line in done.out.splitlines() if line.startswith("#"))
    assert "optimising the targets: " in told
    for other in ("covariance", "statistics (float64)", "whitening", "forward and backward"):
        assert other not in told


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("model.modules=layers.[7-9].mlp.down_proj", ("matches no module",)),
        ("model.modules=lm_head", ("output head",)),
    ],
)
def test_modules_that_are_not_there_are_refused_without_weights(change, says, bare, stream, tmp_path):
    refused("run", write_spec(tmp_path / "spec.yaml", bare, stream), change, "--dry-run", says=says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", ("config.json cannot be read",)),
        ("{}", ('has no "model_type"',)),
        ('{"model_type": "no-such-thing"}', ("describes no model",)),
    ],
)
def test_a_configuration_that_will_not_do(text, says, bare, stream, tmp_path):
    (bare / "config.json").write_text(text, encoding="utf-8")
    refused("run", write_spec(tmp_path / "spec.yaml", bare, stream), "--dry-run", says=says)


def test_pickled_weights_are_refused_as_in_a_run(bare, stream, tmp_path):
    (bare / "pytorch_model.bin").write_bytes(b"")
    refused("run", write_spec(tmp_path / "spec.yaml", bare, stream), "--dry-run", says=("safetensors",))
