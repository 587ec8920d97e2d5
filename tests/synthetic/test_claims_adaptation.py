"""The claims about adaptation: as predicted at the small scale, able to fail, and their oracles against slow twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from stablediag.stats import theory
from synthetic.claims import Scale
from synthetic.claims import _adaptation_forgetting as forgetting
from synthetic.claims import _adaptation_lag as lag
from synthetic.claims import _adaptation_prequential as prequential
from synthetic.claims import _adaptation_surrogate as surrogate
from synthetic.claims import _adaptation_warmup as warmup
from synthetic.claims._adaptation_common import batch_means, batch_noise, expected_mse
from synthetic.claims.adaptation import CLAIMS
from synthetic.grid import Result, run_cells
from synthetic.process import MeanDrift, Process

QUICK = Scale(quick=True)
BY_ID = {claim.id: claim for claim in CLAIMS}
RANDOM = MeanDrift(C=0.3, alpha=0.0, direction="random")


@pytest.fixture(scope="module")
def work():
    """Cells and results of every claim at the small scale."""
    cells = {claim.id: claim.cells(QUICK) for claim in CLAIMS}
    results = iter(run_cells([cell for some in cells.values() for cell in some]))
    return {name: (some, [next(results) for _ in some]) for name, some in cells.items()}


@pytest.mark.parametrize("name", list(BY_ID))
def test_claim_comes_out_as_predicted(work, name):
    rows = BY_ID[name].rows(*work[name])
    assert [f"{row.setting}: {row.verdict}, z {row.z:.1f}" for row in rows if not row.ok] == []
    planted = [row for row in rows if row.planted]
    assert planted
    assert all(row.caught and row.power > 0.99 for row in planted)
    assert sum(row.tests for row in rows) < 100
    assert all(row.expected == "false" for row in rows if not row.planted and row.verdict == "false")


def doctored(results, changes):
    """Results in which some numbers are changed, where they occur."""
    return [
        Result({**r.values, **{k: np.asarray(f(r[k])) for k, f in changes.items() if k in r.values}}, r.seconds)
        for r in results
    ]


@pytest.mark.parametrize(
    ("name", "part", "changes", "verdict"),
    [
        ("remark-D.3", "same distribution, r=20 k=200", {"ratio": lambda x: x * 0 + 1}, "false"),
        ("remark-D.3", "merged bound", {"warm": lambda x: 30 * x}, "false"),
        ("remark-D.3", "still helps", {"gap": lambda x: -x}, "false"),
        ("remark-D.3", "still helps", {"gap_se": lambda x: 100 * x}, "unknown"),
        ("remark-D.3", "neither better nor worse", {"gap": lambda x: x + 0.1}, "false"),
        ("remark-D.3", "does harm", {"gap": lambda x: -x}, "false"),
        ("forgetting", "weighted mean", {"difference": lambda x: x + 1e-6}, "false"),
        ("forgetting", "steady error", {"mean": lambda x: 1.1 * x}, "false"),
        ("forgetting", "steady error", {"less": lambda x: -x}, "false"),
        ("forgetting", "uniform average after", {"mean": lambda x: 1.2 * x}, "false"),
        ("forgetting", "uniform over tuned", {"slope": lambda x: x - 0.2}, "false"),
        ("forgetting", "uniform over tuned", {"ratio": lambda x: 2 * x}, "false"),
        ("forgetting", "uniform over tuned", {"tuned": lambda x: 1.5 * x}, "false"),
        ("forgetting", "gain bank", {"honest_over": lambda x: -10 * x}, "false"),
        ("horizon", "over that without drift", {"mean": lambda x: x * [1, 1.3, 1]}, "false"),
        ("self-normalised-lag", "aligned drift", {"running": lambda x: 1.01 * x}, "false"),
        ("self-normalised-lag", "aligned drift", {"exact": lambda x: 1.02 * x, "running": lambda x: 1.02 * x}, "false"),
        ("self-normalised-lag", "jump", {"running": lambda x: x * 0 + 41}, "false"),
        ("prequential", "unbiased before", {"gap": lambda x: x + 0.1}, "false"),
        ("prequential", "unbiased before", {"after": lambda x: x + 0.1}, "false"),
        ("prequential", "unbiased before", {"estimate": lambda x: x + 0.1}, "false"),
        ("prequential", "standard deviation", {"squares": lambda x: x + 0.5}, "false"),
        ("prequential", "standard deviation", {"variance": lambda x: x + 0.5}, "false"),
        ("prequential", "bias of tokens", {"token_gap": lambda x: x / 2}, "false"),
        ("audit-6", "gain times", {"mean": lambda x: 1.2 * x}, "false"),
        ("audit-6", "gain times", {"slope": lambda x: x + 0.1}, "false"),
        ("audit-6", "steps of the mean decay", {"slope": lambda x: x + 1.5}, "holds"),
        ("audit-6", "steps of Sh decay", {"slope": lambda x: x * 0}, "unknown"),
        ("audit-6", "steps of Sh decay", {"slope": lambda x: -x}, "holds"),
    ],
)
def test_other_numbers_give_another_verdict(work, name, part, changes, verdict):
    cells, results = work[name]
    before = [row for row in BY_ID[name].rows(cells, results) if part in row.setting and not row.planted]
    after = [row for row in BY_ID[name].rows(cells, doctored(results, changes)) if part in row.setting]
    assert before
    assert verdict not in {row.verdict for row in before}
    assert verdict in {row.verdict for row in after if not row.planted}


def test_full_scale_is_distinct_work_that_can_be_built():
    cells = [cell for claim in CLAIMS for cell in claim.cells(Scale())]
    assert len({cell.seed for cell in cells}) == len({cell.digest() for cell in cells}) == len(cells)
    for cell in cells:
        if "process" in cell.params:
            path = Process.from_params(cell.params["process"])
            assert max(cell.params.get("steps", [1])) <= path.total
    one = [cell.params.get("reps") for claim in CLAIMS for cell in claim.cells(Scale(reps=9))]
    assert set(one) == {9, None}


def test_random_directions_are_drawn_for_every_replicate():
    process = Process(d=4, n=5, steps=30, mean=RANDOM)
    batches, mu = batch_means(process, reps=400, seed=3)
    assert mu.shape == batches.shape == (400, 30, 4)
    steps = mu.diff(dim=1)
    torch.testing.assert_close(steps.norm(dim=-1), torch.full((400, 29), 0.3, dtype=torch.float64))
    assert float((steps[:, 3] * steps[:, 4]).sum(dim=-1).mean() / 0.09) == pytest.approx(0, abs=0.1)
    noise = (batches - mu).square().sum(dim=-1)
    assert float(noise.mean()) == pytest.approx(batch_noise(process), rel=0.05)
    # the expectation over directions, against an average over paths of errors that are exact on each
    found = [
        theory.exact_mse(np.diff(path, axis=0, prepend=0), process.traces(), n=5).total[[4, 29]] for path in mu.numpy()
    ]
    np.testing.assert_allclose(expected_mse(process).total[[4, 29]], np.mean(found, axis=0), rtol=0.1)
    fixed = Process(d=4, steps=5, mean=MeanDrift(C=0.3))
    assert batch_means(fixed, reps=2, seed=0)[1].shape == (1, 5, 4)


@pytest.mark.parametrize(("df", "spread"), [(9.0, 0.0), (9.0, 3.0), (30.0, 200.0), (400.0, 1e4)])
def test_inverse_noncentral_chi_square_against_its_poisson_mixture(df, spread):
    j = np.arange(20_000)
    direct = (stats.poisson.pmf(j, spread / 2) / (df - 2 + 2 * j)).sum()
    assert lag.inverse_chi2(df, spread) == pytest.approx(direct, rel=1e-9)


def test_normalised_lag_against_plain_simulation():
    """Few rows and a strong drift, where all the terms of the exact mean count; numpy's own covariance."""
    process = Process(d=3, n=4, steps=4, mean=MeanDrift(C=1.0, alpha=0.25))
    rng, mu, root = np.random.default_rng(0), process.means(), np.sqrt(process.eigenvalues()[0])
    rows = mu[None, :, None, :] + rng.standard_normal((20_000, 4, 4, 3)) * root
    flat = rows.reshape(20_000, 16, 3)
    centred = flat - flat.mean(axis=1, keepdims=True)
    cov = np.einsum("rni,rnj->rij", centred, centred) / (16 - 3 - 1)
    b = mu.mean(axis=0) - mu[-1]
    found = b @ np.linalg.solve(cov, np.broadcast_to(b[:, None], (20_000, 3, 1)))[..., 0].T
    error = found.std() / math.sqrt(len(found))
    assert lag.exact_normalised(process, 4) == pytest.approx(found.mean(), abs=4 * error)
    # the mean of the inverse is not the inverse of the mean
    mean = theory.mean_cov(np.diag(root**2), theory.scatter_of_means(mu), N=16, d=3)
    assert abs(b @ np.linalg.solve(mean, b) - found.mean()) > 10 * error


