"""Controls that cannot be what they are called, and starts from runs that do not serve."""

from __future__ import annotations

import json
import shutil
import sqlite3

import pytest

from stablediag.store.run import Run
from tests.cli.command import command, refused, write_spec
from tests.engine.streams import write_stream


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("controls")


@pytest.fixture(scope="module")
def spec(root, llama_dir):
    return write_spec(root / "spec.yaml", llama_dir, write_stream(root / "edits.jsonl", 80), recorders="none")


@pytest.fixture(scope="module")
def early(root, spec):
    """A complete run, to start others from."""
    return make(spec, root / "early")


def make(spec, path, *overrides):
    done = command("run", spec, *overrides, "--out", path)
    assert done.code == 0, done
    return path


@pytest.fixture
def attempt(spec, root):
    """Run with overrides: one line that holds what is expected, and no run directory."""

    def refuse(*overrides, says):
        refused("run", spec, *overrides, "--out", root / "out", says=says)
        assert not (root / "out").exists()

    return refuse


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["editor.params.statistics=melted"], ("statistics", "melted")),
        (["editor.params.statistics_seed=-1"], ("statistics_seed", "-1")),
        (["editor.params.statistics_seed=2.5"], ("statistics_seed", "2.5")),
        (["editor.params.center=0"], ("center", "0")),
        (["editor.params.target_apply=never"], ("target_apply", "never")),
        (["editor.params.centre=false"], ('unknown key "centre"', 'nearest is "center"')),
        (["editor.params.normaliser=center", "editor.params.center=false"], ("choose normaliser none",)),
        (["editor.params.statistics=frozen"], ("there is none", "warmup.size", "statistics running")),
        (["editor.params.statistics=frozen", "warmup={size: 10, placement: none}"], ("there is none", "warmup.size")),
        (
            ["editor={name: simie, params: {editor: {name: ln, params: {lr: 0.02, statistics: frozen}}}}"],
            ("there is none", "warmup.size"),
        ),
        (["editor=ft", "editor.params={center: false}"], ('unknown key "center"',)),
        (["init={}"], ("init", "weights_from, stats_from or both", "leave init out")),
        (["init={weights_from: 5}"], ("init.weights_from", "5")),
        (["init={weights_from: ''}"], ("init.weights_from",)),
        (["init={weight_from: early}"], ('unknown key "weight_from"', 'nearest is "weights_from"')),
        (["init=early"], ("init", "early")),
        (["init={stats_from: [early]}"], ("init.stats_from",)),
    ],
)
def test_controls_that_mean_nothing(overrides, says, attempt):
    attempt(*overrides, says=says)


def test_starts_from_what_is_no_finished_run(root, spec, early, attempt):
    (root / "empty").mkdir()
    (root / "notes.txt").write_text("early", encoding="utf-8")
    for named, says in (
        ("nowhere", ("no run at", "nowhere", "run it first")),
        ("nowhere@3", ("no run at", "or nowhere: run it first")),
        ("@2", ("no run at", "run it first")),
        ("notes.txt", ("no run at", "notes.txt")),
        ("empty", ("empty: not a run", "check the path")),
        ("early@99999999999999999999", ("early ends with step 2, not 99999999999999999999",)),
        ("early@-1", ("no run at",)),
        ("out", ("no run at", "out")),
    ):
        for where in ("weights_from", "stats_from"):
            attempt(f"init={{{where}: '{named}'}}", says=(f"init.{where}: ", *says))
    make(spec, root / "early@1")  # a directory is called what it is called
    make(spec, root / "named", "init={weights_from: early@1}")
    assert Run.open(root / "named").info.dataset["init_weights"]["run"] == "early@1"


def test_a_start_from_an_unfinished_or_a_damaged_run(root, early, attempt):
    unfinished = shutil.copytree(early, root / "unfinished")
    with sqlite3.connect(unfinished / "run.sqlite") as connection:
        connection.execute("UPDATE meta SET value = 'running' WHERE key = 'state'")
    attempt(f"init.stats_from={unfinished}", says=("init.stats_from", "not complete", f"resume {unfinished}"))
    damaged = shutil.copytree(early, root / "damaged")
    folder = Run.open(damaged).checkpoint[1]
    file = folder / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    attempt(f"init.weights_from={damaged}", says=("init.weights_from", "tensors.safetensors: content differs"))
    shutil.rmtree(folder)
    attempt(f"init.weights_from={damaged}", says=("init.weights_from", "no state here"))


def test_a_start_between_editors_that_keep_something_beside_the_weights(root, early, attempt, monkeypatch):
    beside = shutil.copytree(early, root / "beside")
    file = Run.open(beside).checkpoint[1] / "state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    state["meta"]["adapter"] = True
    file.write_text(json.dumps(state), encoding="utf-8")
    attempt(f"init.weights_from={beside}", says=("its editor keeps edits beside the weights",))
    monkeypatch.setattr("stablediag.editors.ln.LNEditor.adapter", object(), raising=False)
    attempt("init.weights_from=early", says=("the editor of this run keeps edits beside the weights",))


def test_a_start_from_another_set_of_modules_or_another_editor(root, spec, early, attempt):
    make(spec, root / "one", "model.modules=[layers.1.mlp.down_proj]")
    for where in ("weights_from", "stats_from"):
        attempt(f"init.{where}=one", says=(f"init.{where}", "another model, its modules differ"))
    attempt(
        "init.stats_from=early",
        "editor={name: simie, params: {editor: {name: ln, params: {lr: 0.02}}}}",
        says=("init.stats_from: editor simie has no statistics to start with", "use editor ln"),
    )
    attempt(
        "init.stats_from=early",
        "editor.params.tokens=all",
        says=("its statistics are of gradients with tokens answer, this run's have all",),
    )
