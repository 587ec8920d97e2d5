"""Lanczos norms against dense eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablediag.maths import spectral
from stablediag.maths.niw import NIW
from stablediag.maths.spectral import covariance_shift, covariance_shifts, symmetric_norm


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(d=st.integers(1, 12), rank=st.integers(0, 12), sign=st.sampled_from([1.0, -1.0]), seed=st.integers(0, 99))
def test_norm_equals_dense_eigenvalues(d, rank, sign, seed):
    factor = _random(rank, d, seed=seed)
    signs = torch.where(torch.arange(rank) % 2 == 0, sign, -sign * 0.5).to(torch.float64)
    matrix = (factor.mT * signs) @ factor
    norm = symmetric_norm(lambda x: (matrix @ x.unsqueeze(-1)).squeeze(-1), d)
    assert float(norm) == pytest.approx(np.abs(np.linalg.eigvalsh(matrix.numpy())).max(), rel=1e-9, abs=1e-12)


def test_an_exhausted_krylov_space_is_harmless(device):
    """Identity, zero and rank one end after one or two products, also beside a hard case in the same batch."""
    hard = _random(40, 40, seed=1)
    first = torch.zeros(40, 40, dtype=torch.float64)
    first[0, 0] = -3.0
    matrices = torch.stack([torch.eye(40, dtype=torch.float64), 0 * first, first, hard + hard.mT]).to(device)
    norms = symmetric_norm(
        lambda x: (matrices @ x.unsqueeze(-1)).squeeze(-1), 40, iters=40, batch_shape=(4,), device=device
    )
    truth = torch.linalg.eigvalsh(matrices).abs().amax(dim=-1)
    torch.testing.assert_close(norms, truth, rtol=1e-10, atol=1e-12)


def test_few_products_suffice_and_too_few_are_seen():
    matrix = _random(300, 300)
    matrix = matrix + matrix.mT
    truth = float(torch.linalg.eigvalsh(matrix).abs().max())
    calls = []

    def matvec(x):
        calls.append(1)
        return matrix @ x

    assert float(symmetric_norm(matvec, 300, iters=60, tol=1e-8)) == pytest.approx(truth, rel=1e-8)
    assert len(calls) <= 60
    assert float(symmetric_norm(matvec, 300, iters=4)) < 0.98 * truth


def test_seed_fixes_the_answer():
    matrix = _random(50, 50)
    matrix = matrix + matrix.mT
    values = [float(symmetric_norm(lambda x: matrix @ x, 50, iters=6, seed=seed)) for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("dense_width", [256, 4])
@pytest.mark.parametrize("forget", [1.0, 0.9])
def test_covariance_shift_equals_the_difference(dense_width, forget, monkeypatch, device):
    monkeypatch.setattr(spectral, "DENSE_WIDTH", dense_width)
    before = NIW.empty(24, prior=0.1, device=device).update(_random(90, 24).to(device))
    rows = 1.3 * _random(11, 24, seed=1).to(device) + 0.2
    after = before.update(rows, forget=forget)
    factor = before.factor(rows, forget=forget)
    truth = float(torch.linalg.eigvalsh(after.cov - before.cov).abs().max())
    shift = covariance_shift(after, before.nu, factor, forget=forget)
    assert isinstance(shift, float)
    assert shift == pytest.approx(truth, rel=1e-9)
    missing_jump = covariance_shift(after, before.nu, factor[:-1], forget=forget)
    assert missing_jump != pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("dense_width", [256, 4])
def test_batched_equals_a_loop(dense_width, monkeypatch):
    monkeypatch.setattr(spectral, "DENSE_WIDTH", dense_width)
    history, rows = _random(2, 3, 40, 12), _random(2, 3, 9, 12, seed=1)
    before = NIW.empty(12, batch_shape=(2, 3)).update(history)
    shifts = covariance_shifts(before.update(rows), before.nu, before.factor(rows))
    assert shifts.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            alone = NIW.empty(12).update(history[i, j])
            shift = covariance_shift(alone.update(rows[i, j]), alone.nu, alone.factor(rows[i, j]))
            assert float(shifts[i, j]) == pytest.approx(shift, rel=1e-9)


def test_shift_is_unknown_before_the_covariance_exists():
    before = NIW.empty(5).update(_random(6, 5))
    rows = _random(4, 5, seed=1)
    assert np.isnan(covariance_shift(before.update(rows), before.nu, before.factor(rows)))
