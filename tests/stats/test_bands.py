"""Bands over seeds, and slopes, against loops."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from stablediag.stats.bands import band, slope
from stablediag.stats.compare import t_interval


def example() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = [
        {"arm": arm, "seed": seed, "step": step, "module": module, "y": rng.standard_normal()}
        for arm in ("b", "a")
        for seed in range(3)
        for step in range(4)
        for module in range(2)
    ]
    return pd.DataFrame(rows)


def test_band_equals_a_loop() -> None:
    frame = example()
    found = band(frame, x="step", y="y", by=["arm"])
    assert found["arm"].tolist() == ["b"] * 4 + ["a"] * 4
    for row in found.itertuples():
        here = frame[(frame["arm"] == row.arm) & (frame["step"] == row.step)]
        seeds = [here.loc[here["seed"] == seed, "y"].mean() for seed in range(3)]
        expected = t_interval(seeds)
        assert row.n == 3
        assert row.mean == pytest.approx(expected.mean)
        assert (row.low, row.high) == pytest.approx((expected.low, expected.high))
        assert (row.min, row.max) == pytest.approx((min(seeds), max(seeds)))


def test_modules_do_not_count_as_repetitions() -> None:
    """Planted violation: with modules as units the interval would be another one, and n twice as large."""
    frame = example()
    right = band(frame, x="step", y="y", by=["arm"])
    wrong = band(frame.assign(unit=frame["seed"] * 2 + frame["module"]), x="step", y="y", by=["arm"], unit="unit")
    assert (right["n"] == 3).all()
    assert (wrong["n"] == 6).all()
    assert not np.allclose(right["high"], wrong["high"])


def test_missing_values_are_left_out_and_one_seed_has_no_interval() -> None:
    frame = pd.DataFrame({"arm": "a", "seed": [0, 1, 0], "step": [0, 0, 1], "y": [1.0, np.nan, 2.0]})
    found = band(frame, x="step", y="y", by=["arm"])
    assert found["n"].tolist() == [1, 1]
    assert found["mean"].tolist() == [1.0, 2.0]
    assert found["low"].isna().all()


def test_slope_of_a_power_law() -> None:
    x = np.arange(1.0, 50.0)
    assert slope(x, 3 * x**-1.5) == pytest.approx(-1.5)
    assert slope([1.0, 2.0, 4.0, 8.0], [1.0, np.nan, 16.0, -1.0]) == pytest.approx(2.0)
    assert math.isnan(slope([1.0], [1.0]))
