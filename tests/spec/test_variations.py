"""Variations of a spec: switches go there and back, controls change what they say, and what cannot be had is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from stablediag.data.load import load_stream
from stablediag.engine.prepare import resolve
from stablediag.errors import SpecError
from stablediag.spec import Spec
from stablediag.spec.variation_controls import CONTROLS, controls
from stablediag.spec.variation_switches import SWITCHES, switches
from stablediag.spec.variations import (
    BASE,
    MATCH,
    Catalogue,
    Variation,
    draws,
    matched,
    value_at,
    with_changes,
    with_seed,
    without_references,
)
from tests.engine.streams import write_stream

P = "editor.params."


def base(**changes: object) -> Spec:
    given = {
        "data": {"source": "testbed", "size": 200},
        "warmup": {"size": 100},
        "edits_per_step": 25,
        "editor": {"name": "ln", "preset": "paper", "params": {"lr": 0.01}},
    }
    return resolve(Spec.from_mapping({**given, **changes}))[0]


def editor(**params: object) -> dict[str, object]:
    return {"name": "ln", "preset": "paper", "params": {"lr": 0.01, **params}}


def made(spec: Spec, one: Variation) -> Spec:
    """The variation's spec, with names for the directories that it builds on."""
    changes = without_references(one.changes, {name: f"runs-{name}" for name in one.builds_on})
    return resolve(with_changes(spec, changes, where=one.name))[0]


def reasons(catalogue: Catalogue) -> dict[str, str]:
    return {one.name: one.reason for one in catalogue.left_out}


@pytest.mark.parametrize("catalogue", [switches, controls])
def test_every_variation_is_a_spec_of_its_own(catalogue) -> None:
    spec = base()
    made_specs = {one.name: made(spec, one) for one in catalogue(spec).variations}
    digests = {name: one.digest() for name, one in made_specs.items()}
    assert len(set(digests.values())) == len(digests)
    assert digests.pop(BASE) == spec.digest()
    assert len(digests) >= 15
    for one in catalogue(spec).variations[1:]:
        assert one.what
        assert one.question.endswith("?") or "?" in one.question or one.against is None
        assert "arXiv:2605.11836" in one.source


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: switch.name)
def test_a_switch_goes_there_and_back(switch) -> None:
    spec = base()
    there = with_changes(made(spec, switches(spec)[switch.name]), {MATCH: None}, where="there")
    assert {path: value_at(there, path) for path in switch.other} == dict(switch.other)
    back = switches(resolve(there)[0])[switch.name]
    assert switch.turned(there)
    assert not switch.turned(spec)
    again = with_changes(made(there, back), {MATCH: None, "model.dtype": "float32"}, where="back")
    assert again.digest() == spec.digest()


def test_all_at_once_is_what_the_preset_released_says() -> None:
    spec = base()
    together = made(spec, switches(spec)["released"])
    preset = base(editor={"name": "ln", "preset": "released", "params": {"lr": 0.01, "solve_dtype": "float32"}})
    ours, theirs = dict(together.editor.params), dict(preset.editor.params)
    del ours["prior"], theirs["prior"]
    assert ours == theirs
    assert together.model.dtype == "bfloat16"
    back = switches(resolve(together)[0])["paper"]
    plain = with_changes(made(together, back), {"model.dtype": "float32"}, where="paper")
    assert plain.digest() == spec.digest()
    assert reasons(switches(spec))["paper"].startswith("the spec has the paper's choices already")


