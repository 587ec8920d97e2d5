from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stablediag.errors import DataError, SpecError
from stablediag.evaluation.metrics import score_pairs
from stablediag.maths.update import Dense
from stablediag.recorders.base import Array, Row, RunView, SnapshotView
from stablediag.recorders.conformance import check_recorder
from stablediag.recorders.quality import PROBES, Quality, probe_pairs
from stablediag.testbed.tasks import CapabilityTask
from stablediag.types import Edit, Probe

MODULE = "model.layers.1.mlp.down_proj"
STEP, TOTAL = 4, 3


def words(rng, low, high):
    return " ".join(f"w{i}" for i in rng.integers(0, 290, rng.integers(low, high)))


def probes(rng, kind, count, name):
    return tuple(Probe(words(rng, 3, 9), words(rng, 1, 4), kind, f"{kind}-{name}-{i}") for i in range(count))


@pytest.fixture
def stream():
    """Twelve edits with uneven numbers of probes; no edit has the same as the next, some have none of a kind."""
    rng = np.random.default_rng(0)
    return [
        Edit(
            f"e{i}",
            words(rng, 3, 8),
            words(rng, 1, 4),
            rephrases=tuple(words(rng, 3, 9) for _ in range(i % 3)),
            locality=probes(rng, "locality", 1 + i % 2, i),
            persona=probes(rng, "persona", i % 2, i),
            multihop=probes(rng, "multihop", int(i == 5), i),
        )
        for i in range(STEP * TOTAL)
    ]


@pytest.fixture
def change(view, loaded):
    """Change the weights so much that predictions differ."""

    def apply(seed):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(tuple(view.weight(MODULE).shape), generator=generator)
        view._writer.apply(MODULE, Dense(0.6 * noise))

    return apply


def snapshot_of(view, step, stream, **options):
    done = stream[: (step + 1) * STEP]
    given = {"evaluate": True, "snapshot": False, "new_edits": done[-STEP:], "edits_done": done} | options
    return SnapshotView(step=step, total=TOTAL, view=view, **given)


def run(recorder, view, stream, step_view, change, *, restart=False):
    """Drive three steps; optionally replace the recorder by a resumed copy after each step."""
    items = list(recorder.on_run_start(RunView(-1, TOTAL, view, stream)))
    for step in range(TOTAL):
        change(step)
        edits = stream[step * STEP : (step + 1) * STEP]
        items += recorder.on_step(step_view(step, [], edits=edits, total=TOTAL))
        items += recorder.on_snapshot(snapshot_of(view, step, stream))
        if restart:
            tensors, meta = recorder.state_dict()
            recorder = Quality(probes=recorder.probes, subsample=recorder.subsample, seed=recorder.seed)
            recorder.load_state_dict({k: t.clone() for k, t in tensors.items()}, json.loads(json.dumps(meta)))
    return items


def quality(items, step):
    rows = [i for i in items if isinstance(i, Row) and i.table == "quality" and i.key["step"] == step]
    return {(row.key["metric"], row.key["kind"]): (row.values["value"], row.values["n"]) for row in rows}


def slow_quality(loaded, edits, probe):
    """Every pair on its own, averaged within the record, then over records."""
    token, exact = [], []
    for edit in edits:
        scored = [score_pairs(loaded.model, loaded.tokenizer, [pair]) for pair in probe_pairs(edit, probe)]
        if scored:
            token.append(np.mean([s.token_match[0] for s in scored]))
            exact.append(np.mean([s.exact[0] for s in scored]))
    return {"token": (np.mean(token), len(token)), "exact": (np.mean(exact), len(exact))}


@pytest.mark.parametrize("options", [{}, {"probes": PROBES, "subsample": 5, "seed": 3, "immediate_every": 2}])
def test_conformance(loaded, options):
    assert check_recorder(Quality(**options), loaded=loaded)


def test_conformance_with_capability(loaded):
    task = CapabilityTask("colour", ("w1", "w2"), train=(), test=(Probe("w3 w4", "w1"), Probe("w5", "w2")))
    items = check_recorder(Quality(capability=True, tasks={"colour": task}), loaded=loaded)
    found = quality(items, 5)
    assert found["capability:colour", "exact"] == found["capability_mean", "exact"]
    assert found["capability_mean", "exact"][1] == 2


def test_every_metric_equals_its_slow_twin(loaded, view, stream, step_view, change):
    recorder = Quality(probes=PROBES)
    start = list(recorder.on_run_start(RunView(-1, TOTAL, view, stream)))
    for probe in PROBES:
        for kind, (value, n) in slow_quality(loaded, stream, probe).items():
            assert quality(start, -1)[probe, kind] == (pytest.approx(value, abs=1e-6), n)
    reference = {
        p.id: score_pairs(loaded.model, loaded.tokenizer, [(p.prompt, p.answer)]).predictions[0]
        for edit in stream
        for p in edit.locality
    }
    change(0)
    past = stream[:8]
    now = quality(list(recorder.on_snapshot(snapshot_of(view, 1, stream))), 1)
    for probe in PROBES:
        for kind, (value, n) in slow_quality(loaded, past, probe).items():
            assert now[probe, kind] == (pytest.approx(value, abs=1e-6), n)
    shares = []
    for edit in past:
        own = []
        for p in edit.locality:
            predicted = score_pairs(loaded.model, loaded.tokenizer, [(p.prompt, p.answer)]).predictions[0]
            own.append(np.mean([a == b for a, b in zip(predicted, reference[p.id], strict=True)]))
        shares.append(np.mean(own))
    assert now["specificity_agreement", "token"] == (pytest.approx(np.mean(shares), abs=1e-6), 8)
    assert 0 < np.mean(shares) < 1
    assert ("specificity_agreement", "token") not in quality(start, -1)


