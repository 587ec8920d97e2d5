"""The softmax model against autograd, and the loop against a slow loop over dense weights."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from stablediag.errors import SpecError
from stablediag.maths import NIW, DiagNIW, diagonal_whitener, full_whitener, key_coefficient
from synthetic import closed_loop
from synthetic.closed_loop import ARMS, Loop, run_loop
from synthetic.softmax import divergence, draw_model, lipschitz, log_probabilities, moments, value_gradients

TINY = Loop(d=3, p=12, n=4, steps=6, classes=5, population=20, held_out=7, step=0.5, ridge=2.0)


def model_of(loop: Loop, *, reps: int = 2, seed: int = 0, skew: float = 0.0):
    return draw_model(
        reps=reps,
        d=loop.d,
        p=loop.p,
        classes=loop.classes,
        population=loop.population,
        held_out=loop.held_out,
        key_mean=loop.key_mean,
        skew=skew,
        generator=torch.Generator().manual_seed(seed),
    )


def test_value_gradients_are_those_of_autograd():
    model = model_of(TINY)
    x = (2 * model.base).requires_grad_()
    logits = torch.tanh(x) @ model.head.mT
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 5), model.labels.reshape(-1), reduction="sum")
    (expected,) = torch.autograd.grad(loss, x)
    rows, correct = value_gradients(x.detach(), model.head, model.labels)
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-14)
    chosen = torch.softmax(logits, -1).gather(-1, model.labels.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(correct, chosen.detach())


def test_moments_are_those_of_the_population():
    model = model_of(TINY)
    found = moments(model.base, model.head, model.labels)
    for r in range(2):
        rows = found.rows[r].numpy()
        np.testing.assert_allclose(found.mean[r], rows.mean(axis=0), atol=1e-14)
        np.testing.assert_allclose(found.cov[r], np.cov(rows.T, bias=True), atol=1e-13)


def test_population_has_the_law_that_was_asked_for():
    loop = dataclasses.replace(TINY, p=64, population=4000, classes=3, key_mean=0.4)
    model = model_of(loop, reps=1, skew=1.0)
    assert float(model.keys.square().sum(-1).mean()) == pytest.approx(64, rel=0.02)
    assert float(model.keys.mean(dim=1).square().sum()) == pytest.approx(0.4 * 64, rel=0.05)
    share = torch.bincount(model.labels[0], minlength=3) / 4000
    assert share.numpy() == pytest.approx(np.array([6, 3, 2]) / 11, abs=0.03)


def test_divergence_is_zero_only_for_equal_laws_and_has_its_closed_form():
    before = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64))
    after = torch.log(torch.tensor([[0.25, 0.75], [0.9, 0.1]], dtype=torch.float64))
    assert float(divergence(before, before)) == 0
    expected = 0.5 * (0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert float(divergence(before, after)) == pytest.approx(expected)


def test_lipschitz_constant_holds_and_is_not_idle():
    loop = dataclasses.replace(TINY, d=1, p=1, classes=2)
    model = model_of(loop, reps=1, seed=3)
    x = torch.linspace(-4, 4, 4001, dtype=torch.float64).reshape(1, -1, 1)
    steepest = 0.0
    for label in (0, 1):
        labels = torch.full((1, 4001), label)
        rows, _ = value_gradients(x, model.head, labels)
        steepest = max(steepest, float((rows.diff(dim=1).abs() / x.diff(dim=1)).max()))
    longest = float(model.keys.norm(dim=-1).max())
    bound = float(lipschitz(model)[0])
    assert steepest * longest <= bound
    assert bound < 10 * steepest * longest


def slow_full_ln(loop: Loop, *, seed: int, centred: bool):
    """One replicate with a dense W, the p x p ridge solve and an explicit symmetric root."""
    generator = torch.Generator().manual_seed(seed)
    model = model_of_generator(loop, generator)
    batches = torch.randint(loop.population, (loop.steps, 1, loop.n), generator=generator)[:, 0]
    keys, base, head, labels = model.keys[0], model.base[0], model.head[0], model.labels[0]
    W = torch.zeros(loop.p, loop.d, dtype=torch.float64)
    seen = torch.zeros(0, loop.d, dtype=torch.float64)
    seen_keys = torch.zeros(0, loop.p, dtype=torch.float64)
    out = {name: [] for name in ("norm", "error2", "mean", "travelled", "efficacy", "cosine")}
    previous = None
    for batch in batches:
        population, _ = value_gradients(base + keys @ W, head, labels)
        rows, h = population[batch], keys[batch]
        seen, seen_keys = torch.cat([seen, rows]), torch.cat([seen_keys, h])
        m = seen.mean(0)
        if len(seen) > loop.d + 1:
            w, q = torch.linalg.eigh((seen - m).T @ (seen - m) / (len(seen) - loop.d - 1))
            normal = (rows - m * centred) @ (q / w.sqrt()) @ q.T
        else:
            normal = (rows - m * centred) / seen.std(0)
        scale = ((h - seen_keys.mean(0)) / seen_keys.std(0)).square().sum(-1, keepdim=True)
        target = -loop.step / loop.p * scale * normal
        update = torch.linalg.solve(h.T @ h + loop.ridge * torch.eye(loop.p, dtype=torch.float64), h.T @ target)
        W = W + update
        out["mean"].append(population.mean(0))
        out["error2"].append(float((m - population.mean(0)).square().sum()))
        out["norm"].append(float(update.norm()))
        out["travelled"].append(float(W.norm()))
        out["efficacy"].append(float(value_gradients(base + keys @ W, head, labels)[1][batch].mean()))
        out["cosine"].append(
            math.nan if previous is None else float((update * previous).sum() / update.norm() / previous.norm())
        )
        previous = update
    after = log_probabilities(model.other_base[0] + model.other_keys[0] @ W, head)
    out["kl"] = float(divergence(log_probabilities(model.other_base[0], head), after))
    return out


def model_of_generator(loop: Loop, generator: torch.Generator):
    return draw_model(
        reps=1,
        d=loop.d,
        p=loop.p,
        classes=loop.classes,
        population=loop.population,
        held_out=loop.held_out,
        key_mean=loop.key_mean,
        skew=loop.skew,
        generator=generator,
    )


@pytest.mark.parametrize("centred", [True, False])
def test_loop_is_the_slow_loop(centred):
    arm = "full" if centred else "uncentred full"
    path = run_loop(TINY, (arm,), reps=1, seed=5).paths[arm]
    slow = slow_full_ln(TINY, seed=5, centred=centred)
    for name in ("norm", "error2", "travelled", "efficacy", "cosine"):
        np.testing.assert_allclose(getattr(path, name)[0], slow[name], rtol=1e-8, err_msg=name)
    drift = torch.stack(slow["mean"]).diff(dim=0).norm(dim=-1)
    np.testing.assert_allclose(path.drift[0], [0, *drift.tolist()], rtol=1e-8, atol=1e-14)
    assert path.kl[0, -1] == pytest.approx(slow["kl"], rel=1e-8)


def test_arms_share_the_stream_and_differ_after_the_first_update():
    outcome = run_loop(TINY, tuple(ARMS), reps=3, seed=1)
    first = {name: path.error2[:, 0] for name, path in outcome.paths.items()}
    last = {name: path.error2[:, -1] for name, path in outcome.paths.items()}
    for name in ARMS:
        np.testing.assert_allclose(first[name], first["full"])
        assert name == "full" or not np.allclose(last[name], last["full"])


def test_matched_arm_has_the_norm_of_its_model_and_another_direction():
    paths = run_loop(TINY, ("full", "raw", "raw matched"), reps=2, seed=1).paths
    np.testing.assert_allclose(paths["raw matched"].norm, paths["full"].norm, rtol=1e-10)
    assert not np.allclose(paths["raw"].norm, paths["full"].norm, rtol=0.05)


def test_uncentred_arm_keeps_the_scaling_of_the_centred_one():
    rows = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 2
    whitener = full_whitener(NIW.empty(3, batch_shape=(2,)).update(rows))
    plain = dataclasses.replace(whitener, mean=torch.zeros_like(whitener.mean))
    gap = plain.apply(rows) - whitener.apply(rows)
    torch.testing.assert_close(gap, (whitener.mean.unsqueeze(-2) @ whitener.transform).expand_as(gap))


def test_feedback_is_the_move_of_the_mean_under_the_error_alone():
    loop = dataclasses.replace(TINY, steps=3)
    path = run_loop(loop, ("full",), reps=1, seed=2, checkpoints=(3,)).paths["full"]
    generator = torch.Generator().manual_seed(2)
    model = model_of_generator(loop, generator)
    batches = torch.randint(loop.population, (3, 1, loop.n), generator=generator)[:, 0]
    keys, x = model.keys[0], model.base[0].clone()
    state, key_state = NIW.empty(3), DiagNIW.empty(loop.p)
    for t, batch in enumerate(batches):
        rows, _ = value_gradients(x, model.head[0], model.labels[0])
        h = keys[batch]
        state, key_state = state.update(rows[batch]), key_state.update(h)
        if not state.exists:  # the diagonal fallback of the first step
            scale = 1 / state.diag().std
            root = torch.diag(scale)
        else:
            w, q = torch.linalg.eigh(state.cov)
            root = q / w.sqrt() @ q.T
        weight = key_coefficient(h, diagonal_whitener(key_state)).unsqueeze(-1) * (-loop.step / loop.p)
        solve = torch.linalg.inv(h @ h.T + loop.ridge * torch.eye(loop.n, dtype=torch.float64))
        if t == 2:
            error = state.mean - rows.mean(0)
            shift = keys @ h.T @ solve @ (weight * (-(error @ root)))
            moved = value_gradients(x + shift, model.head[0], model.labels[0])[0].mean(0) - rows.mean(0)
            assert path.feedback[0, 0] == pytest.approx(float(error @ moved), rel=1e-8)
            assert path.gain[0, 0] == pytest.approx(float(error @ moved / (error @ error)), rel=1e-8)
        x = x + keys @ h.T @ solve @ (weight * ((rows[batch] - state.mean) @ root))


def test_feedback_exists_only_where_the_mean_is_subtracted():
    paths = run_loop(TINY, ("full", "raw"), reps=2, seed=0).paths
    assert np.isfinite(paths["full"].feedback).all()
    assert np.isnan(paths["raw"].feedback).all()
    assert np.isnan(paths["raw"].gain).all()


def test_small_steps_leave_the_moments_alone():
    path = run_loop(dataclasses.replace(TINY, step=1e-9), ("full",), reps=2, seed=0).paths["full"]
    assert path.drift.max() < 1e-7
    assert path.cov_drift.max() < 1e-7
    assert path.kl.max() < 1e-12


def test_decay_and_unseen_layers():
    steady = run_loop(TINY, ("full",), reps=2, seed=0).paths["full"]
    decaying = run_loop(dataclasses.replace(TINY, decay=1.0), ("full",), reps=2, seed=0).paths["full"]
    hidden = run_loop(dataclasses.replace(TINY, unseen=9.0), ("full",), reps=2, seed=0).paths["full"]
    np.testing.assert_allclose(decaying.norm[:, 0], steady.norm[:, 0])
    # The first update is the same one, but its move of the output differs.
    np.testing.assert_allclose(hidden.norm[:, 0], steady.norm[:, 0])
    assert (hidden.moved[:, 1] > 2 * steady.moved[:, 1]).all()
    assert (decaying.norm[:, -1] < 0.5 * steady.norm[:, -1]).all()


def test_frame_is_tidy():
    outcome = run_loop(TINY, ("full", "raw"), reps=2, seed=0)
    frame = outcome.frame()
    assert len(frame) == 2 * 2 * TINY.steps
    assert not frame.duplicated(["arm", "replicate", "step"]).any()
    one = frame[(frame.arm == "raw") & (frame.replicate == 1)].set_index("step")
    np.testing.assert_array_equal(one.norm, outcome.paths["raw"].norm[1])
    assert one.kl.notna().sum() == len(outcome.checkpoints)
    assert one.kl[TINY.steps] == outcome.paths["raw"].kl[1, -1]
    assert (one.retention == outcome.paths["raw"].retention[1]).all()


def test_same_seed_same_numbers():
    one, two, other = (run_loop(TINY, ("full",), reps=2, seed=s).paths["full"].norm for s in (4, 4, 5))
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, other)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"n": 0}, "n: must be at least 1, got 0"),
        ({"classes": 1}, "classes: must be at least 2, got 1"),
        ({"step": 0.0}, "step: must be positive"),
        ({"step": math.nan}, "step: must be positive"),
        ({"key_mean": 1.0}, r"key_mean: must lie in \[0, 1\), got 1.0"),
        ({"skew": -1.0}, "skew: must not be negative"),
    ],
)
def test_bad_knobs(knobs, message):
    with pytest.raises(SpecError, match=message):
        Loop(**knobs)


@pytest.mark.parametrize(
    ("arms", "reps", "message"),
    [
        (("best",), 2, "unknown arm 'best'"),
        (("raw matched",), 2, "'raw matched' is matched to 'full', which must come before it"),
        (("full",), 0, "reps: must be at least 1, got 0"),
    ],
)
def test_bad_arms(arms, reps, message):
    with pytest.raises(SpecError, match=message):
        run_loop(TINY, arms, reps=reps, seed=0)


def test_spectra_are_those_of_the_population_and_can_be_left_out():
    with_them, without = (
        run_loop(dataclasses.replace(TINY, steps=2), ("full",), reps=2, seed=0, spectra=flag).paths["full"]
        for flag in (True, False)
    )
    np.testing.assert_array_equal(with_them.norm, without.norm)
    assert np.isnan(without.top).all()
    assert np.isnan(without.cov_drift).all()
    model = model_of(TINY)
    rows = value_gradients(model.base, model.head, model.labels)[0]
    top = [np.linalg.eigvalsh(np.cov(r.numpy().T, bias=True)).max() for r in rows]
    np.testing.assert_allclose(with_them.top[:, 0], top)
    assert (with_them.cov_drift[:, 1] > 0).all()
    assert (with_them.cov_drift[:, 0] == 0).all()


def test_blocks_of_replicates_are_runs_of_their_own(monkeypatch):
    loop = dataclasses.replace(TINY, n=6, steps=3)
    whole = closed_loop.run_loop(loop, ("full", "raw"), reps=2, seed=5)
    monkeypatch.setattr(closed_loop, "BLOCK", 2)
    blocks = closed_loop.run_loop(loop, ("full", "raw"), reps=5, seed=5)
    assert blocks.paths["raw"].norm.shape == (5, 3)
    assert blocks.lipschitz.shape == (5,)
    np.testing.assert_array_equal(blocks.paths["full"].kl[:2], whole.paths["full"].kl)
    assert len(np.unique(blocks.paths["full"].norm[:, -1])) == 5
