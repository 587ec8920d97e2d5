"""Intervals over seeds: closed forms, pairing, and coverage with a planted violation."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from stablediag.stats.compare import paired, ratio, summary, t_interval


def test_t_interval_is_the_textbook_one() -> None:
    found = t_interval([1.0, 2.0, 4.0])
    # t(0.975, 2) = 4.302653; sd = sqrt(7/3); se = sd / sqrt(3)
    half = 4.3026527 * math.sqrt(7 / 3) / math.sqrt(3)
    assert found.n == 3
    assert found.mean == pytest.approx(7 / 3)
    assert (found.low, found.high) == pytest.approx((7 / 3 - half, 7 / 3 + half), rel=1e-6)
    assert found.half == pytest.approx(half, rel=1e-6)


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    one = t_interval([3.0, math.nan])
    assert (one.mean, one.n) == (3.0, 1)
    assert math.isnan(one.low)
    assert not one.excludes(0.0)
    assert "no interval" in str(one)
    assert math.isnan(t_interval([]).mean)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((4000, 3))
    hits = np.mean([not t_interval(row).excludes(0.0) for row in samples])
    assert abs(hits - 0.95) < 0.015
    # Planted violation: a normal quantile in place of Student's t covers far too rarely at three seeds.
    half = 1.96 * samples.std(axis=1, ddof=1) / math.sqrt(3)
    naive = np.mean(np.abs(samples.mean(axis=1)) <= half)
    assert naive < 0.90


def frame(values: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame(
        [{"arm": arm, "seed": i, "value": v} for arm, listed in values.items() for i, v in enumerate(listed)]
    )


def test_summary_keeps_the_order_of_groups() -> None:
    found = summary(frame({"b": [1.0, 3.0], "a": [5.0, 5.0]}), value="value", by=["arm"])
    assert found["arm"].tolist() == ["b", "a"]
    assert found["mean"].tolist() == [2.0, 5.0]
    assert found["n"].tolist() == [2, 2]


def test_pairing_removes_what_seeds_share() -> None:
    table = frame({"first": [10.0, 20.0, 30.0], "second": [9.0, 19.1, 28.9]})
    found = paired(table, value="value", arm="arm", first="first", second="second")
    assert found.mean == pytest.approx(1.0)
    assert found.excludes(0.0)
    # Planted violation: without pairing the seeds drown the difference.
    loose = t_interval(table.loc[table["arm"] == "first", "value"])
    assert loose.half > 10 * found.half


def test_pairing_uses_common_seeds_only() -> None:
    table = frame({"first": [1.0, 2.0, 3.0], "second": [0.0, 1.0]})
    assert paired(table, value="value", arm="arm", first="first", second="second").n == 2
    assert paired(table, value="value", arm="arm", first="first", second="absent").n == 0


def test_two_rows_for_one_seed_are_refused() -> None:
    table = pd.concat([frame({"first": [1.0], "second": [2.0]})] * 2)
    with pytest.raises(ValueError, match="duplicate"):
        paired(table, value="value", arm="arm", first="first", second="second")


def test_ratio_is_geometric() -> None:
    table = frame({"first": [2.0, 8.0], "second": [1.0, 1.0]})
    found = ratio(table, value="value", arm="arm", first="first", second="second")
    assert found.mean == pytest.approx(4.0)
    assert found.low * found.high == pytest.approx(16.0)