def test_what_a_spec_cannot_have_is_said_with_its_reason() -> None:
    cold = reasons(switches(base(warmup={"size": 0})))
    assert cold["warmup_norm"] == cold["warmup_apply"] == "the spec has no warm-up"
    plain = reasons(switches(base(editor=editor(normaliser="diagonal"))))
    for name in ("prior", "floor", "pre_threshold", "warmup_norm"):
        assert plain[name] == "no covariance is inverted: normaliser diagonal"
    none = reasons(switches(base(editor=editor(normaliser="none", coefficient="raw"))))
    assert none["stats_scope"] == none["eps"] == "no statistics are used: normaliser none and raw keys"
    assert "frozen" in reasons(controls(base(warmup={"size": 0})))
    unnormalised = reasons(controls(base(editor=editor(normaliser="none"))))
    assert unnormalised["no_ln"] == "value gradients are not normalised: normaliser none"
    for silent in ("none", ["conditioning"], [{"name": "update_norm", "schedule": {"every": 5}}]):
        assert "no update norms" in reasons(controls(base(recorders=silent)))["center"]
        assert "no update norms" in reasons(switches(base(recorders=silent)))["key_norm"]
    assert "init" in reasons(controls(base(init={"stats_from": "other"})))["late_both"]
    short = base(data={"source": "testbed", "size": 30}, warmup={"size": 0})
    assert "two steps" in reasons(controls(short))["late_both"]
    switching = base(data={"source": "testbed", "size": 100, "then": [{"stream": "counterfactual", "size": 100}]})
    assert "segments" in reasons(controls(switching))["late_both"]


def test_a_control_that_the_spec_is_already_is_left_out() -> None:
    assert reasons(controls(base()))["full"] == "the spec has it already"
    assert "full" in controls(base(editor=editor(normaliser="diagonal"))).names
    assert reasons(controls(base(editor=editor(normaliser="diagonal"))))["diagonal"] == "the spec has it already"
    frozen = base(editor=editor(target_apply=False))
    assert reasons(controls(frozen))["iid_frozen_weights"] == "the spec writes no target update already"
    half = controls(base(model={"path": "testbed", "dtype": "bfloat16"}))
    assert reasons(half)["bf16_master"] == "the spec has it already"
    assert half["bf16_in_place"].against == BASE
    assert controls(base())["bf16_in_place"].against == "bf16_master"


def test_centring_and_scaling_make_all_cells() -> None:
    spec = base()
    cells = {}
    for one in controls(spec).variations:
        params = made(spec, one).editor.params
        if one.name in ("no_ln_every", "center", "scalar", "diagonal") or one.name.startswith("uncentred_"):
            kind, center = params["normaliser"], params.get("center", True)
            cells["none" if kind in ("none", "center") else kind, kind not in ("none",) and center] = one.name
            mode = "every" if one.name == "no_ln_every" else "first"
            assert params["match"] == {"run": "runs-base", "mode": mode, "steps": None}
            # Its condition number can be compared with the base's.
            assert params["normaliser"] == "full" or params["track_covariance"]
    wanted = {(kind, yes) for kind in ("none", "scalar", "diagonal", "full") for yes in (True, False)}
    assert set(cells) == wanted - {("full", True)}


@pytest.mark.parametrize("own_warmup", [False, True])
def test_halves_of_the_stream_are_its_halves(tmp_path: Path, own_warmup: bool) -> None:
    stream = write_stream(tmp_path / "edits.jsonl", 80)
    warmup = {"size": 10, "data": {"source": str(write_stream(tmp_path / "other.jsonl", 30, first=500))}}
    spec = base(
        data={"source": str(stream), "size": 50, "offset": 7},
        warmup=warmup if own_warmup else {"size": 10},
        edits_per_step=10,
    )
    catalogue = controls(spec)
    ids = {}
    for name in ("base", "early", "late", "late_both"):
        one = made(spec, catalogue[name])
        ids[name] = [edit.id for edit in load_stream(one.data)]
        assert one.warmup_data is not None
        assert spec.warmup_data is not None
        warm = [edit.id for edit in load_stream(one.warmup_data, split="warmup")]
        assert warm == [edit.id for edit in load_stream(spec.warmup_data, split="warmup")]
        assert not {*warm} & {*ids["base"]}
    assert ids["early"] + ids["late"] == ids["base"]
    assert len(ids["early"]) == 20  # whole steps
    assert ids["late_both"] == ids["late"]
    starts = {name: made(spec, catalogue[name]).init for name in catalogue.names if name.startswith("late")}
    assert starts["late"] is None
    both, stats, weights = (starts[f"late_{kind}"] for kind in ("both", "statistics", "weights"))
    assert both is not None
    assert stats is not None
    assert weights is not None
    assert (both.weights_from, both.stats_from) == ("runs-early", "runs-early")
    assert (stats.weights_from, stats.stats_from) == (None, "runs-early")
    assert (weights.weights_from, weights.stats_from) == ("runs-early", None)


