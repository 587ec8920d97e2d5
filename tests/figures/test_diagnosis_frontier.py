"""Frontiers of known shape: areas, levels and verdicts both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pandas as pd
import pytest

from figures import diagnosis_frontier as frontier
from figures import scales
from figures.diagnosis_frontier import CURVES, RATE, REFERENCE
from figures.frames import ArmRun
from stablediag import plots
from stablediag.errors import DataError
from stablediag.store.run import Run
from tests.figures.fake_quality import BEFORE, Tables, planted

SEEDS = (0, 1, 2)
#: efficacy and specificity by rate of a frontier that bends
SHAPE = ((0.5, 0.95), (0.8, 0.9), (0.85, 0.5), (0.6, 0.1))


def runs(*, seeds: tuple[int, ...] = SEEDS, arms: Sequence[str] = ()) -> list[ArmRun]:
    """Every curve, or some arms, at the planted shape; noise by seed."""
    found = []
    for curve in (curve for curve in CURVES if not arms or curve.arm in arms):
        for rate, (efficacy, specificity) in zip(curve.rates, SHAPE, strict=True):
            for seed in seeds:
                noise = 0.002 * np.sin(5 * seed + len(curve.arm))
                shares = {"efficacy": efficacy + noise, "generalization": 0.5, "specificity": specificity + noise}
                arm = curve.variants([rate])[0].label
                found.append(planted(arm, seed, shares=shares, kl=1.1 - specificity, params={"lr": rate}))
    return found


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """The table of every curve, made once; a test that changes it changes a copy."""
    return frontier.prepare(runs())


def lifted(frame: pd.DataFrame, arm: str, points: float) -> pd.DataFrame:
    """The table with an arm's specificity lifted by so many points."""
    return frame.assign(specificity=frame["specificity"] + points * (frame["arm"] == arm))


def test_the_table_has_every_rate_and_the_unedited_model_as_rate_0(frame: pd.DataFrame) -> None:
    assert len(frame) == sum(len(curve.rates) for curve in CURVES) * len(SEEDS) + len(SEEDS)
    mine = frame[(frame["arm"] == REFERENCE) & (frame["seed"] == 1)]
    assert mine["rate"].tolist() == sorted(CURVES[0].rates)
    start = frame[frame["arm"] == "unedited"]
    assert start["rate"].tolist() == [0.0] * len(SEEDS)
    assert start["efficacy"].tolist() == pytest.approx([100 * BEFORE["efficacy"]] * len(SEEDS))


def test_specificity_at_a_level_is_the_best_on_the_lines_between_rates() -> None:
    efficacy, specificity = np.array([0.0, 50, 80, 40]), np.array([100.0, 90, 60, 10])
    assert frontier.attained(efficacy, specificity, 25) == pytest.approx(95)
    assert frontier.attained(efficacy, specificity, 50) == pytest.approx(90)
    assert frontier.attained(efficacy, specificity, 65) == pytest.approx(75)
    # The way back, at too high a rate, attains the same efficacy with less: it does not count.
    assert frontier.attained(efficacy, specificity, 45) == pytest.approx(91)
    assert np.isnan(frontier.attained(efficacy, specificity, 81))


def test_a_level_is_also_attained_by_going_past_it() -> None:
    # A higher rate with more efficacy and more specificity beats the line's place at the level.
    assert frontier.attained(np.array([0.0, 50, 90]), np.array([100.0, 60, 95]), 20) == pytest.approx(95)


def test_area_against_a_fine_grid_of_points_on_the_curve() -> None:
    efficacy, specificity = np.array([0.0, 50, 80, 40]), np.array([100.0, 90, 60, 10])
    t = np.linspace(0, 3, 30_001)
    e, s = np.interp(t, range(4), efficacy), np.interp(t, range(4), specificity)
    levels = np.arange(0, 100, 0.1) + 0.05
    naive = np.mean([s[e >= level].max(initial=0.0) for level in levels])
    assert frontier.area(efficacy, specificity) == pytest.approx(naive, abs=0.2)
    assert frontier.area(np.array([0.0, 100]), np.array([100.0, 100])) == pytest.approx(100)


