"""The LN update rule against a from-scratch dense computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablediag.maths.ln import key_coefficient, ln_update
from stablediag.maths.niw import NIW, DiagNIW
from stablediag.maths.whiten import Floor, diagonal_whitener, full_whitener, gradient_whitener
from tests.twins import dense_ln_update


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(shape[-1], generator=generator, dtype=torch.float64) + 0.2
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale + 0.5


def _relative(value: torch.Tensor, truth: np.ndarray) -> float:
    return float(np.linalg.norm(value.double().cpu().numpy() - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_equals_the_dense_rule(full, dtype, tolerance, device):
    keys, grads = _random(60, 30).to(dtype), _random(60, 8, seed=1).to(dtype)
    moved = keys.to(device), grads.to(device)
    key_state = DiagNIW.empty(30, device=device).update(moved[0])
    grad_state = NIW.empty(8, device=device).update(moved[1])
    now = slice(40, 60)
    update = ln_update(
        moved[0][now],
        moved[1][now],
        whitener=gradient_whitener(grad_state, kind="full" if full else "diagonal"),
        coefficient=key_coefficient(moved[0][now], diagonal_whitener(key_state)),
        lr=1e-3,
        ridge=10.0,
    )
    rows = keys.double().numpy(), grads.double().numpy()
    truth = dense_ln_update(
        rows[0][now], rows[1][now], key_rows=rows[0], grad_rows=rows[1], lr=1e-3, ridge=10.0, full=full
    )
    assert update.shape == (30, 8)
    assert update.right.dtype == dtype
    assert _relative(update.dense(), truth) <= tolerance


def test_update_descends_and_is_linear_in_lr():
    keys, grads = _random(12, 20), _random(12, 4, seed=1)
    ones = key_coefficient(keys, None, "none")
    one = ln_update(keys, grads, whitener=None, coefficient=ones, lr=1.0, ridge=1e-8)
    torch.testing.assert_close(keys @ one.dense(), -grads, rtol=1e-5, atol=1e-6)
    half = ln_update(keys, grads, whitener=None, coefficient=ones, lr=0.5, ridge=1e-8)
    torch.testing.assert_close(half.dense() * 2, one.dense())


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 12), p=st.integers(1, 12), ridge=st.sampled_from([0.1, 1.0, 10.0]), seed=st.integers(0, 99))
def test_update_bound(n, p, ridge, seed):
    keys, grads = _random(n, p, seed=seed), _random(n, 3, seed=seed + 1)
    coefficient = key_coefficient(keys, None, "raw")
    update = ln_update(keys, grads, whitener=None, coefficient=coefficient, lr=0.01, ridge=ridge)
    target = float((0.01 * coefficient.unsqueeze(-1) * grads).norm())
    assert float(update.norm()) <= target / (2 * ridge**0.5) * (1 + 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_mean_squared_key_is_d_times_nu_minus_one_over_nu(dtype):
    keys = _random(50, 12).to(dtype)
    state = DiagNIW.empty(12)
    for block in keys.split(9):
        state = state.update(block)
    coefficient = key_coefficient(keys, diagonal_whitener(state))
    assert coefficient.dtype == torch.float64
    assert float(coefficient.mean()) == pytest.approx(12 * 49 / 50, rel=1e-12)
    inflated = DiagNIW.empty(12).update(keys, block_ids=torch.arange(50) // 10, block_var="sample")
    wrong = key_coefficient(keys, diagonal_whitener(inflated))
    assert float(wrong.mean()) != pytest.approx(12 * 49 / 50, rel=1e-2)


def test_coefficient_kinds():
    keys = _random(9, 4)
    torch.testing.assert_close(key_coefficient(keys, None, "raw"), (keys**2).sum(dim=-1))
    assert torch.equal(key_coefficient(keys, None, "none"), torch.ones(9, dtype=torch.float64))
    with pytest.raises(ValueError, match="needs a key whitener"):
        key_coefficient(keys, None)
    with pytest.raises(ValueError, match="unknown key coefficient"):
        key_coefficient(keys, None, "squared")


def test_update_norm_is_equivariant_under_full_whitening():
    """Mixing the value space leaves the norms of the whitened gradients, not those of diagonal ones."""
    keys, grads = _random(40, 10), _random(40, 5, seed=1)
    mix = torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ones = key_coefficient(keys, None, "none")
    norms: dict[str, list[float]] = {"full": [], "diagonal": []}
    for x in (grads, grads @ mix):
        state = NIW.empty(5).update(x)
        for name, whitener in (
            ("full", full_whitener(state, floor=Floor("none", 0.0))),
            ("diagonal", diagonal_whitener(state.diag())),
        ):
            update = ln_update(keys, x, whitener=whitener, coefficient=ones, lr=1.0, ridge=1.0)
            norms[name].append(float(update.norm()))
    assert norms["full"][0] == pytest.approx(norms["full"][1], rel=1e-8)
    assert norms["diagonal"][0] != pytest.approx(norms["diagonal"][1], rel=1e-2)


def test_batched_equals_a_loop(device):
    keys, grads = _random(3, 12, 6).to(device), _random(3, 12, 4, seed=1).to(device)
    key_state = DiagNIW.empty(6, batch_shape=(3,), device=device).update(keys)
    grad_state = NIW.empty(4, batch_shape=(3,), device=device).update(grads)
    coefficient = key_coefficient(keys, diagonal_whitener(key_state))
    update = ln_update(keys, grads, whitener=full_whitener(grad_state), coefficient=coefficient, lr=0.1, ridge=1.0)
    for i in range(3):
        alone = ln_update(
            keys[i],
            grads[i],
            whitener=full_whitener(NIW.empty(4, device=device).update(grads[i])),
            coefficient=key_coefficient(keys[i], diagonal_whitener(DiagNIW.empty(6, device=device).update(keys[i]))),
            lr=0.1,
            ridge=1.0,
        )
        torch.testing.assert_close(update.dense()[i], alone.dense(), rtol=1e-9, atol=1e-12)


def test_low_precision_rows_give_float32_factors():
    keys, grads = _random(5, 6).bfloat16(), _random(5, 3, seed=1).bfloat16()
    update = ln_update(keys, grads, whitener=None, coefficient=key_coefficient(keys, None, "none"), lr=1.0, ridge=1.0)
    assert update.right.dtype == torch.float32
