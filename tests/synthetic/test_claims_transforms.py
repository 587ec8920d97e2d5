"""The checks of transformed and of whitened outputs: as predicted, and false when they should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import synthetic.update_stream as update_stream
from synthetic.certify import Row
from synthetic.claims import Claim, Scale
from synthetic.claims import transforms as module
from synthetic.claims.transforms import CLAIMS, cosine_floor, measure_gls, norm_bound
from synthetic.grid import Cell, Result, run_cells

QUICK = Scale(quick=True, seed=5)
Run = dict[str, tuple[Claim, list[Cell], list[Result]]]


@pytest.fixture(scope="module")
def done() -> Run:
    work = [(claim, claim.cells(QUICK)) for claim in CLAIMS]
    results = iter(run_cells([cell for _, cells in work for cell in cells]))
    return {claim.id: (claim, cells, [next(results) for _ in cells]) for claim, cells in work}


def rows_of(done: Run, name: str) -> list[Row]:
    claim, cells, results = done[name]
    return claim.rows(cells, results)


def test_every_claim_is_as_predicted(done: Run) -> None:
    table = [row for name in done for row in rows_of(done, name)]
    assert [(row.claim, row.setting, row.verdict) for row in table if not row.ok] == []
    assert list(done) == ["corollary-D.7", "audit-2", "audit-8", "audit-9"]
    planted = [row for row in table if row.planted]
    assert [row.claim for row in planted] == ["corollary-D.7", "audit-8"]
    assert all(row.power is not None and row.power > 0.99 for row in planted)
    false = {row.claim for row in table if row.expected == "false"}
    assert false == {"audit-2", "audit-8", "audit-9"}


def test_an_odd_transform_that_is_not_odd_is_false(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    claim, cells, results = done["corollary-D.7"]
    leaning = {**update_stream.TRANSFORMS, "tanh": (lambda x: torch.tanh(x) + 0.2, 1.0)}
    monkeypatch.setattr(update_stream, "TRANSFORMS", leaning)
    at = next(i for i, cell in enumerate(cells) if "pairs" in cell.function)
    wrong = [*results[:at], run_cells([cells[at]])[0], *results[at + 1 :]]
    verdicts = {row.setting: row.verdict for row in claim.rows(cells, wrong)}
    assert verdicts["no interference, tanh"] == "false"
    assert verdicts["no interference, sine"] == "holds"


def test_bounds_use_the_lipschitz_constant(done: Run) -> None:
    claim, cells, results = done["corollary-D.7"]
    table = {row.setting.split(", N")[0]: row for row in claim.rows(cells, results)}
    sine = results[1]
    exact = 9 * 27**0.5 * 144 * np.sqrt(sine["M_phi"]) * sine["M_S"] ** 0.25 * sine["mse"]
    # The row shows the step at which the bound is sharpest.
    assert table["L^2 C_a E_t, sine"].paper == pytest.approx(exact[np.argmin(exact / sine["bias"])])
    small = Result({**sine.values, "M_phi": sine["M_phi"] * 1e-16}, 0.0)
    wrong = claim.rows(cells, [results[0], small, *results[2:]])
    assert {row.verdict for row in wrong if row.setting.startswith(("L^2 C_a E_t, sine", "norm, sine"))} == {"false"}


def test_norm_bound_is_the_formula() -> None:
    result = Result({"M_S": np.array([16.0]), "M_phi": np.array([4.0])}, 0.0)
    # n sqrt(M_phi) sqrt(8 (|T(0)|^4 + L^4 n^2 9 sqrt(M_S) d (d + 2)))
    fourth = 144 * 9 * 4 * 24 * 26
    assert norm_bound(result, 1.0)[0] == pytest.approx(12 * 2 * np.sqrt(8 * fourth))
    assert norm_bound(result, 2.0, 3.0)[0] == pytest.approx(12 * 2 * np.sqrt(8 * (81 + 16 * fourth)))


def test_floor_without_features_in_common_is_the_features_coherence_over_pi() -> None:
    result = Result({"coherence": np.float64(0.2), "self_coherence": np.float64(1.0)}, 0.0)
    assert cosine_floor("relu", result) == pytest.approx(0.2 / np.pi)
    assert cosine_floor("abs", result) == pytest.approx(0.4 / np.pi)
    assert cosine_floor("tanh", result) == 0.0


def test_product_of_the_bound_stays_while_the_inner_product_is_zero(done: Run) -> None:
    stays, exact, conclusion = rows_of(done, "audit-2")
    assert stays.verdict == "false"
    assert stays.measured > 5 * abs(conclusion.measured)
    assert exact.verdict == conclusion.verdict == "holds"
    claim, cells, (result,) = done["audit-2"]
    off = Result({**result.values, "product": result["product"] * 1.5, "inner": result["inner"] + 300}, 0.0)
    assert [row.verdict for row in claim.rows(cells, [off])][1:] == ["false", "false"]


def test_generalised_least_squares_against_the_spelled_out_system() -> None:
    """One trial, with the covariance of all outputs and rows as one matrix."""
    generator = np.random.default_rng(3)
    outs, rows, inputs = 3, 9, 2
    design = generator.standard_normal((outs, rows, inputs))
    outputs = generator.standard_normal((outs, rows))
    a = generator.standard_normal((outs, outs))
    sigma = a @ a.T + np.eye(outs)
    big = np.zeros((outs * rows, outs * inputs))
    for k in range(outs):
        big[k * rows : (k + 1) * rows, k * inputs : (k + 1) * inputs] = design[k]
    weight = np.kron(np.linalg.inv(sigma), np.eye(rows))
    penalty = 1.5 * np.kron(np.linalg.inv(sigma), np.eye(inputs))
    expected = np.linalg.solve(big.T @ weight @ big + penalty, big.T @ weight @ outputs.ravel())
    found = module._generalised(*(torch.as_tensor(x)[None] for x in (design, outputs, np.linalg.inv(sigma))), ridge=1.5)
    np.testing.assert_allclose(found[0].numpy().ravel(), expected, rtol=1e-9)


def test_designs_of_their_own_gain_and_a_common_one_does_not() -> None:
    common = measure_gls(seed=1, trials=60, own_design=False, ridge=0.0)
    own = measure_gls(seed=1, trials=60, own_design=True, ridge=0.0)
    assert common["difference"] < 1e-11
    assert common["gain"] == pytest.approx(1.0, abs=1e-9)
    assert own["smallest"] > 1e-3
    assert own["gain"] - 5 * own["gain_se"] > 1.2
