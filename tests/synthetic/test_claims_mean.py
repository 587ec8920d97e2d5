"""Claims about the running mean: they come out as predicted, and a wrong number in any of their cells is noticed."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

from stablediag.stats import theory
from synthetic.bounds import Bound
from synthetic.claims import Scale, _mean_cells, _mean_dependence, _mean_tracking, mean
from synthetic.claims._mean_cells import (
    Run,
    drifting,
    independent,
    last_decade,
    measure_fresh,
    measure_path,
    oracle,
    serial_factor,
)
from synthetic.claims._mean_dependence import KINDS, PLANTED
from synthetic.claims._mean_paths import SETTINGS
from synthetic.grid import Result, run_cells
from synthetic.process import MeanDrift, Noise, Process
from synthetic.reduce import mean_slope, slope
from synthetic.tracks import track_mean

CLAIMS = {claim.id: claim for claim in mean.CLAIMS}
QUICK = Scale(quick=True)


@pytest.fixture(scope="module")
def found():
    """Cells and results of every claim at the small scale."""
    work = {name: claim.cells(QUICK) for name, claim in CLAIMS.items()}
    results = iter(run_cells([cell for cells in work.values() for cell in cells]))
    return {name: (cells, [next(results) for _ in cells]) for name, cells in work.items()}


@pytest.fixture(scope="module")
def rows(found):
    return {name: CLAIMS[name].rows(*pair) for name, pair in found.items()}


@pytest.mark.parametrize("claim", CLAIMS)
def test_every_row_is_as_predicted_and_every_violation_is_caught_with_power(rows, claim):
    assert [(one.setting, one.verdict, one.z) for one in rows[claim] if not one.ok] == []
    assert all(one.power > 0.99 for one in rows[claim] if one.planted)
    assert len({one.setting for one in rows[claim]}) == len(rows[claim])
    json.dumps([one.as_dict() for one in rows[claim]], allow_nan=False)


def test_rows_cover_what_is_claimed(rows):
    theorem = rows["theorem-3.5"]
    assert sum(one.tests for one in theorem if one.setting.endswith("drifting covariance")) == 144
    assert sum("slope of the drift part" in one.setting for one in theorem) == len(SETTINGS) == 9
    assert sum(one.paper is not None and not one.planted for one in theorem) == 9
    assert {one.setting for one in rows["tracking"] if one.planted} >= {
        f"planted: {drift}: the error falls (slope over the last decade)"
        for drift in ("fixed drift, alpha = 0.75", "fixed drift, alpha = 0.25", "random drift, alpha = 0.25")
    }
    sentence = [one for one in rows["audit-1"] if "never above" in one.setting]
    assert [one.verdict for one in sentence] == ["false", "false", "holds"]
    assert len(rows["dependence"]) == len(KINDS) + len(PLANTED)


def test_planted_rows_alone_are_wrong_on_purpose(rows):
    assert [sum(one.planted for one in rows[name]) for name in CLAIMS] == [8, 5, 0, 4]


#: cells whose errors are compared with exact values, and cells whose slopes are
ERRORS = {"theorem-3.5": (0, 13, 47, 48, 56), "tracking": (9, 10, 11), "audit-1": (0, 1, 2), "dependence": (0, 4, 6, 7)}
SLOPES = {("theorem-3.5", "lag"): (48, 57, 58), ("tracking", "trend"): (0, 2, 5)}


def spoiled(found, claim: str, i: int, name: str, error: str) -> list[str]:
    """Settings that come out other than predicted when one number of a cell is 30 standard errors off."""
    cells, results = found[claim]
    values = dict(results[i].values) | {name: results[i][name] + 30 * results[i][error]}
    spoiled = [*results[:i], Result(values, 0.0), *results[i + 1 :]]
    return [one.setting for one in CLAIMS[claim].rows(cells, spoiled) if not one.ok]


@pytest.mark.parametrize(("claim", "i"), [(claim, i) for claim, indices in ERRORS.items() for i in indices])
def test_a_wrong_error_is_noticed(found, claim, i):
    assert spoiled(found, claim, i, "mean", "error")


@pytest.mark.parametrize(("claim", "name", "i"), [(*key, i) for key, indices in SLOPES.items() for i in indices])
def test_a_wrong_slope_is_noticed(found, claim, name, i):
    (setting,) = spoiled(found, claim, i, name, f"{name}_error")
    assert "slope" in setting


def test_a_wrong_prediction_error_is_noticed(found):
    (setting,) = spoiled(found, "theorem-3.5", 49, "before_mean", "before_error")
    assert setting == "fixed drift, alpha = 1: error after 300 steps"


def test_a_tracker_that_forgets_is_noticed(monkeypatch):
    monkeypatch.setattr(_mean_cells, "track_mean", partial(track_mean, forget=0.9))
    cells = _mean_dependence._cells(QUICK)[:1]
    results = run_cells(cells)
    run = Run.of(cells[0], results[0])
    assert run.equals(oracle(run.process).total).verdict == "false"


def test_seeds_are_those_of_one_setting_and_shared_runs_are_equal(found):
    by_seed: dict[int, set[str]] = {}
    for cells, _ in found.values():
        for cell in cells:
            by_seed.setdefault(cell.seed, set()).add(cell.digest())
    assert all(len(digests) == 1 for digests in by_seed.values())
    shared = {cell.digest() for cell in found["theorem-3.5"][0]} & {cell.digest() for cell in found["tracking"][0]}
    assert len(shared) == 7
    for scale in (QUICK, Scale(), Scale(seed=1, reps=50)):
        for claim in CLAIMS.values():
            json.dumps([dict(cell.params) for cell in claim.cells(scale)], allow_nan=False)


def test_exact_values_of_long_runs_are_the_known_ones():
    def curve(name: str, setting) -> float:
        process = Process.from_params(drifting(Scale(), setting).params["process"])
        return float(Bound(name, process).curve[-1])

    fixed = {0.75: 2.567, 1.0: 0.0898, 1.25: 4.01e-3, 2.0: 5.14e-4}
    for alpha, value in fixed.items():
        assert curve("exact_mse", ("fixed", alpha)) == pytest.approx(value, rel=2e-3)
        assert curve("worst_mse", ("fixed", alpha)) == pytest.approx(value, rel=2e-3)
    assert curve("exact_mse", ("rotating", 0.25)) == pytest.approx(0.02307, rel=1e-3)
    assert curve("paper_mse", ("fixed", 1.25)) / 4.006e-3 == pytest.approx(3.81, abs=0.01)
    assert curve("paper_mse_closed", ("fixed", 2.0)) / 5.136e-4 == pytest.approx(26.85, abs=0.05)


def test_the_error_rises_after_a_warm_start_whose_target_drifts_by_summable_steps():
    trace, n, warmup = Process().traces()[0], 20, 100
    drift = 0.3 * np.arange(1.0, 200)[:, None] ** -1.25
    start = trace / (n * warmup)
    after = theory.exact_mse(drift, np.full(199, trace), n=n, kappa0=n * warmup, b0=np.zeros(1), v0=start).total
    assert start == pytest.approx(0.0103, abs=5e-5)
    assert (after.argmax() + 1, after.max()) == (23, pytest.approx(0.5034, abs=1e-4))


@pytest.mark.parametrize("scale", [QUICK, Scale()])
def test_the_exact_error_rises_below_the_threshold_and_falls_above(scale):
    for setting in _mean_tracking.SETTINGS:
        cell = drifting(scale, setting)
        run = Run.of(cell, Result({}, 0.0))
        rising = run.slope_of(independent(run.process).total) > 0
        assert rising == (setting[1] <= theory.tracking_threshold(setting[0]))


@pytest.mark.parametrize("rho", [-0.4, 0.0, 0.5])
def test_serial_factor_is_the_double_sum(rho):
    lags = np.abs(np.subtract.outer(np.arange(40), np.arange(40)))
    twin = [(rho ** lags[:t, :t]).sum() / t for t in range(1, 41)]
    np.testing.assert_allclose(serial_factor(rho, 40), twin, rtol=1e-12)
    assert serial_factor(rho, 20000)[-1] == pytest.approx((1 + rho) / (1 - rho), rel=1e-3)


@pytest.mark.parametrize("noise", [Noise(dependence="ar1", rho=0.6), Noise(dependence="tokens", tokens=2, rho=0.5)])
def test_oracle_is_the_covariance_of_the_weighted_sum(noise):
    process = Process(d=3, n=4, steps=12, noise=noise, mean=MeanDrift(C=0.4, alpha=0.5, direction="random"))
    mu, trace = process.means(), process.traces()[0]
    lags = np.abs(np.subtract.outer(np.arange(12), np.arange(12)))
    between = noise.rho**lags if noise.dependence == "ar1" else 1.5 * np.eye(12)
    exact = oracle(process)
    for t in range(1, 13):
        variance = between[:t, :t].sum() / t**2 * trace / 4
        assert exact.total[t - 1] == pytest.approx(((mu[:t].mean(axis=0) - mu[t - 1]) ** 2).sum() + variance)
        if t < 12:
            assert exact.prediction[t] == pytest.approx(((mu[:t].mean(axis=0) - mu[t]) ** 2).sum() + variance)


def test_slope_and_jackknife_are_those_of_explicit_loops():
    steps = np.array([10, 30, 100])
    assert slope(steps, 5.0 * steps**-1.3) == pytest.approx(-1.3)
    values = np.random.default_rng(0).gamma(4.0, size=(25, 3)) * steps**-0.5 + 2.0
    assert float(slope(steps, values.mean(axis=0) - 2.0)) == mean_slope(steps, values, 2.0)[0]
    left = [np.polyfit(np.log(steps), np.log(np.delete(values, i, axis=0).mean(axis=0) - 2.0), 1)[0] for i in range(25)]
    assert mean_slope(steps, values, 2.0)[1] == pytest.approx(np.sqrt(24 / 25 * ((left - np.mean(left)) ** 2).sum()))


def test_a_drift_hidden_by_the_noise_has_no_slope():
    assert np.isnan(mean_slope([10, 100], np.ones((5, 2)), [0.5, 1.5])[0])


def test_last_decade_has_both_ends():
    assert last_decade([2, 19, 20, 63, 200]).tolist() == [False, False, True, True, True]


def test_cells_are_reductions_of_the_tracker():
    process = Process(d=4, n=5, steps=30, mean=MeanDrift(C=1.0, alpha=0.5))
    path = measure_path(seed=3, process=process.params(), reps=20, steps=[3, 10, 30])
    track = track_mean(process, reps=20, seed=3, steps=[3, 10, 30])
    np.testing.assert_allclose(path["mean"], track.error2.mean(axis=0))
    np.testing.assert_allclose(path["before_error"], track.prediction2.std(axis=0, ddof=1) / np.sqrt(20))
    noise = independent(process).variance[[2, 9, 29]]
    assert (path["trend"], path["trend_error"]) == pytest.approx(mean_slope([3, 10, 30], track.error2))
    assert (path["lag"], path["lag_error"]) == pytest.approx(mean_slope([3, 10, 30], track.error2, noise))


def test_fresh_steps_do_not_share_their_noise():
    process = Process(d=4, n=5, steps=30).params()
    one = measure_fresh(seed=3, process=process, reps=20, steps=[29, 30])
    alone = measure_fresh(seed=3, process=process, reps=20, steps=[30])
    assert one["mean"][1] == alone["mean"][0]
    # On one path the two would agree to a few per cent; their correlation is 29/30.
    assert abs(one["mean"][0] / one["mean"][1] - 1) > 0.02
