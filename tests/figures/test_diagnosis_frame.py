"""Quality and geometry of runs whose tables are known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import pytest

from figures import diagnosis_frame as frame
from figures.frames import ArmRun
from stablediag.errors import DataError, StoreError
from stablediag.store.run import Run
from tests.figures.fake_quality import BEFORE, PER_STEP, STEPS, Tables, planted

SHARES = {"efficacy": 0.8, "generalization": 0.6, "specificity": 0.9}
EDITS = STEPS * PER_STEP


def without(one: ArmRun, table: str, **values: object) -> ArmRun:
    """The run with the rows of a table left out that have these values, or with the whole table left out."""
    tables = dict(cast(Tables, one.run).tables)
    old = tables.pop(table)
    if values:
        hit = (old[list(values)] == list(values.values())).all(axis=1)
        assert hit.any()
        tables[table] = old[~hit]
    return replace(one, run=cast(Run, Tables(tables, cast(Tables, one.run).spec)))


def test_quality_is_that_of_the_last_evaluation_in_percent_and_nats() -> None:
    row = frame.quality([planted("x", 3, shares=SHARES, kl=0.25)]).iloc[0]
    assert (row["arm"], row["seed"], row["edits"]) == ("x", 3, EDITS)
    assert row[["efficacy", "generalization", "specificity"]].tolist() == pytest.approx([80, 60, 90])
    assert row["score"] == pytest.approx(3 / (1 / 80 + 1 / 60 + 1 / 90))
    assert row["agreement"] == pytest.approx(90)
    assert row["locality_kl"] == 0.25


def test_retention_looks_at_edits_that_were_right_and_at_no_others() -> None:
    immediate = [1.0] * 10 + [0.5] * 10
    retained = [1.0, 0.0, None, None, None, None, None, None, None, 0.5] + [1.0] * 10
    row = frame.quality([planted("x", 0, shares=SHARES, immediate=immediate, retained=retained)]).iloc[0]
    assert row["immediate"] == pytest.approx(75)
    assert row["retention"] == pytest.approx(50)


def test_without_an_edit_that_was_right_there_is_no_retention() -> None:
    row = frame.quality([planted("x", 0, shares=SHARES, immediate=[0.5] * EDITS)]).iloc[0]
    assert math.isnan(row["retention"])


def test_a_divergence_that_was_not_finite_is_missing_and_no_error() -> None:
    one = planted("x", 0, shares=SHARES, kl=math.nan)
    assert math.isnan(frame.quality([one]).iloc[0]["locality_kl"])


def test_the_unedited_model_is_taken_once_per_seed() -> None:
    runs = [planted(arm, seed, shares=SHARES) for arm in ("x", "y") for seed in (0, 1)]
    found = frame.unedited(runs)
    assert found[["arm", "seed"]].values.tolist() == [["unedited", 0], ["unedited", 1]]
    assert found["efficacy"].tolist() == pytest.approx([100 * BEFORE["efficacy"]] * 2)


def test_geometry_leaves_the_warm_up_out() -> None:
    row = frame.geometry([planted("x", 0, shares=SHARES, norms=(1.0, 2.0, 3.0, 6.0))]).iloc[0]
    assert row[["norm_first", "norm_mean", "norm_last"]].tolist() == pytest.approx([2, 6, 12])
    assert row["weight_ratio"] == pytest.approx(1 + 0.1 * STEPS * 3)
    assert row["cosine"] == pytest.approx(0.5)
    assert row[["realised_ratio", "unchanged_fraction"]].tolist() == pytest.approx([0.9, 0.2])


def test_the_long_form_keeps_what_names_a_run() -> None:
    table = frame.long(frame.quality([planted("x", 0, shares=SHARES)]).assign(rate=0.1), ["efficacy", "locality_kl"])
    assert sorted(table.columns) == ["arm", "metric", "rate", "seed", "setting", "value"]
    assert dict(zip(table["metric"], table["value"], strict=True)) == pytest.approx(
        {"efficacy": 80, "locality_kl": 0.1}
    )


@pytest.mark.parametrize("metric", ["specificity_kl", "specificity_agreement", "generalization"])
def test_a_run_that_was_not_asked_for_a_metric_is_an_error_that_says_so(metric: str) -> None:
    one = without(planted("x", 1, shares=SHARES), "quality", metric=metric)
    with pytest.raises(DataError, match=metric) as told:
        frame.quality([one])
    assert "\n" not in str(told.value)


def test_a_run_without_an_evaluation_after_its_edits_is_an_error() -> None:
    one = without(planted("x", 1, shares=SHARES), "quality", step=STEPS)
    with pytest.raises(DataError, match="run x, controls, seed 1: no evaluation after the first target edit"):
        frame.quality([one])


def test_a_run_without_an_evaluation_before_its_edits_is_an_error() -> None:
    one = without(planted("x", 1, shares=SHARES), "quality", step=-1)
    with pytest.raises(DataError, match="unedited model was not evaluated"):
        frame.unedited([one])


def test_a_missing_table_is_the_store_s_error() -> None:
    with pytest.raises(StoreError, match="quality"):
        frame.quality([without(planted("x", 1, shares=SHARES), "quality")])
