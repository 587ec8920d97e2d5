"""Update algebra against dense matrices in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablediag.maths import update as update_module
from stablediag.maths.update import Dense, LowRank, Update, concat
from tests.twins import dense_cosine, dense_inner


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _low_rank(p: int, n: int, d: int, *, seed: int = 0, batch: tuple[int, ...] = ()) -> LowRank:
    return LowRank(_random(*batch, p, n, seed=seed), _random(*batch, n, d, seed=seed + 1000))


def _cast(update: Update, dtype: torch.dtype, device: str = "cpu") -> Update:
    if isinstance(update, LowRank):
        return LowRank(update.left.to(device, dtype), update.right.to(device, dtype))
    return Dense(update.matrix.to(device, dtype))


def _matrix(update: Update) -> np.ndarray:
    """The update as float64 numpy, multiplied in float64 from the factors as stored."""
    if isinstance(update, LowRank):
        return (update.left.double() @ update.right.double()).cpu().numpy()
    return update.matrix.double().cpu().numpy()


def _cancellation(update: Update) -> float:
    """By how much the factors outweigh their product, squared: what a Gram-based norm loses in precision."""
    if isinstance(update, Dense):
        return 1.0
    factors = float(update.left.double().norm() * update.right.double().norm())
    return (factors / float(np.linalg.norm(_matrix(update)))) ** 2


def _check(a: Update, b: Update, tolerance: float) -> None:
    x, y = _matrix(a), _matrix(b)
    tolerance = max(tolerance, 1e-15 * _cancellation(a), 1e-15 * _cancellation(b))
    assert float(a.norm()) == pytest.approx(np.linalg.norm(x), rel=tolerance)
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    assert float(a.inner(b)) == pytest.approx(dense_inner(x, y), rel=tolerance, abs=tolerance * scale)
    assert float(b.inner(a)) == pytest.approx(float(a.inner(b)), rel=tolerance, abs=tolerance * scale)
    assert float(a.cosine(b)) == pytest.approx(dense_cosine(x, y), abs=tolerance)
    assert float(a.cosine(a)) == pytest.approx(1.0, abs=tolerance)
    assert float(a.spectral_norm()) == pytest.approx(np.linalg.norm(x, 2), rel=max(tolerance, 1e-9))
    for value in (a.norm(), a.inner(b), a.cosine(b), a.spectral_norm(), a.max_abs()):
        assert value.dtype == torch.float64
        assert value.shape == ()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@settings(max_examples=15, deadline=None)
@given(p=st.integers(1, 20), n=st.integers(1, 12), m=st.integers(1, 12), d=st.integers(1, 15), seed=st.integers(0, 99))
def test_scalars_equal_dense(dtype, tolerance, p, n, m, d, seed):
    a, b = _low_rank(p, n, d, seed=seed), _low_rank(p, m, d, seed=seed + 1)
    dense = Dense(_random(p, d, seed=seed + 2))
    for first, second in ((a, b), (a, dense), (dense, b), (dense, Dense(_random(p, d, seed=seed + 3)))):
        _check(_cast(first, dtype), _cast(second, dtype), tolerance)


def test_scalars_on_every_device(device):
    a, b = _cast(_low_rank(30, 4, 20), torch.float32, device), _cast(Dense(_random(30, 20)), torch.float32, device)
    _check(a, b, 1e-5)
    assert a.norm().device.type == device


def test_float32_factors_lose_nothing():
    """Grams are accumulated in float64, so float32 factors give the norm of their exact product."""
    a = _cast(_low_rank(400, 30, 300), torch.float32)
    assert float(a.norm()) == pytest.approx(np.linalg.norm(_matrix(a)), rel=1e-12)


def test_the_tolerance_sees_a_transposed_gram():
    a, b = _low_rank(9, 3, 7), _low_rank(9, 3, 7, seed=1)
    wrong = ((a.left.mT @ b.left).mT * (a.right @ b.right.mT)).sum()
    assert float(wrong) != pytest.approx(dense_inner(_matrix(a), _matrix(b)), rel=1e-3)


@pytest.mark.parametrize("zero", [LowRank(torch.zeros(4, 2), torch.ones(2, 3)), Dense(torch.zeros(4, 3))])
def test_cosine_with_a_zero_update_is_nan(zero):
    other = LowRank(torch.ones(4, 1), torch.ones(1, 3))
    assert bool(zero.cosine(other).isnan())
    assert bool(other.cosine(zero).isnan())
    assert float(zero.norm()) == 0.0
    assert float(zero.spectral_norm()) == 0.0


def test_a_cancelling_low_rank_update_has_a_real_norm():
    a = _low_rank(12, 3, 8)
    assert float(concat([a, a.scaled(-1.0)]).norm()) <= 1e-7 * float(a.norm())


@pytest.mark.parametrize(("mine", "other"), [(1.0, 1.0), (1e25, 1e25), (1e-25, 1e-25), (1e-30, 1e20)])
def test_float32_matrices_are_compared_as_in_float64(mine, other):
    """Also where products of entries leave the range of float32."""
    a, b = (Dense((_random(700, 300, seed=seed) * s).float()) for seed, s in ((0, mine), (1, other)))
    x, y = _matrix(a), _matrix(b)
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    assert float(a.norm()) == pytest.approx(np.linalg.norm(x), rel=1e-12)
    assert float(a.inner(a)) == pytest.approx(dense_inner(x, x), rel=1e-12)
    assert float(a.inner(b)) == pytest.approx(dense_inner(x, y), abs=1e-8 * scale)
    turned = Dense(b.matrix.mT.contiguous().mT)
    assert float(a.inner(turned)) == pytest.approx(dense_inner(x, y), abs=1e-8 * scale)
    orthogonal = Dense(torch.cat([a.matrix[:350], -a.matrix[350:]]))
    assert float(a.inner(orthogonal)) == pytest.approx(dense_inner(x, _matrix(orthogonal)), abs=1e-8 * scale)


@pytest.mark.parametrize("block", [1, 40, 1 << 22])
def test_row_blocks_do_not_matter(block, monkeypatch):
    a, dense = _low_rank(23, 3, 10), Dense(_random(23, 10, seed=3))
    monkeypatch.setattr(update_module, "BLOCK_ENTRIES", block)
    assert float(a.max_abs()) == pytest.approx(np.abs(_matrix(a)).max(), rel=1e-12)
    assert float(dense.max_abs()) == np.abs(_matrix(dense)).max()
    _check(a, dense, 1e-12)
    _check(dense, a, 1e-12)


def test_low_rank_scalars_never_form_the_matrix(monkeypatch):
    def refuse(self):
        raise AssertionError("formed a dense matrix")

    monkeypatch.setattr(LowRank, "dense", refuse)
    a, b = _low_rank(40, 3, 30), _low_rank(40, 2, 30, seed=1)
    for value in (a.norm(), a.inner(b), a.cosine(b), a.spectral_norm(), a.max_abs(), a.cosine(Dense(_random(40, 30)))):
        assert bool(value.isfinite())


def test_wide_spectral_norm_takes_lanczos(monkeypatch):
    dense, tall = Dense(_random(40, 30)), Dense(_random(30, 40, seed=1))
    monkeypatch.setattr(update_module, "DENSE_WIDTH", 4)
    for update in (dense, tall):
        assert float(update.spectral_norm()) == pytest.approx(np.linalg.norm(_matrix(update), 2), rel=1e-9)


def test_dense_shape_scaled_concat():
    a, b = _low_rank(6, 2, 5), _low_rank(6, 3, 5, seed=1)
    total = concat([a, b, a.scaled(-2.0)])
    assert total.left.shape == (6, 7)
    np.testing.assert_allclose(total.dense().numpy(), _matrix(b) - _matrix(a), rtol=1e-12, atol=1e-12)
    assert a.shape == Dense(a.dense()).shape == (6, 5)
    torch.testing.assert_close(Dense(a.dense()).scaled(0.5).dense(), a.scaled(0.5).dense())
    mixed = LowRank(a.left.float(), a.right)
    assert mixed.dense().dtype == torch.float64


def test_batched_equals_a_loop(device):
    a = _cast(_low_rank(9, 3, 7, batch=(2, 3)), torch.float64, device)
    b = _cast(_low_rank(9, 2, 7, seed=1, batch=(2, 3)), torch.float64, device)
    dense = Dense(b.dense())
    assert a.shape == (2, 3, 9, 7)
    methods = ("inner", "cosine")
    for other in (b, dense):
        for name in methods:
            batched = getattr(a, name)(other)
            assert batched.shape == (2, 3)
            for i in range(2):
                for j in range(3):
                    one = LowRank(a.left[i, j], a.right[i, j])
                    two = Dense(dense.matrix[i, j])
                    torch.testing.assert_close(batched[i, j], getattr(one, name)(two), rtol=1e-10, atol=1e-12)
    for update in (a, dense):
        for name in ("norm", "spectral_norm", "max_abs"):
            batched = getattr(update, name)()
            for i in range(2):
                for j in range(3):
                    single = Dense(update.dense()[i, j])
                    torch.testing.assert_close(batched[i, j], getattr(single, name)(), rtol=1e-10, atol=1e-12)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="do not chain"):
        LowRank(torch.ones(4, 2), torch.ones(3, 4))
    with pytest.raises(ValueError, match="no inner product"):
        Dense(torch.ones(4, 3)).inner(Dense(torch.ones(3, 4)))
    with pytest.raises(ValueError, match="at least one"):
        concat([])
