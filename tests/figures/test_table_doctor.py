"""The doctor's table: what it says of planted verdicts, in letters and in claims, and that both flip with the plant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from figures import editors_frame, table_doctor
from figures.editors_arms import UNEDITED
from figures.frames import ArmRun
from figures.needs import Scale
from figures.table_doctor import CAUSES, IDS, OUTCOMES, RULE
from stablediag.store.run import Run
from tests.figures.fake_editors import HEALTHY, stored

SEEDS = (0, 1, 2)
GOOD = {"score": 80.0, "immediate": 90.0, "efficacy": 85.0, "specificity": 95.0, "capability": 95.0}
POOR = {"score": 40.0, "immediate": 50.0, "efficacy": 20.0, "specificity": 60.0, "capability": 70.0}
POOR_SAID = dict.fromkeys(OUTCOMES, "bad") | {"early_warning": "bad", "step_size": "bad"}


def rows(
    name: str, quality: Mapping[str, float], said: Mapping[str, str], seeds: tuple[int, ...] = SEEDS
) -> list[dict]:
    """The rows of one editor; what a rule is not said to be is ok."""
    found = []
    for seed in seeds:
        place = {"setting": "editors", "arm": name, "seed": seed, "edits": 0, "where": "", "hint": ""}
        place |= dict.fromkeys(("value", "low", "high"), math.nan)
        verdicts = {rule: said.get(rule, "ok") for rule in IDS}
        found += [{**place, "metric": RULE + rule, "verdict": verdict} for rule, verdict in verdicts.items()]
        found += [{**place, "metric": m, "value": v + 0.1 * seed, "verdict": math.nan} for m, v in quality.items()]
    return found


def frame(*editors: list[dict]) -> pd.DataFrame:
    """A table of editors and the unedited model."""
    before = [row for row in rows(UNEDITED, {**GOOD, "immediate": math.nan}, {}) if not row["metric"].startswith(RULE)]
    return pd.DataFrame([row for some in (*editors, before) for row in some], columns=list(table_doctor.COLUMNS))


def told(table: pd.DataFrame) -> dict[str, str]:
    return {one.claim.partition(":")[0]: one.answer for one in table_doctor.verdicts(table)}


def test_agreement_is_shown_and_its_opposite_too() -> None:
    right = told(frame(rows("stableedit", GOOD, {}), rows("memit", POOR, POOR_SAID)))
    assert set(right.values()) == {"shown"}
    wrong = told(frame(rows("stableedit", GOOD, POOR_SAID), rows("memit", POOR, {})))
    assert set(wrong.values()) == {"opposite"}
    assert set(right) == set(wrong)


def test_a_claim_without_runs_is_not_shown() -> None:
    answers = told(frame(rows("stableedit", GOOD, {}), rows("ultraedit", GOOD, {})))
    assert answers["Runs with a bad cause end with a lower score"] == "not shown"
    assert answers["A run that ends with a score below 60 has a bad cause"] == "not shown"
    assert answers["A run that ends with a score of at least 60 has none"] == "shown"


def test_unknown_and_info_have_no_say_in_agreement() -> None:
    unsure = {"locality": "info", "capability": "unknown", "early_warning": "unknown"}
    answers = told(frame(rows("stableedit", GOOD, unsure), rows("memit", POOR, POOR_SAID | unsure)))
    assert answers["locality says what the quality table says"] == "not shown"
    assert answers["capability says what the quality table says"] == "not shown"
    assert answers["forgetting says what the quality table says"] == "shown"
    assert answers["The early warning sounds in more runs that end with a score below 60"] == "not shown"


def test_an_early_warning_without_gradients_has_no_say_among_those_with_them() -> None:
    said = {"early_warning": "info", table_doctor.GRADIENTS: "unknown"}
    table = frame(
        rows("stableedit", GOOD, {}),
        rows("rledit", POOR, POOR_SAID),
        rows("memit", POOR, said),
        rows("rome", POOR, said),
        # One that sounds although it sees no gradients: to keep it for that would be to choose by the outcome.
        rows("alphaedit", GOOD, said | {"early_warning": "bad"}),
    )
    effects = [one.effect for one in table_doctor.verdicts(table) if one.claim.startswith("The early warning")]
    assert ["difference -0.167" in effects[0], "difference 1 " in effects[1]] == [True, True]


def test_the_runs_that_disagree_are_named() -> None:
    table = frame(rows("stableedit", GOOD, {}), rows("memit", POOR, {}), rows("rome", POOR, POOR_SAID))
    effect = next(one.effect for one in table_doctor.verdicts(table) if one.claim.endswith("has a bad cause"))
    assert "3 of 6 runs, not MEMIT" in effect
    assert "ROME" not in effect


def test_causes_end_where_the_early_warning_begins() -> None:
    assert [*CAUSES, "early_warning"] == list(IDS[: len(CAUSES) + 1])
    assert not {*CAUSES} & {*OUTCOMES}


def test_first_causes_by_seed_and_in_words() -> None:
    table = frame(rows("memit", POOR, POOR_SAID, (0, 1)), rows("memit", POOR, {}, (2,)))
    assert table_doctor.first_causes(table, "memit") == ["step_size", "step_size", ""]
    text = table_doctor.markdown(table)
    line = next(line for line in text.splitlines() if line.startswith("| MEMIT"))
    assert "| `step_size` (2 of 3), none (1 of 3) |" in line
    assert "`locality` (2 of 3)" in line
    text_of_split = table_doctor.markdown(
        frame(
            rows("memit", POOR, {"step_size": "bad", "tails": "bad"}, (0,)), rows("memit", POOR, {"tails": "bad"}, (1,))
        )
    )
    assert "| `step_size` (1 of 2), `tails` (1 of 2) | `tails` (1 of 2) |" in text_of_split
    assert "| step_size | bad 2, ok 1 |" in text


def test_the_picture_has_a_stripe_a_seed_and_letters() -> None:
    table = frame(rows("stableedit", GOOD, {"divisor": "unknown"}), rows("memit", POOR, POOR_SAID, (0, 1)))
    table = pd.concat([table, frame(rows("memit", POOR, {}, (2,)))], ignore_index=True).drop_duplicates()
    figure = table_doctor.draw(table)
    texts = [text.get_text() for text in figure.axes[0].texts]
    split = len(POOR_SAID)
    # Where seeds split there are three letters, else one; below, the causes and two numbers.
    assert len(texts) == 2 * len(IDS) + 2 * split + 2 * 3
    assert texts.count("B") == 2 * split
    assert texts.count("-") == 1
    assert f"{IDS.index('step_size') + 1}\nnone" in texts
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["StableEdit", "MEMIT"]


def test_letters_and_greys_of_the_verdicts_differ() -> None:
    greys = sorted(0.3 * r + 0.59 * g + 0.11 * b for r, g, b in (to_rgb(m.cell) for m in table_doctor.MARKS.values()))
    assert len({mark.letter for mark in table_doctor.MARKS.values()}) == 4
    assert all(b - a > 0.05 for a, b in pairwise(greys))


@pytest.fixture(scope="module")
def made(scale: Scale, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The table of two stores that no model made."""
    root = tmp_path_factory.mktemp("runs")
    needs = [need for need in table_doctor.NEEDS.resolve(scale) if need.arm in ("stableedit", "memit")][:2]
    for need in needs:
        stored(need, root, HEALTHY)
    return table_doctor.prepare([ArmRun(n.arm, n.setting, n.seed, Run.open(root / n.directory)) for n in needs])


def test_of_stores(made: pd.DataFrame) -> None:
    assert list(made.columns) == list(table_doctor.COLUMNS)
    rules = made[made["metric"].str.startswith(RULE)]
    assert rules.groupby(["arm", "seed"]).size().unique().tolist() == [len(IDS)]
    assert set(rules["verdict"]) <= set(table_doctor.MARKS)
    assert set(made.loc[~made["metric"].str.startswith(RULE), "metric"]) == set(table_doctor.QUALITY)
    assert UNEDITED in set(made["arm"])


def test_a_run_that_failed_is_left_out(made: pd.DataFrame) -> None:
    table = editors_frame.with_failed(made, [("editors", "rome", 0)])
    assert "ROME" not in table_doctor.markdown(table)
    assert table_doctor.verdicts(table)
    assert table_doctor.draw(table)
