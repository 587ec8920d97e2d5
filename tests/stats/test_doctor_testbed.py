"""Every rule of the doctor on runs of the testbed: one that it calls bad, one that it calls ok, and the first cause."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest

from stablediag.stats.doctor import RULES, diagnose, first_cause
from tests.stats.doctor_runs import RUNS, World

Diagnosed = Callable[[str], pd.DataFrame]

#: rule -> the run of which it is bad
BAD = {
    "data_conflicts": "conflicting",
    "precision_loss": "underflow",
    "statistics_scope": "shared_statistics",
    "divisor": "wrong_divisor",
    "startup": "cold",
    "floored_fraction": "cold",
    "conditioning": "repeating",
    "step_size": "too_fast",
    "finite_numbers": "overflow",
    "tails": "burst",
    "distribution_switch": "switching",
    "exchangeability": "too_fast",
    "drift_decay": "drifting",
    "bias_share": "diverged",
    "norm_trend": "harder",
    "norm_feedback": "unclamped",
    "weight_growth": "too_fast",
    "coherence": "repeating",
    "adjacent_cosine": "repeating",
    "interference": "repeating",
    "early_warning": "drifting",
    "efficacy": "underflow",
    "cumulative_effect": "harder",
    "forgetting": "too_fast",
    "locality": "too_fast",
    "capability": "too_fast",
}
#: rules of which the healthy run is not ok -> a run that is. In twenty steps the healthy run's norms do not tell whether
#: they double. No short run is ok by norm_feedback: see docs/doctor.md.
OK_ELSEWHERE = {"norm_trend": "shared_statistics"}
NEVER_OK = {"norm_feedback"}
#: run -> what is wrong with it first
CAUSES = {
    "healthy": None,
    "conflicting": "data_conflicts",
    "underflow": "precision_loss",
    "shared_statistics": "statistics_scope",
    "wrong_divisor": "divisor",
    "cold": "startup",
    "too_fast": "step_size",
    "overflow": "finite_numbers",
    "burst": "tails",
    "switching": "distribution_switch",
    "drifting": "drift_decay",
    "harder": "norm_trend",
    "unclamped": "step_size",
}


@pytest.fixture(scope="session")
def diagnosed(tmp_path_factory: pytest.TempPathFactory) -> Diagnosed:
    """What the doctor says of a run; each is made once, when it is first asked for."""
    world = World(tmp_path_factory.mktemp("doctor"))
    known: dict[str, pd.DataFrame] = {}

    def of(name: str) -> pd.DataFrame:
        if name not in known:
            known[name] = diagnose(RUNS[name](world))
        return known[name]

    return of


def test_every_rule_has_its_runs() -> None:
    ids = [rule.id for rule in RULES]
    assert list(BAD) == ids
    assert {*BAD.values(), *OK_ELSEWHERE.values(), *CAUSES} == set(RUNS)
    assert {*OK_ELSEWHERE, *NEVER_OK} <= set(ids)


@pytest.mark.parametrize("rule", BAD)
def test_a_run_that_the_rule_calls_bad(rule: str, diagnosed: Diagnosed) -> None:
    row = diagnosed(BAD[rule]).set_index("rule").loc[rule]
    assert row["verdict"] == "bad", row[["value", "interval", "hint"]].tolist()
    assert row["hint"]


@pytest.mark.parametrize("rule", [rule for rule in BAD if rule not in NEVER_OK])
def test_a_run_that_the_rule_calls_ok(rule: str, diagnosed: Diagnosed) -> None:
    row = diagnosed(OK_ELSEWHERE.get(rule, "healthy")).set_index("rule").loc[rule]
    assert row["verdict"] == "ok", row[["value", "interval", "hint"]].tolist()


@pytest.mark.parametrize("name", CAUSES)
def test_the_fault_is_named_as_the_first_cause(name: str, diagnosed: Diagnosed) -> None:
    assert first_cause(diagnosed(name)) == CAUSES[name]


def test_the_switch_is_seen_at_its_step(diagnosed: Diagnosed) -> None:
    assert "at step 20" in diagnosed("switching").set_index("rule").loc["distribution_switch", "hint"]


def test_the_error_of_a_mean_that_follows_a_ramp_grows_like_the_ramp(diagnosed: Diagnosed) -> None:
    row = diagnosed("drifting").set_index("rule").loc["drift_decay"]
    assert row["interval"][0] < -1 < row["interval"][1] < 0
    assert "the mean misses" in row["hint"]
