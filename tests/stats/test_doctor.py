"""Every rule of the doctor calls a healthy run ok and its planted fault bad; what was not recorded is unknown."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stablediag.errors import SpecError
from stablediag.stats.doctor import COLUMNS, RULES, diagnose, first_cause
from stablediag.stats.doctor_rules import Finding, found, judge, mean_over_time, thinned, worst
from stablediag.stats.intervals import Interval
from tests.stats.doctor_faults import (
    MODULES,
    PLANTED,
    WARMUP,
    D,
    Fake,
    behind,
    conflicts,
    damaged,
    forgotten,
    growing_weight,
    healthy,
    switch,
    too_large,
)

IDS = [rule.id for rule in RULES]


def verdicts(run, **thresholds):
    found_ = diagnose(run, thresholds=thresholds)
    return dict(zip(found_["rule"], found_["verdict"], strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_is_ok_by_every_rule(seed):
    diagnosis = diagnose(healthy(seed))
    assert list(diagnosis.columns) == list(COLUMNS)
    assert list(diagnosis["rule"]) == IDS
    assert dict(zip(diagnosis["rule"], diagnosis["verdict"], strict=True)) == dict.fromkeys(IDS, "ok")
    assert first_cause(diagnosis) is None


def test_every_rule_has_a_planted_fault():
    assert list(PLANTED) == IDS


@pytest.mark.parametrize("rule", IDS)
def test_the_planted_fault_is_bad_and_the_first_cause(rule):
    run = healthy()
    PLANTED[rule](run)
    diagnosis = diagnose(run)
    row = diagnosis.set_index("rule").loc[rule]
    assert row["verdict"] == "bad", row
    assert first_cause(diagnosis) == rule
    assert row["hint"]
    assert row["cites"]


def test_causes_stand_before_their_effects():
    run = healthy()
    for fault in (damaged, forgotten, growing_weight, too_large):
        fault(run)
    assert first_cause(diagnose(run)) == "step_size"
    conflicts(run)
    assert first_cause(diagnose(run)) == "data_conflicts"


def test_what_was_not_recorded_is_unknown_and_names_the_recorder():
    diagnosis = diagnose(Fake({})).set_index("rule")
    assert set(diagnosis["verdict"]) == {"unknown"}
    assert first_cause(diagnosis.reset_index()) is None
    for rule, recorder in {
        "step_size": "update_norm",
        "precision_loss": "realised_update",
        "coherence": "coherence",
        "interference": "interference",
        "drift_decay": "variogram",
        "bias_share": "conditioning",
        "early_warning": "alarm",
        "norm_feedback": "value_norms",
        "forgetting": "quality",
    }.items():
        assert f'add the recorder "{recorder}"' in diagnosis.loc[rule, "hint"]


@pytest.mark.parametrize(
    "table", ["updates", "tracking", "quality", "edits", "variogram", "alarms", "steps", "value_norms"]
)
def test_a_missing_table_or_column_is_neither_a_failure_nor_bad(table):
    whole = healthy(steps=30)
    frame = whole.tables[table]
    assert "bad" not in verdicts(Fake({name: other for name, other in whole.tables.items() if name != table})).values()
    # Gone, or there without a value, in turns: each diagnosis is a third of a second.
    for place, column in enumerate(c for c in frame.columns if c not in ("step", "module")):
        changed = frame.drop(columns=column) if place % 2 else frame.assign(**{column: np.nan})
        assert "bad" not in verdicts(Fake(whole.tables | {table: changed})).values(), column


def test_a_column_without_values_says_that_the_editor_lacks_it():
    run = healthy()
    run.tables["tracking"]["floored_fraction"] = np.nan
    row = diagnose(run).set_index("rule").loc["floored_fraction"]
    assert row["verdict"] == "unknown"
    assert "this editor does not have it" in row["hint"]


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 9])
def test_short_runs_say_so(steps):
    run = healthy()
    cut = {
        name: frame[frame["step"] < WARMUP + steps] if "step" in frame else frame for name, frame in run.tables.items()
    }
    said = diagnose(Fake(cut)).set_index("rule")
    assert "bad" not in set(said["verdict"])
    for rule in ("norm_trend", "distribution_switch", "tails") if 0 < steps < 8 else ():
        assert said.loc[rule, "verdict"] == "unknown"
        assert "are too few" in said.loc[rule, "hint"]


def test_shared_statistics_without_scales_are_unknown_and_alike_modules_are_ok():
    run = healthy()
    t = run.tables["tracking"]
    run.tables["tracking"] = t[t["module"] == "a"].assign(module=f"shape:32x{D}")
    assert verdicts(run)["statistics_scope"] == "ok"
    del run.tables["updates"]["grad_sq"]
    assert verdicts(run)["statistics_scope"] == "unknown"


def test_a_divisor_that_can_no_longer_show_is_unknown():
    run = healthy()
    run.tables["tracking"]["nu"] += 4000
    assert verdicts(run)["divisor"] == "unknown"


def test_updates_that_vanish_altogether_are_lost():
    run = healthy()
    run.tables["updates"][["realised_ratio", "realised_cosine", "unchanged_fraction"]] = (0.0, np.nan, 1.0)
    row = diagnose(run).set_index("rule").loc["precision_loss"]
    assert (row["verdict"], row["value"]) == ("bad", 1.0)


def test_the_switch_is_found_at_its_step():
    run = healthy()
    switch(run)
    assert "at step 35" in diagnose(run).set_index("rule").loc["distribution_switch", "hint"]


def test_a_drift_that_only_the_mean_shows_is_judged_by_how_the_error_falls():
    run = healthy()
    behind(run, lambda t: 0.02 * t**3)
    row = diagnose(run).set_index("rule").loc["drift_decay"]
    assert row["verdict"] == "bad"
    # The error grows like t: the margin is minus one.
    assert row["interval"][0] < -1 < row["interval"][1] < 0
    assert "the mean misses" in row["hint"]
    run = healthy()
    behind(run, lambda t: 400 / t)
    row = diagnose(run).set_index("rule").loc["drift_decay"]
    assert row["verdict"] == "ok"
    assert row["interval"][0] < 1 < row["interval"][1]
    run = healthy()
    behind(run, lambda t: t * (1 + 0.9 * np.sin(t / 6)))
    assert verdicts(run)["drift_decay"] == "info"


@pytest.mark.parametrize("steps", [60, 1000])
def test_the_noise_of_long_runs_is_no_drift(steps):
    said = [verdicts(healthy(seed, steps=steps, modules=("a",)))["drift_decay"] for seed in range(4)]
    assert said == ["ok"] * 4


def test_probes_alone_leave_the_coherence_open():
    run = healthy()
    t = np.arange(4, 60.0)
    for exponent, verdict in ((-0.5, "bad"), (0.5, "info"), (1.5, "ok")):
        values = t ** (-2 * exponent) * np.exp(np.random.default_rng(0).normal(size=len(t)) * 0.1)
        run.tables["probes"] = pd.DataFrame({"step": t, "module": "a", "mean_sq": values, "sigma_change": np.nan})
        row = diagnose(run).set_index("rule").loc["drift_decay"]
        assert row["verdict"] == verdict
        assert exponent == 1.5 or "coherence unknown" in row["hint"]
        assert row["interval"] == pytest.approx((exponent - 1, exponent), abs=0.3)


def test_updates_that_undo_each_other_are_as_little_orthogonal():
    run = healthy()
    updates = run.tables["updates"]
    updates["cosine"] -= np.where(updates["module"] == MODULES[0], 0.3, 0.2)
    row = diagnose(run).set_index("rule").loc["adjacent_cosine"]
    assert (row["verdict"], row["where"]) == ("bad", MODULES[0])
    assert row["interval"][0] < row["value"] < row["interval"][1] < -0.1
    assert "undo each other" in row["hint"]


def test_an_editor_without_an_inverse_has_no_start_up():
    run = healthy()
    run.tables["tracking"]["whitening_active"] = 0
    row = diagnose(run).set_index("rule").loc["startup"]
    assert row["verdict"] == "unknown"
    assert "inverts no covariance" in row["hint"]


def test_a_quiet_alarm_that_saw_little_is_not_ok():
    watched = {"e_innovation": 1.0, "cusum": 0.0, "growth": 0.0, "shrinkage": 0.0, "e_update": 1.0}
    gradients = [name for name in watched if name != "e_update"]
    cases = (([], "ok", ""), (gradients, "info", "no gradients"), (["e_update"], "info", "no pairs of updates"))
    for blind, verdict, said in (*cases, ([*watched], "unknown", "neither gradients")):
        run = healthy()
        run.tables["alarms"] = run.tables["alarms"].assign(**watched | dict.fromkeys(blind, np.nan))
        row = diagnose(run).set_index("rule").loc["early_warning"]
        assert row["verdict"] == verdict
        assert said in row["hint"]
        run.tables["alarms"]["state"] = 2
        assert verdicts(run)["early_warning"] == "bad"


def test_a_drift_that_costs_nothing_yet_is_no_more_than_info():
    run = healthy()
    v = run.tables["variogram"]
    v["value"] = np.square(1e-3 * v["lag"]) * np.exp(np.random.default_rng(1).normal(size=len(v)) * 0.01)
    run.tables["tracking"]["effective_rank"] = 1e12
    assert verdicts(run)["drift_decay"] == "info"


def test_thresholds_are_one_mapping():
    run = healthy()
    diagnosis = diagnose(run, thresholds={"step_size": 0.01, "efficacy": 0.99})
    assert set(diagnosis.loc[diagnosis["verdict"] == "bad", "rule"]) == {"step_size", "efficacy"}
    assert diagnosis.set_index("rule").loc["step_size", "threshold"] == 0.01
    with pytest.raises(SpecError, match='no rule "speed"'):
        diagnose(run, thresholds={"speed": 1.0})
    for wrong in (math.nan, True, "1"):
        with pytest.raises(SpecError, match="must be a number"):
            diagnose(run, thresholds={"step_size": wrong})


def test_verdicts_by_the_whole_interval():
    def interval(low, high):
        return Interval((low + high) / 2, 9, 1.0, low, high)

    assert [judge(interval(*i), 1.0) for i in ((1.1, 2.0), (0.2, 1.0), (0.9, 1.2))] == ["bad", "ok", "info"]
    assert [judge(interval(*i), 1.0, above=False) for i in ((1.0, 2.0), (0.2, 0.9), (0.9, 1.2))] == [
        "ok",
        "bad",
        "info",
    ]
    assert judge(Finding("ok", 2.0), 1.0) == "bad"
    assert judge(Finding("ok"), 1.0) == "unknown"
    ranked = worst([found(interval(0, 0.5), 1.0, where="x"), found(interval(3, 4), 1.0, where="y"), Finding("unknown")])
    assert (ranked.where, ranked.verdict) == ("y", "bad")
    assert worst([]).verdict == "unknown"


def test_false_alarms_of_means_are_rare():
    """A mean of 0.1 standard deviations below its threshold, correlated in time, is called bad in few of 200 runs."""
    rng = np.random.default_rng(3)
    bad = 0
    for _ in range(200):
        noise = rng.normal(size=80)
        for i in range(1, 80):
            noise[i] += 0.5 * noise[i - 1]
        bad += judge(mean_over_time(noise), 0.0) == "bad"
    assert bad <= 12  # 2.5 % are expected at the threshold itself


def test_thinning_keeps_the_mean():
    y = np.random.default_rng(0).normal(size=1234)
    short = thinned(y, most=200)
    assert len(short) == 200
    assert abs(short.mean() - y.mean()) < 0.01
    assert np.array_equal(thinned(y[:50]), y[:50])


def test_long_runs_are_cheap():
    """A twentieth of 20,000 steps and 17 modules."""
    run = healthy(steps=1000, modules=tuple(f"m{i}" for i in range(17)))
    run.info.model["modules"] = {f"m{i}": [32, D] for i in range(17)}
    start = time.process_time()
    diagnosis = diagnose(run)
    assert time.process_time() - start < 4
    assert len(diagnosis) == len(RULES)


def test_select_reads_the_needed_columns_alone():
    whole = healthy()
    seen = {}

    class Selecting:
        info = whole.info

        def table(self, name):
            raise AssertionError("the whole table was read")

        def select(self, name, columns):
            seen[name] = columns
            frame = whole.table(name)
            return frame[[c for c in columns if c in frame]]

    assert set(verdicts(Selecting()).values()) == {"ok"}
    assert "loss" not in seen["steps"]
    assert {"step", "module", "norm"} <= set(seen["updates"])


def test_the_page_has_every_rule_with_its_threshold():
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    lines = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| `")}
    for rule in RULES:
        assert rule.claim in lines[f"`{rule.id}`"]
        assert f"| {rule.threshold:g} |" in lines[f"`{rule.id}`"]
