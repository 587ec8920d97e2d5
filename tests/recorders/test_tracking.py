from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from stablediag.editors.base import Applied, Proposal, Tracked
from stablediag.maths.niw import NIW, DiagNIW
from stablediag.maths.update import LowRank
from stablediag.maths.whiten import Floor, gradient_whitener
from stablediag.recorders.base import never
from stablediag.recorders.conformance import check_recorder
from stablediag.recorders.tracking import Conditioning, DriftSurrogates, WhitenedNorm
from tests.recorders import recorder_twins as twins

D = 24


def blocks(sizes, *, d=D, seed=0):
    """Correlated rows with a mean that moves."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5 + torch.eye(d, dtype=torch.float64)
    return [torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + 0.1 * t for t, n in enumerate(sizes)]


def proposals(listed, *, kind="full", full=True, scope="m", floor=None):
    """What an editor would propose at each of these blocks of rows."""
    state = NIW.empty(listed[0].shape[-1]) if full else DiagNIW.empty(listed[0].shape[-1])
    zero = LowRank(torch.zeros(3, 1), torch.zeros(1, listed[0].shape[-1]))
    for rows in listed:
        before, state = state, state.update(rows)
        factor = before.factor(rows) if full else None
        diag = state.diag() if full else state
        whitener = gradient_whitener(state if full else None, diag, kind=kind, floor=floor or Floor())
        yield Proposal("m", zero, {scope: Tracked(state, before.nu, before.mean, factor, state.nu)}, whitener)


def record(recorder, step_view, made, captures=None, start=0):
    rows = []
    for index, proposal in enumerate(made):
        step = step_view(start + index, [Applied(proposal, None)], captures=captures and captures[index])
        rows += list(recorder.on_step(step))
    return [row.values for row in rows]


@pytest.mark.parametrize("make", [Conditioning, DriftSurrogates, WhitenedNorm])
def test_conformance(make, loaded):
    items = check_recorder(make(), loaded=loaded)
    assert {item.key["module"] for item in items} == set(loaded.modules)


def test_the_spectrum_equals_the_dense_twin(step_view):
    listed = blocks([20, 30, 40])
    found = record(Conditioning(), step_view, proposals(listed))
    assert [row["nu"] for row in found] == [20, 50, 90]
    assert [row["whitening_active"] for row in found] == [0, 1, 1]
    assert {key for key, value in found[0].items() if value is not None} == {"nu", "whitening_active"}
    for row, seen in zip(found[1:], (2, 3), strict=True):
        for key, value in twins.spectrum(twins.covariance(torch.cat(listed[:seen]))).items():
            assert row[key] == pytest.approx(value, rel=1e-8), key
        assert row["condition_floored"] == pytest.approx(row["condition_raw"], rel=1e-12)
        assert row["floored_fraction"] == 0
        assert row["d_eff_white"] == pytest.approx(D, rel=1e-8)


def test_floored_directions_are_counted(step_view):
    listed = blocks([90])
    floor = Floor("absolute", 1.0)
    (row,) = record(Conditioning(), step_view, proposals(listed, floor=floor))
    eigenvalues = np.linalg.eigvalsh(twins.covariance(listed[0]))
    lifted = np.maximum(eigenvalues, 1.0)
    assert row["floored_fraction"] == pytest.approx((eigenvalues < 1).mean())
    assert 0 < row["floored_fraction"] < 1
    assert row["condition_floored"] == pytest.approx(lifted[-1] / lifted[0])
    assert row["condition_raw"] == pytest.approx(eigenvalues[-1] / eigenvalues[0])
    kept = eigenvalues / lifted
    assert row["d_eff_white"] == pytest.approx(kept.sum() ** 2 / (kept**2).sum())


def test_without_a_full_whitener_the_statistic_itself_is_decomposed_when_due(step_view):
    listed = blocks([60, 30])
    made = list(proposals(listed, kind="diagonal"))
    found = record(Conditioning(), step_view, made, start=98)
    expected = twins.spectrum(twins.covariance(torch.cat(listed)))
    assert found[1]["condition_raw"] == pytest.approx(expected["condition_raw"], rel=1e-8)
    assert found[1]["d_eff"] == pytest.approx(expected["d_eff"], rel=1e-8)
    assert found[1]["whitening_active"] == 0
    assert found[1]["condition_floored"] is None
    idle = record(Conditioning(decompose=never()), step_view, made)
    assert [row["condition_raw"] for row in idle] == [None, None]


def test_a_diagonal_statistic_has_a_count_and_no_spectrum(step_view):
    found = record(Conditioning(), step_view, proposals(blocks([60, 30]), kind="diagonal", full=False))
    assert [row["nu"] for row in found] == [60, 90]
    assert all(row["condition_raw"] is None for row in found)
    drift = record(DriftSurrogates(), step_view, proposals(blocks([60, 30]), kind="diagonal", full=False))
    assert drift[1]["mean_shift"] > 0
    assert [row["cov_shift"] for row in drift] == [None, None]


def test_a_singular_covariance_is_infinitely_conditioned(step_view):
    listed = [rows.clone() for rows in blocks([60])]
    listed[0][:, 0] = 0.0
    (row,) = record(Conditioning(), step_view, proposals(listed, floor=Floor("relative", 1e-6)))
    assert row["condition_raw"] > 1e12
    assert row["condition_floored"] < 1e8
    assert row["floored_fraction"] == pytest.approx(1 / D)


@pytest.mark.parametrize("d", [D, 300])
def test_drift_equals_the_dense_twin(step_view, d):
    listed = blocks([d // 2, d, d, 2 * d], d=d)
    found = record(DriftSurrogates(), step_view, proposals(listed, kind="diagonal"))
    for index, row in enumerate(found):
        now, then = torch.cat(listed[: index + 1]), torch.cat(listed[:index]) if index else None
        if then is None:
            assert row["mean_shift"] is None
        else:
            shift = float(np.linalg.norm(now.mean(0).numpy() - then.mean(0).numpy()))
            assert row["mean_shift"] == pytest.approx(shift, rel=1e-9)
        if then is None or len(then) <= d + 1:
            assert row["cov_shift"] is None
        else:
            expected = twins.spectral(twins.covariance(now) - twins.covariance(then))
            assert row["cov_shift"] == pytest.approx(expected, rel=1e-6)
    assert [row["cov_shift"] is None for row in found] == [True, True, False, False]


def test_forgetting_leaves_no_covariance_shift(step_view):
    first, second = proposals(blocks([60, 60]))
    ((scope, tracked),) = second.tracked.items()
    second.tracked[scope] = replace(tracked, factor=None)
    found = record(DriftSurrogates(), step_view, [first, second])
    assert found[1]["cov_shift"] is None
    assert found[1]["mean_shift"] is not None


def test_the_whitened_index_equals_its_twin_and_is_one_without_drift(step_view, capture_of):
    generator = torch.Generator().manual_seed(4)
    listed = [torch.randn(50, D, generator=generator, dtype=torch.float64) for _ in range(40)]
    captures = [{"m": capture_of("m", rows)} for rows in listed]
    found = [row["whitened_index"] for row in record(WhitenedNorm(), step_view, proposals(listed), captures)]
    assert found[3] == pytest.approx(twins.whitened_index(listed[3], torch.cat(listed[:4])), rel=1e-9)
    assert np.mean(found) == pytest.approx(1.0, abs=0.02)
    grown = [rows * (1 + 0.5 * (i >= 20)) for i, rows in enumerate(listed)]
    captures = [{"m": capture_of("m", rows)} for rows in grown]
    assert record(WhitenedNorm(), step_view, proposals(grown), captures)[20]["whitened_index"] > 1.5


def test_the_whitened_index_is_null_without_full_whitening(step_view, capture_of):
    listed = blocks([10, 80])
    captures = [{"m": capture_of("m", rows)} for rows in listed]
    found = record(WhitenedNorm(), step_view, proposals(listed), captures)
    assert found[0]["whitened_index"] is None
    assert found[1]["whitened_index"] is not None
    found = record(WhitenedNorm(), step_view, proposals(listed, kind="diagonal"), captures)
    assert [row["whitened_index"] for row in found] == [None, None]


def test_a_shared_scope_is_seen_with_the_rows_of_all_its_modules(step_view, capture_of):
    (rows,) = blocks([100])
    (first,) = proposals([rows], scope="shape:3x24")
    second = Proposal("n", first.update, {}, first.whitener)
    captures = {"m": capture_of("m", rows[:30]), "n": capture_of("n", rows[30:])}
    step = step_view(0, [Applied(first, None), Applied(second, None)], captures=captures)
    (row,) = WhitenedNorm().on_step(step)
    assert row.key["module"] == "shape:3x24"
    assert row.values["whitened_index"] == pytest.approx(twins.whitened_index(rows, rows), rel=1e-9)
    # In sample the index is exactly one: the whitened rows have the covariance they were whitened with.
    assert row.values["whitened_index"] == pytest.approx(1.0, rel=1e-9)
