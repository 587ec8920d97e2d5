"""The simulated updates against an obvious twin in NumPy, and the stream's own truth against its samples."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stablediag.errors import SpecError
from stablediag.stats import theory
from synthetic.grid import derive_seed
from synthetic.process import MeanDrift, Noise, Process, Spectrum
from synthetic.reduce import mean_se
from synthetic.update_stream import TRANSFORMS, UpdateStream, simulate_updates

D, N, P, STEPS, REPS, SEED = 3, 4, 7, 5, 3, 11
#: by this step more than d + 1 rows lie before the step
FIRST = 3
SPECTRUM = Spectrum("geometric", lmin=0.2)


def make(steps: int = STEPS, *, noise: Noise | None = None, drift: float = 0.0, **options: object) -> UpdateStream:
    process = Process(
        d=D, n=N, steps=steps, spectrum=SPECTRUM, mean=MeanDrift(C=drift, alpha=1.0), noise=noise or Noise()
    )
    return UpdateStream(process, p=P, ridge=2.0, lr=0.5, **options)  # type: ignore[arg-type]


def root_of(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors / np.sqrt(values)) @ vectors.T


def twin(stream: UpdateStream) -> list[list[dict[str, np.ndarray]]]:
    """Steps from FIRST on of every replicate from pooled rows and the p x p ridge system, one matrix at a time."""
    sampler = stream.process.sampler(REPS, derive_seed(SEED, "gradients"))
    generator = torch.Generator().manual_seed(derive_seed(SEED, "keys"))
    rotation = stream.basis.numpy()
    root = stream.process.root(1)
    shift = stream.offset / np.sqrt(D) * root.sum(axis=1)
    drawn = []
    for _ in range(STEPS):
        z = torch.randn(REPS, 1, N, P, generator=generator, dtype=torch.float64)[:, 0].numpy()
        grads = sampler.next(1)[:, 0].numpy() + shift + stream.signal * z[..., :D] @ root.T
        drawn.append((z + stream.key_mean / np.sqrt(P), grads @ rotation.T))
    transform = TRANSFORMS[stream.transform][0]
    found = []
    for r in range(REPS):
        steps = []
        for t in range(FIRST, STEPS + 1):
            keys, grads = (x[r] for x in drawn[t - 1])
            pooled = np.concatenate([g[r] for _, g in drawn[: t if stream.inclusive else t - 1]])
            pooled_keys = np.concatenate([k[r] for k, _ in drawn[:t]])
            rows = len(pooled)
            m = pooled.mean(axis=0)
            sh = (pooled - m).T @ (pooled - m) / (rows - D - 1 + stream.eps)
            by = {
                "full": root_of(sh),
                "diagonal": np.diag(1 / pooled.std(axis=0, ddof=1)),
                "scalar": np.eye(D) / np.sqrt(pooled.var(axis=0, ddof=1).mean()),
            }.get(stream.whitening, np.eye(D))
            centre = m if stream.centred and stream.whitening != "none" else np.zeros(D)
            mu = rotation @ (stream.process.means()[t - 1] + shift)
            c = (((keys - pooled_keys.mean(axis=0)) / pooled_keys.std(axis=0, ddof=1)) ** 2).sum(axis=1)
            solve = np.linalg.solve(keys.T @ keys + stream.ridge * np.eye(P), keys.T)

            def delta(
                at: np.ndarray,
                grads: np.ndarray = grads,
                by: np.ndarray = by,
                solve: np.ndarray = solve,
                c: np.ndarray = c,
            ) -> tuple[np.ndarray, np.ndarray]:
                white = transform(torch.as_tensor((grads - at) @ by)).numpy()
                return white, solve @ (-stream.lr * c[:, None] * white)

            white, update = delta(centre)
            char = delta(mu)[1]
            phi = (solve * c).T
            steps.append(
                {
                    "row": (white**2).sum() / N,
                    "DW": update,
                    "char": char,
                    "bias": update - char,
                    "phi": phi,
                    "error": ((centre - mu) ** 2).sum(),
                    "largest": c.max(),
                    "sh": sh,
                    "rows": rows,
                }
            )
        found.append(steps)
    return found


SETTINGS: list[dict[str, object]] = [
    {},
    {"inclusive": False},
    {"centred": False, "offset": 1.5},
    {"eps": 2.0, "key_mean": 2.0},
    {"signal": 0.6, "rotated": True, "drift": 0.3},
    {"whitening": "diagonal", "rotated": True},
    {"whitening": "scalar"},
    {"whitening": "center", "offset": 1.0},
    {"whitening": "none", "offset": 1.0},
    {"transform": "relu"},
    {"transform": "sine", "key_mean": 1.0},
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_agrees_with_an_obvious_twin(options: dict[str, object]) -> None:
    stream = make(**options)  # type: ignore[arg-type]
    expected = twin(stream)
    # Every step is recorded, so that both draw the same numbers.
    u = simulate_updates(stream, steps=list(range(1, STEPS + 1)), reps=REPS, seed=SEED, pairs=True)
    assert u.inner is not None
    assert u.char_inner is not None
    assert u.Phi_inner is not None
    for r in range(REPS):
        steps = expected[r]
        for k in range(FIRST - 1, STEPS):
            one = steps[k - FIRST + 1]
            assert u.rows[k] == one["rows"]
            for name, value in {
                "row": one["row"],
                "update": (one["DW"] ** 2).sum(),
                "char": (one["char"] ** 2).sum(),
                "bias": (one["bias"] ** 2).sum(),
                "cross": 2 * (one["char"] * one["bias"]).sum(),
                "phi_sq": (one["phi"] ** 2).sum(),
                "Phi_sq": (one["phi"].sum(axis=0) ** 2).sum(),
                "phi_fourth": ((one["phi"] ** 2).sum(axis=1) ** 2).mean(),
                "largest": one["largest"],
                "error": one["error"],
            }.items():
                assert getattr(u, name)[r, k] == pytest.approx(value, rel=1e-9, abs=1e-12), name
            if stream.whitening == "full":
                sigma = stream.covariance(k + 1).numpy()
                assert u.precision[r, k] == pytest.approx(np.linalg.norm(np.linalg.inv(one["sh"]), 2), rel=1e-9)
                assert u.inflation[r, k] == pytest.approx(np.trace(np.linalg.solve(sigma, one["sh"])) / D, rel=1e-9)
        a, b = steps[0], steps[1]
        inner = (a["DW"] * b["DW"]).sum()
        assert u.inner[r, FIRST - 1, FIRST] == pytest.approx(inner, rel=1e-8)
        assert u.inner[r, FIRST, FIRST - 1] == u.inner[r, FIRST - 1, FIRST]
        assert u.char_inner[r, FIRST - 1, FIRST] == pytest.approx((a["bias"] * b["char"]).sum(), rel=1e-8)
        assert u.Phi_inner[r, FIRST - 1, FIRST] == pytest.approx(a["phi"].sum(0) @ b["phi"].sum(0), rel=1e-8)
        norms = np.linalg.norm(a["DW"]) * np.linalg.norm(b["DW"])
        assert u.cosine[r, FIRST - 1] == pytest.approx(inner / norms, rel=1e-8)
        kappa = np.linalg.norm(a["phi"] @ b["phi"].T) / (np.linalg.norm(a["phi"]) * np.linalg.norm(b["phi"]))
        assert u.kappa[r, FIRST - 1] == pytest.approx(kappa, rel=1e-9)


def test_total_is_the_running_sum() -> None:
    u = simulate_updates(make(), steps=[3, 4, 5], reps=REPS, seed=SEED, pairs=True, total=True)
    assert u.inner is not None
    assert u.total is not None
    for k in range(3):
        np.testing.assert_allclose(u.total[:, k], u.inner[:, : k + 1, : k + 1].sum(axis=(1, 2)), rtol=1e-9)


def test_energies_scale_with_the_rate_and_parts_add_up() -> None:
    base = simulate_updates(make(transform="tanh"), steps=[3, 5], reps=REPS, seed=SEED)
    np.testing.assert_allclose(base.update, base.char + base.bias + base.cross, rtol=1e-9)
    # phi does not contain the rate
    fast = UpdateStream.from_params(make(transform="tanh").params() | {"lr": 1.0})
    twice = simulate_updates(fast, steps=[3, 5], reps=REPS, seed=SEED)
    np.testing.assert_allclose(twice.update, 4 * base.update, rtol=1e-9)
    np.testing.assert_allclose(twice.phi_sq, base.phi_sq, rtol=1e-12)


def test_params_go_through_json() -> None:
    stream = make(signal=0.5, rotated=True, noise=Noise("student", df=4.0))
    again = UpdateStream.from_params(json.loads(json.dumps(stream.params())))
    assert again == stream
    one, two = (simulate_updates(s, steps=[3], reps=2, seed=1) for s in (stream, again))
    np.testing.assert_array_equal(one.update, two.update)
    assert not np.array_equal(one.update, simulate_updates(stream, steps=[3], reps=2, seed=2).update)


@pytest.mark.parametrize("options", [{"signal": 0.8, "offset": 2.0}, {"rotated": True, "offset": 1.0}], ids=str)
def test_truth_of_the_stream_is_that_of_its_rows(options: dict[str, float]) -> None:
    stream = make(1, **options)
    # |m - mu|^2 of plain means has the trace of the covariance as its expectation.
    centre = UpdateStream.from_params(stream.params() | {"whitening": "center"})
    u = simulate_updates(centre, steps=[1], reps=20_000, seed=4)
    mean, se = mean_se(u.error[:, 0])
    sigma = stream.covariance(1).numpy()
    assert abs(mean - np.trace(sigma) / N) < 5 * se
    mu = stream.means[0].numpy()
    plain = simulate_updates(
        UpdateStream.from_params(stream.params() | {"whitening": "none"}), steps=[1], reps=20_000, seed=5
    )
    mean, se = mean_se(plain.row[:, 0])
    assert abs(mean - (np.trace(sigma) + mu @ mu)) < 5 * se
    base = stream.process.covariance(1)
    rotation = stream.basis.numpy()
    assert mu @ rotation @ np.linalg.solve(base, rotation.T @ mu) == pytest.approx(stream.offset**2)


def test_rotation_is_orthogonal_and_changes_the_diagonal() -> None:
    stream = make(rotated=True)
    np.testing.assert_allclose(stream.basis @ stream.basis.mT, np.eye(D), atol=1e-12)
    values = SPECTRUM.values(D)
    np.testing.assert_allclose(np.linalg.eigvalsh(stream.covariance(1)), np.sort(values), rtol=1e-10)
    assert abs(stream.covariance(1) - torch.diag(torch.as_tensor(values))).max() > 0.01


def test_effective_dimension_of_every_kind() -> None:
    values = SPECTRUM.values(D)
    plain = values.sum() ** 2 / (values**2).sum()
    assert make().d_eff(1) == D
    for kind in ("scalar", "center", "none"):
        assert make(whitening=kind).d_eff(1) == pytest.approx(plain)
    assert make(whitening="diagonal").d_eff(1) == pytest.approx(D)
    turned = make(whitening="diagonal", rotated=True)
    correlation = turned.covariance(1).numpy()
    correlation /= np.sqrt(np.outer(np.diag(correlation), np.diag(correlation)))
    assert turned.d_eff(1) == pytest.approx(D**2 / (correlation**2).sum())
    assert plain < turned.d_eff(1) < D


@pytest.mark.parametrize("name", TRANSFORMS)
def test_lipschitz_constants_are_attained_and_never_exceeded(name: str) -> None:
    function, constant = TRANSFORMS[name]
    x = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    slopes = function(x).diff().abs() / x.diff()
    assert constant * 0.999 < float(slopes.max()) <= constant * (1 + 1e-9)


def test_floors_of_the_transforms_are_those_of_the_theory() -> None:
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for name in ("relu", "abs", "tanh", "identity"):
        y = TRANSFORMS[name][0](x)
        assert float(y.mean() ** 2 / y.square().mean()) == pytest.approx(theory.transform_floor(name), abs=4e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": 0.0}, "ridge: must be positive"),
        ({"lr": -1.0}, "lr: must be positive"),
        ({"lr": float("nan")}, "lr: must be positive"),
        ({"signal": -0.1}, "signal: must not be negative"),
        ({"whitening": "pca"}, "whitening: must be one of"),
        ({"transform": "gelu"}, "transform: must be one of"),
        ({"p": 2, "signal": 1.0}, "p: keys must have an entry"),
        ({"p": 0}, "p: keys must have an entry"),
    ],
)
def test_bad_streams_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        UpdateStream.from_params(make().params() | options)


@pytest.mark.parametrize("steps", [[], [0], [2, 2], [3, 1], [STEPS + 1]])
def test_bad_steps_are_refused(steps: list[int]) -> None:
    with pytest.raises(ValueError, match="steps: must ascend"):
        simulate_updates(make(), steps=steps, reps=1, seed=0)
    with pytest.raises(ValueError, match="reps: must be at least 1"):
        simulate_updates(make(), steps=[3], reps=0, seed=0)
