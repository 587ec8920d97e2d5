"""The dual ridge solve against the primal one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablediag.errors import NumericalError
from stablediag.maths import ridge as ridge_module
from stablediag.maths.ridge import dual_ridge, gram
from tests.twins import primal_ridge


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 30),
    p=st.integers(1, 30),
    d=st.integers(1, 5),
    lam=st.sampled_from([1e-2, 1.0, 10.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_push_through(n, p, d, lam, seed):
    keys, targets = _random(n, p, seed=seed), _random(n, d, seed=seed + 100)
    delta = keys.mT @ dual_ridge(keys, targets, lam)
    truth = primal_ridge(keys.numpy(), targets.numpy(), lam)
    assert np.linalg.norm(delta.numpy() - truth) <= 1e-9 * np.linalg.norm(truth)
    assert float(delta.norm()) <= float(targets.norm()) / (2 * lam**0.5) * (1 + 1e-12)


def test_the_tolerance_sees_a_ridge_that_is_slightly_wrong():
    keys, targets = _random(20, 50), _random(20, 3, seed=1)
    delta = keys.mT @ dual_ridge(keys, targets, 10.0 * (1 + 1e-7))
    truth = primal_ridge(keys.numpy(), targets.numpy(), 10.0)
    assert np.linalg.norm(delta.numpy() - truth) > 1e-9 * np.linalg.norm(truth)


def test_update_bound_is_attained():
    """Equality holds for keys whose squared singular values equal the ridge."""
    keys, targets = torch.linalg.qr(_random(9, 4)).Q.mT * 2.0, _random(4, 3, seed=1)
    delta = keys.mT @ dual_ridge(keys, targets, 4.0)
    assert float(delta.norm()) == pytest.approx(float(targets.norm()) / 4.0, rel=1e-12)


def test_float32_rows_are_solved_in_float64(device):
    """Nearly collinear keys: only the answer is rounded to float32, which float32 arithmetic does not survive."""
    keys, targets = _random(40, 300).float().to(device), _random(40, 6, seed=1).float().to(device)
    keys[1] = keys[0] * (1 + 1e-4)
    truth = dual_ridge(keys.double(), targets.double(), 1e-3)
    dual = dual_ridge(keys, targets, 1e-3)
    assert dual.dtype == torch.float32
    assert float((dual - truth).norm() / truth.norm()) <= 1e-7
    single = dual_ridge(keys, targets, 1e-3, dtype=torch.float32)
    assert float((single - truth).norm() / truth.norm()) > 1e-4


def test_float32_arithmetic_on_request():
    keys, targets = _random(12, 40).float(), _random(12, 3, seed=1).float()
    single, double = dual_ridge(keys, targets, 1.0, dtype=torch.float32), dual_ridge(keys, targets, 1.0)
    assert not torch.equal(single, double)
    torch.testing.assert_close(single, double, rtol=1e-4, atol=1e-6)


def test_many_rows_use_the_dtype_of_the_keys(monkeypatch):
    keys, targets = _random(12, 40).float(), _random(12, 3, seed=1).float()
    explicit = dual_ridge(keys, targets, 1.0, dtype=torch.float32)
    monkeypatch.setattr(ridge_module, "MAX_FLOAT64_ROWS", 11)
    assert torch.equal(dual_ridge(keys, targets, 1.0), explicit)


def test_batched_equals_a_loop(device):
    keys, targets = _random(2, 3, 7, 9).to(device), _random(2, 3, 7, 4, seed=1).to(device)
    batched = dual_ridge(keys, targets, 0.5)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(batched[i, j], dual_ridge(keys[i, j], targets[i, j], 0.5))


def test_no_ridge_interpolates_independent_keys():
    keys, targets = _random(5, 9), _random(5, 2, seed=1)
    torch.testing.assert_close(keys @ keys.mT @ dual_ridge(keys, targets, 0.0), targets, rtol=1e-10, atol=1e-10)


def test_negative_ridge_falls_back_to_lu():
    keys, targets = _random(5, 9), _random(5, 2, seed=1)
    lam = -float(torch.linalg.eigvalsh(keys @ keys.mT)[1:3].mean())  # between two eigenvalues: indefinite, regular
    delta = keys.mT @ dual_ridge(keys, targets, lam)
    np.testing.assert_allclose(delta.numpy(), primal_ridge(keys.numpy(), targets.numpy(), lam), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("lam", [0.0, -0.0, 1e-30])
def test_singular_gram_is_refused(lam):
    for seed in range(20):  # more rows than dimensions; rounding lets about half of them through Cholesky
        with pytest.raises(NumericalError, match="singular") as caught:
            dual_ridge(_random(6, 5, seed=seed), _random(6, 2), lam)
        assert "\n" not in str(caught.value)
    repeated = _random(4, 9)
    repeated[3] = repeated[0]
    with pytest.raises(NumericalError, match="singular"):
        dual_ridge(torch.stack([_random(4, 9, seed=2), repeated]), _random(2, 4, 2), lam)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_keys_are_refused(bad):
    keys = _random(4, 6)
    keys[2, 3] = bad
    with pytest.raises(NumericalError, match="not finite"):
        dual_ridge(keys, _random(4, 2), 1.0)


def test_no_rows():
    assert dual_ridge(torch.empty(0, 6), torch.empty(0, 2), 1.0).shape == (0, 2)


def test_gram_splits_wide_matrices(monkeypatch):
    a, b = _random(2, 3, 50), _random(2, 4, 50, seed=1)
    monkeypatch.setattr(ridge_module, "GRAM_COLUMNS", 7)
    torch.testing.assert_close(gram(a, b), a @ b.mT)
    torch.testing.assert_close(gram(a), a @ a.mT)
    assert gram(a.float()).dtype == torch.float64
