"""The controls of the LN editor: centre, frozen and shuffled statistics, nothing written, statistics of another run."""

from __future__ import annotations

import pytest
import torch

from stablediag.editors.base import resolve_params
from stablediag.editors.ln import LNEditor
from stablediag.editors.ln_controls import permutation, shuffled, uncentred
from stablediag.editors.ln_params import LNParams
from stablediag.errors import SpecError
from stablediag.maths.niw import NIW
from stablediag.maths.whiten import gradient_whitener
from stablediag.spec import Spec
from tests.editors.ln_twin import D_OUT, NAMES, batch, make_captures, make_modules, run_step, twin

KINDS = ("full", "diagonal", "scalar", "center", "none")


def make(**switches):
    return LNEditor(LNParams(lr=0.01, **switches), make_modules())


def whitener(kind, rows):
    return gradient_whitener(NIW.empty(rows.shape[1]).update(rows), kind=kind)


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(4)
    mixed = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    return mixed * torch.arange(1.0, 7.0) + mixed.roll(1, dims=1) + 3


@pytest.mark.parametrize("kind", ["full", "diagonal", "scalar"])
def test_without_the_centre_rows_are_only_scaled(kind, rows):
    made = whitener(kind, rows)
    plain = uncentred(made)
    shift = made.apply(torch.zeros_like(rows[:1]))  # S (0 - m)
    torch.testing.assert_close(plain.apply(rows), made.apply(rows) - shift)
    torch.testing.assert_close(plain.apply(2 * rows), 2 * plain.apply(rows))
    assert (made.apply(2 * rows) - 2 * made.apply(rows)).norm() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_shuffled_whitener_is_that_of_shuffled_rows(kind, rows):
    order = permutation(6, seed=2, name="a")
    assert not torch.equal(order, torch.arange(6))
    moved = shuffled(whitener(kind, rows), order)
    torch.testing.assert_close(moved.apply(rows), whitener(kind, rows[:, order]).apply(rows))
    difference = float((moved.apply(rows) - whitener(kind, rows).apply(rows)).norm())
    assert difference == 0 if kind == "none" else difference > 1


def test_shuffling_keeps_the_spectrum_and_the_scale_of_one_number(rows):
    order = permutation(6, seed=2, name="a")
    full, scalar = (whitener(kind, rows) for kind in ("full", "scalar"))
    assert torch.equal(shuffled(full, order).eigenvalues, full.eigenvalues)
    assert float(shuffled(full, order).condition().raw) == float(full.condition().raw)
    moved = shuffled(scalar, order)
    assert torch.equal(moved.transform, scalar.transform)
    assert torch.equal(moved.mean, scalar.mean[order])


def test_the_order_depends_on_the_seed_and_the_name_alone():
    """The numbers are what every run in the past drew: a change of them makes such runs impossible to repeat."""
    assert permutation(8, seed=0, name="a/grads").tolist() == [2, 1, 3, 5, 6, 4, 0, 7]
    assert sorted(permutation(50, seed=1, name="b").tolist()) == list(range(50))
    orders = [permutation(50, seed=seed, name=name) for seed in (0, 1) for name in ("a/grads", "a/keys", "b/grads")]
    assert not any(torch.equal(a, b) for i, a in enumerate(orders) for b in orders[:i])


def test_the_centre_of_the_gradients_leaves_the_keys_alone():
    """Without a normaliser there is no centre to leave out, and the standardised keys keep theirs."""
    a, b = (make(normaliser="none", center=center) for center in (True, False))
    for index in range(3):
        with_centre, without = (run_step(editor, index, make_captures(index)) for editor in (a, b))
        assert all(torch.equal(with_centre[name], without[name]) for name in NAMES)


def test_scopes_are_shuffled_independently_and_for_the_whole_run():
    editor = make(statistics="shuffled")
    found = {}
    for index in range(4):
        for proposal in editor.step(None, batch(index), make_captures(index)):
            scope = editor.statistics(proposal.module)
            after = proposal.tracked[proposal.module].after
            order = [int((after.mean == value).nonzero()) for value in proposal.whitener.mean]
            found.setdefault(proposal.module, []).append(order)
            assert scope.grads.nu < after.nu  # what is tracked is in its own place
        editor.commit(None, [])
    assert all(len({tuple(order) for order in orders}) == 1 for orders in found.values())
    assert found["a"][0] != found["b"][0]
    assert found["a"][0] != list(range(D_OUT))


def frozen_run(editor, warmup, steps, *, first=0):
    """Updates by step; `warmup` are the indices of the warm-up steps."""
    phases = {index: "warmup" if index in warmup else "target" for index in range(first, steps)}
    return {index: run_step(editor, index, make_captures(index), phase) for index, phase in phases.items()}


