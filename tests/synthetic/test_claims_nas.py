"""Norm feedback: edits against the textbook formula, growth against a slow recursion, violations against the check."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from synthetic.claims import Scale, nas
from synthetic.grid import run_cells

QUICK = Scale(quick=True)


def _problem(n: int, d: int = 4, p: int = 9, batch: tuple[int, ...] = ()) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(n)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)

    return normal(d, p), normal(n, p), normal(n, d), nas._root(p, generator)


@pytest.mark.parametrize("ridge", [0.0, 0.7])
@pytest.mark.parametrize("n", [1, 5])
def test_edit_equals_the_textbook_formula(n, ridge):
    weight, keys, values, root = _problem(n)
    inverse = torch.linalg.inv(root @ root.T)
    k, v = keys.T, values.T
    middle = torch.linalg.inv(k.T @ inverse @ k + ridge * torch.eye(n))
    expected = weight + (v - weight @ k) @ middle @ k.T @ inverse
    torch.testing.assert_close(nas.edit(weight, keys, values, root, ridge=ridge), expected, rtol=1e-9, atol=1e-9)


def test_edit_interpolates_unless_there_is_a_ridge():
    weight, keys, values, root = _problem(5)
    torch.testing.assert_close(keys @ nas.edit(weight, keys, values, root).T, values)
    assert (keys @ nas.edit(weight, keys, values, root, ridge=0.3).T - values).abs().max() > 1e-2


def test_edit_is_the_smallest_interpolating_change_in_the_weighted_norm():
    weight, keys, values, root = _problem(3)
    after = nas.edit(weight, keys, values, root)
    generator = torch.Generator().manual_seed(0)
    free = torch.eye(9, dtype=torch.float64) - torch.linalg.pinv(keys) @ keys
    smallest = nas.weighted_norm(after - weight, root)
    for _ in range(20):
        other = after + 1e-2 * torch.randn(4, 9, generator=generator, dtype=torch.float64) @ free
        torch.testing.assert_close(keys @ other.T, values)
        assert nas.weighted_norm(other - weight, root) > smallest


def test_batched_edits_equal_a_loop():
    weight, keys, values, root = _problem(2, batch=(3,))
    together = nas.edit(weight, keys, values, root)
    for i in range(3):
        torch.testing.assert_close(together[i], nas.edit(weight[i], keys[i], values[i], root))


def test_covariance_is_far_from_the_identity():
    root = nas._root(nas.INPUTS, torch.Generator().manual_seed(3))
    assert float(torch.linalg.cond(root @ root.T)) == pytest.approx(nas.CONDITION, rel=1e-6)
    assert torch.equal(root, root.tril())


@pytest.mark.parametrize("regime", nas.REGIMES)
def test_prediction_equals_a_slow_recursion(regime):
    target = nas.REGIMES[regime]
    norm, norms = nas.START, []
    for _ in range(60):
        new = target["tau"] ** 2 if "tau" in target else target["s_new"] * norm + target["b_new"]
        norm += nas.K * (new - nas.S_OLD * norm)
        norms.append(norm)
    np.testing.assert_allclose(nas.predicted(range(1, 61), target), norms, rtol=1e-10)


def test_regimes_are_what_they_are_called():
    long = [250, 500, 1000]
    exponential, linear, falling, anchored = (nas.predicted(long, target) for target in nas.REGIMES.values())
    rates = np.diff(np.log(exponential)) / np.diff(long)
    assert rates[0] == pytest.approx(rates[1], rel=1e-3)
    assert rates[0] == pytest.approx(math.log(1 + 0.7 / nas.INPUTS), rel=1e-3)
    np.testing.assert_allclose(np.diff(linear), 0.4 * np.diff(long), rtol=1e-9)
    np.testing.assert_allclose(falling[-1], 2.0 / (0.7 * nas.S_OLD), rtol=1e-6)
    np.testing.assert_allclose(anchored[-1], 1.8**2 / nas.S_OLD, rtol=1e-6)


def test_keys_have_the_prescribed_length_and_old_values_their_share():
    """What the prediction takes for granted, measured: one edit to the value zero removes the old value alone."""
    found = nas.measure_growth(seed=1, reps=4000, points=[1], target={"s_new": 0.0, "b_new": 0.0}, spread=0.0)
    exact = nas.START * (1 - 1 / nas.INPUTS)
    assert abs(found["mean"][0] - exact) < 5 * found["se"][0]
    assert found["se"][0] < 0.01


def test_quick_scale_comes_out_as_predicted():
    (claim,) = nas.CLAIMS
    cells = claim.cells(QUICK)
    assert len({cell.seed for cell in cells}) == len(cells)
    results = run_cells(cells)
    rows = claim.rows(cells, results)
    assert [row.setting for row in rows if not row.ok] == []
    assert sum(row.planted for row in rows) == 4
    assert min(row.power for row in rows if row.planted) >= 0.99
    assert all(row.setting.startswith("planted: ") == row.planted for row in rows)
    assert len({row.setting for row in rows}) == len(rows)
    # The check is sharper than its violations: a tenth more of the old values is seen too.
    at = len(nas.IDENTITIES) + list(nas.REGIMES).index("anchored: saturating")
    right = nas._growth_row("anchored", cells[at], results[at], nas.K, nas.S_OLD, planted=False)
    wrong = nas._growth_row("anchored", cells[at], results[at], nas.K, 1.1 * nas.S_OLD, planted=False)
    assert (right.verdict, wrong.verdict) == ("holds", "false")


def test_identity_rows_compare_every_trial():
    found = nas.measure_identity(seed=5, edits=2, trials=30, ridge=0.0, weighted=True)
    assert 0 <= found["smallest"] <= found["largest"] < nas.TOLERANCE
    ridged = nas.measure_identity(seed=5, edits=2, trials=30, ridge=1e-3, weighted=True)
    assert ridged["smallest"] > nas.TOLERANCE
    assert ridged["missed"] > found["missed"]


def test_few_replicates_are_possible():
    (claim,) = nas.CLAIMS
    cells = claim.cells(Scale(quick=True, reps=8))
    rows = claim.rows(cells, run_cells(cells))
    assert all(row.ok for row in rows if not row.planted)