def test_matched_gives_every_variation_its_reference_s_norms() -> None:
    plain = controls(base())
    found = matched(plain)
    assert reasons(found)["iid_frozen_weights"] == "writes no update whose norm could be matched"
    for one in found.variations:
        if one.against is None:
            assert MATCH not in one.changes
        else:
            assert one.changes[MATCH]["run"] == f"@{one.against}"
            assert one.against in one.builds_on
            assert one.changes[MATCH]["mode"] == "every"
            assert "base's norm" not in one.what
    assert found["no_ln"].what == "no normalisation"
    for name in ("no_ln_first", "no_ln_every"):
        assert reasons(found)[name] == "with every norm matched it is no_ln"


def test_only_takes_what_is_needed_with_it() -> None:
    catalogue = controls(base())
    assert catalogue.only(["late_statistics"]).names == ["base", "early", "late", "late_statistics"]
    assert catalogue.only(["bf16_in_place"]).names == ["base", "bf16_master", "bf16_in_place"]
    assert catalogue.only([]).names == catalogue.names
    with pytest.raises(SpecError, match=r'unknown variation "shufled"; nearest is "shuffled"'):
        catalogue.only(["shufled"])
    with pytest.raises(SpecError, match=r"full cannot be had of this spec: the spec has it already"):
        catalogue.only(["full"])


def test_seeds() -> None:
    spec = base(warmup={"size": 100, "data": {"source": "testbed", "stream": "medical"}})
    other = with_seed(spec, 2)
    assert (other.data.seed, other.warmup.data.seed, other.seed) == (2, 2, 2)  # type: ignore[union-attr]
    assert with_seed(spec, 0) == spec
    assert [edit.id for edit in load_stream(other.data)] != [edit.id for edit in load_stream(spec.data)]


def test_whether_a_seed_draws_anything(tmp_path: Path) -> None:
    file = str(write_stream(tmp_path / "edits.jsonl", 40))
    for more, drawn in (({}, False), ({"shuffle": True}, True), ({"arrange": "permuted"}, True)):
        spec = base(data={"source": file, "size": 20, **more}, warmup={"size": 0})
        assert draws(spec) is drawn
        same = [e.id for e in load_stream(with_seed(spec, 1).data)] == [e.id for e in load_stream(spec.data)]
        assert same is not drawn


def test_changes_are_checked_like_a_spec() -> None:
    spec = base()
    assert with_changes(spec, {"warmup.data.seed": 3}, where="x").warmup.data is not None
    with pytest.raises(SpecError, match=r"^variation odd: .*arrange"):
        with_changes(spec, {"data.arrange": "backwards"}, where="variation odd")
    assert spec.digest() == base().digest()  # nothing was changed in place


def test_names_are_distinct_and_usable_as_directories() -> None:
    for names in ([s.name for s in SWITCHES], [c.name for c in CONTROLS]):
        assert len(set(names)) == len(names)
        assert all(name.replace("_", "").isalnum() for name in names)


def test_the_documentation_lists_every_one() -> None:
    text = (Path(__file__).parents[2] / "docs" / "controls.md").read_text(encoding="utf-8")
    late = [name for name in controls(base()).names if name.startswith("late_")]
    assert len(late) == 3
    for name in (*(s.name for s in SWITCHES), *(c.name for c in CONTROLS), *late):
        assert f"`{name}`" in text, name