@pytest.mark.parametrize("switch", [{}, {"normaliser": "diagonal", "stats_scope": "shape"}, {"stats_order": "before"}])
def test_frozen_statistics_are_those_of_the_last_warm_up_step(switch):
    """Warm-up amid the stream: running until it is over, then what all steps up to there have left."""
    params = LNParams(lr=0.01, statistics="frozen", **switch)
    got = frozen_run(LNEditor(params, make_modules()), (2, 3), 7)
    captures = [make_captures(index) for index in range(7)]
    before = params.stats_order == "before"
    for index in range(7):
        if index > 3:
            used = captures[:4]
        else:
            used = captures[: index + 1 - (before and index > 0)]
        for name in NAMES:
            wanted = twin(used, captures[index], params, name)
            torch.testing.assert_close(got[index][name], wanted, rtol=1e-9, atol=1e-12)
    running = frozen_run(make(**switch), (2, 3), 7)
    assert all(torch.equal(got[index]["a"], running[index]["a"]) for index in range(4))
    assert all((got[i]["a"] - running[i]["a"]).norm() > 1e-3 * got[i]["a"].norm() for i in (5, 6))


def test_recorders_go_on_seeing_the_running_statistics():
    editor, running = make(statistics="frozen", prior_kind="none"), make(prior_kind="none")
    for index in range(5):
        phase = "warmup" if index < 2 else "target"
        a, b = (list(one.step(None, batch(index, phase), make_captures(index))) for one in (editor, running))
        for mine, theirs in zip(a, b, strict=True):
            (told,), (wanted,) = mine.tracked.values(), theirs.tracked.values()
            assert torch.equal(told.after.scale, wanted.after.scale)
            assert torch.equal(told.factor, wanted.factor)
            assert told.before_nu == wanted.before_nu == 8 * index
            assert wanted.whitener_nu == 8 * (index + 1)
            assert told.whitener_nu == (8 * (index + 1) if phase == "warmup" else 16)
            assert told.in_sample == (phase == "warmup")
        for one, proposals in ((editor, a), (running, b)):
            assert proposals
            one.commit(None, [])


@pytest.mark.parametrize("control", [{"center": False}, {"statistics": "shuffled"}])
def test_laws_of_rows_inside_their_own_statistics_are_not_claimed_for_controls(control):
    """Leverage and whitened energy would be read against a law that does not hold there."""
    for switches, expected in (({}, True), (control, False)):
        (proposal, *_) = make(**switches).step(None, batch(0), make_captures(0, rows=20))
        assert proposal.whitener.active
        assert proposal.tracked["a"].in_sample is expected


@pytest.mark.parametrize("stop", [1, 2, 4])
@pytest.mark.parametrize("switch", [{}, {"normaliser": "scalar", "stats_scope": "shape"}])
def test_frozen_statistics_survive_an_interruption_bit_for_bit(stop, switch):
    """Amid the warm-up, between it and the first target step, and behind that."""
    editor, other = make(statistics="frozen", **switch), make(statistics="frozen", **switch)
    frozen_run(editor, (0, 1), stop)
    tensors, meta = editor.state_dict()
    other.load_state_dict({key: tensor.clone() for key, tensor in tensors.items()}, meta)
    a, b = (frozen_run(one, (0, 1), 6, first=stop) for one in (editor, other))
    assert all(torch.equal(a[index][name], b[index][name]) for index in a for name in NAMES)
    (left, left_meta), (right, right_meta) = editor.state_dict(), other.state_dict()
    assert left_meta == right_meta
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_a_pilot_neither_freezes_nor_thaws():
    """Matching by pilot passes goes back to the state at the first target step: nothing is frozen there yet."""
    editor, clean = make(statistics="frozen"), make(statistics="frozen")
    for one in (editor, clean):
        frozen_run(one, (0, 1), 2)
    tensors, meta = editor.state_dict()
    frozen_run(editor, (), 5, first=3)
    editor.load_state_dict(tensors, meta)
    list(editor.step(None, batch(2), make_captures(77, scale=9.0)))
    a, b = (frozen_run(one, (), 5, first=2) for one in (editor, clean))
    assert all(torch.equal(a[index]["a"], b[index]["a"]) for index in a)


def test_the_state_of_an_editor_without_controls_is_as_it_was():
    editor = make()
    frozen_run(editor, (0, 1), 4)
    tensors, meta = editor.state_dict()
    assert set(meta) == {"lr", "match_scale", "calibrated"}
    counts = ("mean", "scale", "kappa", "nu")
    parts = {f"{name}/{part}/{key}" for name in NAMES for part in ("keys", "grads", "niw") for key in counts}
    assert set(tensors) == parts


