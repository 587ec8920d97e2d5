"""The posterior's claims: all hold, all planted violations are caught, and a wrong recursion in the right place is seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from stablediag.maths import NIW
from synthetic.calibration import WRONG
from synthetic.certify import Row
from synthetic.claims import Claim, Scale, _posterior_estimates, _posterior_recursion
from synthetic.claims.posterior import CLAIMS
from synthetic.grid import run_cells
from tests.twins import pooled_moments

QUICK = Scale(quick=True)


def _run(claim: Claim, scale: Scale = QUICK) -> list[Row]:
    cells = claim.cells(scale)
    assert len({cell.seed for cell in cells}) == len(cells)
    return claim.rows(cells, run_cells(cells))


@pytest.mark.parametrize(("claim", "planted"), list(zip(CLAIMS, (len(WRONG) + 1, 5), strict=True)))
def test_quick_scale_comes_out_as_predicted(claim, planted):
    rows = _run(claim)
    assert [row.setting for row in rows if not row.ok] == []
    caught = [row for row in rows if row.planted]
    assert len(caught) == planted
    assert min(row.power for row in caught) >= 0.99
    assert all(row.setting.startswith("planted: ") == row.planted for row in rows)
    assert len({row.setting for row in rows}) == len(rows)


def test_pooled_formula_equals_a_slow_twin_without_prior():
    rows = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 4
    found = _posterior_recursion.pooled(NIW.empty(3, batch_shape=(2,)), rows)
    for k in range(2):
        mean, scatter = pooled_moments(rows[k].numpy())
        np.testing.assert_allclose(found.mean[k], mean, rtol=1e-14)
        np.testing.assert_allclose(found.scale[k], scatter, rtol=1e-12)
    assert (found.kappa, found.nu) == (9, 9)


def test_pooled_formula_counts_a_prior_as_rows():
    """``kappa0`` rows at the prior mean, without scatter, beside the prior scale."""
    rows = torch.randn(1, 9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 4
    found = _posterior_recursion.pooled(NIW.empty(3, batch_shape=(1,), kappa0=5.0, nu0=7.0, prior=2.0), rows)
    mean, scatter = pooled_moments(np.concatenate([np.zeros((5, 3)), rows[0].numpy()]))
    np.testing.assert_allclose(found.mean[0], mean, rtol=1e-12)
    np.testing.assert_allclose(found.scale[0], scatter + 2 * np.eye(3), rtol=1e-12)
    assert (found.kappa, found.nu) == (14, 16)


@pytest.mark.parametrize(("field", "size"), [("mean", 1e-9), ("scale", 1e-9), ("kappa", 1e-9), ("nu", 1e-9)])
def test_gap_sees_every_field(field, size):
    state = NIW.empty(3, batch_shape=(2,), kappa0=4.0, nu0=6.0, prior=2.0)
    state = state.update(torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1)
    fields = {name: getattr(state, name) for name in ("mean", "kappa", "scale", "nu")}
    assert _posterior_recursion.gap(state, state) == 0
    moved = NIW(**fields | {field: fields[field] * (1 + size)})
    assert _posterior_recursion.gap(moved, state) == pytest.approx(size, rel=1e-3)


def test_random_merges_use_every_part_once():
    rows = torch.randn(1, 12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = NIW.empty(2, batch_shape=(1,), kappa0=2.0, nu0=4.0, prior=1.0)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        found = _posterior_recursion._merged_in_random_order(start, rows.split([1, 4, 2, 5], dim=-2), generator)
        assert _posterior_recursion.gap(found, start.update(rows)) < 1e-14


@pytest.mark.parametrize("name", ["nu one short", "mean shift about a stale mean", "merge by plain average of means"])
def test_a_wrong_recursion_in_the_place_of_the_right_one_is_false(name, monkeypatch):
    monkeypatch.setitem(_posterior_recursion.RIGHT, "update", WRONG[name])
    cells = [cell for cell in CLAIMS[0].cells(QUICK) if cell.params.get("backend") == "update"]
    rows = CLAIMS[0].rows(cells, run_cells(cells))
    assert "false" in [row.verdict for row in rows]
    assert not all(row.ok for row in rows)


def test_an_update_that_forgets_is_seen_by_pooling(monkeypatch):
    update = NIW.update

    def forgetful(state, rows, *, forget=1.0, block_var="population"):
        return update(state, rows, forget=forget * (1 - 1e-9), block_var=block_var)

    monkeypatch.setattr(NIW, "update", forgetful)
    cells = [cell for cell in CLAIMS[0].cells(QUICK) if cell.function.endswith("measure_pooling")]
    rows = [row for row in CLAIMS[0].rows(cells, run_cells(cells)) if not row.planted]
    assert [row.verdict for row in rows if "random order" not in row.setting] == ["false"] * 3


def test_the_released_block_variance_is_seen_by_the_estimates(monkeypatch):
    update = NIW.update
    monkeypatch.setattr(NIW, "update", lambda state, rows: update(state, rows, block_var="sample"))
    rows = {row.setting: row for row in _run(CLAIMS[1])}
    assert rows["covariance over truth, d = 6, N = 40"].verdict == "false"
    assert rows["squared norm over all rows of one stream, relative gap, d = 6, N = 40"].verdict == "false"
    assert rows["mean, d = 6, N = 40"].verdict == "holds"  # it says nothing of the scatter


def test_precision_factor_is_that_of_the_inverse_wishart():
    d, rows = 5, 30
    expected = (rows - d - 1) * stats.invwishart(df=rows - 1, scale=np.eye(d)).mean()
    np.testing.assert_allclose(_posterior_estimates.precision_factor(d, rows) * np.eye(d), expected, rtol=1e-12)


def test_inflation_at_the_width_of_a_model_by_formula():
    (*_, wide) = CLAIMS[1].cells(Scale())
    result = {"full": 40.766, "diagonal": 1.0, "wrong": 1.0, "full se": 0.014, "diagonal se": 3e-4, "wrong se": 3e-4}

    class Stub:
        seconds = 0.0

        def number(self, name: str) -> float:
            return result[name]

    full, _, wrong = _posterior_estimates._wide_rows(wide, Stub())
    assert wide.params["d"] == 4096
    assert full.exact == pytest.approx(4199 / 103)
    assert full.exact == pytest.approx(40.8, abs=0.05)
    assert full.verdict == "holds"
    assert wrong.caught


def test_wide_stream_in_blocks_and_standard_errors():
    found = _posterior_estimates.measure_inflation(seed=1, d=200, rows=230, batch=70)
    assert found["wrong"] == pytest.approx(found["diagonal"], rel=1e-12)
    assert found["full"] == pytest.approx(found["wrong"] * 229 / 29, rel=1e-12)
    # A variance of N - 1 degrees has standard deviation sqrt(2/(N - 1)).
    assert found["diagonal se"] == pytest.approx(math.sqrt(2 / 229 / 200), rel=0.2)


def test_moments_of_skewed_rows_are_those_of_the_law():
    found = _posterior_estimates.measure_moments(seed=2, reps=400, d=3, batches=[40, 60], noise="exponential")
    np.testing.assert_allclose(found["mean"], [1, 2, 3], atol=6 * found["mean se"].max())
    assert found["wrong inflation"] == pytest.approx(1.0, abs=6 * found["wrong inflation se"])
    skewed = found["inflation se"]
    plain = _posterior_estimates.measure_moments(seed=2, reps=400, d=3, batches=[40, 60], noise="gauss")
    assert skewed > 1.5 * plain["inflation se"]  # kurtosis 9 instead of 3


def test_few_replicates_are_possible():
    for claim in CLAIMS:
        rows = _run(claim, Scale(quick=True, reps=8))
        assert all(row.ok for row in rows if not row.planted)
