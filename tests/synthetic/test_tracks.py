"""Tracks: the pieces against the recursion batch by batch, the shortcuts against rows, the errors against exact values."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import synthetic.tracks as simulate_module
from stablediag.errors import SpecError
from stablediag.maths import NIW, DiagNIW
from stablediag.stats import theory
from synthetic.process import CovDrift, MeanDrift, Noise, Process, Sampler
from synthetic.tracks import CovTrack, checkpoints, simulate, summarise, track_covariance, track_mean

DRIFTING = Process(
    d=5,
    n=4,
    steps=30,
    mean=MeanDrift(C=0.5, alpha=0.5, direction="random"),
    cov=CovDrift(C=0.3, beta=1.0, kind="rotation"),
    noise=Noise("student", df=6.0),
    warmup=3,
    offset=1.0,
)


def worst(sample: np.ndarray, expected: np.ndarray | float) -> float:
    """Largest z-score of the means over the replicates, dimension 0."""
    se = sample.std(axis=0, ddof=1) / math.sqrt(len(sample))
    return float(np.abs((sample.mean(axis=0) - expected) / se).max())


def test_checkpoints() -> None:
    steps = checkpoints(10_000)
    assert steps[0] == 1
    assert steps[-1] == 10_000
    assert 17 <= len(steps) <= 20
    assert steps == sorted(set(steps))
    assert np.ptp(np.diff(np.log(steps[8:]))) < 0.05
    assert checkpoints(5) == [1, 2, 3, 4, 5]
    assert checkpoints(100, 3, first=4) == [4, 20, 100]
    assert checkpoints(100, 1) == [100]
    assert checkpoints(1) == [1]
    with pytest.raises(SpecError, match="first: 7 is beyond the last step 5"):
        checkpoints(5, first=7)
    with pytest.raises(SpecError, match="count"):
        checkpoints(5, 0)


def batch_by_batch(process: Process, rows: Tensor, steps: list[int], prior: float) -> dict[str, np.ndarray]:
    """The recursion, one batch at a time, and everything a track holds, from dense matrices."""
    state = NIW.empty(process.d, batch_shape=(len(rows),), prior=prior)
    out: dict[str, list[np.ndarray]] = {}
    for t in range(1, max(steps) + 1):
        mu, sigma = process.means()[t - 1], process.covariance(t)
        before = np.full(len(rows), np.nan) if t == 1 else ((state.mean.numpy() - mu) ** 2).sum(axis=1)
        state = state.update(rows[:, t - 1])
        if t not in steps:
            continue
        one = {"prediction2": before, "error2": ((state.mean.numpy() - mu) ** 2).sum(axis=1)}
        if state.exists:
            cov = state.cov.numpy()
            values, vectors = np.linalg.eigh(sigma)
            half = vectors @ np.diag(values**-0.5) @ vectors.T
            one["spectral"] = np.linalg.norm(cov - sigma, ord=2, axis=(1, 2))
            one["relative"] = np.linalg.norm(half @ cov @ half - np.eye(process.d), ord=2, axis=(1, 2))
            one["condition"] = np.linalg.cond(cov)
            one["eig_max"], one["eig_min"] = np.linalg.eigvalsh(cov)[:, -1], np.linalg.eigvalsh(cov)[:, 0]
        else:
            blank = np.full(len(rows), np.nan)
            one |= dict.fromkeys(("spectral", "relative", "condition", "eig_max", "eig_min"), blank)
        for name, values in one.items():
            out.setdefault(name, []).append(values)
    return {name: np.stack(values, axis=1) for name, values in out.items()}


class Replay(Sampler):
    """Gives the same rows however they are asked for."""

    def __init__(self, process: Process, reps: int, seed: int) -> None:
        super().__init__(process, reps, seed)
        self.rows = super().next(process.total)
        self.at = 0

    def next(self, k: int = 1) -> Tensor:
        self.at += k
        return self.rows[:, self.at - k : self.at]


@pytest.mark.parametrize("chunk", [1, 200, 1 << 21])
def test_pieces_of_rows_equal_the_recursion_over_batches(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate_module, "CHUNK", chunk)
    monkeypatch.setattr(Process, "sampler", lambda self, reps, seed: Replay(self, reps, seed))
    steps = [1, 2, 3, 9, 33]
    track = track_covariance(DRIFTING, reps=3, seed=0, steps=steps, prior=0.3, relative=True, keep_moments=True)
    rows = Replay(DRIFTING, 3, 0).rows
    twin = batch_by_batch(DRIFTING, rows, steps, 0.3)
    for name, values in twin.items():
        np.testing.assert_allclose(getattr(track, name), values, rtol=1e-10, atol=1e-12, err_msg=name)
    assert np.isnan(track.spectral).sum() == 3  # four rows are too few, eight are enough
    np.testing.assert_array_equal(track.rows, 4 * np.array(steps))
    last = NIW.empty(5, batch_shape=(3,), prior=0.3).update(rows.flatten(1, 2)).cov
    assert track.mean_cov is not None
    assert track.var_cov is not None
    assert track.mean_cov.shape == track.var_cov.shape == (5, 5, 5)
    np.testing.assert_allclose(track.mean_cov[-1], last.mean(dim=0), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(track.var_cov[-1], last.var(dim=0), rtol=1e-8, atol=1e-12)
    assert np.isnan(track.mean_cov[0]).all()


def test_only_what_is_asked_for() -> None:
    track = track_covariance(DRIFTING, reps=1, seed=0, steps=[33])
    assert track.relative is track.mean_cov is track.var_cov is None
    assert track_covariance(DRIFTING, reps=1, seed=0, steps=[33], relative=True).relative is not None
    alone = track_covariance(DRIFTING, reps=1, seed=0, steps=[33], keep_moments=True)
    assert np.isnan(alone.var_cov).all()  # type: ignore[arg-type]


def test_batch_means_give_the_recursion_over_rows() -> None:
    steps = [1, 2, 17, 33]
    for forget in (1.0, 0.8):
        track = track_mean(DRIFTING, reps=3, seed=0, steps=steps, forget=forget, keep_means=True)
        rows, state = DRIFTING.sampler(3, 0).next(33), DiagNIW.empty(5, batch_shape=(3,))
        for t in range(1, 34):
            mu = torch.as_tensor(DRIFTING.means()[t - 1])
            before, state = state, state.update(rows[:, t - 1], forget=forget)
            if t in steps:
                k = steps.index(t)
                error = (state.mean - mu).square().sum(dim=1)
                np.testing.assert_allclose(track.error2[:, k], error, rtol=1e-10)
                np.testing.assert_allclose(track.means[:, k], state.mean, atol=1e-12)  # type: ignore[index]
                if t > 1:
                    np.testing.assert_allclose(
                        track.prediction2[:, k], (before.mean - mu).square().sum(dim=1), rtol=1e-10
                    )
        assert np.isnan(track.prediction2[:, 0]).all()


@pytest.mark.parametrize("first", [1.0, 0.25])
def test_gains_are_the_weights_of_the_batches(first: float) -> None:
    gains = np.random.default_rng(0).uniform(0.05, 1.0, 33)
    gains[0], gains[20] = first, 1.0
    track = track_mean(DRIFTING, reps=2, seed=0, steps=range(1, 34), gains=gains)
    rows, m = DRIFTING.sampler(2, 0).next(33).numpy(), np.zeros((2, 5))
    for t in range(33):
        mu = DRIFTING.means()[t]
        before = ((m - mu) ** 2).sum(axis=1)
        m = (1 - gains[t]) * m + gains[t] * rows[:, t].mean(axis=1)
        np.testing.assert_allclose(track.error2[:, t], ((m - mu) ** 2).sum(axis=1), rtol=1e-10)
        if t > 0 or first < 1:
            np.testing.assert_allclose(track.prediction2[:, t], before, rtol=1e-10)


def test_uniform_gains_equal_no_gains() -> None:
    one = track_mean(DRIFTING, reps=2, seed=0, steps=[33], gains=theory.gains(33, n=4))
    np.testing.assert_allclose(one.error2, track_mean(DRIFTING, reps=2, seed=0, steps=[33]).error2, rtol=1e-10)


def test_the_mean_in_pieces_has_the_exact_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate_module, "CHUNK", 600 * 5 * 7)
    track = track_mean(DRIFTING, reps=600, seed=1, steps=[3, 4, 12, 33])
    exact = theory.exact_mse(DRIFTING.drift(), DRIFTING.traces(), n=4)
    at = track.steps - 1
    assert worst(track.error2, exact.total[at]) < 4
    assert worst(track.prediction2, exact.prediction[at]) < 4
    assert worst(track.error2, exact.lag2[at]) > 8


CONSTANT = Process(d=6, n=5, steps=40, mean=MeanDrift(C=0.8, alpha=0.3))


def both(**fields: object) -> list[CovTrack]:
    methods = ("rows", "wishart")
    return [
        track_covariance(CONSTANT, reps=800, seed=i, steps=[5, 12, 40], method=m, keep_moments=True, **fields)  # type: ignore[arg-type]
        for i, m in enumerate(methods)
    ]


def test_wishart_segments_have_the_law_of_rows() -> None:
    rows, wishart = both(prior=0.5)
    for name in ("spectral", "condition", "eig_min", "eig_max", "error2", "prediction2"):
        for power in (1, 2):
            a, b = (getattr(track, name) ** power for track in (rows, wishart))
            z = (a.mean(axis=0) - b.mean(axis=0)) / np.sqrt((a.var(axis=0) + b.var(axis=0)) / 800)
            assert np.abs(z).max() < 4.5, name
    for track in (rows, wishart):
        for k, step in enumerate(track.steps):
            N, B = 5 * int(step), theory.scatter_of_means(CONSTANT.means()[:step])
            exact = theory.mean_cov(CONSTANT.time_average(int(step)), B, N=N, d=6, eps0=0.5)
            se = np.sqrt(track.var_cov[k] / 800)  # type: ignore[index]
            assert np.abs((track.mean_cov[k] - exact) / se).max() < 4.5  # type: ignore[index]
            still = theory.mean_cov(CONSTANT.time_average(int(step)), None, N=N, d=6, eps0=0.5)
            assert np.abs((track.mean_cov[k] - still) / se).max() > 10  # type: ignore[index]


def test_automatic_method_draws_rows_where_it_must() -> None:
    def spectral(process: Process, method: str) -> np.ndarray:
        return track_covariance(process, reps=2, seed=0, steps=[40], method=method).spectral  # type: ignore[arg-type]

    assert np.array_equal(spectral(CONSTANT, "auto"), spectral(CONSTANT, "wishart"))
    assert not np.array_equal(spectral(CONSTANT, "auto"), spectral(CONSTANT, "rows"))
    for changed in (
        replace(CONSTANT, cov=CovDrift(C=0.1, kind="folding")),
        replace(CONSTANT, noise=Noise("student")),
        replace(CONSTANT, noise=Noise(dependence="intraclass", rho=0.1)),
    ):
        assert np.array_equal(spectral(changed, "auto"), spectral(changed, "rows"))
        with pytest.raises(SpecError, match="method: 'wishart' needs"):
            spectral(changed, "wishart")


def test_frames_are_tidy() -> None:
    frame = simulate(CONSTANT, reps=7, seed=3, steps=[1, 5, 40], covariance=True)
    assert list(frame.columns) == [
        *("step", "rows", "replicate", "mse", "prediction"),
        *("cov_error", "condition", "eig_max", "eig_min"),
    ]
    assert len(frame) == 21
    assert (frame["rows"] == 5 * frame["step"]).all()
    track = track_covariance(CONSTANT, reps=7, seed=3, steps=[1, 5, 40])
    picked = frame[(frame["step"] == 5) & (frame["replicate"] == 4)].iloc[0]
    assert picked["mse"] == track.error2[4, 1]
    assert picked["condition"] == track.condition[4, 1]
    assert list(simulate(CONSTANT, reps=2).columns) == ["step", "rows", "replicate", "mse", "prediction"]
    assert sorted(simulate(CONSTANT, reps=2)["step"].unique()) == checkpoints(40)


@pytest.mark.parametrize(
    "noise",
    [
        Noise(),
        Noise("exponential", dependence="intraclass", rho=0.4),
        Noise(dependence="tokens", tokens=5, rho=0.7),
        Noise(dependence="layers", layers=2, spread=0.9),
        Noise("student", dependence="pool", pool=220),
    ],
    ids=lambda n: n.dependence,
)
def test_summaries_agree_with_the_exact_error(noise: Noise) -> None:
    mean = MeanDrift() if noise.pool else CONSTANT.mean
    process = replace(CONSTANT, noise=noise, mean=mean)
    table = summarise(simulate(process, reps=500, seed=4, steps=[1, 2, 10, 40]))
    assert list(table.columns) == ["step", "quantity", "mean", "se", "n", "exact"]
    assert list(table["quantity"][:2]) == ["mse", "prediction"]
    nothing = (table["step"] == 1) & (table["quantity"] == "prediction")
    assert table.loc[nothing, "n"].item() == 0
    kept = table[~nothing]
    assert (kept["n"] == 500).all()
    z = (kept["mean"] - kept["exact"]) / kept["se"]
    assert z.abs().max() < 4


def test_summaries_without_an_oracle() -> None:
    chained = replace(CONSTANT, noise=Noise(dependence="ar1", rho=0.5))
    frame = simulate(chained, reps=5, covariance=True)
    assert summarise(frame)["exact"].isna().all()
    plain = summarise(simulate(CONSTANT, reps=5, covariance=True))
    known = plain.groupby("quantity")["exact"].count()
    assert known["mse"] == len(checkpoints(40))
    assert known["cov_error"] == known["condition"] == 0
    bare = simulate(CONSTANT, reps=5)
    bare.attrs.clear()
    assert summarise(bare)["exact"].isna().all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": []}, "steps: must be a list of integers"),
        ({"steps": [1.5]}, "steps: must be a list of integers"),
        ({"steps": [0, 3]}, "steps: must ascend within 1 to 40"),
        ({"steps": [3, 3]}, "steps: must ascend"),
        ({"steps": [41]}, "steps: must ascend"),
        ({"reps": 0}, "reps: must be an integer of at least 1, got 0"),
        ({"forget": 0.0}, "forget: must lie in"),
        ({"forget": 1.1}, "forget: must lie in"),
        ({"gains": [0.5, 0.5]}, r"gains: must have shape \[40\]"),
        ({"gains": np.linspace(0, 1, 40)}, r"gains: must lie in \(0, 1\]"),
        ({"gains": np.full(40, 0.5), "forget": 0.9}, "gains: give either"),
    ],
)
def test_mean_refusals(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=f"^{message}") as caught:
        track_mean(CONSTANT, **({"reps": 2, "seed": 0, "steps": [40]} | fields))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": [1]}, r"steps: 5 rows <= d \+ 1 = 7"),
        ({"prior": -1.0}, "prior"),
        ({"method": "magic"}, "method: unknown 'magic'"),
        ({"steps": [2, 1]}, "steps: must ascend"),
        ({"reps": -1}, "reps"),
    ],
)
def test_covariance_refusals(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=f"^{message}"):
        track_covariance(CONSTANT, **({"reps": 2, "seed": 0, "steps": [40]} | fields))  # type: ignore[arg-type]
