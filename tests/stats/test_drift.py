"""Exponents and coherence of a drift: against known laws, coverage of the intervals, and the estimators that would be wrong."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import signal

from stablediag.errors import DataError, SpecError, StoreError
from stablediag.stats.drift import coherence, power_law, variogram_noise
from stablediag.stats.drift_tables import drift_table
from stablediag.stats.quasi import log_linear, time_mean
from stablediag.stats.theory import horizon as exact_horizon
from stablediag.stats.theory import lag as exact_lag

NOISE, D = 0.3, 32


def drift_steps(kind, total, size, alpha, rng, d=D):
    """Steps of length ``size t^-alpha``; the first is zero."""
    lengths = size * np.arange(1, total + 1.0) ** -alpha
    lengths[0] = 0
    directions = np.zeros((total, d))
    directions[:, 0] = 1
    if kind == "diffusive":
        directions = rng.standard_normal((total, d))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return lengths[:, None] * directions


def lags_of(total):
    return [2**k for k in range(7) if 3 * 2**k < total]


def variogram_of(means, rng, noise=NOISE, *, raw=False):
    """Unbiased squared distances of noisy batch means at doubling lags; `raw` forgets to take the noise off."""
    total, d = means.shape
    v = means + rng.standard_normal(means.shape) * math.sqrt(noise / d)
    parts = []
    for lag in lags_of(total):
        value = np.square(v[lag:] - v[:-lag]).sum(axis=1) - (0 if raw else 2 * noise)
        parts.append(pd.DataFrame({"step": np.arange(lag + 1, total + 1), "lag": lag, "value": value}))
    return pd.concat(parts).sort_values(["step", "lag"], ignore_index=True)


def simulated(kind, total, size, alpha, seed, **options):
    rng = np.random.default_rng(seed)
    return variogram_of(np.cumsum(drift_steps(kind, total, size, alpha, rng), axis=0), rng, **options)


def probes_of(rng, total, alpha, d=20, share=0.25):
    """Squared means of paired differences whose noise shrinks with them: unbiased, at times negative."""
    rows = rng.standard_normal((total, d)) * share
    rows[:, 0] += 1
    return np.arange(1, total + 1.0) ** (-2 * alpha) * (np.square(rows).sum(axis=1) - d * share**2)


def test_solves_the_estimating_equation_that_a_bisection_solves():
    rng = np.random.default_rng(0)
    t = np.arange(1.0, 81)
    y = t**-1.2 * (rng.standard_exponential(80) - 0.3)
    assert (y < 0).any()
    x = np.log(t)

    def score(b):
        m = t**b
        # The level profiles out: only the slope's equation is left.
        return float(np.sum((y / m / np.mean(y / m) - 1) * x))

    low, high = -4.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if score(low) * score(middle) <= 0 else (middle, high)
    fit = power_law(t, y)
    assert fit.exponent.value == pytest.approx(-low / 2, abs=1e-6)
    # Scale and unit do not matter.
    assert power_law(t, 1e-30 * y).exponent.value == pytest.approx(fit.exponent.value, abs=1e-7)
    assert power_law(t, y, power=1).exponent.value == pytest.approx(2 * fit.exponent.value, abs=1e-7)
    np.testing.assert_allclose(power_law(t, 5.0 * t**-1.0).at([1, 4]), [math.sqrt(5), math.sqrt(5) / 2], rtol=1e-6)


def test_noise_of_known_size_weighs_as_the_definition_says():
    rng = np.random.default_rng(1)
    x = np.column_stack([np.ones(60), np.linspace(0, 3, 60)])
    s = rng.uniform(0.5, 2, 60)
    y = np.exp(x @ [1.0, -0.7]) + s * rng.standard_normal(60)
    fit = log_linear(x, y, noise=s)
    v = fit.fitted**2 + s**2
    np.testing.assert_allclose(x.T @ (fit.fitted * (y - fit.fitted) / v), 0, atol=1e-6)
    np.testing.assert_allclose(fit.spread, np.sqrt(v))


@pytest.mark.parametrize("law", ["exponential", "probes", "correlated"])
def test_intervals_of_the_exponent_cover(law):
    """4,000 replicates gave 97.2, 97.6, 97.2 % (sandwich) and 94.9, 95.1, 95.3 % (bootstrap); 240 have wider limits."""
    rng = np.random.default_rng(2)
    alpha, total, hits, drawn, found = 0.7, 100, 0, 0, []
    t = np.arange(1, total + 1.0)
    for i in range(240):
        if law == "probes":
            y = probes_of(rng, total, alpha)
        elif law == "exponential":
            y = t ** (-2 * alpha) * rng.standard_exponential(total)
        else:
            z = signal.lfilter([math.sqrt(0.75)], [1, -0.5], rng.standard_normal(total + 50))[50:]
            y = t ** (-2 * alpha) * np.exp(0.7 * z - 0.245)
        fit = power_law(t, y)
        assert fit.visible
        found.append(fit.exponent.value)
        hits += fit.exponent.low <= alpha <= fit.exponent.high
        if i < 60:
            interval = fit.fit.bootstrap([0, -0.5], reps=99, seed=i)
            assert interval.value == fit.exponent.value
            drawn += interval.low <= alpha <= interval.high
    assert 0.92 - 0.05 <= hits / 240 <= 1.0
    assert 0.92 - 0.12 <= drawn / 60 <= 1.0
    # Negligible beside its own spread.
    assert abs(np.mean(found) - alpha) < 0.25 * np.std(found)


def test_regressing_logarithms_is_worse():
    """The planted wrong estimator: logarithms of what is positive; noise of a fixed size flattens the decay."""
    rng = np.random.default_rng(3)
    t, right, covered, wrong = np.arange(1, 201.0), [], 0, []
    for _ in range(60):
        y = t**-1.4 * rng.gamma(10, 0.1, 200) + 0.02 * rng.standard_normal(200)
        kept = y > 0
        assert not kept.all()
        found = power_law(t, y, noise=0.02).exponent
        right.append(found.value - 0.7)
        covered += found.low <= 0.7 <= found.high
        wrong.append(-np.polyfit(np.log(t[kept]), np.log(y[kept]), 1)[0] / 2 - 0.7)
        # Nor may the noise stay in, as it does in a squared distance from which nothing is taken off.
        assert power_law(t, y + 0.05, noise=0.02).exponent.high < 0.7
    assert abs(np.mean(right)) < 4 * np.std(right) / math.sqrt(60) + 0.005
    assert covered >= 52
    assert np.mean(wrong) < -0.15
    assert np.sqrt(np.mean(np.square(right))) < 0.3 * np.sqrt(np.mean(np.square(wrong)))


@pytest.mark.parametrize(
    ("kind", "size", "alpha", "p", "label"),
    [
        ("ballistic", 0.3, 0.0, 2, "ballistic"),
        ("ballistic", 0.3, 0.4, 2, "ballistic"),
        ("diffusive", 0.6, 0.0, 1, "diffusive"),
        ("diffusive", 0.6, 0.25, 1, "diffusive"),
    ],
)
def test_coherence_threshold_and_horizon_are_recovered(kind, size, alpha, p, label):
    total, hits, labels, tracked = 200, np.zeros(4), 0, []
    for seed in range(16):
        found = coherence(simulated(kind, total, size, alpha, seed), noise=variogram_noise(NOISE, D))
        at_end = size * total**-alpha
        true_horizon = float(exact_horizon(at_end, NOISE, "fixed" if kind == "ballistic" else "random"))
        t_star = found.horizon(NOISE)
        pairs = [(found.slope, p), (found.exponent, alpha), (found.margin, alpha - p / 2), (t_star, true_horizon)]
        hits += [interval.low <= value <= interval.high for interval, value in pairs]
        labels += found.kind == label
        tracked.append(found.tracks)
        assert found.threshold == pytest.approx(min(max(found.slope.value, 0), 2) / 2)
    # At 95 % coverage, fewer than 12 of 16 have a probability of 1e-3.
    assert (hits >= 12).all()
    assert labels >= 15
    assert tracked.count("no") >= 15


def test_the_horizon_goes_with_the_slope_as_it_was_estimated():
    """The planted violation: with the slope cut at 2, what was estimated with a larger one is no longer its level."""
    truth, hits, cut = float(exact_horizon(0.3 * 200**-0.4, NOISE, "fixed")), 0, 0
    for seed in range(120):
        found = coherence(simulated("ballistic", 200, 0.3, 0.4, seed), noise=variogram_noise(NOISE, D))
        t_star = found.horizon(NOISE)
        hits += t_star.low <= truth <= t_star.high
        wrong = replace(found, slope=replace(found.slope, value=min(found.slope.value, 2.0))).horizon(NOISE)
        cut += wrong.low <= truth <= wrong.high
    # At 95 % coverage, fewer than 105 of 120 have a probability of 1e-3; 4,000 with the slope cut covered in 80 %.
    assert hits >= 105
    assert cut < 105


def test_no_wave_is_faster_than_the_longest_lag():
    """Values of lag k have k steps in common: with 0.4 n^(2/3) waves the slope of a short record was held in 91 % of 4,000."""
    short, long = (coherence(simulated("diffusive", n, 0.6, 0, 3), noise=variogram_noise(NOISE, D)) for n in (200, 900))
    assert short.fit.waves == 6
    assert long.fit.waves == 28
    free = replace(short.fit, waves=None)
    assert free.contrast([0, 1, 0]).se != short.slope.se
    assert replace(long.fit, waves=None).contrast([0, 1, 0]) == long.slope


def test_a_mean_that_comes_back_is_stationary_and_none_is_invisible():
    rng, kinds, seen = np.random.default_rng(4), [], 0
    for _ in range(12):
        mu = np.zeros((200, D))
        for i in range(1, 200):
            mu[i] = 0.3 * mu[i - 1] + rng.standard_normal(D) / math.sqrt(D)
        kinds.append(coherence(variogram_of(mu, rng), noise=variogram_noise(NOISE, D)).kind)
        still = coherence(variogram_of(np.zeros((200, D)), rng), noise=variogram_noise(NOISE, D))
        seen += still is not None and still.visible
        assert still is None or still.visible or still.tracks == "unknown"
    assert kinds.count("stationary") == 12
    assert seen <= 2


def test_forgetting_to_take_the_noise_off_is_caught():
    """The planted violation: with the noise left in, a diffusive drift looks less coherent than it is."""
    wrong = [coherence(simulated("diffusive", 200, 0.3, 0, s, raw=True), noise=0.05).slope for s in range(10)]
    right = [
        coherence(simulated("diffusive", 200, 0.3, 0, s), noise=variogram_noise(NOISE, D)).slope for s in range(10)
    ]
    assert sum(i.high < 1 for i in wrong) == 10
    assert sum(i.low <= 1 <= i.high for i in right) >= 8


def test_the_horizon_between_the_two_laws_is_where_lag_meets_noise():
    """At p = 2 and 1 the closed form of the theory; the lag of the running mean at t* is the noise there."""
    t = np.arange(1, 401)
    steps, lags = np.repeat(t, 3), np.tile([1, 2, 4], 400)
    for p, direction in ((2.0, "fixed"), (1.0, "random")):
        frame = pd.DataFrame({"step": steps, "lag": lags, "value": 0.04 * lags**p})
        found = coherence(frame, noise=0.01)
        assert found.slope.value == pytest.approx(p, abs=1e-6)
        assert found.horizon(2.0).value == pytest.approx(float(exact_horizon(0.2, 2.0, direction)), rel=1e-5)
    drift = np.zeros((400, 1))
    drift[1:] = 0.2
    b2 = np.square(exact_lag(drift, 1.0 / t)).sum(axis=1)
    crossing = int(t[np.argmax(b2 > 200 / t)])
    assert crossing == pytest.approx(float(exact_horizon(0.2, 200, "fixed")), rel=0.1)


def test_the_noise_of_a_variogram_is_what_it_says():
    values = simulated("diffusive", 400, 0.0, 0, 7)["value"]
    assert values[::9].std() == pytest.approx(variogram_noise(NOISE, D), rel=0.15)
    # Without a given noise it is taken from neighbours, and little changes.
    frame = simulated("diffusive", 200, 0.6, 0.25, 8)
    own, given = coherence(frame), coherence(frame, noise=variogram_noise(NOISE, D))
    assert own.slope.value == pytest.approx(given.slope.value, abs=0.1)


def test_binning_a_long_record_changes_little():
    frame = simulated("diffusive", 900, 0.6, 0.2, 9)
    sd = variogram_noise(NOISE, D)
    few, all_ = coherence(frame, noise=sd), coherence(frame, noise=sd, bins=2000)
    assert few.slope.value == pytest.approx(all_.slope.value, abs=0.1)
    assert few.exponent.value == pytest.approx(all_.exponent.value, abs=0.1)


class Fake:
    def __init__(self, **tables):
        self.tables = tables

    def table(self, name):
        if name not in self.tables:
            raise StoreError(f"no table {name}")
        return self.tables[name]


def test_the_table_of_a_run():
    rng = np.random.default_rng(10)
    frame = simulated("diffusive", 200, 0.6, 0.25, 10)
    step = np.arange(9, 200, 10)
    # Change over ten steps of a diffusive drift, and a covariance that settles.
    size2 = 10 * 0.36 * (step - 3.5) ** -0.5 * rng.gamma(20, 1 / 20, len(step))
    run = Fake(
        variogram=frame.assign(step=frame["step"] - 1, module="a"),
        tracking=pd.DataFrame({"step": range(200), "module": "a", "prior_error_null": NOISE, "effective_rank": D}),
        probes=pd.DataFrame({"step": step, "module": "a", "mean_sq": size2, "sigma_change": (step - 3.5) ** -1.5}),
    )
    (row,) = drift_table(run).to_dict("records")
    assert row["alpha_from"] == "probes"
    assert row["alpha_low"] <= 0.25 <= row["alpha_high"]
    assert row["beta"] == pytest.approx(1.5, abs=0.15)
    assert row["kind"] == "diffusive"
    assert row["tracks"] == "no"
    assert row["size"] == pytest.approx(0.6 * 200**-0.25, rel=0.2)
    assert row["horizon_low"] <= float(exact_horizon(0.6 * 200**-0.25, NOISE, "random")) <= row["horizon_high"]
    # A run that ends in infinities has a drift until then.
    broken = run.tables["probes"].assign(mean_sq=np.where(step > 150, np.inf, size2))
    (until,) = drift_table(Fake(**run.tables | {"probes": broken})).to_dict("records")
    assert until["alpha"] == pytest.approx(row["alpha"], abs=0.1)
    # Without probes the variogram answers; with nothing, nothing is claimed.
    del run.tables["probes"]
    (row,) = drift_table(run).to_dict("records")
    assert row["alpha_from"] == "variogram"
    assert math.isnan(row["beta"])
    del run.tables["variogram"]
    assert drift_table(run).empty
    run.tables["probes"] = pd.DataFrame({"step": step, "module": "a", "mean_sq": size2})
    (row,) = drift_table(run).to_dict("records")
    assert (row["alpha_from"], row["tracks"]) == ("probes", "unknown")


def test_the_mean_of_a_series_covers_under_correlation():
    rng, hits, naive = np.random.default_rng(11), 0, 0
    for _ in range(300):
        y = signal.lfilter([math.sqrt(0.75)], [1, -0.5], rng.standard_normal(250))[50:]
        found = time_mean(y)
        hits += found.low <= 0 <= found.high
        naive += abs(y.mean()) <= 1.97 * y.std(ddof=1) / math.sqrt(200)
    assert 0.90 <= hits / 300 <= 0.985
    assert naive / 300 < 0.82


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: power_law([0, 1], [1, 1]), DataError, "from 1 or more"),
        (lambda: power_law([1, 1, 2], [1, 1, 1]), DataError, "ascend"),
        (lambda: power_law(range(1, 8), [1.0] * 7), DataError, "at least 8"),
        (lambda: power_law(range(1, 10), [1.0] * 8 + [math.nan]), DataError, "not a finite number"),
        (lambda: power_law(range(1, 10), [1.0] * 9, power=0), SpecError, "positive"),
        (lambda: power_law(range(1, 10), [1.0] * 9, method="jackknife"), SpecError, "sandwich"),
        (lambda: power_law(range(1, 10), [1.0] * 9, level=1), SpecError, "between 0 and 1"),
        (lambda: coherence(pd.DataFrame({"step": [1]})), DataError, "lacks lag, value"),
        (lambda: coherence(pd.DataFrame({"step": [5], "lag": [1], "value": [1.0]})), DataError, "two lags"),
        (lambda: variogram_noise(1, 0), SpecError, "effective_rank"),
        (lambda: log_linear(np.ones((9, 1)), np.ones(9), relative=0), DataError, "working variance"),
        (lambda: log_linear(np.ones((9, 1)), np.ones(8)), DataError, "do not fit"),
        (lambda: time_mean([1.0] * 7), DataError, "8 values"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_nothing_but_noise_or_zero_has_no_law():
    assert power_law(range(1, 20), [-1.0] * 19) is None
    assert power_law(range(1, 20), [0.0] * 19) is None
    fit = log_linear(np.ones((20, 1)), np.arange(20.0))
    with pytest.raises(SpecError, match="block"):
        fit.bootstrap([1.0], block=20)
    with pytest.raises(SpecError, match="replicates"):
        fit.bootstrap([1.0], reps=5)
    twice = log_linear(np.ones((20, 1)), np.arange(20.0), place=np.repeat(np.arange(10), 2))
    with pytest.raises(DataError, match="use contrast"):
        twice.bootstrap([1.0])
