"""What earlier edits leave to later ones: which edits are compared, and verdicts that follow what was planted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from figures import diagnosis_carryover as module
from figures import scales
from figures.needs import Need
from stablediag import plots
from stablediag.data.load import load_stream
from stablediag.errors import DataError
from stablediag.spec import DataSpec
from tests.figures.fake_tables import Tables, in_memory, steps

SEEDS = (0, 1, 2)


def planted(efficacy: Mapping[str, float], *, specificity: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Both editors at both rates: `efficacy` of each arm at the tuned rate, 10 points more and 20 less specific at twice it."""
    rows = []
    for editor in module.EDITORS:
        for rate in (1.0, 2.0):
            for arm in module.ARMS:
                if arm == "matched" and rate != 1:
                    continue
                for seed in SEEDS:
                    right = efficacy.get(arm, 70.0) + 10 * (rate - 1) + 0.1 * seed
                    spared = (specificity or {}).get(arm, 90.0) - 20 * (rate - 1) + 0.1 * seed
                    values = {
                        "efficacy": right,
                        "generalization": right,
                        "specificity": spared,
                        "norm": 5.0,
                        "immediate": 90.0,
                    }
                    rows += [("controls", editor, rate, arm, seed, name, value) for name, value in values.items()]
    return pd.DataFrame(rows, columns=list(module.COLUMNS))


def _answers(frame: pd.DataFrame, words: str) -> set[str]:
    found = [one.answer for one in module.verdicts(frame) if words in one.claim]
    assert len(found) == len(module.EDITORS), words
    return set(found)


@pytest.mark.parametrize(("both", "answer"), [(75.0, "shown"), (65.0, "opposite")])
def test_an_effect_of_the_early_edits_is_seen_both_ways(both: float, answer: str) -> None:
    frame = planted({"both": both})
    assert _answers(frame, "later ones (efficacy, Figure 1b)") == {answer}
    assert _answers(frame, "later ones (generalization, Figure 1b)") == {answer}
    assert _answers(frame, "rate x 2: early edits") == {answer}


@pytest.mark.parametrize("carrier", ["statistics", "weights"])
def test_what_carries_the_effect_is_named_and_the_other_is_not(carrier: str) -> None:
    rng = np.random.default_rng(0)
    frame = planted({"both": 75.0, carrier: 75.0})
    (idle,) = {"statistics", "weights"} - {carrier}
    noisy = frame["arm"] == idle
    frame.loc[noisy, "value"] += rng.standard_normal(noisy.sum())
    assert _answers(frame, f"the {carrier} alone carry it") == {"shown"}
    assert _answers(frame, f"the {idle} alone carry it") == {"not shown"}


@pytest.mark.parametrize(("matched", "answer"), [(75.0, "shown"), (65.0, "opposite")])
def test_a_longer_step_is_told_from_a_better_one(matched: float, answer: str) -> None:
    assert _answers(planted({"both": 75.0, "matched": matched}), "at equal update norms") == {answer}


@pytest.mark.parametrize(("both", "answer", "gap"), [(85.0, "shown", "5 "), (75.0, "opposite", "-5 ")])
def test_specificity_is_compared_at_equal_efficacy(both: float, answer: str, gap: str) -> None:
    """`alone` goes from (70, 90) to (80, 70), so that it has 80 where it is as effective as `both`, (75, 85 or 75)."""
    frame = planted({"both": 75.0}, specificity={"both": both})
    assert _answers(frame, "at equal efficacy") == {answer}
    told = [one.effect for one in module.verdicts(frame) if "equal efficacy" in one.claim]
    assert all(f"in 3 of 3 seeds where the rates allow it {gap}" in text for text in told)


def test_a_rate_beyond_those_of_the_control_is_not_extrapolated() -> None:
    told = [one for one in module.verdicts(planted({"both": 99.0})) if "equal eff" in one.claim]
    assert all("0 of 3 seeds" in one.effect and one.answer == "not shown" for one in told)


def test_the_picture_is_drawn_for_both_editors_and_for_one() -> None:
    whole = planted({"both": 75.0})
    few = whole[(whole["editor"] == "ultraedit") & (whole["rate"] == 1) & (whole["arm"] != "matched")]
    for frame in (whole, few):
        with plots.style():
            picture = module.draw(frame)
            FigureCanvasAgg(picture).draw()
        assert all(ax.get_title() for ax in picture.axes)
        assert all(ax.lines for ax in picture.axes)
        assert module.verdicts(frame)


