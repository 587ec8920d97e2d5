"""The factorial's effects against planted ones, both ways, and what is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import pandas as pd
import pytest

from figures import diagnosis_factorial as factorial
from figures import scales
from figures.diagnosis_factorial import CELLS, REFERENCE, Cell
from figures.frames import ArmRun
from stablediag import plots
from stablediag.errors import DataError
from tests.figures.fake_quality import planted

SEEDS = (0, 1, 2)
#: points of efficacy
SCALED = {"none": 0.0, "scalar": 5.0, "diagonal": 10.0, "full": 20.0}


def runs(arms: Collection[str] = (), seeds: Sequence[int] = SEEDS) -> list[ArmRun]:
    """Every cell, or some arms; seeds differ by a level that pairing takes out, and by a little noise."""
    found = []
    for arm in dict.fromkeys(cell.arm for cell in CELLS if not arms or cell.arm in arms):
        for seed in seeds:
            noise = 0.001 * math.sin(7 * seed + len(arm))
            shares = {"efficacy": 0.5 + 0.1 * seed + noise, "generalization": 0.5, "specificity": 0.9}
            found.append(planted(arm, seed, shares=shares, kl=0.1 * math.exp(0.5 * seed + noise)))
    return found


@pytest.fixture(scope="module")
def plain() -> pd.DataFrame:
    """The table of cells that all do the same, made once."""
    return factorial.prepare(runs())


def with_effects(
    frame: pd.DataFrame,
    *,
    efficacy: Callable[[Cell], float] = lambda _: 0.0,
    kl: Callable[[Cell], float] = lambda _: 1.0,
) -> pd.DataFrame:
    """The table with efficacy raised by a cell's points, and its divergence multiplied by a cell's factor."""
    cells = [Cell(m, s, c) for m, s, c in zip(frame["matching"], frame["scaling"], frame["centred"], strict=True)]
    raised = frame["value"] + [efficacy(cell) for cell in cells]
    multiplied = frame["value"] * [kl(cell) for cell in cells]
    value = frame["value"].where(frame["metric"] != "efficacy", raised)
    return frame.assign(value=value.where(frame["metric"] != "locality_kl", multiplied))


def answers(frame: pd.DataFrame) -> dict[str, str]:
    """Claim to answer, without how norms were matched where both say the same."""
    return {one.claim: one.answer for one in factorial.verdicts(frame)}


def judged(frame: pd.DataFrame, claim: str) -> set[str]:
    """The answers to a claim in the two matchings."""
    found = {answer for told, answer in answers(frame).items() if told.endswith(": " + claim)}
    assert found
    return found


def test_planted_main_effects_are_measured(plain: pd.DataFrame) -> None:
    frame = with_effects(
        plain, efficacy=lambda cell: SCALED[cell.scaling], kl=lambda cell: 1.0 if cell.centred else 4.0
    )
    full = factorial.effect(frame, "efficacy", "first", factorial.scaling("full"))
    assert full.mean == pytest.approx(20, abs=0.2)
    assert full.excludes(0)
    centring = factorial.effect(frame, "locality_kl", "every", factorial.centring(("none", "full")))
    assert centring.mean == pytest.approx(0.25, rel=0.01)
    assert centring.high < 1
    none = factorial.effect(frame, "efficacy", "first", factorial.centring(("none", "full")))
    assert none.mean == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize(("sign", "answer"), [(1, "shown"), (-1, "opposite"), (0, "not shown")])
def test_the_verdicts_follow_the_planted_effects(plain: pd.DataFrame, sign: int, answer: str) -> None:
    frame = with_effects(
        plain,
        efficacy=lambda cell: sign * SCALED[cell.scaling],
        kl=lambda cell: 2.0 ** (-sign * cell.centred),
    )
    assert judged(frame, "scaling (full) raises efficacy") == {answer}
    assert judged(frame, "centring lowers locality KL") == {answer}
    assert judged(frame, "centring raises efficacy") <= {"not shown"}


@pytest.mark.parametrize(("sign", "answer"), [(1, "shown"), (-1, "opposite")])
def test_an_interaction_is_told_from_main_effects(plain: pd.DataFrame, sign: int, answer: str) -> None:
    def efficacy(cell: Cell) -> float:
        both = cell.centred and cell.scaling == ("none" if sign > 0 else "full")
        return 10 * cell.centred + SCALED[cell.scaling] + 10 * both

    claim = "centring without scaling, more than with full scaling, raises efficacy"
    assert judged(with_effects(plain, efficacy=efficacy), claim) == {answer}
    additive = with_effects(plain, efficacy=lambda cell: 10 * cell.centred + SCALED[cell.scaling])
    assert judged(additive, claim) == {"not shown"}


def test_scaling_by_one_number_is_a_level_only_where_it_can_change_something(plain: pd.DataFrame) -> None:
    claims = answers(plain)
    assert any("step: scaling (scalar)" in claim for claim in claims)
    assert not any("every step: scaling (scalar)" in claim for claim in claims)


def test_stableedit_is_the_full_centred_cell_of_both_matchings(plain: pd.DataFrame) -> None:
    assert len(plain[plain["metric"] == "efficacy"]) == len(CELLS) * len(SEEDS)
    shares = {"efficacy": 0.7, "generalization": 0.5, "specificity": 0.9}
    others = runs([Cell(m, "none", True).arm for m in factorial.MATCHINGS], seeds=[0])
    frame = factorial.prepare([planted(REFERENCE, 0, shares=shares), *others])
    rows = frame[(frame["metric"] == "efficacy") & (frame["value"] > 60)]
    assert sorted(zip(rows["matching"], rows["scaling"], rows["centred"], strict=True)) == [
        ("every", "full", True),
        ("first", "full", True),
    ]


def test_the_specs_differ_in_the_value_gradients_and_in_nothing_else() -> None:
    needs = factorial.NEEDS.resolve(scales.full())
    reference = next(need for need in needs if need.arm == REFERENCE and need.seed == 0)
    for cell in CELLS:
        need = next(need for need in needs if need.arm == cell.arm and need.seed == 0)
        params = dict(need.spec.editor.params)
        treated: Mapping[str, object] = {name: params.pop(name, None) for name in ("normaliser", "center", "match")}
        known = reference.spec.editor.params | {"track_covariance": params["track_covariance"]}
        assert params == {name: value for name, value in known.items() if name in params}
        assert (
            need.spec.model_copy(update={"editor": reference.spec.editor, "name": reference.spec.name})
            == reference.spec
        )
        subtracts = treated["normaliser"] != "none" and treated["center"] is not False
        scales_by = "none" if treated["normaliser"] in ("none", "center") else treated["normaliser"]
        assert (subtracts, scales_by) == (cell.centred, cell.scaling)
        if cell.arm != REFERENCE:
            match = treated["match"]
            assert isinstance(match, Mapping)
            assert (match["run"], match["mode"]) == (reference.directory, cell.matching)


def test_the_quick_scale_is_drawn_and_judged() -> None:
    arms = {cell.arm for cell in factorial.QUICK}
    frame = factorial.prepare(runs(arms, seeds=(0, 1)))
    assert set(frame["matching"]) == {"every"}
    with plots.style():
        figure = factorial.draw(frame)
    assert len(figure.axes) == len(factorial.METRICS)
    assert answers(frame)
    assert len(factorial.NEEDS.resolve(scales.quick())) <= 10


def test_the_full_scale_is_drawn_with_a_point_for_every_cell(plain: pd.DataFrame) -> None:
    with plots.style():
        figure = factorial.draw(plain)
    assert len(figure.axes) == 2 * len(factorial.METRICS)
    for ax in figure.axes:
        assert sum(line.get_marker() not in ("None", None, "") for line in ax.lines) == 2 * len(factorial.SCALINGS)
    assert {ax.get_yscale() for ax in figure.axes[1 :: len(factorial.METRICS)]} == {"log"}


def test_missing_cells_are_one_clear_error(plain: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="build the runs"):
        factorial.prepare([])
    lacking = (plain["matching"] == "every") & (plain["scaling"] == "none") & plain["centred"]
    with pytest.raises(DataError, match="no cell none, centred, every") as told:
        factorial.verdicts(plain[~lacking])
    assert "\n" not in str(told.value)


def test_a_divergence_that_is_missing_at_a_seed_leaves_that_seed_out(plain: pd.DataFrame) -> None:
    frame = with_effects(plain)
    frame.loc[(frame["seed"] == 0) & (frame["metric"] == "locality_kl") & frame["centred"], "value"] = math.nan
    assert factorial.effect(frame, "locality_kl", "every", factorial.centring(("none", "full"))).n == 2
    assert factorial.effect(frame, "efficacy", "every", factorial.centring(("none", "full"))).n == 3
