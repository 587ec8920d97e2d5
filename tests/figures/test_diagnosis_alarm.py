"""Early warning beside quality: events are found where they were planted, and verdicts follow them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from figures import diagnosis_alarm as module
from figures import scales
from stablediag import plots
from stablediag.errors import DataError
from tests.figures.fake_tables import Tables, in_memory, steps

SEEDS = (0, 1, 2, 100, 101, 102)
EDITS = (100, 200, 300, 400)


def planted(
    *, alarms: dict[str, float], falls: dict[str, int] | None = None, spread: float = 10.0, seeds: Any = SEEDS
) -> pd.DataFrame:
    """Alarms after these edits (absent: none) with `spread` between seeds, and scores that fall by 20 from `falls` on."""
    rows: list[tuple[Any, ...]] = []
    for arm in module.TITLES:
        for place, seed in enumerate(seeds):
            at = alarms.get(arm, np.nan) + spread * place
            key = ("controls", arm, seed)
            rows += [(*key, "alarm", 0, at, "tracking" if at > 0 else ""), (*key, "warning", 0, at, "")]
            rows += [(*key, "cause", 0, 200.0 if arm == "switch" else 0.0, ""), (*key, "total", 0, 400.0, "")]
            for edits in EDITS:
                low = edits >= (falls or {}).get(arm, 10**6)
                rows += [(*key, "score", edits, 60.0 if low else 80.0, ""), (*key, "specificity", edits, 90.0, "")]
                rows += [
                    (*key, name, edits, 0.1 * edits / 100, "") for name in [*module.DETECTORS, "immediate", "index"]
                ]
    return pd.DataFrame(rows, columns=list(module.COLUMNS))


def _verdict(frame: pd.DataFrame, *words: str) -> Any:
    found = [one for one in module.verdicts(frame) if all(word in one.claim for word in words)]
    assert len(found) == 1, words
    return found[0]


def test_the_score_falls_where_it_is_ten_points_below_the_stable_run_of_the_same_facts() -> None:
    frame = planted(alarms={}, falls={"rate_3": 300})
    when = module.events(frame).set_index(["arm", "seed"])
    assert (when.loc["rate_3", "fall"] == 300).all()
    assert when.loc["rate_10", "fall"].isna().all()
    lower = frame["quantity"].eq("score") & frame["arm"].eq("stable") & frame["seed"].eq(0)
    frame.loc[lower, "value"] = 65.0
    when = module.events(frame).set_index(["arm", "seed"])
    assert np.isnan(when.loc[("rate_3", 0), "fall"]), "the stable run is as low"
    assert when.loc[("rate_3", 1), "fall"] == 300


@pytest.mark.parametrize(("fall", "answer"), [(400, "shown"), (100, "opposite")])
def test_an_alarm_is_early_or_late_against_the_fall(fall: int, answer: str) -> None:
    frame = planted(alarms={"rate_3": 200.0}, falls={"rate_3": fall})
    assert _verdict(frame, "rate x 3", "before the score falls").answer == answer
    assert "falls in 6 of 6 runs" in _verdict(frame, "rate x 3", "before the score falls").effect


def test_a_run_that_never_alarms_has_no_early_one() -> None:
    found = _verdict(planted(alarms={}, falls={"rate_10": 100}), "rate x 10", "before the score falls")
    assert found.answer == "opposite"
    assert _verdict(planted(alarms={}), "rate x 10", "within the run").answer == "opposite"
    assert _verdict(planted(alarms={"rate_10": 100.0}), "rate x 10", "within the run").answer == "shown"


def test_without_a_fall_nothing_is_said_about_the_order() -> None:
    assert _verdict(planted(alarms={"switch": 250.0}), "change of facts", "before the score").answer == "not shown"


@pytest.mark.parametrize(("at", "answer"), [(230.0, "shown"), (np.nan, "opposite"), (460.0, "opposite")])
def test_the_delay_after_a_switch_counts_from_the_switch(at: float, answer: str) -> None:
    """A silent run is not a prompt one, even where fewer edits than that are left."""
    found = _verdict(planted(alarms={"switch": at}), "change of facts", "within")
    assert found.answer == answer
    assert ("30 to 80" in found.effect) == (answer == "shown")


def test_an_alarm_before_the_switch_does_not_count_as_prompt() -> None:
    early = planted(alarms={"switch": 100.0})
    assert _verdict(early, "change of facts", "no alarm before").answer == "not shown"
    assert "6 of 6" in _verdict(early, "change of facts", "no alarm before").effect
    assert _verdict(early, "change of facts", "within").answer == "opposite"


@pytest.mark.parametrize(
    ("arm", "words"), [("unmoved", "nothing is written"), ("stable", "stable runs")], ids=["unmoved", "stable"]
)
def test_silence_is_shown_by_silence_alone(arm: str, words: str) -> None:
    assert _verdict(planted(alarms={}), words).answer == "shown"
    assert _verdict(planted(alarms={arm: 100.0}), words).answer == "opposite"
    one = planted(alarms={arm: 100.0})
    one.loc[(one["quantity"] == "alarm") & (one["seed"] > 0), "value"] = np.nan
    assert _verdict(one, words).answer == "not shown", "one alarm of six may be bad luck"


def _alarms(**columns: Any) -> pd.DataFrame:
    plain = {"e_innovation": 1.0, "e_update": 1.0, "e_limit": 80.0, "cusum": 0.0, "cusum_limit": 8.0}
    plain |= {"growth": 0.0, "shrinkage": 0.0, "scale_limit": 9.0, "index": 1.0, "state": 0, "which": None}
    return pd.DataFrame({"step": [1, 2, 3], **plain, **columns})


def test_evidence_is_one_where_the_alarm_sounds() -> None:
    found = module.evidence(_alarms(e_innovation=[1.0, 80.0, 6400.0], cusum=[4.0, 8.0, 16.0], growth=9.0))
    assert found["innovations"].tolist() == pytest.approx([0, 1, 2])
    assert found["tracking"].tolist() == pytest.approx([0.5, 1, 2])
    assert found["growth"].tolist() == pytest.approx([1, 1, 1])
    assert module.evidence(_alarms(e_update=np.nan))["updates"].isna().all()


def _run(label: str = "switch/a", *, alarms: pd.DataFrame | None = None) -> Any:
    quality = [
        {"step": step, "metric": metric, "kind": "token", "value": value}
        for step, value in ((-1, 0.1), (2, 0.6), (3, 0.3))
        for metric in ("efficacy", "generalization", "specificity")
    ]
    edits = pd.DataFrame({"step": [1, 1, 2, 3], "immediate": [1.0, 0.0, 1.0, None]})
    tables = {"steps": steps(1, 3, 50), "quality": pd.DataFrame(quality), "edits": edits}
    if alarms is not None:
        tables["alarms"] = alarms
    spec = {"data": {"size": 100, "then": [{"size": 50}] if label.startswith("switch") else []}}
    return in_memory(label, 2, Tables(tables, spec=spec))


def test_a_run_becomes_curves_in_edits_and_its_first_alarm() -> None:
    frame = module.prepare(
        [
            _run(alarms=_alarms(state=[0, 1, 2], which=[None, "tracking", "innovations tracking"])),
            _run("stable/b", alarms=_alarms()),
        ]
    )
    assert set(frame["seed"]) == {2, 102}, "sets of facts are told apart"
    mine = frame[frame["arm"] == "switch"].set_index("quantity")
    assert (mine.loc["alarm", "value"], mine.loc["alarm", "text"]) == (150, "innovations")
    assert mine.loc["warning", "value"] == 100
    assert mine.loc["cause", "value"] == 100
    assert mine.loc["immediate", ["edits", "value"]].to_numpy().tolist() == [[50, 50.0], [100, 100.0]]
    assert mine.loc["score", ["edits", "value"]].to_numpy(float) == pytest.approx(np.array([[100, 60.0], [150, 30.0]]))
    other = frame[frame["arm"] == "stable"].set_index("quantity")
    assert np.isnan(other.loc["alarm", "value"])
    assert other.loc["cause", "value"] == 0


def test_what_cannot_be_shown_is_refused_in_one_line() -> None:
    with pytest.raises(DataError, match="no runs"):
        module.prepare([])
    with pytest.raises(DataError, match="run switch/a, seed 2: no table alarms"):
        module.prepare([_run()])


def test_the_picture_is_drawn_for_all_arms_and_for_some() -> None:
    whole = planted(alarms={"stable": 300.0, "switch": 250.0}, falls={"rate_3": 200})
    for frame in (whole, whole[whole["arm"].isin(["stable", "switch"]) & (whole["seed"] == 0)]):
        with plots.style():
            picture = module.draw(frame)
            FigureCanvasAgg(picture).draw()
        assert len(picture.axes) == 3 * frame["arm"].nunique()
        assert all(ax.lines for ax in picture.axes)
        assert module.verdicts(frame)


def test_sets_of_facts_differ_and_the_quick_scale_is_small() -> None:
    full, quick = (module.NEEDS.resolve(scale) for scale in (scales.full(), scales.quick()))
    assert len(quick) <= 10
    assert len({need.directory for need in full}) == len(full)
    assert {need.arm.partition("/")[0] for need in full} == set(module.TITLES)
    assert {need.spec.data.offset for need in full} == {0, 1000}
    assert all(need.spec.data.total in (200, 1000) for need in (*full, *quick))
