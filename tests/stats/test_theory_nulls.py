"""Null laws of cosines and of the cumulative coherence against simulated updates, and what moves them."""

from __future__ import annotations

import numpy as np
import pytest

from stablediag.stats.theory import (
    cos_null,
    d_eff,
    gamma_null,
    kappa_phi,
    pair_kappa,
    phi_rows,
    signal_cosine,
    transform_floor,
)


def updates(rows: np.ndarray, phi: np.ndarray) -> np.ndarray:
    return np.swapaxes(rows, -1, -2) @ phi


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    inner = (a * b).sum(axis=(-2, -1))
    return inner / np.sqrt(np.square(a).sum(axis=(-2, -1)) * np.square(b).sum(axis=(-2, -1)))


def test_key_rows_are_the_primal_ridge_solution() -> None:
    rng = np.random.default_rng(0)
    keys, coefficient = rng.standard_normal((3, 4, 6)), rng.uniform(1, 2, (3, 4))
    primal = np.linalg.inv(np.swapaxes(keys, 1, 2) @ keys + 0.5 * np.eye(6))
    assert phi_rows(keys, coefficient, 0.5) == pytest.approx(coefficient[..., None] * (keys @ primal))
    each = phi_rows(keys, coefficient, [0.1, 0.5, 2.0])
    assert each[2] == pytest.approx(phi_rows(keys[2], coefficient[2], 2.0))
    # With unit targets and no ridge the update returns them at the keys.
    assert phi_rows(keys, np.ones((3, 4)), 0.0) @ np.swapaxes(keys, 1, 2) == pytest.approx(
        np.broadcast_to(np.eye(4), (3, 4, 4)), abs=1e-9
    )


def test_overlap_of_key_rows() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((3, 7)), rng.standard_normal((5, 7))
    assert kappa_phi(a, b) == pytest.approx(np.linalg.norm(a @ b.T) / np.linalg.norm(a) / np.linalg.norm(b))
    assert kappa_phi(a[:1], 3 * a[:1]) == pytest.approx(1)
    many = rng.standard_normal((2, 400, 4, 50))
    assert np.sqrt((kappa_phi(many[0], many[1]) ** 2).mean()) == pytest.approx(50**-0.5, rel=0.05)


def test_effective_dimension() -> None:
    assert d_eff(np.ones(9)) == pytest.approx(9)
    assert d_eff([[1, 0, 0], [2, 2, 0]]) == pytest.approx([1, 2])


@pytest.mark.parametrize("spectrum", [np.ones(24), np.geomspace(0.01, 1, 24)], ids=["white", "raw"])
def test_spread_of_the_cosine(spectrum: np.ndarray) -> None:
    """Unwhitened rows have fewer effective dimensions, and a wider null than whitened ones."""
    rng = np.random.default_rng(2)
    phi_s, phi_t = rng.standard_normal((2, 40, 30))
    rows = rng.standard_normal((2, 3000, 40, 24)) * np.sqrt(spectrum)
    found = cosine(updates(rows[0], phi_s), updates(rows[1], phi_t))
    expected = cos_null(kappa_phi(phi_s, phi_t), d_eff(spectrum))
    assert abs(found.mean()) < 4 * expected / np.sqrt(3000)
    assert found.std() == pytest.approx(expected, rel=0.06)
    wrong = cos_null(kappa_phi(phi_s, phi_t), 24 if spectrum[0] < 1 else 6)
    assert abs(found.std() / wrong - 1) > 0.2


def test_cumulative_coherence_has_mean_one_and_the_reference_spread() -> None:
    steps, d, p, reps = 60, 40, 50, 1500
    rng = np.random.default_rng(3)
    found, overlap = np.empty(reps), np.empty(reps)
    for i in range(reps):
        phi, rows = rng.standard_normal((steps, p)), rng.standard_normal((steps, d))
        total = updates(rows, phi)
        found[i] = np.square(total).sum() / (np.square(rows).sum(axis=1) * np.square(phi).sum(axis=1)).sum()
        if i < 50:
            unit = phi / np.linalg.norm(phi, axis=1, keepdims=True)
            overlap[i] = pair_kappa(np.abs(unit @ unit.T), np.square(phi).sum(axis=1))
    expected = gamma_null(50**-0.5, d, steps=steps)
    assert expected == pytest.approx(0.0314, abs=5e-5)
    assert gamma_null(overlap[:50].mean(), d, steps=steps) == pytest.approx(expected, rel=0.01)
    assert found.mean() == pytest.approx(1, abs=4 * expected / np.sqrt(reps))
    assert found.std() == pytest.approx(expected, rel=0.07)
    # Planted violation: a mean of half a standard deviation that is left in the rows and in the keys.
    coherent = np.square(updates(rows + 0.5, phi + 0.5)).sum()
    energy = (np.square(rows + 0.5).sum(axis=1) * np.square(phi + 0.5).sum(axis=1)).sum()
    assert coherent / energy > 1 + 4 * expected


