"""Drift: exact sizes, directions with the stated coherence, spectra that never leave their bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stablediag.errors import SpecError
from synthetic.drift import CovDrift, MeanDrift, pair_gap
from synthetic.spectra import Floats, Spectrum

DRIFTS = [
    MeanDrift(C=0.3, alpha=1.25),
    MeanDrift(C=0.3, alpha=0.0, direction="random"),
    MeanDrift(C=2.0, alpha=0.5, direction="rotating", angle=1.1),
    MeanDrift(C=0.3, alpha=0.25, direction="reverting", persistence=-0.6),
    MeanDrift(C=0.3, alpha=1.0, direction="periodic", period=6),
]


def steps_of(drift: MeanDrift, d: int, total: int, start: int = 2, seed: int = 0) -> Floats:
    return drift.sizes(total, start)[:, None] * drift.directions(d, total, start, seed)


@pytest.mark.parametrize("drift", DRIFTS, ids=lambda m: m.direction)
@pytest.mark.parametrize("start", [2, 31])
def test_sizes_are_exact(drift: MeanDrift, start: int) -> None:
    steps = steps_of(drift, 9, 400, start)
    t = np.arange(1, 401)
    expected = np.where(t >= start, drift.C * t.astype(float) ** -drift.alpha, 0.0)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), expected, rtol=1e-14)


def test_a_jump_moves_once_by_its_whole_size() -> None:
    sizes = MeanDrift(C=2.5, alpha=3.0, direction="jump", at=17).sizes(40, 2)
    assert sizes[16] == 2.5
    assert np.count_nonzero(sizes) == 1


@pytest.mark.parametrize("drift", DRIFTS, ids=lambda m: m.direction)
def test_directions_depend_on_the_seed_alone(drift: MeanDrift) -> None:
    one = drift.directions(5, 30, 2, seed=3)
    np.testing.assert_array_equal(one, drift.directions(5, 30, 2, seed=3))
    assert not np.allclose(one, drift.directions(5, 30, 2, seed=4))


def test_fixed_never_turns_and_rotating_turns_by_its_angle_in_one_plane() -> None:
    fixed = MeanDrift(C=1.0).directions(7, 50, 2, 0)
    np.testing.assert_allclose(fixed @ fixed[0], 1.0, rtol=1e-14)
    turning = MeanDrift(C=1.0, direction="rotating", angle=0.3).directions(7, 50, 2, 0)
    gram = turning @ turning.T
    lag = np.subtract.outer(np.arange(50), np.arange(50))
    np.testing.assert_allclose(gram, np.cos(0.3 * lag), atol=1e-13)
    assert np.linalg.matrix_rank(turning) == 2


def test_random_directions_are_uniform_and_independent() -> None:
    d, total = 4, 40_000
    u = MeanDrift(C=1.0, direction="random").directions(d, total, 2, 5)
    second = u[:, :, None] * u[:, None, :] - np.eye(d) / d
    for sample in (u, second.reshape(total, -1), (u[1:] * u[:-1]).sum(axis=1, keepdims=True)):
        z = sample.mean(axis=0) / sample.std(axis=0) * math.sqrt(len(sample))
        assert np.abs(z).max() < 4


@pytest.mark.parametrize("persistence", [0.9, 0.0, -0.7])
def test_reverting_has_its_persistence_at_every_lag(persistence: float) -> None:
    drift = MeanDrift(C=1.0, direction="reverting", persistence=persistence)
    paths = np.stack([drift.directions(5, 8, 2, seed) for seed in range(600)])
    cosines = np.einsum("std,sd->st", paths, paths[:, 0])
    np.testing.assert_allclose(cosines[:, 1], persistence, atol=1e-12)
    rest = cosines[:, 2:]
    z = (rest.mean(axis=0) - persistence ** np.arange(2, 8)) / rest.std(axis=0) * math.sqrt(600)
    assert np.abs(z).max() < 4


def test_periodic_comes_back_after_a_period() -> None:
    mu = np.cumsum(steps_of(MeanDrift(C=0.5, alpha=0.0, direction="periodic", period=10), 3, 41, 2), axis=0)
    distance = np.linalg.norm(mu, axis=1)
    np.testing.assert_allclose(distance[[0, 10, 20, 30, 40]], 0, atol=1e-12)
    np.testing.assert_allclose(distance[[5, 15, 25]], 2.5, rtol=1e-12)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"C": -0.1}, "C"),
        ({"C": float("nan")}, "C"),
        ({"alpha": -1.0}, "alpha"),
        ({"direction": "sideways"}, "direction"),
        ({"angle": float("inf")}, "angle"),
        ({"persistence": 1.5}, "persistence"),
        ({"persistence": -1.5}, "persistence"),
        ({"period": 7}, "period"),
        ({"period": 0}, "period"),
        ({"direction": "jump"}, "at"),
        ({"at": 5}, "at"),
        ({"direction": "jump", "at": 1}, "at"),
    ],
)
def test_mean_drift_refusals(fields: dict[str, object], name: str) -> None:
    with pytest.raises(SpecError, match=f"^{name}: ") as caught:
        MeanDrift(**fields)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_refusals_that_need_the_process() -> None:
    with pytest.raises(SpecError, match="d: rotating drift needs a plane"):
        MeanDrift(C=1.0, direction="rotating").check(1, 10, 2)
    jump = MeanDrift(C=1.0, direction="jump", at=12)
    jump.check(1, 12, 2)
    with pytest.raises(SpecError, match="at: the mean moves in steps 2 to 11"):
        jump.check(1, 11, 2)
    with pytest.raises(SpecError, match="at: the mean moves in steps 13 to 20"):
        jump.check(1, 20, 13)


def folded_slowly(start: float, sign: float, sizes: Floats, lmin: float, lmax: float) -> list[float]:
    """Walk one eigenvalue step by step and turn it round at the walls."""
    at, out = start, []
    for size in sizes:
        at += sign * size
        while not lmin <= at <= lmax:
            at, sign = (2 * lmax - at, -sign) if at > lmax else (2 * lmin - at, -sign)
        out.append(at)
    return out


@pytest.mark.parametrize(("C", "beta"), [(0.05, 0.5), (0.3, 1.5), (0.7, 0.0), (3.0, 0.25)])
@pytest.mark.parametrize("kind", ["iso", "geometric"])
def test_folding_follows_a_walk_between_two_walls(kind: str, C: float, beta: float) -> None:
    drift, spectrum = CovDrift(C=C, beta=beta, kind="folding"), Spectrum(kind, lmin=0.1, lmax=1.0)  # type: ignore[arg-type]
    values, total = spectrum.values(7), 300
    path = drift.eigenvalues(values, 0.1, 1.0, total, 2)
    sizes = drift.sizes(total, 2)
    signs = [-1.0, 1.0] * 4
    twin = np.array([folded_slowly(v, s, sizes, 0.1, 1.0) for v, s in zip(values, signs, strict=False)]).T
    np.testing.assert_allclose(path, twin, atol=1e-11)
    assert path.min() >= 0.1
    assert path.max() <= 1.0
    moved = np.abs(np.diff(path, axis=0)).max(axis=1)
    assert np.all(moved <= sizes[1:] * (1 + 1e-12) + 1e-15)


def test_folding_steps_are_exact_until_the_first_wall() -> None:
    drift = CovDrift(C=0.3, beta=1.5, kind="folding")
    values = Spectrum(lmin=0.05).values(16)
    path, sizes = drift.eigenvalues(values, 0.05, 1.0, 500, 2), drift.sizes(500, 2)
    moved = np.abs(np.diff(path, axis=0))
    # The largest starts at the upper wall and goes down by .3 (zeta(3/2) - 1) in all: it never meets the lower one.
    np.testing.assert_allclose(moved[:, 0], sizes[1:], rtol=0, atol=2e-16)
    np.testing.assert_allclose(moved.max(axis=1), sizes[1:], rtol=0, atol=5e-16)


def test_rotation_turns_by_the_angle_that_makes_the_step_exact() -> None:
    values = np.array([1.0, 0.8, 0.5, 0.4, 0.1])
    assert pair_gap(values) == pytest.approx(0.5)
    drift = CovDrift(C=0.4, beta=0.5, kind="rotation")
    angles, sizes = drift.angles(values, 60, 2), drift.sizes(60, 2)
    assert angles[0] == 0

    def dense(angle: float) -> Floats:
        vectors = np.eye(5)
        for i in range(2):
            turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            vectors[np.ix_([i, i + 2], [i, i + 2])] = turn
        return vectors @ np.diag(values) @ vectors.T

    steps = [np.linalg.norm(dense(a) - dense(b), ord=2) for a, b in zip(angles[1:], angles[:-1], strict=True)]
    np.testing.assert_allclose(steps, sizes[1:], rtol=1e-12)
    np.testing.assert_array_equal(drift.eigenvalues(values, 0.1, 1.0, 60, 2), np.tile(values, (60, 1)))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"C": -0.1}, "C"),
        ({"beta": -0.1}, "beta"),
        ({"kind": "stretch"}, "kind"),
        ({"C": 0.1, "kind": "none"}, "C: kind 'none' does not drift"),
    ],
)
def test_cov_drift_refusals(fields: dict[str, object], name: str) -> None:
    with pytest.raises(SpecError, match=f"^{name}") as caught:
        CovDrift(**fields)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_covariance_without_room_is_refused() -> None:
    flat, steep = np.full(4, 1.0), np.array([1.0, 1.0, 0.5, 0.5])
    with pytest.raises(SpecError, match="cov: folding needs room"):
        CovDrift(C=0.1, kind="folding").check(flat, 1.0, 1.0, 2)
    with pytest.raises(SpecError, match="cov: a rotation moves Sigma by at most 0"):
        CovDrift(C=0.1, kind="rotation").check(flat, 0.1, 1.0, 2)
    # 1.1 t^-1 is .55 > .5 at t = 2, but not from t = 3 on.
    drift = CovDrift(C=1.1, beta=1.0, kind="rotation")
    with pytest.raises(SpecError, match=r"cov: a rotation moves Sigma by at most 0\.5"):
        drift.check(steep, 0.1, 1.0, 2)
    drift.check(steep, 0.1, 1.0, 3)
    CovDrift(kind="rotation").check(flat, 1.0, 1.0, 2)
