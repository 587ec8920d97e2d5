"""The LN editor against a twin that pools all rows at once and solves the dense primal problem, switch by switch."""

from __future__ import annotations

import pytest
import torch

from stablediag.editors.base import editor_class, resolve_params
from stablediag.editors.ln import LNEditor
from stablediag.editors.ln_params import PRESETS, LNParams
from stablediag.errors import NumericalError, SpecError
from tests.editors.ln_twin import D_IN, D_OUT, NAMES, batch, make_captures, make_modules, run_step, twin

SWITCHES = [
    {},
    {"stats_scope": "shape"},
    {"stats_order": "before"},
    {"normaliser": "diagonal"},
    {"normaliser": "scalar"},
    {"normaliser": "center"},
    {"normaliser": "none"},
    {"normaliser": "none", "coefficient": "raw"},
    {"coefficient": "none"},
    {"prior_kind": "none"},
    {"prior_kind": "absolute", "prior": 0.7},
    {"floor_kind": "absolute", "floor": 0.9},
    {"floor_kind": "relative", "floor": 0.8},
    {"floor_kind": "none"},
    {"shrinkage": 0.4},
    {"ridge": 0.5},
    *[{"normaliser": kind, "center": False} for kind in ("full", "diagonal", "scalar")],
    {"center": False, "stats_scope": "shape", "shrinkage": 0.4},
    *[{"normaliser": kind, "statistics": "shuffled"} for kind in ("full", "diagonal", "scalar", "center", "none")],
    {"statistics": "shuffled", "statistics_seed": 3, "center": False},
    {"statistics": "shuffled", "stats_scope": "shape", "stats_order": "before"},
]


@pytest.mark.parametrize(
    "switch", SWITCHES, ids=[", ".join(f"{k}={v}" for k, v in s.items()) or "paper" for s in SWITCHES]
)
def test_every_switch_against_the_pooled_twin(switch):
    params = LNParams(lr=0.01, **switch)
    editor = LNEditor(params, make_modules())
    history = []
    for index in range(6):
        captures = make_captures(index)
        got = run_step(editor, index, captures)
        used = [*history, captures] if params.stats_order == "after" or not history else history
        for name in NAMES:
            torch.testing.assert_close(got[name], twin(used, captures, params, name), rtol=1e-9, atol=1e-12)
        history.append(captures)


@pytest.mark.parametrize(
    "switch", [s for s in SWITCHES if s not in ({}, {"prior_kind": "none"}, {"floor_kind": "none"})]
)
def test_every_switch_changes_the_update(switch):
    """A switch that is read by nobody would pass the twin of its default."""
    plain, other = (LNEditor(LNParams(lr=0.01, **s), make_modules()) for s in ({}, switch))
    for index in range(4):
        a, b = (run_step(editor, index, make_captures(index)) for editor in (plain, other))
    assert (a["a"] - b["a"]).norm() > 1e-4 * a["a"].norm()


def test_warmup_normalisation_is_a_switch():
    same, diagonal, plain = (
        LNEditor(LNParams(lr=0.01, **s), make_modules())
        for s in ({}, {"warmup_norm": "diagonal"}, {"normaliser": "diagonal"})
    )
    for index in range(3):
        a, b, c = (run_step(editor, index, make_captures(index), "warmup")["a"] for editor in (same, diagonal, plain))
    torch.testing.assert_close(b, c)
    assert (a - b).norm() > 1e-3 * a.norm()
    a, b = (run_step(editor, 3, make_captures(3))["a"] for editor in (same, diagonal))
    torch.testing.assert_close(a, b)


def test_statistics_do_not_exist_yet():
    modules = make_modules()
    few = make_captures(0, rows=D_OUT)
    with pytest.raises(NumericalError, match=r"nu"):
        list(LNEditor(LNParams(lr=0.01, pre_threshold="error"), modules).step(None, batch(0), few))
    shrunk = next(LNEditor(LNParams(lr=0.01, pre_threshold="shrink"), modules).step(None, batch(0), few))
    diagonal = next(LNEditor(LNParams(lr=0.01), modules).step(None, batch(0), few))
    assert diagonal.whitener.kind == "diagonal"
    assert (shrunk.update.dense() - diagonal.update.dense()).norm() > 1e-6


def test_forgetting_tracks_a_jump_faster():
    keep, forget = (LNEditor(LNParams(lr=0.01, forget=rho), make_modules()) for rho in (1.0, 0.5))
    for index in range(10):
        for editor in (keep, forget):
            captures = make_captures(index)
            for capture in captures.values():
                capture.grads.add_(5.0 if index >= 5 else 0.0)
            run_step(editor, index, captures)
    wanted = 5.2
    errors = [abs(float(editor.statistics("a").grads.mean.mean()) - wanted) for editor in (keep, forget)]
    assert errors[1] < 0.2 * errors[0]


