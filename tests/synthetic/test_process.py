"""Processes: the paths against slow twins, the samples against the paths, seeds, warm-up, refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from stablediag.errors import SpecError
from stablediag.maths import NIW
from synthetic.process import CovDrift, MeanDrift, Noise, Process, Spectrum

ROTATING = CovDrift(C=0.6, beta=0.5, kind="rotation")
FOLDING = CovDrift(C=0.3, beta=0.75, kind="folding")
PROCESSES = {
    "constant": Process(d=6, n=4, steps=25),
    "folding": Process(d=6, n=4, steps=25, cov=FOLDING, mean=MeanDrift(C=0.5, alpha=0.25)),
    "rotation, odd d": Process(d=7, n=4, steps=25, cov=ROTATING, mean=MeanDrift(C=0.5, direction="random")),
    "warm-up": Process(d=6, n=4, steps=15, cov=ROTATING, mean=MeanDrift(C=0.5), warmup=10, offset=3.0),
    "one coordinate": Process(d=1, n=4, steps=25, cov=replace(FOLDING, C=0.1), mean=MeanDrift(C=0.5)),
}
every = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


@every
def test_paths_agree_with_their_slow_twins(process: Process) -> None:
    total, means = process.total, process.means()
    assert total == 25
    covariances = [process.covariance(t) for t in range(1, total + 1)]
    for t, sigma in enumerate(covariances, start=1):
        np.testing.assert_array_equal(sigma, sigma.T)
        values = np.linalg.eigvalsh(sigma)
        assert process.spectrum.lmin * (1 - 1e-12) <= values[0] <= values[-1] <= process.spectrum.lmax * (1 + 1e-12)
        np.testing.assert_allclose(values, np.sort(process.eigenvalues()[t - 1]), rtol=1e-12)
        np.testing.assert_allclose(process.root(t) @ process.root(t).T, sigma, atol=1e-14)
        np.testing.assert_allclose(process.time_average(t), np.mean(covariances[:t], axis=0), atol=1e-14)
        np.testing.assert_allclose(process.traces()[t - 1], np.trace(sigma), rtol=1e-13)
    steps = [np.linalg.norm(b - a, ord=2) for a, b in pairwise(covariances)]
    np.testing.assert_allclose(process.cov_steps(), [0.0, *steps], atol=1e-14)
    np.testing.assert_allclose(process.drift()[1:], np.diff(means, axis=0), atol=1e-14)
    assert not process.drift()[0].any()


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("cov", [ROTATING, CovDrift(C=0.2, beta=1.5, kind="folding")], ids=lambda c: c.kind)
def test_steps_have_their_exact_sizes(cov: CovDrift, warmup: int) -> None:
    process = Process(d=8, n=2, steps=30, cov=cov, mean=MeanDrift(C=0.7, alpha=0.6), warmup=warmup, offset=0.0)
    t = np.arange(1.0, process.total + 1)
    moving = t >= max(2, warmup + 1)
    np.testing.assert_allclose(process.cov_steps(), np.where(moving, cov.C * t**-cov.beta, 0), atol=1e-15, rtol=1e-12)
    sizes = np.linalg.norm(process.own_drift(), axis=1)
    np.testing.assert_allclose(sizes, np.where(moving, 0.7 * t**-0.6, 0)[warmup:], rtol=1e-14)


def test_warm_up_lies_off_along_the_first_direction() -> None:
    process = Process(d=5, n=2, steps=6, mean=MeanDrift(C=0.5, direction="random"), warmup=4, offset=3.0)
    means, own = process.means(), process.own_drift()
    u = own[0] / np.linalg.norm(own[0])
    np.testing.assert_allclose(means[:4], np.tile(3 * u, (4, 1)), rtol=1e-14)
    np.testing.assert_allclose(means[4:], np.cumsum(own, axis=0), atol=1e-14)
    np.testing.assert_allclose(process.drift()[4], own[0] - 3 * u, atol=1e-14)
    assert own.shape == (6, 5)


def test_arrays_are_the_callers_own() -> None:
    process = PROCESSES["folding"]
    for method in (process.means, process.drift, process.own_drift, process.eigenvalues):
        kept = method()
        method()[:] = 7.0
        np.testing.assert_array_equal(method(), kept)


def test_paths_depend_on_the_process_seed_and_samples_on_their_own() -> None:
    process = Process(d=3, n=2, steps=9, mean=MeanDrift(C=1.0, direction="random"))
    other = replace(process, seed=1)
    assert not np.allclose(process.means()[1:], other.means()[1:])
    np.testing.assert_array_equal(process.means(), Process.from_params(process.params()).means())
    one, same, fresh = (process.sampler(2, seed).next(9) for seed in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.allclose(one, fresh)
    shifted = other.sampler(2, 5).next(9) - torch.as_tensor(other.means()).unsqueeze(1)
    torch.testing.assert_close(shifted, one - torch.as_tensor(process.means()).unsqueeze(1))


@every
@pytest.mark.parametrize("noise", [Noise(), Noise("exponential")], ids=lambda n: n.kind)
def test_rows_have_the_moments_of_every_step(process: Process, noise: Noise) -> None:
    process, reps = replace(process, noise=noise), 3000
    sampler = process.sampler(reps, 1)
    rows = torch.cat([sampler.next(9), sampler.next(1), sampler.next(15)], dim=1)
    assert rows.shape == (reps, 25, 4, process.d)
    for t in (1, 10, 11, 25):
        centred = rows[:, t - 1] - torch.as_tensor(process.means()[t - 1])
        first, second = centred.mean(dim=1), centred.mT @ centred / 4
        for sample, expected in ((first, np.zeros(process.d)), (second, process.covariance(t))):
            gap = sample.mean(dim=0) - torch.as_tensor(expected)
            assert float((gap / sample.std(dim=0)).abs().max()) * math.sqrt(reps) < 4.5


def test_the_check_of_the_rows_sees_eigenvectors_that_do_not_turn() -> None:
    process = replace(PROCESSES["rotation, odd d"], mean=MeanDrift())
    rows = process.sampler(3000, 1).next(25)[:, 24]
    second = rows.mT @ rows / 4
    gap = second.mean(dim=0) - torch.diag(torch.as_tensor(process.eigenvalues()[24]))
    assert float((gap / second.std(dim=0)).abs().max()) * math.sqrt(3000) > 10


@pytest.mark.parametrize("cov", [CovDrift(), ROTATING, FOLDING], ids=lambda c: c.kind)
def test_batch_means_drawn_directly_have_the_moments_of_batch_means(cov: CovDrift) -> None:
    process = Process(d=5, n=4, steps=6, cov=cov, mean=MeanDrift(C=1.0))
    sampler = process.sampler(4000, 2)
    means = torch.cat([sampler.next_means(4), sampler.next_means(2)], dim=1)
    assert means.shape == (4000, 6, 5)
    assert sampler.at == 6
    for t in (1, 6):
        centred = means[:, t - 1] - torch.as_tensor(process.means()[t - 1])
        outer = centred.unsqueeze(2) * centred.unsqueeze(1)
        for sample, expected in ((centred, np.zeros(5)), (outer, process.covariance(t) / 4)):
            gap = sample.mean(dim=0) - torch.as_tensor(expected)
            assert float((gap / sample.std(dim=0)).abs().max()) * math.sqrt(4000) < 4.5


def test_batch_means_of_other_rows_are_means_of_rows() -> None:
    process = Process(d=3, n=4, steps=6, noise=Noise("student"), cov=ROTATING)
    direct, rows = process.sampler(7, 3).next_means(6), process.sampler(7, 3).next(6)
    torch.testing.assert_close(direct, rows.mean(dim=2))


def test_a_wishart_draw_is_the_scatter_of_normal_rows() -> None:
    process, df, reps = Process(d=4, n=1, steps=1), 6, 6000
    scatter = process.sampler(reps, 0).wishart(df)
    rows = torch.randn(reps, df, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    other = rows.mT @ rows
    eye = torch.eye(4, dtype=torch.float64)
    for sample, expected in ((scatter, df * eye), ((scatter - df * eye) ** 2, df * (1 + eye))):
        gap = sample.mean(dim=0) - expected
        assert float((gap / sample.std(dim=0)).abs().max()) * math.sqrt(reps) < 4.5
    logs = [torch.linalg.slogdet(x)[1] for x in (scatter, other)]
    z = (logs[0].mean() - logs[1].mean()) / math.sqrt((logs[0].var() + logs[1].var()) / reps)
    assert abs(float(z)) < 4
    with pytest.raises(SpecError, match="df: 3 rows < d = 4"):
        process.sampler(1, 0).wishart(3)


def test_a_pool_fed_to_the_end_gives_the_moments_of_the_process() -> None:
    process = Process(d=4, n=5, steps=6, noise=Noise("exponential", dependence="pool", pool=30))
    state = NIW.empty(4, batch_shape=(2,)).update(process.sampler(2, 0).next(6).flatten(1, 2))
    torch.testing.assert_close(state.mean, torch.zeros(2, 4, dtype=torch.float64), atol=1e-13, rtol=0)
    sigma = torch.as_tensor(process.covariance(1)).expand(2, 4, 4)
    torch.testing.assert_close(state.scale / 29, sigma, atol=1e-13, rtol=0)


@every
def test_parameters_survive_json(process: Process) -> None:
    process = replace(process, noise=Noise(dependence="tokens", tokens=2, rho=0.5))
    assert Process.from_params(json.loads(json.dumps(process.params()))) == process


def test_numpy_numbers_become_json() -> None:
    process = Process(d=np.int64(3), mean=MeanDrift(C=np.float64(0.5)), offset=np.float64(0))  # type: ignore[arg-type]
    assert json.loads(json.dumps(process.params()))["mean"]["C"] == 0.5
    assert Process.from_params({"d": 3}) == Process(d=3)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"d": 0}, "d"),
        ({"n": -3}, "n: must be an integer of at least 1, got -3"),
        ({"n": 2.5}, "n"),
        ({"steps": True}, "steps"),
        ({"warmup": -1}, "warmup"),
        ({"seed": -1}, "seed"),
        ({"offset": -1.0}, "offset"),
        ({"offset": 1.0}, "offset: 1 has no effect without a warm-up"),
        ({"mean": {"C": 1.0}}, "mean: must be a MeanDrift"),
        ({"mean": MeanDrift(direction="jump", at=300)}, "at: the mean moves in steps 2 to 200"),
        ({"cov": replace(FOLDING), "spectrum": Spectrum("iso", lmin=1.0)}, "cov: folding needs room"),
        ({"cov": ROTATING, "spectrum": Spectrum("iso")}, "cov: a rotation moves"),
        ({"noise": Noise(dependence="pool", pool=3999)}, "pool: 3999 rows < n x steps = 4000"),
        (
            {"noise": Noise(dependence="pool", pool=4000), "mean": MeanDrift(C=0.1)},
            "noise: a frozen pool does not drift",
        ),
        ({"noise": Noise(dependence="tokens", tokens=3)}, "tokens: clusters of 3"),
    ],
)
def test_refusals_name_the_argument(fields: dict[str, object], name: str) -> None:
    with pytest.raises(SpecError, match=f"^{name}") as caught:
        Process(**fields)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_other_refusals() -> None:
    process = PROCESSES["constant"]
    for call in (process.covariance, process.root, process.time_average):
        for t in (0, 26):
            with pytest.raises(SpecError, match="t: the process has steps 1 to 25"):
                call(t)
    with pytest.raises(SpecError, match="process: unknown 'dim'"):
        Process.from_params({"dim": 3})
    with pytest.raises(SpecError, match="mean: unknown 'beta'"):
        Process.from_params({"mean": {"beta": 3}})
    with pytest.raises(SpecError, match="reps"):
        process.sampler(0, 1)
    sampler = process.sampler(1, 1)
    sampler.next(20)
    for draw in (sampler.next, sampler.next_means):
        with pytest.raises(SpecError, match="k: 6 batches asked for, 5 of 25 are left"):
            draw(6)
        with pytest.raises(SpecError, match="k"):
            draw(0)