def _run(name: str, ids: Sequence[str], seed: int = 0, *, facts: str = "a") -> Any:
    """A run whose late edits are half right at the end, and whose update norms are 2 and 4."""
    n = len(ids)
    edits = pd.DataFrame(
        {"position": range(n), "edit_id": ids, "step": 0, "immediate": 0.8, "immediate_exact": 1.0, "retained": 0.5}
    )
    quality = pd.DataFrame(
        [
            {"step": step, "metric": metric, "kind": kind, "value": value}
            for step, value in ((-1, 0.1), (1, 0.5))
            for metric, kind in (
                ("efficacy", "token"),
                ("generalization", "token"),
                ("specificity", "token"),
                ("specificity_agreement", "token"),
                ("specificity_kl", "nats"),
            )
        ]
    )
    updates = pd.DataFrame({"step": [0, 1], "module": "m", "norm": [2.0, 4.0], "weight_ratio": 1.0, "cosine": 0.0})
    tables = {"steps": steps(0, 2, n), "edits": edits, "quality": quality, "updates": updates}
    return in_memory(f"ultraedit/1/{name}/{facts}", seed, Tables(tables))


def test_numbers_are_those_of_the_late_runs() -> None:
    frame = module.prepare([_run("early", ["a", "b"]), _run("alone", ["c", "d"]), _run("both", ["c", "d"])])
    assert set(frame["arm"]) == {"alone", "both"}
    assert set(frame["rate"]) == {1.0}
    values = frame.set_index(["arm", "metric"])["value"]
    assert values["both", "efficacy"] == pytest.approx(50)
    assert values["both", "norm"] == pytest.approx(3)
    assert values["alone", "immediate"] == pytest.approx(80)


def test_parts_of_the_pool_are_told_apart() -> None:
    frame = module.prepare([_run("alone", ["c", "d"], 1), _run("alone", ["e", "f"], 1, facts="b")])
    assert set(frame["seed"]) == {1, 101}


def test_arms_that_were_taught_other_edits_are_refused() -> None:
    with pytest.raises(DataError, match="other late edits than the arms before it"):
        module.prepare([_run("alone", ["c", "d"]), _run("both", ["d", "c"])])
    with pytest.raises(DataError, match="seed 0: early and late edits overlap"):
        module.prepare([_run("early", ["a", "c"]), _run("alone", ["c", "d"])])
    with pytest.raises(DataError, match="no late runs"):
        module.prepare([_run("early", ["a", "c"])])


@pytest.mark.parametrize("scale", [scales.quick(), scales.full()], ids=["quick", "full"])
def test_all_arms_of_a_seed_have_the_same_late_edits_and_none_of_them_came_before(scale: Any) -> None:
    found = [need for need in module.NEEDS.resolve(scale) if need.seed == 0]
    assert scale.name == "full" or 2 * len(found) <= 10
    for facts in {need.arm[-2:] for need in found}:
        mine = [need for need in found if need.arm.endswith(facts)]
        texts = {"late" if _name(need) in module.ARMS else _name(need): set[str]() for need in mine}
        for need in mine:
            texts["late" if _name(need) in module.ARMS else _name(need)].add(need.spec.data.model_dump_json())
        assert all(len(one) == 1 for one in texts.values()), "one stream for each part of the time"
        taught = [{edit.id for edit in load_stream(DataSpec.model_validate_json(one.pop()))} for one in texts.values()]
        assert sum(map(len, taught)) == len(set.union(*taught)), "no edit is taught twice"
    assert all(need.spec.warmup.size == 0 for need in found), "no edits but those that are named"


def _name(need: Need) -> str:
    return need.arm.split("/")[2]


def test_every_arm_starts_from_what_its_name_says() -> None:
    found = {need.arm: need for need in module.NEEDS.resolve(scales.full()) if need.seed == 0}
    for editor in module.EDITORS:
        base = f"{editor}/1/warm-up/b"
        known = {need.directory: name.split("/")[2] for name, need in found.items() if name.endswith("/b")}
        first = "warm-up" if base in found else None

        def starts(arm: str, editor: str = editor, known: Mapping[str, str] = known) -> tuple[str | None, str | None]:
            init = found[f"{editor}/1/{arm}/b"].spec.init
            if init is None:
                return None, None
            return known.get(init.weights_from or ""), known.get(init.stats_from or "")

        assert starts("alone") == (first, first)
        assert starts("statistics") == (first, "early")
        assert starts("weights") == ("early", first)
        assert starts("both") == starts("matched") == ("early", "early")
        assert found[f"{editor}/1/alone/b"].directory in found[f"{editor}/1/matched/b"].after
