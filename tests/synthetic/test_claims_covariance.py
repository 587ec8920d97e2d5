"""Claims about the running covariance: what they come to, what they catch, and the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from stablediag.stats import theory
from synthetic import bounds, reduce, tracks
from synthetic.certify import Row
from synthetic.claims import Claim, Scale
from synthetic.claims import _covariance_audits as audits
from synthetic.claims import _covariance_common as common
from synthetic.claims import _covariance_error as error
from synthetic.claims import _covariance_forgetting as forgetting
from synthetic.claims import _covariance_moments as moments
from synthetic.claims import _covariance_noise as noise
from synthetic.claims.covariance import CLAIMS
from synthetic.grid import Cell, Result, run_cells
from synthetic.process import CovDrift, MeanDrift, Process
from tests.twins import pooled_moments, weighted_moments

QUICK = Scale(quick=True)
Work = tuple[Claim, Sequence[Cell], Sequence[Result]]


@pytest.fixture(scope="module")
def done() -> dict[str, Work]:
    """Every claim, computed once at the quick scale."""
    out = {}
    for claim in CLAIMS:
        cells = claim.cells(QUICK)
        out[claim.id] = (claim, cells, run_cells(cells))
    return out


def _changed(work: Work, change: Callable[[str, Any], Any]) -> list[Row]:
    """Rows when every stored value has gone through `change`."""
    claim, cells, results = work
    altered = [
        replace(result, values={key: change(key, value) for key, value in result.values.items()}) for result in results
    ]
    return claim.rows(cells, altered)


def _surprises(rows: Sequence[Row]) -> list[str]:
    return [one.setting for one in rows if not one.ok]


class TestClaims:
    def test_every_row_comes_out_as_predicted(self, done: dict[str, Work]) -> None:
        rows = [one for claim, cells, results in done.values() for one in claim.rows(cells, results)]
        assert _surprises(rows) == []
        assert sum(one.planted for one in rows) == 10
        assert all(one.power is not None and one.power > 0.99 for one in rows if one.planted)
        assert sum(one.expected == "false" for one in rows) == 7
        assert sum(one.tests for one in rows) < 300

    def test_identifiers_and_cells(self) -> None:
        assert [claim.id for claim in CLAIMS] == [
            "theorem-3.6",
            "mean-covariance",
            "remark-D.5",
            "forgetting-covariance",
            "audit-3",
            "audit-4",
            "audit-11",
            "audit-12",
            "pure-noise",
        ]
        for scale in (QUICK, Scale()):
            cells = [cell for claim in CLAIMS for cell in claim.cells(scale)]
            assert len({cell.seed for cell in cells}) == len(cells)
        assert all(cell.params["reps"] == 9 for cell in CLAIMS[0].cells(Scale(quick=True, reps=9)))

    @pytest.mark.parametrize(
        ("claim", "key", "change", "caught"),
        [
            ("theorem-3.6", "tight", lambda x: x / 2, error.SLOPE),
            ("theorem-3.6", "paper", lambda x: x / 200, error.SLOPE),
            ("theorem-3.6", "slope", lambda x: x + 0.15, f"slope of the error, {error.SLOPE}"),
            ("mean-covariance", "exact", lambda x: 1.1 * x, moments.BOTH),
            ("remark-D.5", "bias", lambda x: x + 0.02, "relative bias of a cold start is d/(N-d-1), d=32"),
            ("remark-D.5", "error", lambda x: 30 * x, "floor times N/(N-d-1) bounds a cold start, d=32 n=8 geo"),
            (
                "forgetting-covariance",
                "bound",
                lambda x: x / 4,
                "weighted bound, d=16 n=40 geo, Sigma drift 0.002 a step",
            ),
            ("forgetting-covariance", "rise", lambda x: -x, "best window, d=16 n=40 geo, Sigma drift 0.002 a step"),
            ("forgetting-covariance", "less_slow", lambda x: -x, "two rates, mean drift 0.1 a step too"),
            ("forgetting-covariance", "mean_fast", lambda x: 2 * x, "two rates, mean drift 0.1 a step too"),
            ("audit-3", "slope", lambda x: x - 0.5, "averaged mean error is O(ln t/t), alpha 1.25"),
            ("audit-3", "slope", lambda x: x - 0.5, "averaged mean error falls as t^(2-2 alpha), alpha 1.25"),
            ("audit-4", "above_signed", lambda x: -x, "recursion through a negative weight, d=64 n=20, N = 60 to 80"),
            (
                "audit-4",
                "above_absolute",
                lambda x: -x,
                "recursion with the weight's absolute value, d=64 n=20, N = 60 to 80",
            ),
            ("audit-11", "error", lambda x: x + 20, "the floor is irreducible, d=64 n=20 iso, N=20000"),
            ("audit-12", "norm", lambda x: 0 * x + x[0], "moments of Sh^-1 are naturally bounded: no growth with N"),
            ("audit-12", "norm", lambda x: 2 * x, "|Sh^-1| is at most (N-d-1)/prior, and attains it"),
            (
                "audit-12",
                "p",
                lambda x: x * 1e-12,
                "(N-d-1)/(u'Sh^-1 u) is chi-square with N-d degrees of freedom, d=8",
            ),
            (
                "audit-12",
                "adversarial",
                lambda x: 1.01 * x,
                "|phi_i| is at most 1 x |h~_i|^2/(2 sqrt lam), for any keys",
            ),
            ("pure-noise", "condition", lambda x: x + 1, "condition number falls although nothing moves, d=64 n=20"),
            ("pure-noise", "eig_max", lambda x: x - 0.5, "largest eigenvalue falls although nothing moves, d=64 n=20"),
            (
                "pure-noise",
                "mean_step2",
                lambda x: 2 * x,
                "step of the mean although nothing moves, squared, d=64 n=20",
            ),
            (
                "pure-noise",
                "cov_step_slope",
                lambda x: x + 1,
                "step of the covariance falls about as 1/t although nothing moves, d=64 n=20",
            ),
        ],
    )
    def test_wrong_number_is_seen(
        self, done: dict[str, Work], claim: str, key: str, change: Callable[[Any], Any], caught: str
    ) -> None:
        rows = _changed(done[claim], lambda name, value: change(value) if name == key else value)
        assert caught in _surprises(rows)

    def test_one_long_path(self) -> None:
        work = {"process": common.params(16, 20, 200), "steps": [10, 50, 200]}
        result = Result(error.measure_long(seed=3, **work), 1.0)
        cell = Cell("synthetic.claims._covariance_error:measure_long", work, 3)
        (held,) = error.CLAIM.rows([cell], [result])
        assert held.ok
        assert held.tests == 3
        far = Result({**result.values, "error": 3 * result["error"]}, 1.0)
        (broken,) = error.CLAIM.rows([cell], [far])
        assert broken.verdict == "false"


class TestCommon:
    def test_states_pool_the_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        process = Process.from_params(common.params(4, 3, 9, mean=MeanDrift(C=0.5)))
        monkeypatch.setattr(tracks, "CHUNK", 2 * 3 * 4 * 2)  # two batches at a time
        sampler = process.sampler(2, 7)
        rows = torch.cat([sampler.next(2), sampler.next(2), sampler.next(1), sampler.next(2), sampler.next(2)], dim=1)
        for step, state in zip([5, 9], common.states(process, reps=2, seed=7, steps=[5, 9], prior=0.3), strict=True):
            for r in range(2):
                mean, scatter = pooled_moments(rows[r, :step].reshape(-1, 4).numpy(), 0.3)
                np.testing.assert_allclose(state.mean[r], mean, atol=1e-12)
                np.testing.assert_allclose(state.scale[r], scatter, atol=1e-11)

    def test_slope_of_a_power_law(self) -> None:
        x = np.array([1.0, 3.0, 10.0])
        assert reduce.slope(x, 5 * x**-0.7) == pytest.approx(-0.7)

    def test_jackknife_error_is_the_spread_of_the_slope(self) -> None:
        rng = np.random.default_rng(1)
        x = np.array([1.0, 2.0, 4.0, 8.0])
        found = [reduce.mean_slope(x, x**-1.0 * rng.gamma(2.0, size=(30, 4))) for _ in range(400)]
        slopes, errors = np.array(found).T
        assert abs(slopes.mean() + 1) < 4 * slopes.std() / 20
        assert errors.mean() == pytest.approx(slopes.std(), rel=0.15)

    def test_pooled_bound_with_constant_covariance(self) -> None:
        process = Process.from_params(common.params(6, 4, 50, geometric=0.1, mean=MeanDrift(C=0.4, alpha=0.5)))
        rows, eigenvalues = 4 * 30, np.geomspace(1, 0.1, 6)
        means = process.means()[:30]
        B = (means - means.mean(axis=0)).T @ (means - means.mean(axis=0)) / 30
        a = math.sqrt(eigenvalues.sum() / rows)
        bias = np.linalg.norm(rows * B + 6 * np.diag(eigenvalues), 2)
        cross = 2 * math.sqrt(rows) * (math.sqrt(np.trace(B)) + math.sqrt(eigenvalues.sum() * np.linalg.norm(B, 2)))
        w = 2 * a + a**2 + 4.761 / math.sqrt(rows) * (1 + a) + 5.896 / rows
        expected = (rows * w + cross + bias) / (rows - 7)
        assert bounds.pooled_bound(process, 30) == pytest.approx(expected, rel=2e-3)
        assert bounds.pooled_bound(process, 30, scatter=False) < expected - B.max()

    def test_pooled_bound_takes_the_better_dominating_covariance(self) -> None:
        slow, fast = (
            Process.from_params(common.params(6, 40, 50, geometric=0.1, cov=CovDrift(C=C, beta=0.0, kind="folding")))
            for C in (1e-3, 0.2)
        )

        def with_trace(process: Process, trace: float, top: float) -> float:
            bias = theory.cov_bias(process.time_average(50), process.covariance(50), N=2000, d=6)
            w = theory.W_chevet(trace / top, 2000)
            return float(theory.tight_cov(N=2000, d=6, trace=trace, top=top, w=w, bias=bias))

        now = slow.eigenvalues()[-1]
        near = with_trace(slow, now.sum() + 6 * 0.049, now.max() + 0.049)
        assert bounds.pooled_bound(slow, 50) == pytest.approx(near)
        top = fast.eigenvalues().max()
        assert bounds.pooled_bound(fast, 50) == pytest.approx(with_trace(fast, 6 * top, top))

    def test_leading_order_is_the_random_matrix_limit(self) -> None:
        process = Process.from_params(common.params(64, 20, 1000))
        for step in (20, 1000):
            limit = float(theory.niw_limit(64 / (20 * step)))
            assert bounds.leading_order(process, step) == pytest.approx(limit, rel=2 / (20 * step - 64))


class TestMeasures:
    def test_paper_bound_from_an_oracle(self) -> None:
        """The noise constant of identity covariance, n < d: the top eigenvalue of a small Wishart matrix."""
        process = Process.from_params(common.params(64, 20, 10))
        rng = np.random.default_rng(0)
        x = rng.standard_normal((300, 20, 64))
        x -= x.mean(axis=1, keepdims=True)
        twin = np.mean([np.linalg.norm(one, 2) ** 2 / 20 - 1 for one in x])
        assert error._batch_noise(process, 1, 5) == pytest.approx(twin, rel=0.02)
        # Started from nothing it is the floor's share: (oracle + d/n) k n/D, as E enters with 1/N only.
        curve = error._paper(process, [4, 5], start=0.0, seed=5)
        mse = theory.exact_mse(process.drift(), process.traces(), n=20).total[3]
        fresh = 20 * twin + 80 * 20 / 100 * (64 / 20 + 2 * mse)
        assert curve[1] == pytest.approx(fresh / (100 - 65), rel=0.02)

    def test_exact_mean_along_random_directions(self) -> None:
        process, prior = moments.DRIFTS["Sigma rotating, prior 5"]
        found = moments.measure_mean(seed=4, reps=3, process=process, prior=prior)
        path = Process.from_params(process)
        rows = path.sampler(3, 4).next(path.total).flatten(1, 2).numpy()
        trace = 0.0
        for one in rows:
            trace += np.trace(pooled_moments(one, prior)[1]) / (len(one) - path.d - 1) / 3
        assert len(found["mean"]) == moments.DIRECTIONS + 1
        assert 0 < np.min(found["mean"]) <= trace
        average = sum(path.covariance(t) for t in range(1, path.total + 1)) / path.total
        N = path.n * path.total
        expected = (prior * np.eye(24) + (N - 1) * average) / (N - 25)
        # No drift of the mean: the first direction is an axis.
        assert np.min(np.abs(np.diag(expected) - found["exact"][0])) < 1e-9

    def test_weighted_bound_without_forgetting_is_the_pooled_one(self) -> None:
        process = Process.from_params(common.params(6, 5, 40, cov=CovDrift(C=0.01, beta=0.0, kind="folding")))
        N, r = 200, 6.0
        now, average = process.covariance(40), process.time_average(40)
        bias = np.linalg.norm(N * (average - now) + 7 * now, 2)
        w = theory.W_chevet(r, N) + r / N
        expected = theory.tight_cov(N=N, d=6, trace=6.0, top=1.0, w=w, bias=bias)
        assert forgetting._weighted_bound(process, 1e-12) == pytest.approx(float(expected))

    def test_windows_are_weighted_moments(self) -> None:
        process = common.params(3, 4, 12, cov=CovDrift(C=0.01, beta=0.0, kind="folding"))
        path = Process.from_params(process)
        found = forgetting.measure_windows(seed=2, reps=2, process=process, windows=[3.0, 5.0, 9.0])
        sampler = path.sampler(2, 2)
        rows = torch.cat([sampler.next(1) for _ in range(12)], dim=1).flatten(1, 2).numpy()
        weights = np.repeat((1 - 1 / 5) ** np.arange(12.0)[::-1], 4)
        errors = []
        for one in rows:
            scatter = weighted_moments(one, weights)[1]
            errors.append(np.linalg.norm(scatter / (weights.sum() - 4) - path.covariance(12), 2))
        assert found["mean"][1] == pytest.approx(np.mean(errors))

    def test_crossing_evaluates_the_recursion(self) -> None:
        found = audits.measure_crossing(seed=1, reps=20, process=common.params(8, 5, 2), step=1)
        assert (found["divisor"], found["next_divisor"]) == (-4.0, 1.0)
        # The difference of the two recursions is twice the inherited error, weighted; the rest is written out here.
        inherited = (found["absolute"] - found["signed"]) / 2
        y = 8 / 5
        fresh = 5 * ((2 + 4.77 / math.sqrt(8)) * (math.sqrt(y) + y) + y) + 5 * 5 / 10 * (y + 2 * y)
        assert found["signed"] == pytest.approx(-inherited + fresh)

    def test_noise_curves_under_drift(self) -> None:
        shape: dict[str, Any] = {"seed": 3, "reps": 8, "d": 8, "n": 10, "steps": 60, "count": 6}
        still = noise.measure_noise(**shape)
        turning = noise.measure_noise(**shape, cov_size=0.01)
        moving = noise.measure_noise(**shape, mean_size=1.0)
        assert list(still["step"])[-1] == 60
        assert turning["eig_max"][-1] < still["eig_max"][-1] - 0.1
        assert moving["condition"][-1] > still["condition"][-1] + 3
        # A mean that moves by one a step is followed at half that speed.
        assert math.sqrt(moving["mean_step2"][-1]) == pytest.approx(0.5, rel=0.05)
