"""Bounds of the noise of a covariance matrix against simulation, and the constants of their proof."""

from __future__ import annotations

import numpy as np
import pytest

from stablediag.stats.theory import W_chevet, W_gordon, W_sharp, W_weighted, effective_rank
from stablediag.stats.theory.noise import GORDON_OFFSET, TAIL_MEAN, TAIL_SQUARE

SPECTRA = {
    "iso": np.ones(40),
    "geometric": np.geomspace(0.05, 1, 64),
    "one": np.ones(1),
    "spike": np.r_[1, np.full(20, 0.01)],
}


def noise(spectrum: np.ndarray, rows: int, reps: int, seed: int = 0) -> np.ndarray:
    rng, root = np.random.default_rng(seed), np.sqrt(spectrum)
    x = rng.standard_normal((reps, rows, len(spectrum))) * root
    error = np.swapaxes(x, 1, 2) @ x / rows - np.diag(spectrum)
    return np.abs(np.linalg.eigvalsh(error)).max(axis=-1) / spectrum.max()


def test_effective_rank() -> None:
    assert effective_rank(np.ones(7)) == 7
    assert effective_rank([[4, 2, 2], [1, 0, 0]]) == pytest.approx([2, 1])


@pytest.mark.parametrize("name", list(SPECTRA))
@pytest.mark.parametrize("rows", [5, 40, 400])
def test_bounds_hold_and_are_no_excuse(name: str, rows: int) -> None:
    spectrum = SPECTRA[name]
    r, found = effective_rank(spectrum), noise(spectrum, rows, 200)
    for bound in (W_gordon, W_chevet):
        assert found.mean() < bound(r, rows)
        # A bound that were a third of this one would be caught at high rank.
        if r > 10:
            assert found.mean() > bound(r, rows) / 3
    assert np.mean(found > W_gordon(r, rows, delta=0.05)) <= 0.05
    assert W_gordon(r, rows, delta=0.05) > W_gordon(r, rows)


def test_isotropic_noise_approaches_the_sharp_order() -> None:
    assert noise(np.ones(150), 600, 6).mean() == pytest.approx(W_sharp(150, 600), rel=0.03)
    big = W_gordon(1e8, 1e9)
    assert big == pytest.approx(W_sharp(1e8, 1e9), rel=1e-3)
    assert W_chevet(30, 70) == pytest.approx(2 * W_sharp(30, 70))


def test_expanded_form_of_the_gordon_bound() -> None:
    r, rows = np.array([3.0, 50]), 90
    a = np.sqrt(r / rows)
    expanded = 2 * a + 4.761 / rows**0.5 + a**2 + 4.761 * a / rows**0.5 + 5.897 / rows
    assert W_gordon(r, rows) == pytest.approx(expanded, rel=1e-4)
    # At a level of confidence: D <= sqrt(r) + .604 + s, and the noise is (2 sqrt(N) D + D^2) / N.
    reach = np.sqrt(r) + 0.604 + np.sqrt(2 * np.log(2 / 0.01))
    assert W_gordon(r, rows, delta=0.01) == pytest.approx((2 * rows**0.5 * reach + reach**2) / rows)


def test_constants_of_the_proof() -> None:
    """Moments of the tail min(1, 2 exp(-t^2/2)); the offset covers both sides of a chi variable at every N."""
    t = np.linspace(0, 12, 400_001)
    tail = np.minimum(1, 2 * np.exp(-(t**2) / 2))
    step = t[1]
    assert tail.sum() * step - step / 2 == pytest.approx(TAIL_MEAN, abs=1e-4)
    assert (2 * t * tail).sum() * step == pytest.approx(TAIL_SQUARE, abs=1e-4)
    for rows in (1, 2, 3, 10, 100, 1000):
        x = np.linspace(1e-6, rows**0.5 + 12, 400_001)
        log = (rows - 1) * np.log(x) - x**2 / 2
        density = np.exp(log - log.max())
        density /= density.sum()
        for side in (1, -1):
            assert (np.maximum(side * (rows**0.5 - x), 0) * density).sum() < 0.37 < GORDON_OFFSET


def test_rows_of_different_covariance_and_weight() -> None:
    d, rows = 24, 200
    rng = np.random.default_rng(4)
    spectra = rng.uniform(0.2, 1, (rows, d))
    for weights in (np.full(rows, 1 / rows), 0.02 * 0.98 ** np.arange(rows)):
        x = rng.standard_normal((100, rows, d)) * np.sqrt(spectra)
        error = np.swapaxes(x, 1, 2) @ (weights[:, None] * x) - np.diag(weights @ spectra)
        found = np.abs(np.linalg.eigvalsh(error)).max(axis=-1).mean()
        bound = W_weighted(d, weights)
        assert bound / 6 < found < bound
    assert W_weighted(d, np.full(rows, 1 / rows)) == pytest.approx(W_chevet(d, rows))
    assert W_weighted(d, weights) > W_chevet(d, rows)


def test_heavy_tails_break_the_bound() -> None:
    rng, d, rows = np.random.default_rng(0), 32, 16_000
    z = rng.standard_normal((rows, d)) / np.sqrt(rng.chisquare(2.5, (rows, 1)) / 0.5)
    assert np.abs(np.linalg.eigvalsh(z.T @ z / rows - np.eye(d))).max() > W_gordon(d, rows)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: effective_rank([0, 0]), "largest of eigs: must be positive and finite, got 0"),
        (lambda: effective_rank([1, -1]), "eigs: must be finite and at least 0, got -1"),
        (lambda: W_sharp(0, 5), "r: must be positive and finite, got 0"),
        (lambda: W_chevet(3, 0), "N: must be at least 1, got 0"),
        (lambda: W_gordon(3, 5, delta=1.0), r"delta: must be in \(0, 1\), got 1"),
        (lambda: W_weighted(3, [0.5, -0.5]), "weights: must be finite and at least 0, got -0.5"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