def test_normalised_lag_is_the_production_estimate():
    process = Process(d=3, n=4, steps=12, mean=MeanDrift(C=1.0, alpha=0.25))
    found = lag.measure_normalised(seed=5, reps=300, process=process.params(), steps=[4, 12])
    np.testing.assert_allclose(found["raw"], expected_mse(process).lag2[[3, 11]])
    for i in range(2):
        assert abs(found["running"][i] - found["exact"][i]) < 4.5 * found["running_se"][i]
    assert (found["within"] > 1.5 * found["running"]).all()


def test_warmup_keeps_the_same_batches_for_both():
    process = Process(d=3, n=4, steps=6, warmup=2, offset=0.5)
    found = warmup.measure_warmup(seed=1, reps=5, process=process.params(), steps=[1, 6])
    batches = process.sampler(5, 1).next_means(8).numpy()
    mu = process.means()
    for i, k in enumerate((1, 6)):
        warm = np.square(batches[:, : 2 + k].mean(axis=1) - mu[1 + k]).sum(axis=-1)
        cold = np.square(batches[:, 2 : 2 + k].mean(axis=1) - mu[1 + k]).sum(axis=-1)
        assert found["warm"][i] == pytest.approx(warm.mean())
        assert found["gap_se"][i] == pytest.approx((warm - cold).std(ddof=1) / math.sqrt(5))
        assert found["ratio"][i] == pytest.approx(warm.mean() / cold.mean())


