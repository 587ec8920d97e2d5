"""Steady errors by iterating the recursion, optimal gains by search, and published values."""

from __future__ import annotations

import numpy as np
import pytest

from stablediag.stats.theory import (
    best_mse,
    covariance_window,
    exact_mse,
    gain_schedule,
    optimal_gain,
    steady_mse,
)

NOISE = np.geomspace(0.05, 1, 64).sum() / 20


def iterate(direction: str, sizes: np.ndarray, gains: np.ndarray, noise: float) -> np.ndarray:
    """The recursion itself, one step after the other; expectation over random directions."""
    lag, variance, out = 0.0, 0.0, []
    for size, g in zip(sizes, gains, strict=True):
        lag = (1 - g) * (lag + size) if direction == "fixed" else (1 - g) ** 2 * (lag + size**2)
        variance = (1 - g) ** 2 * variance + g**2 * noise
        out.append((lag**2 if direction == "fixed" else lag) + variance)
    return np.array(out)


@pytest.mark.parametrize("direction", ["fixed", "random"])
@pytest.mark.parametrize("gain", [0.02, 0.3, 1.0])
def test_steady_error_is_the_fixed_point(direction: str, gain: float) -> None:
    found = iterate(direction, np.full(3000, 0.3), np.full(3000, gain), NOISE)[-1]
    assert steady_mse(gain, 0.3, NOISE, direction) == pytest.approx(found)
    # Planted violation: the drift counted once more than the estimate has missed it.
    if gain < 1:
        assert found != pytest.approx(steady_mse(gain, 0.3 / (1 - gain), NOISE, direction), rel=0.005)


def test_steady_error_is_the_limit_of_the_exact_one() -> None:
    """Orthogonal steps have the lag of random directions, without randomness."""
    c, forget, steps = 0.3, 0.8, 120
    found = exact_mse(c * np.eye(steps), np.full(steps, NOISE * 20), n=20, forget=forget).total[-1]
    assert steady_mse(1 - forget, c, NOISE, "random") == pytest.approx(found)


@pytest.mark.parametrize("direction", ["fixed", "random"])
@pytest.mark.parametrize("c", [1e-4, 0.05, 0.3, 5.0])
def test_optimal_gain_by_search(direction: str, c: float) -> None:
    grid = np.geomspace(1e-6, 1, 100_001)
    curve = steady_mse(grid, c, NOISE, direction)
    assert optimal_gain(c, NOISE, direction) == pytest.approx(grid[curve.argmin()], rel=1e-3)
    assert best_mse(c, NOISE, direction) == pytest.approx(curve.min(), rel=1e-6)
    assert best_mse(c, NOISE, direction) <= curve.min()


def test_limits_for_slow_drift() -> None:
    c = 1e-6
    assert optimal_gain(c, NOISE, "fixed") == pytest.approx((4 * c**2 / NOISE) ** (1 / 3), rel=1e-3)
    assert best_mse(c, NOISE, "fixed") == pytest.approx(0.75 * (4 * c**2) ** (1 / 3) * NOISE ** (2 / 3), rel=1e-3)
    assert best_mse(c, NOISE, "fixed") == pytest.approx(1.19 * (c * NOISE) ** (2 / 3), rel=2e-3)
    assert best_mse(c, NOISE, "random") == pytest.approx(c * np.sqrt(NOISE), rel=1e-4)
    assert best_mse([0.0, 0.3], NOISE, "random") == pytest.approx([0, optimal_gain(0.3, NOISE, "random") * NOISE])
    for direction in ("fixed", "random"):
        assert optimal_gain(0.0, NOISE, direction) == 0
        assert best_mse(0.0, NOISE, direction) == 0


@pytest.mark.parametrize(
    ("direction", "alpha", "factor", "slope"),
    [
        ("fixed", 0.5, 1.6e4, -0.33),
        ("fixed", 1.0, 75, -0.68),
        ("fixed", 1.25, 5.5, -0.88),
        ("random", 0.5, 14.7, -0.50),
        ("random", 0.75, 2.0, -0.80),
        ("random", 1.0, 1.0, -1.0),
    ],
)
def test_schedule_against_plain_averaging(direction: str, alpha: float, factor: float, slope: float) -> None:
    steps = 10_000
    t = np.arange(1, steps + 1.0)
    sizes = 0.3 * t**-alpha
    sizes[0] = 0.0
    gains = gain_schedule(sizes, NOISE, direction)
    assert gains[0] == 1
    tuned, plain = (iterate(direction, sizes, g, NOISE) for g in (gains, 1 / t))
    assert plain[-1] / tuned[-1] == pytest.approx(factor, rel=0.02)
    fitted = np.polyfit(np.log(t[999:]), np.log(tuned[999:]), 1)[0]
    assert fitted == pytest.approx(slope, abs=0.015)


def test_window_of_the_covariance() -> None:
    noise, step = 0.4, 1e-4
    grid = np.geomspace(1, 1e6, 200_001)
    curve = 2 * noise / np.sqrt(grid) + step * grid
    window, error = covariance_window(noise, step)
    assert window == pytest.approx(grid[curve.argmin()], rel=1e-3)
    assert error == pytest.approx(curve.min(), rel=1e-6)


def test_noise_that_the_window_assumes() -> None:
    """Discounted covariance of isotropic rows at gain 1/w: spectral error about 2 sqrt(d / (2 n w))."""
    d, n, w = 20, 20, 100
    rng = np.random.default_rng(2)
    weights = np.repeat((1 - 1 / w) ** np.arange(8 * w) / w, n) / n
    errors = []
    for _ in range(20):
        x = rng.standard_normal((len(weights), d))
        errors.append(np.abs(np.linalg.eigvalsh((weights[:, None] * x).T @ x - weights.sum() * np.eye(d))).max())
    a = np.sqrt(d / (2 * n))
    assert np.mean(errors) == pytest.approx(2 * a / np.sqrt(w), rel=0.12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: steady_mse(0, 1, 1, "fixed"), r"gain: must be in \(0, 1\], got 0"),
        (lambda: steady_mse([0.5, 1.2], 1, 1, "fixed"), r"gain: must be in \(0, 1\], got 1.2"),
        (lambda: optimal_gain(1, 1, "rotating"), "direction: unknown 'rotating'; use one of fixed, random"),
        (lambda: optimal_gain(1, 0, "fixed"), "R: must be positive and finite, got 0"),
        (lambda: best_mse(-1, 1, "fixed"), "c: must be finite and at least 0, got -1"),
        (lambda: gain_schedule(0.3, 1, "fixed"), r"sizes: must have shape \[..., T\]"),
        (lambda: covariance_window(1, 0), "step: must be positive and finite, got 0"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
