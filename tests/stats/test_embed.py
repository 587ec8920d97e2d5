"""Clouds: invariances of CKA, shifts in units of the radius, ellipses, and a plane that only the reference decides."""

from __future__ import annotations

import numpy as np
import pytest

from stablediag.stats.embed import covariance_ellipse, linear_cka, mean_shift, umap_plane

RNG = np.random.default_rng(0)
CLOUD = RNG.standard_normal((200, 12)) * np.linspace(0.5, 3, 12)


def test_cka_is_invariant_to_rotation_scale_and_shift() -> None:
    rotation, _ = np.linalg.qr(RNG.standard_normal((12, 12)))
    assert linear_cka(CLOUD, 3 * CLOUD @ rotation + 5) == pytest.approx(1.0)
    # Planted violations: prompts in another order, and another cloud.
    assert linear_cka(CLOUD, CLOUD[::-1]) < 0.5
    assert linear_cka(CLOUD, RNG.standard_normal((200, 12))) < 0.3


def test_cka_equals_the_kernel_definition() -> None:
    a, b = CLOUD[:40], np.tanh(CLOUD[:40, :5]) + 0.3
    centre = np.eye(40) - 1 / 40
    k, m = centre @ a @ a.T @ centre, centre @ b @ b.T @ centre
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert linear_cka(a, b) == pytest.approx(expected)


def test_mean_shift_is_in_units_of_the_radius() -> None:
    offset = np.zeros(12)
    offset[0] = 2.0
    radius = np.sqrt(((CLOUD - CLOUD.mean(axis=0)) ** 2).sum(axis=1).mean())
    assert mean_shift(CLOUD, CLOUD + offset) == pytest.approx(2.0 / radius)
    assert mean_shift(10 * CLOUD, 10 * (CLOUD + offset)) == pytest.approx(2.0 / radius)
    assert mean_shift(CLOUD, CLOUD[::-1]) == pytest.approx(0.0, abs=1e-12)


def test_ellipse_holds_95_percent() -> None:
    points = RNG.standard_normal((20000, 2)) @ np.array([[3.0, 0.0], [1.0, 0.5]]) + [5, -2]
    e = covariance_ellipse(points)
    turn = np.radians(e.angle)
    local = (points - [e.x, e.y]) @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    inside = ((2 * local / [e.width, e.height]) ** 2).sum(axis=1) <= 1
    assert inside.mean() == pytest.approx(0.95, abs=0.006)
    assert e.width > e.height


@pytest.mark.slow
def test_umap_fits_the_reference_alone_and_repeats() -> None:
    """One test, because UMAP compiles for seconds: same seed same plane, and the others cannot move it."""
    reference = CLOUD[:60].astype(np.float32)
    plane, placed = umap_plane(reference, {"same": reference, "far": reference + 30})
    again, other = umap_plane(reference, {"other": -reference})
    assert plane.shape == (60, 2)
    assert np.array_equal(plane, again)
    assert set(placed) == {"same", "far"}
    assert other["other"].shape == (60, 2)
    spread = np.linalg.norm(plane - plane.mean(axis=0), axis=1).mean()
    assert np.linalg.norm(placed["same"] - plane, axis=1).mean() < spread
