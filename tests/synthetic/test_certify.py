"""Verdicts: calibrated under the null, sharp under a violation, never silent about what is not a number."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from synthetic import certify
from synthetic.certify import LEVEL, row


def test_scores_have_the_tail_of_student_t():
    for df in (7, 40, 400):
        t = np.array([0.5, 2.0, 4.0, 6.0])
        z = certify.scores(t, np.ones(4), np.zeros(4), df=df)
        np.testing.assert_allclose(z, stats.norm.isf(stats.t.sf(t, df)), rtol=5e-3)


def test_scores_without_spread_are_zero_or_infinite():
    z = certify.scores([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 0.0], df=9)
    assert z.tolist() == [0.0, -math.inf, math.inf]


def test_critical_values_spend_the_family_level():
    assert pytest.approx(certify.FAMILY_LEVEL) == certify.FAMILY_SIZE * LEVEL
    assert 2 * stats.norm.sf(certify.critical(two_sided=True)) == pytest.approx(LEVEL)
    assert stats.norm.sf(certify.critical(two_sided=False)) == pytest.approx(LEVEL)


def test_equality_accepts_noise_and_rejects_a_shift():
    values = np.random.default_rng(0).exponential(size=(400, 5))
    mean, se = values.mean(axis=0), values.std(axis=0, ddof=1) / 20
    assert certify.equality(mean, se, 1.0, df=399).verdict == "holds"
    found = certify.equality(mean, se, [1, 1, 1.6, 1, 1], df=399)
    assert (found.verdict, found.size) == ("false", 5)


@pytest.mark.parametrize(
    "test",
    [
        certify.equality([1.0, math.nan], 1.0, 1.0, df=9),
        certify.equality([9.0, math.nan], 0.01, 1.0, df=9),
        certify.upper(1.0, 0.01, math.nan, df=99),
        certify.lower(math.nan, 0.01, 1.0, df=99),
        certify.uniform([0.5, math.nan]),
        certify.dominates(math.nan, 1.0),
        certify.dominates(1.0, [0.0, math.nan]),
        certify.identical([1e-13, math.nan], 1e-12),
    ],
)
def test_what_is_not_a_number_decides_nothing(test):
    assert test.verdict == "unknown"
    assert not row("c", "s", [test], measured=1.0).ok
    assert not row("c", "s", [test], measured=1.0, planted=True).ok
    assert not row("c", "s", [test], measured=1.0, expected="false").ok


@pytest.mark.parametrize(
    ("bound", "verdict"), [(2.0, "holds"), (1.0001, "unknown"), (0.5, "false"), (math.nan, "unknown")]
)
def test_upper_is_certified_refuted_or_left_open(bound, verdict):
    assert certify.upper(1.0, 0.01, bound, df=99).verdict == verdict


def test_lower_mirrors_upper():
    assert certify.lower(1.0, 0.01, 0.5, df=99).verdict == "holds"
    assert certify.lower(1.0, 0.01, 2.0, df=99).verdict == "false"


def test_standard_normal_sees_shift_spread_and_shape():
    rng = np.random.default_rng(1)
    z = rng.standard_normal(150)
    assert certify.standard_normal(z).verdict == "holds"
    assert certify.standard_normal(z + 1).verdict == "false"
    assert certify.standard_normal(0.3 * z).verdict == "false"
    assert certify.standard_normal(2 * z).verdict == "false"
    assert certify.standard_normal(np.repeat(z[:1], 150)).verdict == "false"


def test_uniform_rejects_at_the_level_only():
    assert certify.uniform([LEVEL * 1.1, 0.5]).verdict == "holds"
    assert certify.uniform([LEVEL * 0.9]).verdict == "false"
    assert certify.uniform([0.0]).verdict == "false"


def test_deterministic_statements():
    assert certify.dominates([1.0, 2.0], [1.0 + 1e-12, 2.0]) == certify.Test("holds", 0.0, 0)
    assert certify.dominates([1.0, 2.0], [1.1, 2.0]).verdict == "false"
    assert certify.identical([1e-13], 1e-12).verdict == "holds"
    assert certify.identical([1e-13, 1e-11], 1e-12).verdict == "false"


HOLDS, OPEN, WRONG = certify.Test("holds", -9.0, 1), certify.Test("unknown", 0.0, 2), certify.Test("false", 30.0, 1)


@pytest.mark.parametrize(
    ("tests", "slack", "verdict"),
    [
        ([HOLDS], None, "holds"),
        ([HOLDS], 1.9, "holds"),
        ([HOLDS], 2.1, "loose"),
        ([HOLDS, OPEN], 2.1, "unknown"),
        ([HOLDS, OPEN, WRONG], None, "false"),
    ],
)
def test_a_row_is_as_good_as_its_worst_test(tests, slack, verdict):
    found = row("c", "s", tests, measured=1.0, slack=slack)
    assert found.verdict == verdict
    assert found.tests == sum(test.size for test in tests)
    assert found.ok == (verdict in ("holds", "loose"))


def test_slack_is_that_of_the_paper_or_else_of_the_sharper_bound():
    assert row("c", "s", [HOLDS], measured=2.0, tight=3.0, paper=9.0).slack == 4.5
    assert row("c", "s", [HOLDS], measured=2.0, tight=3.0).slack == 1.5
    assert row("c", "s", [HOLDS], measured=2.0, exact=2.0).slack is None


def test_planted_rows_are_caught_only_by_the_verdict_false():
    caught = row("c", "s", [WRONG], measured=1.0, planted=True)
    assert caught.caught is True
    assert caught.ok
    assert caught.power == pytest.approx(1.0)
    missed = row("c", "s", [OPEN], measured=1.0, planted=True)
    assert missed.caught is False
    assert not missed.ok
    assert missed.power < 0.01


def test_a_false_sentence_is_ok_when_it_is_seen_to_be_false():
    assert row("c", "s", [WRONG], measured=1.0, expected="false").ok
    assert not row("c", "s", [HOLDS], measured=1.0, expected="false").ok


def test_rows_are_json_and_need_a_test():
    found = row("c", "s", [certify.identical(1.0, 0.1)], measured=1.0, planted=True)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["z"] is None
    with pytest.raises(ValueError, match="cannot fail"):
        row("c", "s", [], measured=1.0)