def test_steady_error_needs_no_more_burn_in():
    for scale in (QUICK, Scale()):
        for cell in forgetting.CLAIM.cells(scale):
            if cell.function.endswith("measure_steady"):
                path, (low, _, high) = Process.from_params(cell.params["process"]), cell.params["gains"]
                assert high <= 1
                start = (1 - low) ** (path.total - cell.params["last"])
                assert start * path.mean.C / low < 1e-3 * math.sqrt(batch_noise(path) * low)


def test_bank_is_the_plain_loop():
    """Predict with the gain that has scored best so far, then score, then update."""
    process = Process(d=4, n=3, steps=40, mean=RANDOM)
    found = forgetting.measure_bank(seed=2, reps=6, process=process.params())
    sampler, mu = process.sampler(6, 2), process.means()
    rows = np.stack([sampler.next(1)[:, 0].numpy() for _ in range(40)], axis=1)
    size = len(forgetting.BANK)
    error, all_errors = np.zeros(6), np.zeros((6, size))
    for r in range(6):
        mean, kappa, score = np.zeros((size, 4)), np.zeros(size), np.zeros(size)
        for t in range(40):
            now = np.square(mean - mu[t]).sum(axis=-1)
            if t >= 20:
                error[r] += now[score.argmin()] / 20
                all_errors[r] += now / 20
            w = rows[r, t] - mean[:, None]
            pairs = np.einsum("gik,gjk->g", w, w) - np.einsum("gik,gik->g", w, w)
            if t > 0:
                score = (1 - 1 / forgetting.MEMORY) * score + pairs / 6
            for g, gain in enumerate(forgetting.BANK):
                kappa[g] = (1 - gain) * kappa[g] + 1
                mean[g] += (rows[r, t].mean(axis=0) - mean[g]) / kappa[g]
    best = all_errors[:, forgetting.BANK.index(float(found["best"]))]
    assert found["best_mean"] == pytest.approx(best.mean())
    assert found["honest"] == pytest.approx(error.mean() / best.mean())
    assert found["honest_over"] == pytest.approx((error - 1.1 * best).mean())


def test_tokens_are_clusters_of_consecutive_rows():
    process = Process(d=4, n=12, steps=15, noise=prequential.TOKENS)
    found = prequential.measure_prequential(seed=4, reps=150, process=process.params())
    assert abs(found["gap_all"]) < 4.5 * found["gap_all_se"]
    assert found["token_gap_all"] == pytest.approx(
        0.6 * 2 * process.traces()[0] / 11, abs=4.5 * found["token_gap_all_se"]
    )
    assert found["squares_all"] == pytest.approx(1, abs=4.5 * found["squares_all_se"])


def test_surrogate_slopes_are_those_of_the_root_mean_square():
    process = Process(d=3, n=4, steps=20)
    found = surrogate.measure_mean_steps(seed=6, reps=40, process=process.params(), steps=[5, 10, 20])
    batches = process.sampler(40, 6).next_means(20)
    means = (batches.cumsum(dim=1) / torch.arange(1, 21).view(1, -1, 1)).numpy()
    steps = np.square(np.diff(means, axis=1)).sum(axis=-1)[:, [3, 8, 18]]
    np.testing.assert_allclose(found["mean"], steps.mean(axis=0))
    assert found["slope"] == pytest.approx(np.polyfit(np.log([5, 10, 20]), np.log(steps.mean(axis=0)) / 2, 1)[0])
