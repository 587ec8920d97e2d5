"""Pure-noise curves against published values, pooled formulas and simulation, each with something planted wrong."""

from __future__ import annotations

import numpy as np
import pytest

from stablediag.stats.spectra import iid_mean_shift, mp_condition, mp_edges, noise_curves, shrunk_spectrum


@pytest.mark.parametrize(
    ("rows", "expected"), [(4200, 25451), (8192, 34), (20000, 7.0), (102400, 2.25), (2_000_000, 1.20)]
)
def test_condition_number_of_noise_at_4096(rows: int, expected: float) -> None:
    assert mp_condition(rows, 4096) == pytest.approx(expected, rel=0.006)


def test_no_edges_before_the_estimate_exists() -> None:
    low, high = mp_edges([10, 33, 34, 64], 32)
    assert np.isnan(low).tolist() == [True, True, False, False]
    assert np.isnan(high).tolist() == [True, True, False, False]


def test_edges_enclose_simulated_eigenvalues_and_a_wrong_divisor_does_not() -> None:
    d, n = 100, 400
    curve = noise_curves([n], np.ones(d), repeats=5)
    low, high = mp_edges(n, d)
    assert curve["eig_min"][0] == pytest.approx(low, rel=0.08)
    assert curve["eig_max"][0] == pytest.approx(high, rel=0.08)
    # Planted violation: the edges of Psi / N, 25 % lower here, miss both.
    assert abs(curve["eig_max"][0] / (high * (n - d - 1) / n) - 1) > 0.2


def test_curves_equal_the_pooled_formula() -> None:
    """The recursion against statistics of all rows pooled, redrawn from the same seed."""
    d, rows, spectrum = 6, [9, 4, 1, 7], np.array([1.0, 2, 3, 4, 5, 6])
    found = noise_curves(rows, spectrum, seed=3)
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.standard_normal((n, d)) * np.sqrt(spectrum) for n in rows])
    ends = np.cumsum(rows)
    estimates = [np.cov(x[:n].T, bias=True) * n / (n - d - 1) for n in ends]
    for i, estimate in enumerate(estimates):
        w = np.linalg.eigvalsh(estimate)
        assert found["nu"][i] == ends[i]
        assert found["condition"][i] == pytest.approx(w[-1] / w[0], rel=1e-9)
        assert found["eig_max"][i] == pytest.approx(w[-1], rel=1e-10)
        if i:
            moved = x[: ends[i]].mean(axis=0) - x[: ends[i - 1]].mean(axis=0)
            assert found["mean_shift"][i] == pytest.approx(np.linalg.norm(moved), rel=1e-10)
            assert found["cov_shift"][i] == pytest.approx(np.linalg.norm(estimate - estimates[i - 1], 2), rel=1e-9)


def test_prior_is_relative_to_the_first_scatter() -> None:
    plain, with_prior = (noise_curves([40, 40], np.ones(8), seed=5, prior=p) for p in (0.0, 0.5))
    assert with_prior["eig_min"][0] > plain["eig_min"][0]
    assert with_prior["condition"][0] < plain["condition"][0]


def test_mean_shift_without_drift_follows_its_expectation() -> None:
    rows, spectrum = [20] * 30, np.linspace(0.5, 2, 16)
    measured = noise_curves(rows, spectrum, repeats=200, seed=1)["mean_shift"].to_numpy()[1:]
    expected = iid_mean_shift(rows, spectrum.sum())
    assert np.isnan(expected[0])
    # The mean of a norm is a little below its root mean square.
    assert measured == pytest.approx(expected[1:], rel=0.05)
    # Planted violation: with the trace of another covariance it is not.
    assert not np.allclose(measured, iid_mean_shift(rows, 2 * spectrum.sum())[1:], rtol=0.05)


def test_repeatable_and_seeded() -> None:
    a, b, c = (noise_curves([30, 30], np.ones(4), seed=s) for s in (7, 7, 8))
    assert a.equals(b)
    assert not a.equals(c)


def test_shrinkage_undoes_the_spread_of_noise() -> None:
    """A control made from the shrunk spectrum ends where the data ended; one from the raw spectrum overshoots."""
    d, n = 60, 400
    population = np.geomspace(1, 20, d)
    x = np.random.default_rng(4).standard_normal((n, d)) * np.sqrt(population)
    sample = np.linalg.eigvalsh(np.cov(x.T))
    shrunk = shrunk_spectrum(sample, n)
    assert shrunk.sum() == pytest.approx(sample.sum())
    assert np.std(shrunk) == pytest.approx(np.std(population), rel=0.08)
    # Planted violation: without shrinkage the spread is too wide, and simulating from it doubles the excess.
    assert np.std(sample) > 1.08 * np.std(population)
    ends = [noise_curves([n], values, repeats=5)["condition"][0] for values in (population, shrunk, sample)]
    assert abs(np.log(ends[1] / ends[0])) < 0.5 * abs(np.log(ends[2] / ends[0]))


def test_isotropic_noise_is_shrunk_to_nothing() -> None:
    x = np.random.default_rng(6).standard_normal((300, 40))
    found = shrunk_spectrum(np.linalg.eigvalsh(np.cov(x.T)), 300)
    assert found.max() / found.min() < 1.5
    assert np.array_equal(shrunk_spectrum(np.ones(5), 10), np.ones(5))
