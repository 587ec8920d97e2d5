"""Wrong specs: one line that names what, where and what to do, and nothing written."""

from __future__ import annotations

import pytest
import yaml

from stablediag.spec import load, load_many
from tests.cli.command import refused, resolved, write_spec
from tests.engine.streams import write_stream


@pytest.fixture(scope="module")
def spec(tmp_path_factory, llama_dir):
    folder = tmp_path_factory.mktemp("spec")
    return write_spec(folder / "tiny.yaml", llama_dir, write_stream(folder / "edits.jsonl", 80))


def changed(spec, path, edit):
    tree = yaml.safe_load(spec.read_text(encoding="utf-8"))
    edit(tree)
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_missing_spec_file(tmp_path):
    refused("run", tmp_path / "no.yaml", "--out", tmp_path / "run", says=("no.yaml: no such spec file",))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("model: [unclosed", "line 1: not valid YAML"),
        ("", "an empty file"),
        ("- a list", "expected a mapping"),
        ("name: a\nname: b\n", '"name" is given twice'),
        ("model: !!python/object/apply:os.system [true]\n", "not valid YAML"),
    ],
)
def test_spec_file_that_is_not_a_spec(content, says, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(content, encoding="utf-8")
    refused("run", path, "--out", tmp_path / "run", says=("bad.yaml", says))
    assert not (tmp_path / "run").exists()


def test_spec_file_that_is_not_text(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    refused("run", path, "--out", tmp_path / "run", says=("bad.yaml", "not UTF-8"))
    refused("run", tmp_path, "--out", tmp_path / "run", says=(str(tmp_path), "cannot be read"))


def test_unknown_keys_in_the_file(spec, tmp_path):
    top = changed(spec, tmp_path / "top.yaml", lambda tree: tree.update(recoders="light"))
    refused(
        "run", top, "--out", tmp_path / "run", says=("top.yaml", 'unknown key "recoders"', 'nearest is "recorders"')
    )
    deep = changed(spec, tmp_path / "deep.yaml", lambda tree: tree["data"].update(sise=3))
    refused(
        "run", deep, "--out", tmp_path / "run", says=("deep.yaml", 'unknown key "sise" at data', 'nearest is "size"')
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.size=many", ("data.size", "many")),
        ("data.size=0", ("data.size",)),
        ("data.size=2.5", ("data.size", "2.5")),
        ("edits_per_step=true", ("edits_per_step",)),
        ("data.size", ("expected key=value",)),
        ("evaluation.schedule=sometimes", ("evaluation.schedule", "{every: k}")),
        ("name=a/b", ("name",)),
        ("data.sizes=3", ('unknown key "sizes"', 'nearest is "size"')),
        ("seed.x=1", ('"seed.x=1"',)),
        ("editor=sln", ("unknown editor 'sln'", "ln")),
        ("editor=no.such.module:Editor", ("no.such.module:Editor", "cannot be imported")),
        ("editor.preset=papr", ("unknown preset 'papr'", "paper")),
        ("editor.params.rige=1", ('unknown key "rige"', 'nearest is "ridge"')),
        ("editor.params.ridge=strong", ("ridge", "strong")),
        ("editor.params.ridge=-1", ("ridge", "-1")),
        ("editor.params.lr=fast", ("lr", "fast")),
        ("editor.params.lr=.nan", ("lr", "finite")),
        ("recorders=[update_nrm]", ('unknown recorder "update_nrm"', '"update_norm"')),
        ("recorders=heavy", ("recorders", "heavy")),
        ("recorders=[update_norm, update_norm]", ("named twice",)),
        ("recorders=['no.such:Recorder']", ("no.such:Recorder", "cannot be imported")),
        ("recorders=[{name: adjacent_cosine, params: {reset: true}}]", ("reset_after_warmup",)),
        ("warmup.placement=somewhere", ("warmup.placement", "somewhere")),
        ("vary.data.size=3", ("vary", "list")),
        ("vary.dta.size=[3]", ("vary", 'nearest is "data"')),
        ("model.device=tpux", ("unknown device 'tpux'", "cpu")),
        ("model.dtype=float12", ("model.dtype", "float12")),
    ],
)
def test_wrong_values(override, says, spec, tmp_path):
    refused("run", spec, override, "--out", tmp_path / "run", says=says)
    assert list(tmp_path.iterdir()) == []


def test_exponents_without_a_dot_are_numbers(spec, tmp_path):
    path = changed(spec, tmp_path / "lr.yaml", lambda tree: None)
    path.write_text(path.read_text(encoding="utf-8").replace("lr: 0.02", "lr: 1e-6"), encoding="utf-8")
    assert load(path).editor.params["lr"] == 1e-6
    assert load(path, ["editor.params.ridge=1E2"]).editor.params["ridge"] == 100


def test_presets_that_do_not_fit_the_rest(spec, tmp_path):
    refused(
        "run", spec, "editor.preset=no_warmup", "warmup.size=10", "--out", tmp_path / "run",
        says=("no_warmup", "warmup.size 10", "set warmup.size to 0"),
    )  # fmt: skip
    refused(
        "run", spec, "editor.preset=no_ln_matched", "--out", tmp_path / "run",
        says=("'no_ln_matched'", "needs editor.params.match"),
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_later_spec_of_a_sweep_is_refused_before_the_first_one_runs(spec, tmp_path):
    sweep = changed(spec, tmp_path / "s.yaml", lambda tree: tree.update(vary={"editor.params.ridge": [1, -1]}))
    refused("run", sweep, "--root", tmp_path / "runs", says=("ridge", "-1"))
    occupied = changed(spec, tmp_path / "o.yaml", lambda tree: tree.update(vary={"data.seed": [0, 1]}))
    _, last = load_many(occupied)
    used = tmp_path / "runs" / f"{last.name}-{resolved(last).digest()[:8]}"
    used.mkdir(parents=True)
    (used / "notes.txt").touch()
    refused("run", occupied, "--root", tmp_path / "runs", says=(str(used), "not empty"))
    assert list((tmp_path / "runs").iterdir()) == [used]