def test_pair_overlap_weights_by_energy() -> None:
    kappas = np.array([[9, 0.1, 0.2], [0.1, 9, 0.4], [0.2, 0.4, 9]])
    assert pair_kappa(kappas) == pytest.approx(np.sqrt((0.01 + 0.04 + 0.16) / 3))
    assert gamma_null(pair_kappa(np.full((5, 5), 0.3)), 7, steps=5) == pytest.approx(gamma_null(0.3, 7, steps=5))
    # One pair alone carries energy: variance of Gamma is 4 kappa^2 (1/2)^2 (1/2)^2 / d_eff * 4 pairs' weight.
    alone = pair_kappa(kappas, [1, 1, 0])
    assert gamma_null(alone, 10, steps=3) == pytest.approx(np.sqrt(4 * 0.01 / 10 / 4))


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("relu", lambda x: np.maximum(x, 0)),
        ("abs", np.abs),
        ("tanh", np.tanh),
        ("sign", np.sign),
        ("cube", lambda x: x**3),
        ("identity", lambda x: x),
        ("odd", np.arcsinh),
    ],
)
def test_floor_of_a_transform_by_quadrature(name: str, transform) -> None:
    x = np.linspace(-10, 10, 200_001)
    density = np.exp(-(x**2) / 2)
    density /= density.sum()
    share = (density @ transform(x)) ** 2 / (density @ transform(x) ** 2)
    assert transform_floor(name) == pytest.approx(share, abs=1e-4)


def test_cosine_of_a_mean_that_is_left() -> None:
    rng = np.random.default_rng(5)
    d, n, reps, w = 6, 4, 4000, np.full(6, 0.3)
    spectrum = np.geomspace(0.2, 1, d)
    phi_s = rng.standard_normal((n, 10)) + 0.5
    phi_t = phi_s[rng.permutation(n)][:, ::-1]
    rows = w + rng.standard_normal((2, reps, n, d)) * np.sqrt(spectrum)
    a, b = updates(rows[0], phi_s), updates(rows[1], phi_t)
    inner = (a * b).sum(axis=(1, 2))
    expected = signal_cosine(
        w @ w,
        spectrum.sum(),
        Phi_inner=phi_s.sum(axis=0) @ phi_t.sum(axis=0),
        phi_sq=np.square(phi_s).sum(),
        Phi_sq=np.square(phi_s.sum(axis=0)).sum(),
    )
    energy = np.square(a).sum(axis=(1, 2)).mean()
    error = inner.std() / np.sqrt(reps) / energy
    assert inner.mean() / energy == pytest.approx(expected, abs=4 * error)
    assert abs(expected) > 15 * error


def test_floor_of_relu_is_a_signal_cosine() -> None:
    """Rectified Gaussian rows: cosine 1/pi times the coherence of the keys, to leading order in the bias."""
    d, n = 8, 5
    phi = np.random.default_rng(6).standard_normal((n, 20))
    each, summed = np.square(phi).sum(), np.square(phi.sum(axis=0)).sum()
    full = signal_cosine(d / (2 * np.pi), d * (0.5 - 1 / (2 * np.pi)), Phi_inner=summed, phi_sq=each, Phi_sq=summed)
    floor = transform_floor("relu") * summed / (each + transform_floor("relu") * (summed - each))
    assert full == pytest.approx(floor)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: phi_rows(np.ones((3, 2)), np.ones(2), 1), "coefficient: must have one entry for each row of keys"),
        (lambda: phi_rows(np.ones((3, 2)), np.ones(3), -1), "ridge: must be finite and at least 0, got -1"),
        (lambda: kappa_phi(np.ones((3, 2)), np.ones((3, 4))), r"phi_t: must have shape \[..., m, p\]"),
        (lambda: kappa_phi(np.ones((3, 2)), np.zeros((3, 2))), "norm of phi_t: must be positive"),
        (lambda: d_eff([0, 0]), "sum of eigs: must be positive and finite, got 0"),
        (lambda: cos_null(0.1, 0), "d_eff: must be positive and finite, got 0"),
        (lambda: pair_kappa([[1]]), r"kappas: must have shape \[..., T, T\] with T > 1"),
        (lambda: pair_kappa(np.ones((2, 2)), [1, 1, 1]), r"energies: must have shape \[..., 2\], got \[3\]"),
        (lambda: gamma_null(0.1, 5, steps=0), "steps: must be at least 1, got 0"),
        (lambda: transform_floor("gelu"), "name: unknown 'gelu'; use one of relu, abs"),
        (lambda: signal_cosine(0, 0, Phi_inner=1, phi_sq=1, Phi_sq=1), "energy of the update: must be positive"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