@pytest.mark.parametrize(("lift", "answer"), [(-10.0, "shown"), (5.0, "opposite"), (0.0, "not shown")])
def test_verdicts_follow_which_frontier_lies_above(frame: pd.DataFrame, lift: float, answer: str) -> None:
    some = frame[frame["arm"].isin([REFERENCE, "ultraedit", "center", "unedited"])]
    found = {one.claim: one.answer for one in frontier.verdicts(lifted(some, "ultraedit", lift))}
    assert found["the frontier of StableEdit lies above that of ULTRAEDIT"] == answer
    assert found["StableEdit is more specific than ULTRAEDIT at equal efficacy"] == answer
    assert found["the frontier of StableEdit lies above that of centring only"] == "not shown"


@pytest.mark.parametrize(("lift", "answer"), [(-10.0, "opposite"), (5.0, "shown")])
def test_less_of_ln_is_compared_with_none(frame: pd.DataFrame, lift: float, answer: str) -> None:
    some = frame[frame["arm"].isin([REFERENCE, "no_ln", "scalar", "unedited"])]
    found = {one.claim: one.answer for one in frontier.verdicts(lifted(some, "scalar", lift))}
    assert found["the frontier of scalar lies above that of no LN"] == answer
    assert found["the frontier of StableEdit lies above that of no LN"] == "not shown"


def test_the_level_of_a_comparison_is_reached_by_both_at_every_seed(frame: pd.DataFrame) -> None:
    assert frontier.common_level(frame, (REFERENCE, "frozen")) == 80
    weak = frame["efficacy"].where((frame["arm"] != "frozen") | (frame["seed"] != 2), 0.5 * frame["efficacy"])
    assert frontier.common_level(frame.assign(efficacy=weak), (REFERENCE, "frozen")) == 40


def test_curves_do_not_cover_each_other_s_arms_and_the_divergence_is_logarithmic(frame: pd.DataFrame) -> None:
    with plots.style():
        figure = frontier.draw(frame)
    specificity, divergence = figure.axes[0], figure.axes[2]
    assert divergence.get_yscale() == "log"
    assert specificity.get_xlim() == (0, 100)
    assert len(figure.legends[0].get_texts()) == len(CURVES)
    # Its curves begin at the unedited model, of which there is no divergence to draw.
    assert min(line.get_xdata()[0] for line in specificity.lines) == pytest.approx(100 * BEFORE["efficacy"])
    assert min(line.get_xdata()[0] for line in divergence.lines) > 40


def test_the_quick_scale_is_drawn_and_judged() -> None:
    labels = {variant.label for variant in frontier.NEEDS.quick or ()}
    assert len(labels) * 2 <= 10
    names = {label.partition(":")[0] for label in labels}
    some = frontier.prepare(runs(seeds=(0, 1), arms=tuple(names)))
    assert set(some["arm"]) == {*names, "unedited"}
    with plots.style():
        frontier.draw(some)
    assert frontier.verdicts(lifted(some, "no_ln", -10))[0].answer == "shown"


def test_the_plain_run_is_named_so_and_holds_the_rate_of_its_file() -> None:
    variant = CURVES[0].variants([RATE])[0]
    assert (variant.label, variant.changes) == (REFERENCE, ())
    need = next(n for n in frontier.NEEDS.resolve(scales.quick()) if n.arm == REFERENCE)
    assert need.spec.editor.params["lr"] == RATE


def test_tables_that_lack_what_is_compared_are_one_clear_error(frame: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="no run of stableedit"):
        frontier.verdicts(frame[frame["arm"].isin(["ultraedit", "unedited"])])
    with pytest.raises(DataError, match="no unedited model of seed 2"):
        frontier.verdicts(frame[(frame["arm"] != "unedited") | (frame["seed"] != 2)])
    one = runs(seeds=(0,), arms=(REFERENCE,))[0]
    run = cast(Tables, one.run)
    left = run.tables["quality"][run.tables["quality"]["metric"] != "specificity_kl"]
    broken = replace(one, run=cast(Run, Tables({**run.tables, "quality": left}, run.spec)))
    with pytest.raises(DataError, match="specificity_kl"):
        frontier.prepare([broken])
