"""Rules of the stream where a recorder reports some steps alone, and where modules disagree."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from stablediag.stats.doctor import diagnose
from tests.stats.doctor_faults import EDITS, behind, healthy

EVERY = 5


def reported(run: Any, *, every: int) -> Any:
    """The run with rows of `tracking` of some steps alone, and the edits of all of them in `steps`."""
    tracking, steps = run.tables["tracking"], run.tables["steps"]
    run.tables["tracking"] = tracking[tracking["step"] % every == 0].reset_index(drop=True)
    run.tables["steps"] = steps.assign(edits=EDITS)
    return run


def row(run: Any, rule: str) -> pd.Series:
    return cast(pd.Series, diagnose(run).set_index("rule").loc[rule])


def late(steps: int = 200) -> Any:
    """A run whose mean misses far more than noise explains, so that little is left to chance."""
    run = healthy(steps=steps)
    behind(run, lambda t: 60 + 0 * t)
    return run


def test_the_share_of_the_bias_counts_edits_of_steps_without_a_row() -> None:
    whole, thin = (row(reported(late(), every=every), "bias_share") for every in (1, EVERY))
    assert thin["value"] == pytest.approx(whole["value"], rel=0.1)


def test_a_lag_is_as_visible_in_some_steps_as_in_all() -> None:
    for every in (1, EVERY):
        run = healthy(steps=200)
        behind(run, lambda t: 12 + 0 * t)
        seen = row(reported(run, every=every), "drift_decay")
        assert "the mean misses 1" in seen["hint"]  # 13 times what it would if nothing moved


@pytest.mark.parametrize(("times", "verdict"), [(1.5, "ok"), (8.0, "bad")])
def test_a_lag_that_costs_little_is_not_judged(times: float, verdict: str) -> None:
    """It grows with the noise's own law, so that it neither falls below it nor is hidden by its scatter."""
    run = healthy(steps=200)
    tracking = run.tables["tracking"]
    # Noise of the mean falls like 1/t; the error here stays a multiple of that at the run's end.
    still = 1 / tracking["step"].clip(lower=1)
    tracking["prior_error"] = still * (1 + times * (tracking["step"] / 150) ** 1.5)
    assert row(run, "drift_decay")["verdict"] == verdict


def test_skipped_steps_are_behind_no_estimate() -> None:
    run = reported(late(), every=1)
    run.tables["tracking"] = run.tables["tracking"][lambda t: t["step"] >= 150].reset_index(drop=True)
    run.tables["steps"].loc[:149, "skipped"] = "not finite"
    counted = row(run, "bias_share")["value"]
    run.tables["steps"] = run.tables["steps"].drop(columns="edits")
    assert counted == row(run, "bias_share")["value"]


def test_a_module_that_cannot_tell_is_not_hidden_by_one_that_is_near() -> None:
    run = healthy(modules=("near", "wide"))
    rng, tracking = np.random.default_rng(0), run.tables["tracking"]
    near = (tracking["module"] == "near").to_numpy()
    wobble = np.exp(0.3 + 0.9 * np.repeat(rng.normal(size=len(tracking) // 10 + 1), 10)[: len(tracking)])
    tracking["whitened_index"] = np.where(near, 1.45, wobble)
    found = row(run, "exchangeability")
    assert (found["verdict"], found["where"]) == ("info", "wide")
