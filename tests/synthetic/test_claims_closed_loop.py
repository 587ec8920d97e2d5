"""The claims about the closed loop: as predicted at the small scale, and able to fail."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from synthetic.claims import Scale
from synthetic.claims._closed_loop_drift import SETTINGS, SMALL, loop_cell, settings, title
from synthetic.claims.closed_loop import CLAIMS
from synthetic.grid import Result, run_cells
from synthetic.loop_cells import (
    _cross,
    _exponent,
    measure_diffusion,
    measure_loop,
    measure_matching,
    measure_pair,
    measure_phase,
    phase_cells,
)

QUICK = Scale(quick=True)
BY_ID = {claim.id: claim for claim in CLAIMS}


@pytest.fixture(scope="module")
def work():
    """Cells and results of every claim at the small scale."""
    cells = {claim.id: claim.cells(QUICK) for claim in CLAIMS}
    results = iter(run_cells([cell for some in cells.values() for cell in some]))
    return {name: (some, [next(results) for _ in some]) for name, some in cells.items()}


def rows_of(work, name):
    return BY_ID[name].rows(*work[name])


@pytest.mark.parametrize("name", list(BY_ID))
def test_claim_comes_out_as_predicted(work, name):
    rows = rows_of(work, name)
    assert [f"{row.setting}: {row.verdict}, z {row.z:.1f}" for row in rows if not row.ok] == []
    planted = [row for row in rows if row.planted]
    assert planted
    assert all(row.caught and row.power > 0.99 for row in planted)
    assert sum(row.tests for row in rows) < 200


def doctored(results, changes):
    """Results in which some numbers are replaced, where they occur."""
    return [
        Result({**r.values, **{k: np.asarray(v) for k, v in changes.items() if k in r.values}}, r.seconds)
        for r in results
    ]


@pytest.mark.parametrize(
    ("name", "part", "changes", "verdict"),
    [
        ("lemma-D.1", "shift of the mean", {"full/drift over probe": 1.01}, "false"),
        ("lemma-D.1", "shift of the covariance", {"full/cov over sharp": 1.01}, "false"),
        ("closed-loop", "full, recursion", {"full/error": np.full(5, 99.0)}, "false"),
        ("closed-loop", "full, recursion", {"full/error se": np.full(5, 99.0)}, "unknown"),
        ("closed-loop", "full, error over its one-step", {"full/one step": np.array([1, 1, 1, 1.5])}, "false"),
        ("closed-loop", "alpha > 1", {"full/alpha": 1.5}, "holds"),
        ("closed-loop", "moves towards", {"full/feedback": -0.05}, "false"),
        ("closed-loop", "horizon within", {"full/horizon fit": 20.0}, "false"),
        ("closed-loop", "horizon within", {"full/horizon fit": -1.0}, "false"),
        ("closed-loop", "centring costs no retention", {"full/retention gain on uncentred full": 0.5}, "holds"),
        ("closed-loop", "at equal efficacy", {"gap to raw matched": math.nan}, "unknown"),
        ("audit-5", "make the drift decay", {"full/alpha": 1.0}, "holds"),
        ("audit-10", "is the number of updates", {"distance": np.arange(5) + 200.0}, "false"),
        ("audit-10", "keep the weights bounded", {"growth": -50.0}, "holds"),
    ],
)
def test_other_numbers_give_another_verdict(work, name, part, changes, verdict):
    cells, results = work[name]
    before = [row for row in BY_ID[name].rows(cells, results) if part in row.setting and not row.planted]
    after = [row for row in BY_ID[name].rows(cells, doctored(results, changes)) if part in row.setting]
    assert verdict not in {row.verdict for row in before}
    assert verdict in {row.verdict for row in after if not row.planted}


def test_claims_share_their_runs():
    shared = {cell.digest() for cell in settings(QUICK)}
    for name in ("lemma-D.1", "closed-loop", "audit-7"):
        assert shared <= {cell.digest() for cell in BY_ID[name].cells(QUICK)}
    full = [cell for claim in CLAIMS for cell in claim.cells(Scale())]
    assert {title(cell).split(", 24")[0] for cell in settings(Scale())} == set(SETTINGS)
    assert len({cell.seed for cell in full}) == len({cell.digest() for cell in full})


def test_scale_sets_replicates_and_seeds():
    one, two = (loop_cell(Scale(quick=True, seed=s, reps=9), "x", ("full",), {"step": 0.1}) for s in (0, 1))
    assert one.params["reps"] == 9
    assert one.seed != two.seed
    assert title(one, "full") == "gentle, small model, full, 9 seeds"


def test_reduction_is_mean_and_standard_error_of_paired_replicates():
    size = {**SMALL, "steps": 8, "population": 60, "held_out": 10, "p": 24}
    found = measure_loop(seed=3, reps=4, arms=["full", "raw"], size=size, knobs={"step": 0.3})
    from synthetic.closed_loop import Loop, run_loop

    path = run_loop(Loop(**size, step=0.3), ("full", "raw"), reps=4, seed=3).paths["full"]
    assert found["full/kl"] == pytest.approx(path.kl[:, -1].mean())
    assert found["full/kl se"] == pytest.approx(path.kl[:, -1].std(ddof=1) / 2)
    assert "raw/feedback" not in found
    slopes = [-np.polyfit(np.log(np.arange(2, 9)), np.log(path.drift[r, 1:]), 1)[0] for r in range(4)]
    assert found["full/alpha"] == pytest.approx(np.mean(slopes))
    assert found["full/largest alpha"] == pytest.approx(max(slopes))
    x = 1 / np.arange(1, 9)
    ratio = path.error2 / ((1 - x) ** 2 * path.prediction2 + x**2 * path.trace / size["n"])
    np.testing.assert_allclose(found["full/one step"], ratio.mean(0).reshape(4, 2).mean(1))


def test_exponent_of_a_power_law_is_exact():
    t = np.arange(1, 101)
    series = np.stack([3 * t**-0.7, 0.1 * t**1.2])
    series[:, :10] = 5.0  # the first tenth is left out
    np.testing.assert_allclose(_exponent(series), [0.7, -1.2])


def test_interpolation_at_equal_efficacy():
    x, y = np.array([0.1, 0.2, 0.6]), np.array([-3.0, -2.0, 0.0])
    assert _cross(x, y, 0.15) == pytest.approx(-2.5)
    assert _cross(x, y, 0.4) == pytest.approx(-1.0)
    assert math.isnan(_cross(x, y, 0.05))
    assert math.isnan(_cross(x, y, 0.7))


def test_matching_pairs_the_arms():
    knobs = {**SMALL, "steps": 6, "population": 60, "held_out": 10, "p": 24}
    found = measure_matching(seed=1, reps=4, steps=[0.2, 2.0], target=0.2, share=0.5, knobs=knobs)
    same = found["same step gap to raw matched"]
    assert same.shape == (2,)
    assert found["share of the gap to raw matched, first less last"] == pytest.approx(same[0] / 2 - same[1])


def test_a_target_out_of_reach_is_moved_into_the_range_of_all_arms():
    knobs = {**SMALL, "steps": 6, "population": 60, "held_out": 10, "p": 24}
    found = [
        measure_matching(seed=1, reps=4, steps=[0.2, 2.0], target=target, share=0.5, knobs=knobs)
        for target in (0.9, 0.99, 1e-3)
    ]
    assert np.isfinite([one["gap to raw matched"] for one in found]).all()
    assert found[0]["gap to raw matched"] == found[1]["gap to raw matched"] != found[2]["gap to raw matched"]


def test_sharp_constant_is_attained_in_the_limit():
    ratios = [found["sharp"] / found["cov"] for found in (measure_pair(seed=0, move=m) for m in (0.3, 0.03, 0.003))]
    assert ratios[0] > ratios[1] > ratios[2] > 1
    assert ratios[2] == pytest.approx(1, abs=2e-3)


def test_coherent_updates_outrun_the_number_of_steps():
    size = {"reps": 50, "steps": 40, "d": 4, "p": 8, "n": 3}
    centred = measure_diffusion(seed=1, mean=1.0, centred=True, **size)
    left_in = measure_diffusion(seed=1, mean=1.0, centred=False, **size)
    assert centred["distance"][-1] == pytest.approx(40, rel=0.1)
    assert left_in["distance"][-1] > 2 * centred["distance"][-1]


def test_phase_diagram_has_a_cell_for_every_point():
    for quick, count in ((True, 9), (False, 36)):
        cells = phase_cells(quick)
        assert len(cells) == count
        assert len({cell.seed for cell in cells}) == count
        assert len({(cell.params["knobs"]["step"], cell.params["knobs"]["p"]) for cell in cells}) == count
    cell = dataclasses.replace(phase_cells(True)[0], params={"reps": 3, "knobs": {"step": 0.1, "p": 32, "steps": 5}})
    found = measure_phase(seed=cell.seed, **cell.params)
    assert found["overlap"] == pytest.approx(0.5)
    assert {"log kl", "log kl se", "retention", "efficacy"} <= set(found)
    assert found["log kl"] < 0
