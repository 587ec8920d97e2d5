from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from stablediag.errors import DataError, SpecError
from stablediag.stats.intervals import Interval, bootstrap_interval, mean_interval, resampled_interval


def wilson(hits, n, level=0.95):
    """The textbook formula."""
    z, p = stats.norm.ppf(0.5 + level / 2), hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def coverage(draw, mean, *, reps=600, **options):
    """How often the interval holds the true mean."""
    return np.mean([(i := mean_interval(draw(), **options)).low <= mean <= i.high for _ in range(reps)])


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (3, 10), (1, 1), (0, 1), (499, 1000)])
def test_of_hits_and_misses_it_is_wilsons(hits, n):
    found = mean_interval(np.arange(n) < hits)
    low, high = wilson(hits, n)
    assert (found.value, found.n) == (hits / n, n)
    assert found.low == pytest.approx(max(0.0, low), abs=1e-12)
    assert found.high == pytest.approx(min(1.0, high), abs=1e-12)


def test_a_perfect_score_is_not_certain():
    perfect = mean_interval([1.0] * 20)
    assert (perfect.value, perfect.se, perfect.high) == (1.0, 0.0, 1.0)
    assert 0.8 < perfect.low < 0.9
    none = mean_interval([0.0] * 20)
    assert none.low == 0.0
    assert none.high == pytest.approx(1 - perfect.low)
    # Equal shares inside are not certain either, however many there are.
    halves = [mean_interval([0.5] * n) for n in (2, 20, 200)]
    widths = [half.high - half.low for half in halves]
    assert widths[0] > widths[1] > widths[2] > 0


def test_the_standard_error_is_that_of_the_mean():
    values = np.random.default_rng(0).random(50)
    assert mean_interval(values).se == pytest.approx(values.std(ddof=1) / math.sqrt(50))
    assert mean_interval([0.7]).se == 0.5
    assert mean_interval([0.7], bounds=None).se == math.inf


@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        (lambda rng, n: rng.random(n) < 0.9, 0.9),
        (lambda rng, n: rng.random(n) < 0.5, 0.5),
        (lambda rng, n: rng.beta(8, 1, n), 8 / 9),
        (lambda rng, n: rng.beta(0.2, 0.8, n), 0.2),
        (lambda rng, n: rng.binomial(3, 0.9, n) / 3, 0.9),
        (lambda rng, n: np.where(rng.random(n) < 0.8, 1.0, rng.random(n)), 0.9),
    ],
)
@pytest.mark.parametrize("n", [10, 60])
def test_it_covers_the_truth_as_often_as_it_says(draw, mean, n):
    rng = np.random.default_rng(1)
    assert coverage(lambda: draw(rng, n), mean) > 0.91


def test_the_check_of_coverage_catches_an_interval_that_is_too_narrow():
    rng = np.random.default_rng(2)
    assert coverage(lambda: rng.random(60) < 0.5, 0.5, level=0.7) < 0.8


def test_shares_are_narrower_than_hits_and_misses():
    shares = mean_interval(np.tile([0.4, 0.6], 100))
    hits = mean_interval(np.tile([0.0, 1.0], 100))
    assert shares.value == pytest.approx(hits.value)
    assert shares.high - shares.low < 0.35 * (hits.high - hits.low)


def test_other_bounds():
    values = np.random.default_rng(3).uniform(-1, 1, 40)
    moved, unit = mean_interval(values, bounds=(-1, 1)), mean_interval((values + 1) / 2)
    assert moved.low == pytest.approx(2 * unit.low - 1)
    assert moved.se == pytest.approx(2 * unit.se)
    free = mean_interval(values, bounds=None)
    low, high = stats.t.interval(0.95, 39, values.mean(), values.std(ddof=1) / math.sqrt(40))
    assert (free.low, free.high) == (pytest.approx(low), pytest.approx(high))
    # A divergence is not negative, and one record says nothing about its size.
    assert mean_interval([0.0, 0.1, 5.0], bounds=(0, math.inf)).low == 0.0
    assert mean_interval([2.0], bounds=(0, math.inf)) == Interval(2.0, 1, math.inf, 0.0, math.inf)
    assert mean_interval([2.0, math.inf], bounds=(0, math.inf)) == Interval(math.inf, 2, math.inf, 0.0, math.inf)


@pytest.mark.parametrize(
    ("values", "options", "error", "message"),
    [
        ([], {}, DataError, "no values"),
        ([0.2, math.nan], {}, DataError, "value 1 is not a number"),
        ([0.2, 1.1], {}, DataError, "value 1.1 lies outside"),
        ([0.2], {"level": 1.0}, SpecError, "level must lie between 0 and 1"),
    ],
)
def test_what_makes_no_sense_is_refused(values, options, error, message):
    with pytest.raises(error, match=message):
        mean_interval(values, **options)


def test_rounding_does_not_overstep_the_bounds():
    found = mean_interval(np.array([1.0000001, 1.0], np.float32))
    assert (found.value, found.high) == (1.0, 1.0)


def test_the_bootstrap_of_a_mean_is_its_interval():
    values = np.random.default_rng(4).normal(size=400)
    drawn = bootstrap_interval(lambda sample: float(sample.mean()), values, reps=2000)
    known = mean_interval(values, bounds=None)
    assert (drawn.value, drawn.n) == (pytest.approx(known.value), 400)
    assert drawn.se == pytest.approx(known.se, rel=0.06)
    assert (drawn.low, drawn.high) == (pytest.approx(known.low, abs=0.02), pytest.approx(known.high, abs=0.02))


def test_the_bootstrap_depends_on_its_seed_alone():
    table = np.random.default_rng(5).random((30, 3))

    def statistic(sample):
        return float(sample.mean(axis=0).min())

    first = bootstrap_interval(statistic, table, seed=1)
    np.random.seed(0)  # noqa: NPY002 - the global state must not matter
    assert bootstrap_interval(statistic, table, seed=1) == first
    assert bootstrap_interval(statistic, table, seed=2) != first
    assert first.low < first.value < first.high


def test_resamples_without_a_value_are_left_out():
    flags = np.array([1.0, 0.0, 0.0])
    found = bootstrap_interval(lambda sample: 1.0 if sample.any() else math.nan, flags)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_fewer_resamples_with_a_value_than_asked_for_have_no_limits():
    drawn = np.array([1.0, math.nan, 2.0, 3.0, math.nan])
    found = resampled_interval(2.5, 9, drawn, lambda known: (known.min(), known.max()), least=3)
    assert found == Interval(2.5, 9, 1.0, 1.0, 3.0)
    few = resampled_interval(2.5, 9, drawn, lambda known: (known.min(), known.max()), least=4)
    assert few == Interval(2.5, 9, math.inf, -math.inf, math.inf)


def test_a_bootstrap_needs_more_than_one_record():
    assert bootstrap_interval(lambda sample: 3.0, [[1, 2]]) == Interval(3.0, 1, math.inf, -math.inf, math.inf)
    with pytest.raises(DataError, match="no records"):
        bootstrap_interval(lambda sample: 3.0, [])
    with pytest.raises(DataError, match="not a number"):
        bootstrap_interval(lambda sample: math.nan, [1, 2])
    with pytest.raises(SpecError, match="reps"):
        bootstrap_interval(lambda sample: 3.0, [1, 2], reps=0)
