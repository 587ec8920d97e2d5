"""Running moments against pooled formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablediag.errors import NumericalError
from stablediag.maths.niw import NIW, DiagNIW
from tests.twins import pooled_moments, sample_block_scatter, weighted_moments


def _rows(*shape: int, seed: int = 0) -> torch.Tensor:
    """Correlated rows with a mean well away from zero."""
    generator = torch.Generator().manual_seed(seed)
    d = shape[-1]
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) @ mix + torch.arange(d) + 3.0


def _error(value: torch.Tensor, truth: np.ndarray) -> float:
    return float(np.linalg.norm(value.double().cpu().numpy() - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize(
    ("rows_dtype", "state_dtype", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-12),
        (torch.float32, torch.float64, 1e-12),  # the rows are rounded, the accumulation is not
        (torch.float32, torch.float32, 1e-4),
    ],
)
def test_recursion_equals_pooled_formula_over_many_updates(rows_dtype, state_dtype, tolerance, device):
    rows = _rows(30_000, 5).to(rows_dtype)
    full = NIW.empty(5, dtype=state_dtype, device=device)
    diag = DiagNIW.empty(5, dtype=state_dtype, device=device)
    for block in rows.to(device).split(3):
        full, diag = full.update(block), diag.update(block)
    mean, scatter = pooled_moments(rows.double().numpy())
    assert full.kappa == full.nu == diag.nu == 30_000
    assert _error(full.mean, mean) <= tolerance
    assert _error(full.scale, scatter) <= tolerance
    assert _error(diag.mean, mean) <= tolerance
    assert _error(diag.scale, np.diag(scatter)) <= tolerance
    assert full.scale.dtype == state_dtype


def test_the_tolerance_sees_a_forgotten_jump_of_the_mean():
    rows = _rows(300, 4)
    scatter = pooled_moments(rows.numpy())[1]
    without_jump = sum(pooled_moments(block.numpy())[1] for block in rows.split(3))
    assert np.linalg.norm(without_jump - scatter) / np.linalg.norm(scatter) > 1e-2


@settings(max_examples=25, deadline=None)
@given(d=st.integers(1, 6), cuts=st.lists(st.integers(1, 7), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_order_and_cuts_do_not_matter_with_population_variance(d, cuts, seed):
    rows = _rows(sum(cuts), d, seed=seed)
    shuffled = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    for kind in (NIW, DiagNIW):
        whole = kind.empty(d).update(rows)
        pieces = kind.empty(d)
        for block in shuffled.split(cuts):
            pieces = pieces.update(block)
        torch.testing.assert_close(pieces.mean, whole.mean, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(pieces.scale, whole.scale, rtol=1e-10, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(d=st.integers(1, 5), n=st.integers(1, 9), m=st.integers(0, 9), batch=st.integers(0, 2), seed=st.integers(0, 99))
def test_merge_equals_joint(d, n, m, batch, seed):
    shape = (2,) * batch
    rows = _rows(*shape, n + m, d, seed=seed)
    for kind in (NIW, DiagNIW):
        empty = kind.empty(d, batch_shape=shape)
        merged = empty.update(rows[..., :n, :]).merge(empty.update(rows[..., n:, :]))
        joint = empty.update(rows)
        assert merged.kappa == joint.kappa
        assert merged.nu == joint.nu
        torch.testing.assert_close(merged.mean, joint.mean, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(merged.scale, joint.scale, rtol=1e-10, atol=1e-10)


def test_merge_of_two_empty_states_is_empty():
    merged = NIW.empty(3).merge(NIW.empty(3))
    assert merged.kappa == 0
    assert torch.equal(merged.scale, torch.zeros(3, 3, dtype=torch.float64))


def test_batched_equals_a_loop(device):
    rows = _rows(2, 3, 8, 4).to(device)
    ids = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2], device=device)
    for kind in (NIW, DiagNIW):
        state = kind.empty(4, batch_shape=(2, 3), device=device)
        for variance in ("population", "sample"):
            batched = state.update(rows, block_ids=ids, block_var=variance).update(rows + 1, forget=0.5)
            for i in range(2):
                for j in range(3):
                    single = kind.empty(4, device=device).update(rows[i, j], block_ids=ids, block_var=variance)
                    single = single.update(rows[i, j] + 1, forget=0.5)
                    torch.testing.assert_close(batched.mean[i, j], single.mean, rtol=1e-12, atol=1e-12)
                    torch.testing.assert_close(batched.scale[i, j], single.scale, rtol=1e-12, atol=1e-10)


def test_diag_is_the_diagonal_of_full():
    rows = _rows(40, 6)
    full, diag = NIW.empty(6).update(rows), DiagNIW.empty(6).update(rows)
    torch.testing.assert_close(full.diag().scale, diag.scale, rtol=1e-12, atol=0)
    np.testing.assert_allclose(diag.var.numpy(), rows.numpy().var(axis=0, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(diag.std.numpy(), rows.numpy().std(axis=0, ddof=1), rtol=1e-12)


@pytest.mark.parametrize("interleaved", [False, True])
def test_sample_variance_inflates_each_block(interleaved):
    """``s = Psi_diag + sum_b S_b/(n_b - 1)``, and the full scatter accordingly; rows need not be sorted by block."""
    sizes = [2, 5, 9]
    blocks = list(_rows(16, 3).split(sizes))
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    rows = torch.cat(blocks)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1)) if interleaved else torch.arange(16)
    full = NIW.empty(3).update(rows[order], block_ids=ids[order], block_var="sample")
    diag = DiagNIW.empty(3).update(rows[order], block_ids=ids[order], block_var="sample")
    assert _error(full.scale, sample_block_scatter([b.numpy() for b in blocks])) <= 1e-12
    inflation = sum(np.diag(pooled_moments(b.numpy())[1]) / (len(b) - 1) for b in blocks)
    expected = np.diag(pooled_moments(rows.numpy())[1]) + inflation
    np.testing.assert_allclose(diag.scale.numpy(), expected, rtol=1e-12)


def test_sample_variance_of_successive_blocks_equals_block_ids():
    rows = _rows(12, 3)
    ids = torch.repeat_interleave(torch.arange(3), 4)
    for kind in (NIW, DiagNIW):
        at_once = kind.empty(3).update(rows, block_ids=ids, block_var="sample")
        one_by_one = kind.empty(3)
        for block in rows.split(4):
            one_by_one = one_by_one.update(block, block_var="sample")
        torch.testing.assert_close(at_once.scale, one_by_one.scale, rtol=1e-12, atol=1e-12)


def test_block_cut_changes_the_sample_variance():
    rows = _rows(12, 3)
    cut = DiagNIW.empty(3).update(rows, block_ids=torch.arange(12) // 4, block_var="sample")
    whole = DiagNIW.empty(3).update(rows, block_var="sample")
    assert (cut.scale > whole.scale * 1.001).all()


@pytest.mark.parametrize("kind", [NIW, DiagNIW])
def test_one_row_block_under_sample_variance_adds_no_scatter_of_its_own(kind):
    rows = _rows(4, 2)
    cut = kind.empty(2).update(rows, block_ids=torch.tensor([0, 0, 0, 7]), block_var="sample")
    apart = kind.empty(2).update(rows[:3], block_var="sample").update(rows[3:])
    torch.testing.assert_close(cut.scale, apart.scale, rtol=1e-12, atol=1e-12)
    assert cut.scale.isfinite().all()


@settings(max_examples=20, deadline=None)
@given(d=st.integers(1, 5), extra=st.integers(2, 9), eps0=st.floats(1e-3, 10.0))
def test_prior_adds_its_share_to_every_eigenvalue(d, extra, eps0):
    rows = _rows(d + extra, d)
    bare = NIW.empty(d).update(rows)
    for state in (NIW.empty(d, prior=eps0).update(rows), bare.with_prior(eps0)):
        gain = torch.linalg.eigvalsh(state.cov) - torch.linalg.eigvalsh(bare.cov)
        size = float(torch.linalg.eigvalsh(bare.cov)[-1])
        expected = eps0 / (bare.nu - d - 1)
        torch.testing.assert_close(gain, torch.full_like(gain, expected), rtol=1e-9, atol=1e-12 * size)


def test_diagonal_prior():
    state = DiagNIW.empty(3, prior=0.5)
    assert torch.equal(state.scale, state.with_prior(0.5).scale - 0.5)


@pytest.mark.parametrize("rho", [1.0, 0.9, 0.3])
def test_forgetting_weights_old_rows_geometrically(rho):
    blocks = list(_rows(20, 3).split(4))
    full, diag = NIW.empty(3), DiagNIW.empty(3)
    for block in blocks:
        full, diag = full.update(block, forget=rho), diag.update(block, forget=rho)
    weights = np.repeat(rho ** np.arange(4, -1, -1.0), 4)
    mean, scatter = weighted_moments(torch.cat(blocks).numpy(), weights)
    assert full.nu == pytest.approx(weights.sum(), rel=1e-12)
    assert _error(full.mean, mean) <= 1e-12
    assert _error(full.scale, scatter) <= 1e-12
    assert _error(diag.scale, np.diag(scatter)) <= 1e-12


def test_informed_prior_mean_pulls_by_kappa0():
    rows = _rows(6, 3)
    state = NIW.empty(3, kappa0=4.0, nu0=9.0).update(rows)
    as_rows = NIW.empty(3).update(torch.zeros(4, 3)).update(rows)
    torch.testing.assert_close(state.mean, as_rows.mean)
    torch.testing.assert_close(state.scale, as_rows.scale)
    assert (state.kappa, state.nu) == (10.0, 15.0)


@pytest.mark.parametrize("variance", ["population", "sample"])
def test_factor_is_the_increment_of_the_scale(variance):
    before = NIW.empty(4).update(_rows(7, 4))
    rows, ids = _rows(6, 4, seed=1), torch.tensor([0, 0, 0, 1, 1, 1])
    g = before.factor(rows, forget=0.8, block_ids=ids, block_var=variance)
    after = before.update(rows, forget=0.8, block_ids=ids, block_var=variance)
    assert g.shape == ((7, 4) if variance == "population" else (9, 4))
    torch.testing.assert_close(0.8 * before.scale + g.mT @ g, after.scale, rtol=1e-12, atol=1e-12)


def test_update_is_pure_and_no_rows_only_forget():
    before = NIW.empty(3).update(_rows(5, 3))
    copy = before.scale.clone()
    before.update(_rows(5, 3, seed=2), forget=0.5)
    before.with_prior(1.0)
    assert torch.equal(before.scale, copy)
    idle = before.update(torch.empty(0, 3), forget=0.5)
    assert torch.equal(idle.scale, copy * 0.5)
    assert torch.equal(idle.mean, before.mean)
    assert idle.nu == before.nu * 0.5


def test_covariance_needs_enough_rows():
    state = NIW.empty(4).update(_rows(5, 4))
    assert not state.exists
    with pytest.raises(NumericalError, match=r"nu > d \+ 1"):
        _ = state.cov
    state = state.update(_rows(1, 4))
    assert state.exists
    torch.testing.assert_close(state.cov, state.scale / (6 - 4 - 1))


def test_variance_of_a_single_row_is_zero():
    state = DiagNIW.empty(3).update(torch.ones(1, 3))
    assert not state.exists
    assert torch.equal(state.var, torch.zeros(3, dtype=torch.float64))
    assert torch.equal(state.variance(eps=1e-7), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("kind", [NIW, DiagNIW])
def test_state_round_trip(kind):
    state = kind.empty(3, prior=0.1).update(_rows(5, 3), forget=0.9)
    twin = kind.from_state(state.state_dict())
    assert (twin.kappa, twin.nu) == (state.kappa, state.nu)
    assert torch.equal(twin.mean, state.mean)
    assert torch.equal(twin.scale, state.scale)
    assert isinstance(twin, kind)


def test_wrong_width_is_refused():
    with pytest.raises(ValueError, match="rows of width 3"):
        NIW.empty(4).update(torch.ones(2, 3))
