"""The runner: claims by id, reports, exit codes, and bounds on a process of one's own."""

from __future__ import annotations

import numpy as np
import pytest

from stablediag.errors import SpecError
from synthetic import Bound, Check, MeanDrift, Process
from synthetic.certify import FAMILY_SIZE, equality, row
from synthetic.checks import Report, claims, run_checks
from synthetic.claims import Claim, Scale, registry

PROCESS = Process(d=6, n=8, steps=60, mean=MeanDrift(C=0.3, alpha=1.25))

WANTED = {
    "theorem-3.2", "corollary-3.3", "theorem-3.5", "theorem-3.6", "theorem-3.8a", "theorem-3.8b", "theorem-3.8c",
    "corollary-3.9", "corollary-D.7", "lemma-D.1", "remark-D.3", "remark-D.5", "remark-D.9", "closed-loop", "nas",
    *(f"audit-{i}" for i in range(1, 13)),
}  # fmt: skip


def test_every_statement_of_the_papers_has_a_claim():
    assert set(registry()) >= WANTED


@pytest.mark.parametrize("claim", registry().values(), ids=lambda claim: claim.id)
def test_cells_are_distinct_work_with_distinct_seeds(claim: Claim):
    for quick in (True, False):
        cells = claim.cells(Scale(quick=quick))
        assert cells
        assert len({cell.digest() for cell in cells}) == len(cells)
        assert len({cell.seed for cell in cells}) == len(cells)
    assert {cell.seed for cell in cells}.isdisjoint(cell.seed for cell in claim.cells(Scale(seed=1)))
    assert claim.title
    assert claim.source


def _rows(**changes):
    wrong = equality(1.0, 0.01, 2.0, df=99)
    right = equality(1.0, 0.01, 1.0, df=99)
    return (
        row("a", "plain", [right], measured=1.0),
        row("a", "planted", [changes.get("planted", wrong)], measured=1.0, planted=True),
        row("b", "sentence", [changes.get("sentence", wrong)], measured=1.0, expected="false"),
    )


def test_a_report_is_ok_when_all_came_out_as_predicted():
    report = Report(_rows())
    assert report.ok
    assert report.verdict == "false"
    assert "1 holds, 1 false; planted violations caught: 1 of 1" in report.summary()
    assert report.summary().endswith("as predicted")
    assert len(report.frame) == 3
    assert report.frame["exact"].isna().all()
    assert report.frame["exact"].dtype == float


@pytest.mark.parametrize("name", ["planted", "sentence"])
def test_a_missed_violation_or_sentence_is_a_failure(name):
    report = Report(_rows(**{name: equality(1.0, 0.01, 1.0, df=99)}))
    assert not report.ok
    assert f"({name}): holds" in report.summary()


def test_more_tests_than_the_level_allows_are_a_failure():
    many = row("a", "many", [equality(np.ones(FAMILY_SIZE + 1), 0.01, 1.0, df=99)], measured=1.0)
    assert many.ok
    assert not Report((many,)).ok


def test_a_claim_runs_and_stays_within_the_family():
    report = run_checks(["nas"], scale=Scale(quick=True))
    assert report.ok, report.summary()
    assert {one.claim for one in report.rows} == {"nas"}
    assert any(one.planted for one in report.rows)
    assert 0 < report.tests < FAMILY_SIZE


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"ids": ["theorem-9.9"]}, "no claim 'theorem-9.9': choose from theorem-3.2"),
        ({"ids": ["nas"], "jobs": 0}, "jobs: must be at least 1, got 0"),
        ({"ids": ["nas"], "scale": Scale(reps=1)}, "reps: a standard error needs at least 8 replicates, got 1"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(SpecError, match=match):
        run_checks(**arguments)


def test_claims_are_listed_once_and_in_order():
    assert [one.id for one in claims(["nas", "theorem-3.5", "nas"])] == ["nas", "theorem-3.5"]


@pytest.mark.parametrize("name", ["exact_mse", "paper_mse", "paper_mse_closed"])
def test_a_bound_on_a_process_of_your_own(name):
    report = Check(Bound(name, PROCESS), reps=300).run()
    assert report.ok, report.summary()
    assert all(one.measured > 0 and one.error > 0 for one in report.rows)


@pytest.mark.parametrize("reps", [0, 7])
def test_a_bound_needs_replicates(reps):
    with pytest.raises(SpecError, match=f"reps: a standard error needs at least 8 replicates, got {reps}"):
        Check(Bound("exact_mse", PROCESS), reps=reps).run()


def test_a_bound_that_does_not_bound_is_called_false(monkeypatch):
    bound = Bound("paper_mse", PROCESS)
    true = bound.value(30)
    monkeypatch.setattr(Bound, "curve", property(lambda self: np.full(PROCESS.total, 0.01 * true)))
    assert Check(bound, reps=100).run().verdict == "false"
