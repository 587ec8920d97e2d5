"""Growth of the weights against simulated interpolating edits."""

from __future__ import annotations

import numpy as np
import pytest

from stablediag.stats.theory import nas_anchored, nas_growth, nas_rate, nas_step_identity

D, P = 10, 16


def edit(w: np.ndarray, values: np.ndarray, keys: np.ndarray, c_inv: np.ndarray) -> np.ndarray:
    """W [..., d, p] that gives `values` [..., n, d] at `keys` [..., n, p], by the smallest change in the C norm."""
    right = keys @ c_inv
    gain = np.linalg.solve(right @ np.swapaxes(keys, -1, -2), right)
    return w + np.swapaxes(values - keys @ np.swapaxes(w, -1, -2), -1, -2) @ gain


def weighted(w: np.ndarray, c: np.ndarray) -> np.ndarray:
    return np.einsum("...dp,pq,...dq->...", w, c, w)


@pytest.mark.parametrize("batch", [1, 4])
def test_one_step_is_an_identity(batch: int) -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((P, P))
    c = root @ root.T + np.eye(P)
    w, keys, values = (rng.standard_normal(s) for s in ((3, D, P), (3, batch, P), (3, batch, D)))
    after = edit(w, values, keys, np.linalg.inv(c))
    assert keys @ np.swapaxes(after, -1, -2) == pytest.approx(values)
    old = keys @ np.swapaxes(w, -1, -2)
    change = weighted(after, c) - weighted(w, c)
    assert nas_step_identity(values, old, keys, c) == pytest.approx(change, rel=1e-9)
    # Planted violations: the plain norm, and a ridge in place of interpolation.
    assert np.abs(nas_step_identity(values, old, keys, np.eye(P)) / change - 1).min() > 0.05
    gram = keys @ np.linalg.solve(c, np.swapaxes(keys, -1, -2)) + 5 * np.eye(batch)
    ridge = w + np.swapaxes(values - old, -1, -2) @ np.linalg.solve(gram, keys @ np.linalg.inv(c))
    assert np.abs(nas_step_identity(values, old, keys, c) / (weighted(ridge, c) - weighted(w, c)) - 1).max() > 0.05


@pytest.mark.parametrize(("s_new", "b_new"), [(1.4, 2.0), (1.0, 2.0), (0.0, 9.0)], ids=["growing", "equal", "anchored"])
def test_growth_over_a_hundred_edits(s_new: float, b_new: float) -> None:
    """Keys on the sphere of squared radius p: s_old is one, b_old zero, K = 1/p."""
    edits, reps = 100, 400
    rng = np.random.default_rng(1)
    w = 0.2 * rng.standard_normal((reps, D, P))
    curve = [np.square(w).sum(axis=(1, 2))]
    for _ in range(edits):
        k, u = rng.standard_normal((reps, 1, P)), rng.standard_normal((reps, 1, D))
        k *= np.sqrt(P) / np.linalg.norm(k, axis=-1, keepdims=True)
        u /= np.linalg.norm(u, axis=-1, keepdims=True)
        w = edit(w, u * np.sqrt(s_new * curve[-1] + b_new)[:, None, None], k, np.eye(P))
        curve.append(np.square(w).sum(axis=(1, 2)))
    found, error = np.mean(curve, axis=1), np.std(curve, axis=1) / np.sqrt(reps)
    n = np.arange(edits + 1)
    expected = nas_growth(n, found[0], K=1 / P, s_new=s_new, b_new=b_new, s_old=1.0, b_old=0.0)
    assert np.abs((found - expected)[1:] / error[1:]).max() < 4.5
    if s_new == 0:
        anchored = nas_anchored(n, found[0], K=1 / P, tau=3.0, s_old=1.0, b_old=0.0)
        assert anchored == pytest.approx(expected)
        assert anchored[-1] == pytest.approx(9, rel=0.01)
    # Planted violation: the key constant off by a half.
    wrong = nas_growth(n, found[0], K=1.5 / P, s_new=s_new, b_new=b_new, s_old=1.0, b_old=0.0)
    assert np.abs((found - wrong)[1:] / error[1:]).max() > 12


def test_closed_form_is_the_recursion() -> None:
    for s_new, s_old in ((0.8, 0.3), (0.3, 0.8), (0.5, 0.5), (0.5 + 1e-13, 0.5), (0.0, 12.0)):
        w, curve = 2.0, [2.0]
        for _ in range(50):
            w = w + 0.1 * (s_new * w + 1.5 - s_old * w - 0.4)
            curve.append(w)
        found = nas_growth(np.arange(51), 2.0, K=0.1, s_new=s_new, b_new=1.5, s_old=s_old, b_old=0.4)
        assert found == pytest.approx(np.array(curve), rel=1e-9)
    assert nas_rate(0.1, 0.8, 0.3) == pytest.approx(1.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nas_rate(0, 1, 1), "K: must be positive and finite, got 0"),
        (lambda: nas_rate(1, -1, 1), "s_new: must be finite and at least 0, got -1"),
        (
            lambda: nas_growth(-1, 1, K=1, s_new=1, b_new=0, s_old=0, b_old=0),
            "n: must be finite and at least 0, got -1",
        ),
        (lambda: nas_anchored(1, 1, K=1, tau=-1, s_old=1, b_old=0), "tau: must be finite and at least 0, got -1"),
        (
            lambda: nas_step_identity(np.ones((2, 3)), np.ones((1, 3)), np.ones((2, 4)), np.eye(4)),
            "old: must have the shape",
        ),
        (
            lambda: nas_step_identity(np.ones((2, 3)), np.ones((2, 3)), np.ones((2, 1)), np.eye(1)),
            r"keys: must be \[..., 2, p\]",
        ),
        (
            lambda: nas_step_identity(np.ones((1, 3)), np.ones((1, 3)), np.ones((1, 4)), np.eye(3)),
            r"C: must have shape \[..., 4, 4\]",
        ),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