def test_agreement_is_one_before_any_edit(view, stream):
    recorder = Quality(probes=("specificity",))
    list(recorder.on_run_start(RunView(-1, TOTAL, view, stream)))
    found = quality(list(recorder.on_snapshot(snapshot_of(view, 0, stream))), 0)
    assert found["specificity_agreement", "token"][0] == 1.0
    assert found["specificity", "token"][0] < 1.0


def test_edits_are_recorded_when_written_and_at_the_end(loaded, view, stream, step_view, change):
    items = run(Quality(), view, stream, step_view, change)
    rows = {}
    for item in items:
        if isinstance(item, Row) and item.table == "edits":
            rows.setdefault(item.key["position"], {}).update(item.values)
    assert sorted(rows) == list(range(12))
    assert [rows[i]["edit_id"] for i in range(12)] == [f"e{i}" for i in range(12)]
    assert [rows[i]["step"] for i in range(12)] == [i // STEP for i in range(12)]
    final = score_pairs(loaded.model, loaded.tokenizer, [(e.prompt, e.target) for e in stream]).token_match
    assert [rows[i]["retained"] for i in range(12)] == pytest.approx(final.tolist())
    assert [rows[i]["immediate"] for i in range(8, 12)] == pytest.approx(final[8:].tolist())
    arrays = {(item.name, item.step): item.data for item in items if isinstance(item, Array)}
    assert arrays["retained_efficacy", 2] == pytest.approx(final)
    assert arrays["retained_efficacy", 0].shape == (4,)
    assert arrays["retained_efficacy", 2].dtype == np.float32
    assert arrays["retained_position", 2].tolist() == list(range(12))


@pytest.mark.parametrize(("every", "expected"), [(0, [0, 0, 0]), (1, [4, 4, 4]), (2, [4, 0, 4])])
def test_immediate_success_is_measured_on_request(view, stream, step_view, change, every, expected):
    items = run(Quality(immediate_every=every), view, stream, step_view, change)
    rows = [i.values for i in items if isinstance(i, Row) and i.table == "edits" and "immediate" in i.values]
    measured = [sum(r["immediate"] is not None for r in rows if r["step"] == step) for step in range(TOTAL)]
    assert measured == expected
    assert len(rows) == 12


def test_the_subsample_is_fixed_and_restricted_to_the_past(view, stream, step_view, change):
    items = run(Quality(subsample=5, seed=1), view, stream, step_view, change)
    places = {i.step: i.data.tolist() for i in items if isinstance(i, Array) and i.name == "retained_position"}
    assert len(places[2]) == 5
    assert places[1] == [p for p in places[2] if p < 8]
    assert quality(items, -1)["efficacy", "token"][1] == 5
    assert quality(items, 2)["efficacy", "token"][1] == 5
    other = run(Quality(subsample=5, seed=2), view, stream, step_view, change)
    again = {i.step: i.data.tolist() for i in other if isinstance(i, Array) and i.name == "retained_position"}
    assert again[2] != places[2]


@pytest.mark.parametrize("subsample", [None, 5])
def test_a_run_resumed_after_every_step_gives_the_same_items(loaded, view, stream, step_view, change, subsample):
    before = view._writer.snapshot()
    whole = run(Quality(probes=PROBES, subsample=subsample), view, stream, step_view, change)
    view._writer.restore(before)
    pieces = run(Quality(probes=PROBES, subsample=subsample), view, stream, step_view, change, restart=True)
    assert len(whole) == len(pieces)
    for a, b in zip(whole, pieces, strict=True):
        if isinstance(a, Row):
            assert (a.table, a.key, a.values) == (b.table, b.key, b.values)
        else:
            assert a.data.tobytes() == b.data.tobytes()


def test_a_skipped_step_does_not_shift_the_positions(view, stream, step_view):
    recorder = Quality(probes=("efficacy",))
    list(recorder.on_run_start(RunView(-1, TOTAL, view, stream)))
    rows = list(recorder.on_step(step_view(2, [], edits=stream[8:], total=TOTAL)))
    assert [row.key["position"] for row in rows] == [8, 9, 10, 11]
    done = stream[:4] + stream[8:]
    items = list(recorder.on_snapshot(snapshot_of(view, 2, stream, edits_done=done)))
    (places,) = [item.data for item in items if isinstance(item, Array) and item.name == "retained_position"]
    assert places.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]


def test_warmup_edits_are_none_of_its_business(view, stream, step_view):
    recorder = Quality()
    list(recorder.on_run_start(RunView(-1, TOTAL, view, stream)))
    stranger = [Edit("warm", "w1 w2", "w3")]
    assert list(recorder.on_step(step_view(0, [], phase="warmup", edits=stranger))) == []
    with pytest.raises(DataError, match="'warm' is not where the target stream had it"):
        list(recorder.on_step(step_view(0, [], edits=stranger)))


def test_it_is_silent_when_it_is_not_asked(view, stream):
    recorder = Quality()
    list(recorder.on_run_start(RunView(-1, TOTAL, view, stream)))
    assert list(recorder.on_snapshot(snapshot_of(view, 0, stream, evaluate=False, snapshot=True))) == []
    assert list(recorder.on_snapshot(snapshot_of(view, -1, stream))) == []


def test_an_unknown_probe_is_refused():
    with pytest.raises(SpecError, match="unknown probe 'locality'"):
        Quality(probes=("locality",))