def test_a_step_that_is_not_committed_leaves_no_trace():
    touched, clean = (LNEditor(LNParams(lr=0.01), make_modules()) for _ in range(2))
    for editor in (touched, clean):
        run_step(editor, 0, make_captures(0))
    list(touched.step(None, batch(1), make_captures(99, scale=50.0)))
    a, b = (run_step(editor, 1, make_captures(1))["a"] for editor in (touched, clean))
    assert torch.equal(a, b)


@pytest.mark.parametrize("switch", [{}, {"stats_scope": "shape"}, {"normaliser": "diagonal", "block_var": "sample"}])
def test_state_round_trip_continues_bit_for_bit(switch):
    editor = LNEditor(LNParams(lr=0.01, **switch), make_modules())
    for index in range(3):
        run_step(editor, index, make_captures(index))
    twin_editor = LNEditor(LNParams(lr=0.02, **switch), make_modules())
    tensors, meta = editor.state_dict()
    twin_editor.load_state_dict({k: v.clone() for k, v in tensors.items()}, meta)
    for index in range(3, 5):
        a, b = (run_step(e, index, make_captures(index)) for e in (editor, twin_editor))
        assert all(torch.equal(a[name], b[name]) for name in NAMES)


def test_matched_norms_equal_the_reference():
    reference = {(index, name): 0.5 + index + (name == "b") for index in range(4) for name in NAMES}
    every = LNEditor(LNParams(lr=1.0, normaliser="none", match={"run": "x", "mode": "every"}), make_modules())
    first = LNEditor(LNParams(lr=1.0, normaliser="none", match={"run": "x", "mode": "first"}), make_modules())
    for editor in (every, first):
        editor.reference = reference
    for index in range(4):
        a, b = (run_step(editor, index, make_captures(index)) for editor in (every, first))
        for name in NAMES:
            assert float(a[name].norm()) == pytest.approx(reference[index, name])
            if index == 0:
                assert float(b[name].norm()) == pytest.approx(reference[0, name])
    assert float(b["a"].norm()) != pytest.approx(reference[3, "a"], rel=0.05)
    with pytest.raises(NumericalError, match="no reference norm for step 9"):
        run_step(every, 9, make_captures(9))


def test_solve_dtype_and_tracked_covariance():
    single = LNEditor(LNParams(lr=0.01, solve_dtype="float32"), make_modules())
    double = LNEditor(LNParams(lr=0.01, solve_dtype="float64"), make_modules())
    captures = make_captures(0, rows=20)
    a, b = (next(editor.step(None, batch(0), captures)).update.dense() for editor in (single, double))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
    assert not torch.equal(a, b)
    plain, tracked = (
        LNEditor(LNParams(lr=0.01, normaliser="none", track_covariance=track), make_modules())
        for track in (False, True)
    )
    assert (plain.keeps_covariance, tracked.keeps_covariance) == (False, True)
    a, b = (run_step(editor, 0, captures)["a"] for editor in (plain, tracked))
    assert torch.equal(a, b)
    rows = captures["a"].grads
    expected = (rows - rows.mean(0)).T @ (rows - rows.mean(0))
    prior = 1e-3 * expected.trace() / D_OUT * torch.eye(D_OUT, dtype=torch.float64)
    torch.testing.assert_close(tracked.statistics("a").niw.scale, expected + prior)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"lr": -0.01}, "lr"),
        ({"lr": 0}, "lr"),
        ({"lr": True}, "lr"),
        ({"lr": float("inf")}, "lr"),
        ({"lr": 0.1, "loss": "released"}, "minibatch"),
        ({"lr": "calibrate", "match": {"run": "x"}}, "give lr a number"),
        ({"lr": 0.1, "warmup_apply": "no"}, "warmup_apply"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(wrong, says):
    with pytest.raises(SpecError, match=says) as caught:
        resolve_params("ln", None, wrong)
    assert "\n" not in str(caught.value)


def test_presets_are_valid_and_named_in_one_place():
    for name in PRESETS:
        needed = {"match": {"run": "other"}} if name == "no_ln_matched" else {}
        assert resolve_params("ln", name, {"lr": 0.1, **needed}).lr == 0.1
    with pytest.raises(SpecError, match="unknown preset 'papr'"):
        resolve_params("ln", "papr", {})
    with pytest.raises(SpecError, match="ridge"):
        resolve_params("ln", None, {"rigde": 1})
    with pytest.raises(SpecError, match="unknown editor"):
        editor_class("nothing")


def test_sample_variance_is_counted_per_minibatch_and_module():
    editor = LNEditor(LNParams(lr=0.01, normaliser="diagonal", block_var="sample", stats_scope="shape"), make_modules())
    captures = make_captures(0)
    run_step(editor, 0, captures)
    blocks = [captures[name].grads[captures[name].block_ids == b] for b in (0, 1) for name in NAMES]
    rows = torch.cat(blocks)
    within = sum(((x - x.mean(0)) ** 2).sum(0) for x in blocks)
    total = ((rows - rows.mean(0)) ** 2).sum(0)
    torch.testing.assert_close(editor.statistics(f"shape:{D_IN}x{D_OUT}").grads.scale, total + within / 3)