def test_what_is_written_is_a_switch_of_each_phase():
    table = {(w, t): make(warmup_apply=w, target_apply=t) for w in (True, False) for t in (True, False)}
    for (warmup, target), editor in table.items():
        assert (editor.writes("warmup"), editor.writes("target")) == (warmup, target)
    # An update that is not written is made all the same, and needs no calibrated rate.
    silent = LNEditor(LNParams(target_apply=False), make_modules())
    assert all(update.norm() > 0 for update in run_step(silent, 0, make_captures(0)).values())


def test_controls_at_rest_leave_the_digest_alone():
    """Runs made before there were controls must be found again."""
    plain = resolve_params("ln", "paper", {"lr": 0.1}).model_dump(mode="json")
    given = {"center": True, "statistics": "running", "statistics_seed": 0, "target_apply": True}
    assert not set(plain) & set(given)
    assert resolve_params("ln", "paper", {"lr": 0.1, **given}).model_dump(mode="json") == plain
    moved = {"center": False, "statistics": "shuffled", "statistics_seed": 4, "target_apply": False}
    kept = resolve_params("ln", "paper", {"lr": 0.1, **moved}).model_dump(mode="json")
    assert moved.items() <= kept.items()
    base = Spec.from_mapping({"model": "testbed"})
    digests = {base.with_editor_params(params).digest() for params in (plain, kept)}
    assert len(digests) == 2


@pytest.mark.parametrize("switch", [{}, {"stats_scope": "shape"}, {"statistics": "shuffled"}, {"coefficient": "none"}])
def test_statistics_of_another_run_are_continued(switch):
    """The next updates are those of the editor that saw it all; its learning rate is not taken."""
    whole, fresh = make(**switch), LNEditor(LNParams(lr=0.03, **switch), make_modules())
    frozen_run(whole, (), 3)
    tensors, _ = whole.state_dict()
    taken = fresh.take_statistics(tensors, whole.params.model_dump())
    assert taken.keys() == tensors.keys()
    a, b = (frozen_run(one, (), 6, first=3) for one in (whole, fresh))
    for index in a:
        for name in NAMES:
            torch.testing.assert_close(b[index][name], 3 * a[index][name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("prior", [{}, {"prior": 0.5}])  # a prior is part of the covariance alone
def test_a_poorer_editor_takes_what_it_needs(prior):
    rich, poor = make(), make(normaliser="diagonal", **prior)
    frozen_run(rich, (), 2)
    taken = poor.take_statistics(rich.state_dict()[0], rich.params.model_dump())
    assert {key.split("/")[1] for key in taken} == {"keys", "grads"}
    assert poor.statistics("a").grads.nu == 16


@pytest.mark.parametrize(
    ("there", "here", "says"),
    [
        ({"normaliser": "diagonal"}, {}, "no covariance of a: give that run editor.params.track_covariance true"),
        ({"stats_scope": "shape"}, {}, "no moments of the keys of a: use the same editor.params.stats_scope"),
        (
            {"coefficient": "none"},
            {},
            "no rows of a that this run needs: use the same .*coefficient standardised there",
        ),
        ({"tokens": "all"}, {}, "gradients with tokens all, this run's have answer"),
        ({"loss": "released", "minibatch": 4}, {}, "gradients with loss released, this run's have paper"),
        (
            {"loss": "released", "minibatch": 4},
            {"loss": "released", "minibatch": 8},
            "gradients with minibatch 4, this run's have 8",
        ),
        ({"prior": 0.1}, {}, "began with the prior 0.1 relative, this run's is 0.001 relative"),
        ({}, {"prior_kind": "none"}, "began with the prior 0.001 relative, this run's is none"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(there, here, says):
    source, editor = make(**there), make(**here)
    frozen_run(source, (), 2)
    before = editor.state_dict()[0]
    with pytest.raises(SpecError, match=says) as caught:
        editor.take_statistics(source.state_dict()[0], source.params.model_dump())
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[key], tensor) for key, tensor in editor.state_dict()[0].items())


def test_statistics_of_another_width_are_refused():
    source, editor = make(), make()
    frozen_run(source, (), 2)
    tensors = source.state_dict()[0]
    tensors["b/grads/mean"] = torch.zeros(D_OUT + 1)
    with pytest.raises(SpecError, match=rf"b/grads/mean is \[{D_OUT + 1}\], here \[{D_OUT}\]: edit the same modules"):
        editor.take_statistics(tensors, source.params.model_dump())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"normaliser": "center", "center": False}, "choose normaliser none"),
        ({"statistics": "thawed"}, "statistics"),
        ({"statistics_seed": -1}, "statistics_seed"),
        ({"center": "no"}, "center"),
        (
            {"target_apply": False, "match": {"run": "x", "mode": "mean"}},
            "match mode mean needs updates that are written",
        ),
    ],
)
def test_controls_that_mean_nothing_are_refused(wrong, says):
    with pytest.raises(SpecError, match=says) as caught:
        resolve_params("ln", None, {"lr": 0.1, **wrong})
    assert "\n" not in str(caught.value)
