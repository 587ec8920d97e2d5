"""Whiteners: accuracy, identities, bounds, floors and fallbacks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stablediag.errors import NumericalError
from stablediag.maths.niw import NIW, DiagNIW
from stablediag.maths.whiten import (
    Floor,
    Whitener,
    center_whitener,
    diagonal_whitener,
    full_whitener,
    gradient_whitener,
    identity_whitener,
    scalar_whitener,
)
from tests.twins import inverse_root

NO_FLOOR = Floor("none", 0.0)


def _rows(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    d = shape[-1]
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) @ mix + 2.0


def _rows_with_condition(n: int, d: int, condition: float) -> torch.Tensor:
    """Rows whose scatter has exactly the given condition number (up to rounding)."""
    generator = torch.Generator().manual_seed(3)
    raw = torch.randn(n, d, generator=generator, dtype=torch.float64)
    orthonormal = torch.linalg.qr(raw - raw.mean(dim=0)).Q
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    spectrum = torch.logspace(0, -0.5 * np.log10(condition), d, dtype=torch.float64)
    return orthonormal * spectrum @ rotation.mT + 0.1


def _energy(whitener: Whitener, rows: torch.Tensor) -> float:
    return float(whitener.apply(rows).square().sum())


def test_whitening_residual_in_float64(device):
    state = NIW.empty(96, device=device).update(_rows_with_condition(400, 96, 1e7).to(device))
    whitener = full_whitener(state)
    root = whitener.transform
    residual = root @ state.cov @ root - torch.eye(96, dtype=torch.float64, device=device)
    assert float(torch.linalg.matrix_norm(residual, ord=2)) <= 1e-8
    assert float(whitener.condition().raw) == pytest.approx(1e7, rel=1e-6)
    assert int(whitener.floored) == 0
    torch.testing.assert_close(root, root.mT, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_whitening_residual_of_float32_rows(dtype, device):
    rows = _rows_with_condition(400, 96, 1e5).float().to(device)
    state = NIW.empty(96, device=device).update(rows)
    white = full_whitener(state, dtype=dtype).apply(rows)
    assert white.dtype == torch.float32
    white = white.double()
    second = white.mT @ white / (state.nu - state.d - 1)
    residual = second - torch.eye(96, dtype=torch.float64, device=device)
    assert float(torch.linalg.matrix_norm(residual, ord=2)) <= 1e-3


def test_a_root_of_rounded_statistics_would_not_pass():
    """The float32 accumulation that the release uses fails the float64 tolerance by far."""
    state = NIW.empty(96).update(_rows_with_condition(400, 96, 1e7))
    rounded = NIW(state.mean, state.kappa, state.scale.float(), state.nu)
    root = full_whitener(rounded).transform
    residual = root @ state.cov @ root - torch.eye(96, dtype=torch.float64)
    assert float(torch.linalg.matrix_norm(residual, ord=2)) > 1e-3


def test_root_equals_the_twin_with_floor_and_shrinkage():
    state = NIW.empty(6).update(_rows(30, 6))
    cov = state.cov.numpy()
    middle = float(np.linalg.eigvalsh(cov)[2]) * 1.01
    floored = full_whitener(state, floor=Floor("absolute", middle))
    np.testing.assert_allclose(floored.transform.numpy(), inverse_root(cov, middle), rtol=1e-9, atol=1e-12)
    assert int(floored.floored) == 3
    shrunk = full_whitener(state, floor=NO_FLOOR, shrinkage=0.3)
    target = 0.7 * cov + 0.3 * np.trace(cov) / 6 * np.eye(6)
    np.testing.assert_allclose(shrunk.transform.numpy(), inverse_root(target), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(shrunk.eigenvalues.numpy(), np.linalg.eigvalsh(cov), rtol=1e-9)


def test_relative_floor_counts_and_d_eff():
    state = NIW.empty(5).update(_rows(40, 5))
    values = np.linalg.eigvalsh(state.cov.numpy())
    bound = 0.5 * values.mean()
    whitener = full_whitener(state, floor=Floor("relative", 0.5))
    assert int(whitener.floored) == (values < bound).sum() > 0
    assert float(whitener.floored_fraction) == pytest.approx((values < bound).mean())
    assert float(whitener.energy) == pytest.approx((values / np.maximum(values, bound)).sum(), rel=1e-10)
    assert float(whitener.eig_max) == pytest.approx(values[-1], rel=1e-12)
    condition = whitener.condition()
    assert condition.exact
    assert float(condition.raw) == pytest.approx(values[-1] / values[0], rel=1e-9)
    assert float(condition.floored) == pytest.approx(values[-1] / bound, rel=1e-9)
    assert float(full_whitener(state).energy) == pytest.approx(5.0, rel=1e-12)


def test_singular_covariance_is_counted_or_refused_never_silent():
    rows = _rows(20, 4)
    rows = torch.cat([rows, rows[:, :1]], dim=1)  # the fifth coordinate repeats the first
    state = NIW.empty(5).update(rows)
    assert int(full_whitener(state, floor=Floor("relative", 1e-9)).floored) == 1
    flat = NIW.empty(3).update(torch.ones(9, 3))
    with pytest.raises(NumericalError, match="singular") as caught:
        full_whitener(flat, floor=NO_FLOOR)
    assert "\n" not in str(caught.value)
    silenced = full_whitener(flat)
    assert int(silenced.floored) == 3
    assert torch.equal(silenced.apply(torch.ones(2, 3)), torch.zeros(2, 3))
    assert float(silenced.condition().raw) == np.inf


@settings(max_examples=25, deadline=None)
@given(d=st.integers(1, 8), extra=st.integers(2, 40), seed=st.integers(0, 99))
def test_in_sample_energy_and_leverage_bounds(d, extra, seed):
    rows = _rows(d + extra, d, seed=seed)
    full = NIW.empty(d).update(rows)
    nu = full.nu
    white = full_whitener(full, floor=NO_FLOOR)
    assert _energy(white, rows) == pytest.approx((nu - d - 1) * d, rel=1e-8)
    leverage = white.apply(rows).square().sum(dim=-1)
    assert float(leverage.max()) <= (nu - d - 1) * (1 - 1 / nu) * (1 + 1e-8)
    plain = diagonal_whitener(full.diag())
    assert _energy(plain, rows) == pytest.approx((nu - 1) * d, rel=1e-9)
    assert float(plain.apply(rows).square().max()) <= (nu - 1) ** 2 / nu * (1 + 1e-9)
    assert _energy(scalar_whitener(full.diag()), rows) == pytest.approx((nu - 1) * d, rel=1e-9)


def test_energy_identity_catches_a_wrong_divisor():
    rows = _rows(60, 4)
    state = NIW.empty(4).update(rows)
    wrong_full = full_whitener(NIW(state.mean, state.kappa, state.scale, state.nu + 4), floor=NO_FLOOR)  # nu - 1
    assert _energy(wrong_full, rows) != pytest.approx((60 - 4 - 1) * 4, rel=1e-2)
    diag = state.diag()
    wrong_diag = diagonal_whitener(DiagNIW(diag.mean, diag.kappa, diag.scale, diag.nu + 1))  # divisor nu
    assert _energy(wrong_diag, rows) != pytest.approx(59 * 4, rel=1e-2)


def test_leverage_bound_is_attained_by_an_outlier():
    rows = torch.cat([_rows(30, 3), torch.full((1, 3), 1e6, dtype=torch.float64)])
    state = NIW.empty(3).update(rows)
    leverage = full_whitener(state).apply(rows).square().sum(dim=-1).max()
    assert float(leverage) == pytest.approx((31 - 4) * (1 - 1 / 31), rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(d=st.integers(2, 6), seed=st.integers(0, 99))
def test_full_whitening_is_equivariant_and_diagonal_is_not(d, seed):
    rows = _rows(6 * d, d, seed=seed)
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mix = mix + 3 * torch.eye(d, dtype=torch.float64)
    norms = {}
    for name, x in (("plain", rows), ("mixed", rows @ mix)):
        state = NIW.empty(d).update(x)
        norms[name] = [
            w.apply(x).norm(dim=-1) for w in (full_whitener(state, floor=NO_FLOOR), diagonal_whitener(state.diag()))
        ]
    torch.testing.assert_close(norms["mixed"][0], norms["plain"][0], rtol=1e-6, atol=1e-8)
    assert float((norms["mixed"][1] - norms["plain"][1]).abs().max()) > 1e-3


def test_full_whitening_commutes_with_rotations():
    """The symmetric root turns with its data; a Cholesky root would not."""
    rows = _rows(50, 4)
    turn = torch.linalg.qr(_rows(4, 4, seed=5)).Q
    white = full_whitener(NIW.empty(4).update(rows)).apply(rows)
    turned = full_whitener(NIW.empty(4).update(rows @ turn)).apply(rows @ turn)
    torch.testing.assert_close(turned, white @ turn, rtol=1e-8, atol=1e-8)


def test_batched_equals_a_loop(device):
    rows = _rows(2, 3, 20, 4).to(device)
    state = NIW.empty(4, batch_shape=(2, 3), device=device).update(rows)
    builders = [
        lambda s: full_whitener(s, floor=Floor("relative", 0.3), shrinkage=0.1, eps=1e-7),
        lambda s: diagonal_whitener(s.diag(), eps=1e-7),
        lambda s: scalar_whitener(s.diag()),
        lambda s: center_whitener(s.mean),
        lambda s: gradient_whitener(s, kind="none"),
    ]
    for build in builders:
        batched = build(state)
        white = batched.apply(rows)
        for i in range(2):
            for j in range(3):
                alone = build(NIW.empty(4, device=device).update(rows[i, j]))
                torch.testing.assert_close(white[i, j], alone.apply(rows[i, j]), rtol=1e-9, atol=1e-10)
                assert batched.floored[i, j] == alone.floored
                torch.testing.assert_close(batched.energy[i, j], alone.energy, equal_nan=True)
                torch.testing.assert_close(batched.condition().raw[i, j], alone.condition().raw, equal_nan=True)


def test_eps_follows_the_released_formula():
    rows, eps = _rows(9, 3), 0.1
    state = NIW.empty(3).update(rows)
    std = (state.diag().scale / (8 + eps)).sqrt()
    torch.testing.assert_close(diagonal_whitener(state.diag(), eps=eps).apply(rows), (rows - state.mean) / (std + eps))
    cov = state.scale / (9 - 3 - 1 + eps)
    expected = (rows - state.mean) @ torch.from_numpy(inverse_root(cov.numpy()))
    torch.testing.assert_close(full_whitener(state, eps=eps).apply(rows), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("eps", [0.0, 1.2e-7])
def test_a_constant_coordinate_gives_zero(eps):
    rows = _rows(30, 3)
    rows[:, 1] = 0.1  # its mean is not exact in binary
    state = DiagNIW.empty(3)
    for block in rows.split(7):
        state = state.update(block)
    whitener = diagonal_whitener(state, eps=eps)
    white = whitener.apply(rows)
    assert white.isfinite().all()
    assert torch.equal(white[:, 1], torch.zeros(30, dtype=torch.float64))
    assert int(whitener.floored) == 1
    one = DiagNIW.empty(3).update(rows[:1])
    assert torch.equal(diagonal_whitener(one, eps=eps).apply(rows[:1]), torch.zeros(1, 3, dtype=torch.float64))
    assert torch.equal(scalar_whitener(one, eps=eps).apply(rows[:1]), torch.zeros(1, 3, dtype=torch.float64))


def test_small_but_real_variance_is_not_silenced():
    rows = _rows(30, 2) * 1e-9 + 1.0
    assert int(diagonal_whitener(DiagNIW.empty(2).update(rows)).floored) == 0


def test_diagonal_condition_is_a_lower_bound_and_says_so():
    state = NIW.empty(4).update(_rows(60, 4))
    plain = diagonal_whitener(state.diag())
    assert bool(plain.condition().raw.isnan())
    bound = plain.condition(exact=False)
    assert not bound.exact
    var = state.diag().var
    assert float(bound.raw) == pytest.approx(float(var.max() / var.min()), rel=1e-9)
    assert float(bound.raw) <= float(full_whitener(state).condition().raw)
    assert bool(plain.eig_max.isnan())
    assert bool(plain.energy.isnan())


def test_threshold_and_fallbacks():
    rows = _rows(6, 4)
    before, after = NIW.empty(4).update(rows[:5]), NIW.empty(4).update(rows)  # nu = d + 1 and d + 2
    assert gradient_whitener(after).active
    assert gradient_whitener(after).kind == "full"
    fallback = gradient_whitener(before)
    assert (fallback.kind, fallback.active) == ("diagonal", False)
    torch.testing.assert_close(fallback.apply(rows), diagonal_whitener(before.diag()).apply(rows))
    with pytest.raises(NumericalError, match="pre_threshold"):
        gradient_whitener(before, pre_threshold="error")
    with pytest.raises(NumericalError, match=r"nu > d \+ 1"):
        full_whitener(before)
    shrunk = gradient_whitener(before, pre_threshold="shrink", floor=NO_FLOOR)
    assert (shrunk.kind, shrunk.active) == ("full", False)
    rho = 1 - 0.9 * 5 / 6
    psi = before.scale.numpy() / before.nu
    target = (1 - rho) * psi + rho * np.trace(psi) / 4 * np.eye(4)
    np.testing.assert_allclose(shrunk.transform.numpy(), inverse_root(target), rtol=1e-9)
    assert gradient_whitener(NIW.empty(4), pre_threshold="shrink").kind == "diagonal"


def test_kinds_of_the_gradient_whitener():
    rows = _rows(30, 3)
    state, diag = NIW.empty(3).update(rows), DiagNIW.empty(3).update(rows)
    for kind in ("diagonal", "scalar", "center", "none"):
        assert gradient_whitener(state, diag, kind=kind).kind == kind
        assert gradient_whitener(None, diag, kind=kind).kind == kind
    torch.testing.assert_close(gradient_whitener(None, diag, kind="center").apply(rows), rows - rows.mean(dim=0))
    assert gradient_whitener(None, diag, kind="none").apply(rows) is rows
    assert identity_whitener(3).apply(rows) is rows
    with pytest.raises(ValueError, match="needs full moments"):
        gradient_whitener(None, diag)
    with pytest.raises(ValueError, match="needs moments"):
        gradient_whitener(None, None, kind="diagonal")


def test_non_finite_statistics_are_refused_and_never_masked():
    rows = _rows(30, 3)
    rows[4, 1] = torch.nan
    state = NIW.empty(3).update(rows)
    with pytest.raises(NumericalError, match="non-finite"):
        full_whitener(state)
    assert diagonal_whitener(state.diag()).apply(rows)[:, 1].isnan().all()
    assert scalar_whitener(state.diag()).apply(rows).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rows_keep_their_dtype(dtype):
    rows = _rows(30, 3).to(dtype)
    state = NIW.empty(3).update(rows)
    for kind in ("full", "diagonal", "scalar", "center", "none"):
        assert gradient_whitener(state, kind=kind).apply(rows).dtype == dtype
