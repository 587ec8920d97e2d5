"""Runs that start from what others have left, and streams that leave the model as it is."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
import torch

from stablediag.engine.session import Session, resume, run
from stablediag.errors import SpecError, StoreError
from stablediag.spec import Spec
from stablediag.store.run import Run
from stablediag.store.state import load_state, part
from tests.engine.streams import MODULES, ln_spec, write_stream
from tests.engine.test_session import assert_same_run, final_state

NAMES = [f"model.layers.{i}.mlp.down_proj" for i in (1, 2)]
LIGHT = ["update_norm", "adjacent_cosine", "conditioning", "quality"]


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return write_stream(tmp_path_factory.mktemp("stream") / "edits.jsonl", 200)


@pytest.fixture(scope="module")
def build(llama_dir, stream):
    def one(offset=0, size=20, lr=0.02, editor=None, **changes):
        return ln_spec(
            llama_dir,
            stream,
            **{
                "data": {"source": str(stream), "size": size, "offset": offset},
                "edits_per_step": 10,
                "editor": editor or {"preset": "paper", "params": {"lr": lr}},
                "recorders": LIGHT,
                **changes,
            },
        )

    return one


@pytest.fixture(scope="module")
def runs(build, tmp_path_factory):
    """A folder with a run over the first 20 edits (`early`) and one over all 40 (`whole`)."""
    root = tmp_path_factory.mktemp("runs")
    run(build(), root / "early", progress=False)
    run(build(size=40), root / "whole", progress=False)
    return root


def late(build, **init):
    return build(offset=20, init=init)


def weights_of(done):
    return part(final_state(done)[0], "weights/")


def statistics_of(done):
    return part(final_state(done)[0], "editor/")


def test_both_halves_carried_over_are_the_whole_run(runs, build):
    """Weights and statistics are all that a step knows of the past: the late half continues bit for bit."""
    done = run(late(build, weights_from="early", stats_from="early"), runs / "both", progress=False)
    whole = Run.open(runs / "whole")
    for ours, theirs in ((weights_of(done), weights_of(whole)), (statistics_of(done), statistics_of(whole))):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    columns = ["norm", "weight_norm", "weight_ratio"]
    pd.testing.assert_frame_equal(
        done.table("updates")[columns].reset_index(drop=True),
        whole.table("updates").query("step >= 2")[columns].reset_index(drop=True),
        check_exact=True,
    )
    # The same questions about the late edits, and the unedited model as what specificity is compared with.
    asked = done.table("quality").query("step == 1 and metric == 'specificity_agreement' and kind == 'token'")
    assert float(asked["value"].iloc[0]) < 1
    assert done.table("tracking").query("step == 0")["nu"].gt(done.table("steps")["rows"].iloc[0]).all()


def test_weights_alone_and_statistics_alone(runs, build):
    early = Run.open(runs / "early")
    alone = run(build(offset=20), runs / "alone", progress=False)
    weights = run(late(build, weights_from="early@1"), runs / "weights", progress=False)
    stats = run(late(build, stats_from=str(runs / "early")), runs / "stats", progress=False)
    rows = alone.table("steps")["rows"].iloc[0]
    nu = {one.path.name: one.table("tracking").query("step == 0")["nu"].iloc[0] for one in (alone, weights, stats)}
    seen = statistics_of(early)[f"{NAMES[0]}/grads/nu"].item()
    assert nu == {"alone": rows, "weights": rows, "stats": rows + seen}
    # The loss of the first step is that of the weights that it begins with.
    loss = {one.path.name: one.table("steps")["loss"].iloc[0] for one in (alone, weights, stats)}
    assert loss["stats"] == loss["alone"] != loss["weights"]
    ends = [weights_of(one)[f"{NAMES[0]}.weight"] for one in (alone, weights, stats)]
    assert not any(torch.equal(a, b) for i, a in enumerate(ends) for b in ends[:i])


def test_what_was_carried_over_is_written_down(runs, build):
    done = run(late(build, weights_from="early", stats_from="whole"), runs / "written", progress=False)
    told = done.info.dataset
    assert told["init_weights"]["run_digest"] == Run.open(runs / "early").info.digest
    assert (told["init_weights"]["step"], told["init_statistics"]["step"]) == (1, 3)
    assert told["init_weights"]["sha256"] != told["init_statistics"]["sha256"]
    events = done.table("events").query("kind == 'carried over'")
    assert events["step"].tolist() == [-1, -1]
    assert events["text"].tolist() == ["weights of early at step 1", "statistics of whole at step 3"]


def test_quality_is_compared_with_the_unedited_model(runs, build):
    shown = {"recorders": [*LIGHT, "hidden_states"], "snapshots": {"schedule": "end", "prompts": 5}}
    done = run(build(offset=20, init={"weights_from": "early"}, **shown), runs / "reference", progress=False)
    plain = run(build(offset=20, **shown), runs / "plain", progress=False)
    before, unedited = (one.table("quality").query("step == -1") for one in (done, plain))
    pd.testing.assert_frame_equal(before, unedited, check_exact=True)
    assert (done.array("hidden", -1) == plain.array("hidden", -1)).all()
    assert (done.array("hidden", 1) != plain.array("hidden", 1)).any()
    started = {name: final_state(one)[1]["initial_norms"] for name, one in (("late", done), ("plain", plain))}
    assert started["late"] == started["plain"]
    updates = done.table("updates").set_index(["step", "module"])
    for name in NAMES:
        ratio = updates.loc[(0, name), "weight_norm"] / started["plain"][name]
        assert updates.loc[(0, name), "weight_ratio"] == pytest.approx(ratio)


@pytest.mark.parametrize("late_recorders", [("coherence", "paired_probes"), ()])
def test_movement_is_counted_from_where_the_run_begins(runs, build, stream, monkeypatch, tmp_path, late_recorders):
    """One update is as long as the way from the start; recorders that began at the unedited model say otherwise."""
    monkeypatch.setattr("stablediag.engine.start.OWN_START", late_recorders)
    probes = {"data": {"source": str(stream), "offset": 100, "size": 20}, "sample": 10}
    recorders = [
        "update_norm",
        {"name": "coherence", "schedule": {"every": 1}},
        {"name": "paired_probes", "schedule": {"every": 1}, "params": probes},
    ]
    start = {name: str(runs / "early") for name in ("weights_from", "stats_from")}
    done = run(build(offset=20, init=start, recorders=recorders), tmp_path / "late", progress=False)
    whole = run(build(size=40, recorders=recorders), tmp_path / "whole", progress=False)
    first = done.table("updates").query("step == 0")["coherence"]
    moved, wanted = (
        one.table("probes").query("step == @step")["rms_sq"].to_numpy() for one, step in ((done, 0), (whole, 2))
    )
    if late_recorders:
        assert first.to_numpy() == pytest.approx(1, abs=1e-3)
        assert moved == pytest.approx(wanted, rel=1e-6)
    else:
        assert first.gt(1.2).all()
        assert (abs(moved / wanted - 1) > 0.2).all()


def interrupt(monkeypatch, at):
    """Stop a session before a step; -1: before it has kept anything."""
    original = Session._step

    def step(self, batch):
        if batch.index == at:
            raise KeyboardInterrupt
        original(self, batch)

    def checkpoint(self, tx, step):
        raise KeyboardInterrupt

    if at < 0:
        monkeypatch.setattr(Session, "_checkpoint", checkpoint)
    monkeypatch.setattr(Session, "_step", step)


INTERRUPTED = {
    "init": {"lr": 0.02},
    "frozen": {"lr": 0.02, "statistics": "frozen"},
    "shuffled": {"lr": 0.001, "statistics": "shuffled", "center": False},
    "silent": {"lr": 0.02, "target_apply": False},
}


@pytest.mark.parametrize(
    ("case", "at"), [("init", -1), ("init", 3), ("frozen", 2), ("frozen", 3), ("shuffled", 3), ("silent", 3)]
)
def test_an_interrupted_run_ends_as_if_it_had_not_been(runs, build, monkeypatch, case, at):
    """Two warm-up steps, then two target steps; before the first checkpoint the weights are carried over once more."""
    init = {"init": {"weights_from": "early", "stats_from": "whole"}} if case == "init" else {}
    editor = {"params": INTERRUPTED[case]}
    spec = build(offset=40, editor=editor, checkpoint={"every": 1}, warmup={"size": 20, "placement": "start"}, **init)
    straight = runs / f"{case}-straight"
    whole = Run.open(straight) if straight.exists() else run(spec, straight, progress=False)
    with monkeypatch.context() as patch:
        interrupt(patch, at)
        with pytest.raises(KeyboardInterrupt):
            run(spec, runs / f"{case}{at}", progress=False)
    assert_same_run(resume(runs / f"{case}{at}", progress=False), whole)


def test_a_remade_start_is_noticed(build, tmp_path):
    run(build(), tmp_path / "early", progress=False)
    session = Session.create(late(build, stats_from="early"), tmp_path / "late", progress=False)
    session._writer.close()
    shutil.rmtree(tmp_path / "early")
    run(build(lr=0.03), tmp_path / "early", progress=False)
    with pytest.raises(StoreError, match=r"is not the one the run began with \(init_statistics\)"):
        resume(tmp_path / "late", progress=False)


def test_other_numbers_of_a_run_of_the_same_spec_are_noticed(runs, build, monkeypatch, tmp_path):
    """Another machine may have made it: the digest of its spec does not tell."""
    session = Session.create(late(build, stats_from=str(runs / "early")), tmp_path / "late", progress=False)
    session._writer.close()

    def moved(folder):
        tensors, meta = load_state(folder)
        key = f"editor/{NAMES[0]}/grads/mean"
        return {**tensors, key: tensors[key] * (1 + 1e-12)}, meta

    monkeypatch.setattr("stablediag.engine.start.load_state", moved)
    with pytest.raises(StoreError, match=r"is not the one the run began with \(init_statistics\)"):
        resume(tmp_path / "late", progress=False)


def test_edits_that_are_not_written_leave_the_unedited_model(runs, build):
    """Exactly: quality at the end is that of the beginning, while the statistics have seen every row."""
    params = {"lr": 0.02, "target_apply": False}
    done = run(build(editor={"params": params}), runs / "silent", progress=False)
    quality = done.table("quality").set_index(["metric", "kind", "step"])["value"]
    for metric in ("efficacy", "generalization", "specificity"):
        for kind in ("token", "exact"):
            assert quality[metric, kind, 1] == quality[metric, kind, -1]
    assert quality["specificity_agreement", "token", 1] == 1
    assert done.table("steps")["written"].tolist() == [0, 0]
    assert len(done.table("updates")) == 0
    edits = done.table("edits")
    assert edits["edit_id"].tolist() == [f"r{i}" for i in range(20)]
    assert edits["step"].tolist() == [0] * 10 + [1] * 10
    assert edits["immediate"].tolist() == edits["retained"].tolist()
    tracking = done.table("tracking").query("module == @NAMES[0]")
    assert tracking["nu"].tolist() == done.table("steps")["rows"].cumsum().tolist()


def test_what_is_not_written_needs_no_norm_to_match(runs, build):
    """The run that is matched ends before this one does."""

    def spec(**params):
        return build(size=40, editor={"params": {"lr": 1.0, "match": {"run": "early", "mode": "every"}, **params}})

    with pytest.raises(SpecError, match="early has no update norm at step 2"):
        run(spec(), runs / "matched", progress=False)
    done = run(spec(target_apply=False), runs / "silent-matched", progress=False)
    assert done.table("steps")["written"].tolist() == [0] * 4


@pytest.mark.parametrize("arrange", ["iid", "permuted"])
def test_resampled_and_permuted_streams_with_frozen_weights(runs, build, stream, arrange):
    """The two controls of a stream: nothing of what they show comes from edits, or from the order of the records."""
    data = {"source": str(stream), "size": 40, "arrange": arrange}
    spec = build(data=data, editor={"params": {"lr": 0.02, "target_apply": False}})
    session = Session.create(spec, runs / arrange, progress=False)
    ids = [edit.id for batch in session.plan for edit in batch.edits]
    done = session.run()
    read = [f"r{i}" for i in range(40)]
    assert ids != read
    assert sorted(ids) == sorted(read) if arrange == "permuted" else len({one.partition("#")[0] for one in ids}) < 40
    assert done.table("steps")["edits"].tolist() == [10] * 4
    assert not done.table("steps")["written"].any()
    nu = done.table("tracking").query("module == @NAMES[0]")["nu"]
    assert nu.tolist() == done.table("steps")["rows"].cumsum().tolist()


def test_the_testbed_tells_a_float32_master_from_bfloat16_weights(tmp_path):
    """The first small update is rounded alike; later an accumulating master makes up for what was lost, weights do not."""
    kept = {}
    for master in ("fp32", "model"):
        spec = Spec.from_mapping(
            {
                "model": {"path": "testbed", "dtype": "bfloat16", "device": "cpu"},
                "data": {"source": "testbed", "size": 80},
                "edits_per_step": 10,
                "editor": {"preset": "paper", "params": {"lr": 1e-4, "master": master}},
                "evaluation": {"schedule": "never"},
                "recorders": ["update_norm", {"name": "realised_update", "schedule": {"every": 1}}],
                "threads": 1,
            }
        )
        updates = run(spec, tmp_path / master, progress=False).table("updates")
        share = updates["realised_ratio"] * updates["realised_cosine"]
        kept[master] = [float(share[updates["step"].eq(0)].mean()), float(share[updates["step"].ge(2)].mean())]
    assert kept["fp32"][0] == pytest.approx(kept["model"][0], rel=0.02)
    assert kept["model"][0] < 0.9
    assert kept["fp32"][1] > 1.25 * kept["model"][1]


@pytest.fixture
def other_model(llama_dir, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(llama_dir, tmp_path / "other")
    file = folder / "model.safetensors"
    tensors = {name: 1.5 * tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def model(folder, **changes):
    return {"path": str(folder), "modules": MODULES, "device": "cpu", **changes}


@pytest.mark.parametrize("what", ["weights_from", "stats_from"])
def test_a_start_from_another_model_is_refused(runs, build, other_model, what):
    with pytest.raises(SpecError, match=f"init.{what}: .*early: it edited another model, its sha256 differ"):
        run(build(offset=20, model=model(other_model), init={what: "early"}), runs / "other", progress=False)
    assert not (runs / "other").exists()


def test_a_model_whose_files_are_too_large_to_hash_is_known_by_its_norms(runs, build, llama_dir, monkeypatch):
    spec = late(build, weights_from="early")
    original = load_state

    def moved(folder):
        tensors, meta = original(folder)
        return tensors, meta | {"initial_norms": {name: 1.0001 * norm for name, norm in meta["initial_norms"].items()}}

    monkeypatch.setattr("stablediag.engine.start.load_state", moved)
    with pytest.raises(SpecError, match="had other weights before its first step: start from a run of this model"):
        run(spec, runs / "norms", progress=False)


def test_weights_of_another_dtype_or_master_are_refused(runs, build, llama_dir):
    """A master that was rounded away cannot be continued, and rounding would be taken for an edit."""
    narrow = model(llama_dir, dtype="bfloat16")
    run(build(model=narrow), runs / "narrow", progress=False)
    with pytest.raises(SpecError, match=r"weight is \[24, 40\] bfloat16 there, \[24, 40\] float32 here: give both"):
        run(late(build, weights_from="narrow"), runs / "wide", progress=False)
    in_place = {"params": {"lr": 0.02, "master": "model"}}
    with pytest.raises(SpecError, match=r"master is .* float32 there, missing here: give both"):
        run(build(model=narrow, editor=in_place, init={"weights_from": "narrow"}), runs / "wide", progress=False)
    assert not (runs / "wide").exists()
    # Statistics are float64 whatever the model is.
    run(build(offset=20, model=narrow, init={"stats_from": "early"}), runs / "mixed", progress=False)


def test_a_start_without_what_it_needs_is_refused(runs, build):
    def attempt(says, editor=None, **init):
        with pytest.raises(SpecError, match=says) as caught:
            run(build(offset=20, editor=editor, init=init), runs / "refused", progress=False)
        assert "\n" not in str(caught.value)
        assert not (runs / "refused").exists()

    attempt("init.stats_from: editor ft has no statistics to start with", {"name": "ft"}, stats_from="early")
    attempt("early ends with step 1, not 7: only its last checkpoint", weights_from="early@7")
    attempt("init.weights_from: no run at .*nowhere", weights_from="nowhere")
    attempt("init.stats_from: .*early: it has no moments of the keys of shape:40x24", SHAPE, stats_from="early")
    run(build(editor={"name": "ft", "params": {"epochs": 1}}), runs / "ft", progress=False)
    attempt("its editor is ft, this run's is ln: take the statistics of the same editor", stats_from="ft")
    run(build(offset=20, init={"weights_from": "ft"}), runs / "after-ft", progress=False)


SHAPE = {"params": {"lr": 0.02, "stats_scope": "shape"}}
