"""Edit streams: stability, splits that never meet, locality that is never edited, one-line errors."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from stablediag.errors import DataError
from stablediag.testbed import edit_stream, snapshot_probes
from stablediag.testbed.templates import RELATIONS
from stablediag.testbed.world import build_world

SIZES = {
    "new": {"target": 9400, "warmup": 2400, "calibration": 350},
    "counterfactual": {"target": 2600, "warmup": 300, "calibration": 100},
    "claims": {"target": 2600, "warmup": 300, "calibration": 100},
    "medical": {"target": 900, "warmup": 1000, "calibration": 100},
}


@pytest.fixture(scope="module")
def whole():
    return {(k, s): edit_stream(k, n, 0, split=s) for k, sizes in SIZES.items() for s, n in sizes.items()}


def test_ids_are_unique_and_splits_are_disjoint(whole):
    for kind, sizes in SIZES.items():
        ids = {split: {edit.id for edit in whole[kind, split]} for split in sizes}
        assert all(len(ids[split]) == size for split, size in sizes.items())
        assert all(not ids[a] & ids[b] for a, b in itertools.combinations(sizes, 2))


def test_seed_chooses_subset_and_order_only(whole):
    content = {edit.id: edit for edit in whole["new", "target"]}
    first, second = edit_stream("new", 300, 1), edit_stream("new", 300, 2)
    assert first == edit_stream("new", 300, 1)
    assert [edit.id for edit in first] != [edit.id for edit in second]
    assert all(content[edit.id] == edit for edit in first + second)


def test_locality_and_snapshots_are_never_edited_by_any_stream(whole):
    edited = {(edit.subject, edit.group) for edits in whole.values() for edit in edits}
    by_prompt = {fact.prompts()[0]: fact for fact in build_world().facts}
    snapshots = snapshot_probes(1000)
    plain = [probe for edits in whole.values() for edit in edits for probe in edit.locality if "claim" not in probe.id]
    for probe in [*snapshots, *plain]:
        fact = by_prompt[probe.prompt]
        assert fact.known
        assert fact.object == probe.answer
        assert (fact.subject, fact.relation) not in edited
    assert len({probe.id for probe in snapshots}) == 1000
    assert not {probe.prompt for probe in snapshots} & {probe.prompt for probe in plain}


def test_every_edit_is_complete(whole):
    for (kind, split), edits in whole.items():
        for edit in edits[:200]:
            assert edit.subject in edit.prompt
            assert edit.source == f"testbed:{kind}:{split}"
            assert 1 <= len(edit.locality) <= 2
            assert len(edit.persona) == (0 if kind == "claims" else 1)
            assert all(edit.subject not in probe.prompt for probe in edit.locality)
            assert all(probe.prompt.endswith(edit.prompt) for probe in edit.persona)
            assert len(edit.rephrases) == (2 if kind == "claims" else 4)
            if kind in ("new", "counterfactual"):
                assert bool(edit.multihop) == (RELATIONS[edit.group].table is not None)


def test_overrides_contradict_what_was_trained(whole):
    by_key = {fact.key: fact for fact in build_world().facts}
    for edit in whole["counterfactual", "target"]:
        fact = by_key[edit.id.removeprefix("counterfactual:")]
        assert edit.target_true == fact.object != edit.target
    for edit in whole["claims", "target"]:
        fact = by_key[edit.id.removeprefix("claims:")]
        assert edit.target_true == ("true" if edit.meta["stated"] == fact.object else "false") != edit.target
    for edit in whole["new", "target"]:
        assert not by_key[edit.id.removeprefix("new:")].known


def test_one_relation():
    edits = edit_stream("relation", 200, relation="pet")
    assert {edit.group for edit in edits} == {"pet"}
    assert not {e.id for e in edits} & {e.id for e in edit_stream("relation", 50, split="warmup", relation="pet")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("new", 10**6, 0), "has 9400"),
        (("old", 1, 0), "no stream kind 'old'"),
        (("relation", 1, 0), "needs relation=NAME"),
    ],
)
def test_errors_name_what_there_is(arguments, message):
    with pytest.raises(DataError, match=message):
        edit_stream(*arguments)
    with pytest.raises(DataError, match="1100 exist"):
        snapshot_probes(5000)


def test_streams_need_no_torch():
    code = "import sys; from stablediag.testbed import *; edit_stream('new', 3); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
