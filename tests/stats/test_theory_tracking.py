"""Warm-up, rates, thresholds and horizon against the exact error they summarise."""

from __future__ import annotations

import numpy as np
import pytest

from stablediag.stats.theory import (
    exact_mse,
    horizon,
    lag_limit,
    lag_rate,
    tracking_threshold,
    warmup_breakeven,
    warmup_mse,
    warmup_ratio,
)

STEPS = 20_000
ANGLE = 0.3


def lag2_curve(direction: str, alpha: float, steps: int = STEPS) -> np.ndarray:
    """|b_t|^2 of plain averaging by its definition, for C = 1; the expectation for random directions."""
    t = np.arange(1, steps + 1.0)
    weights = (t - 1) * t**-alpha
    if direction == "fixed":
        return (np.cumsum(weights) / t) ** 2
    if direction == "random":
        return np.cumsum(weights**2) / t**2
    return np.abs(np.cumsum(weights * np.exp(1j * ANGLE * t)) / t) ** 2


def test_warmup_against_the_exact_error() -> None:
    r, k, n, trace, offset = 20, 50, 4, 3.0, 0.7
    noise = trace / n
    moved = np.zeros((r + k, 2))
    moved[r, 0] = offset
    total = exact_mse(moved, np.full(r + k, trace), n=n).total
    assert warmup_mse(r, np.arange(1, k + 1), R=noise, offset=offset) == pytest.approx(total[r:])
    cold = noise / np.arange(1, k + 1)
    assert warmup_mse(r, np.arange(1, k + 1), R=noise) / cold == pytest.approx(warmup_ratio(r, np.arange(1, k + 1)))
    assert 1 - warmup_ratio(20, 200) == pytest.approx(0.09, abs=0.001)
    assert 1 - warmup_ratio(20, 1) == pytest.approx(0.95, abs=0.003)


def test_warmup_break_even() -> None:
    k = np.array([1, 5, 20, 300])
    limit = warmup_breakeven(20, k, R=2.0)
    assert warmup_mse(20, k, R=2.0, offset=np.sqrt(limit)) == pytest.approx(2.0 / k)
    assert (warmup_mse(20, k, R=2.0, offset=np.sqrt(1.01 * limit)) > 2.0 / k).all()
    assert warmup_breakeven(20, 20, R=2.0) == pytest.approx(2.0 * 2 / 20)


@pytest.mark.parametrize(
    ("direction", "alpha"),
    [
        ("fixed", 0),
        ("fixed", 0.75),
        ("fixed", 1.25),
        ("random", 0.25),
        ("random", 1.0),
        ("rotating", -0.5),
        ("rotating", 0),
        ("rotating", 0.5),
    ],
)
def test_limit_of_the_lag(direction: str, alpha: float) -> None:
    t = np.arange(1, STEPS + 1)
    window = slice(-400, None)
    ratio = 9 * lag2_curve(direction, alpha)[window] / lag_limit(direction, alpha, 3.0, t[window], angle=ANGLE)
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    # Planted violation: the limit of another direction.
    other = {"fixed": "random", "random": "rotating", "rotating": "fixed"}[direction]
    wrong = lag2_curve(direction, alpha)[window] / lag_limit(other, min(alpha, 0.9), 1.0, t[window], angle=ANGLE)
    assert not 0.5 < wrong.mean() < 2


@pytest.mark.parametrize("direction", ["fixed", "random", "rotating"])
@pytest.mark.parametrize("alpha", [0.25, 0.75, 1.25, 2.5])
def test_rate_of_the_lag(direction: str, alpha: float) -> None:
    curve = lag2_curve(direction, alpha, 200_000)
    # Whole turns of the rotation are averaged out.
    early, late = (np.mean(curve[i : i + 210]) for i in (20_000, 199_000))
    slope = np.log(late / early) / np.log(199_105 / 20_105)
    assert slope == pytest.approx(lag_rate(direction, alpha), abs=0.06)


def test_tracking_is_where_the_rate_is_negative() -> None:
    for direction in ("fixed", "random", "rotating"):
        threshold = tracking_threshold(direction)
        assert lag_rate(direction, threshold) == 0
        assert lag_rate(direction, threshold + 0.01) < 0 < lag_rate(direction, threshold - 0.01)


@pytest.mark.parametrize("direction", ["fixed", "random", "rotating"])
def test_lag_and_noise_are_equal_at_the_horizon(direction: str) -> None:
    c, noise = 0.01, 0.7
    t = float(horizon(c, noise, direction, angle=ANGLE))
    # Two steps are averaged over one turn, as the lag of a rotating drift swings around its limit.
    around = lag2_curve(direction, 0.0, int(t) + 11)[-21:].mean() * c**2
    assert around == pytest.approx(noise / t, rel=0.03)
    if direction == "fixed":
        assert t == pytest.approx((4 * noise / c**2) ** (1 / 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lag_rate("sideways", 1), "direction: unknown 'sideways'; use one of fixed, random, rotating"),
        (lambda: lag_limit("fixed", 2, 1, 10), "alpha: must be below 2, got 2"),
        (lambda: lag_limit("random", 1.5, 1, 10), "alpha: must be below 1.5, got 1.5"),
        (lambda: lag_limit("rotating", 1, 1, 10, angle=1), "alpha: must be below 1, got 1"),
        (lambda: lag_limit("rotating", 0.5, 1, 10), "angle: must be given"),
        (lambda: horizon(1, 1, "rotating", angle=7), "angle: must be below 6.28319, got 7"),
        (lambda: horizon(0, 1, "fixed"), "c: must be positive and finite, got 0"),
        (lambda: tracking_threshold("up"), "direction: unknown 'up'"),
        (lambda: warmup_mse(0, 0, R=1), r"r \+ k: must be positive and finite, got 0"),
        (lambda: warmup_breakeven(0, 1, R=1), "r: must be positive and finite, got 0"),
        (lambda: warmup_ratio(1, 0), "k: must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
