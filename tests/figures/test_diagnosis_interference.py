"""Interference at the keys of earlier edits: numbers against what was planted, verdicts both ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from figures import diagnosis_interference as module
from figures import scales
from stablediag import plots
from stablediag.errors import DataError
from tests.figures.fake_tables import Tables, in_memory, steps

EDITS = 10
SEEDS = (0, 1, 2)


def _run(arm: str = "stableedit", seed: int = 0, *, drop: str = "", **columns: Any) -> Any:
    """One warm-up step and three target steps, two modules; the second one's own energies are twice as large."""
    rows = []
    for step in range(4):
        for place, name in enumerate(("a", "b")):
            row = {"own_sq": 10.0 * (1 + place), "past_sq": 1.0, "moved": 0.1, "moved_null": 0.05, "drift_sq": 6.0}
            row |= {"path_sq": 5.0}
            if step < 2:  # nothing was written before
                row = dict.fromkeys(row, np.nan) | {"own_sq": row["own_sq"]}
            rows.append({"step": step, "module": name, **row})
    maps = np.full((4, 4), np.nan)
    maps[2, 1], maps[3, 1], maps[3, 2] = 2.0, 4.0, 6.0
    pairs = [("x", "x", 3.0), ("x", "y", 1.0), ("y", "x", 1.0), ("y", "y", 3.0)]
    kinds = [
        {"step": 3, "module": m, "writer": w, "reader": r, "energy": scale * e, "n": 1}
        for m, scale in (("a", 1.0), ("b", 50.0))
        for w, r, e in pairs
    ]
    updates = [
        {
            "step": s,
            "module": m,
            "cosine": 0.02,
            "coherence": 1.0 + 0.1 * s,
            "coherence_low": 0.9,
            "coherence_high": 1.1,
        }
        for s in range(4)
        for m in ("a", "b")
    ]
    tables = {
        "steps": steps(1, 3, EDITS),
        "interference": pd.DataFrame(rows).assign(**columns),
        "interference_kinds": pd.DataFrame(kinds),
        "updates": pd.DataFrame(updates),
    }
    tables.pop(drop, None)
    return in_memory(arm, seed, Tables(tables, {f"interference/{m}@3": maps for m in ("a", "b")}))


def test_a_map_by_time_is_over_the_energy_at_the_writers_own_keys() -> None:
    frame = module.prepare([_run()])
    found = module.table_of(frame, "time", "stableedit")
    # Blocks 1 to 3 are the target steps; own energies are 10 and 20.
    assert found.loc[20, 10] == pytest.approx(2.0 * (1 / 10 + 1 / 20) / 2)
    assert found.loc[30, 20] == pytest.approx(6.0 * (1 / 10 + 1 / 20) / 2)
    assert set(found.index) == {20, 30}


def test_relations_are_averaged_after_every_module_is_brought_to_mean_one() -> None:
    found = module.table_of(module.prepare([_run()]), "kind", "stableedit")
    assert found.loc["x", "x"] == pytest.approx(1.5)
    assert found.loc["x", "y"] == pytest.approx(0.5)
    assert found.to_numpy().mean() == pytest.approx(1.0)


def test_curves_and_ends_are_those_of_the_tables() -> None:
    frame = module.prepare([_run()])
    own_way = module.course(frame, "own_way")
    assert own_way["value"].tolist() == pytest.approx([1.2, 1.2])
    assert own_way["edits"].tolist() == [20, 30]
    ends = frame.set_index("quantity")["value"]
    assert ends["coherence"] == pytest.approx(1.3), "after the last step, not the mean over steps"


def test_what_cannot_be_shown_is_refused_in_one_line() -> None:
    with pytest.raises(DataError, match="no runs"):
        module.prepare([])
    with pytest.raises(DataError, match=r"run stableedit, seed 0: no table interference"):
        module.prepare([_run(drop="interference")])
    frame = module.prepare([_run("memit", drop="interference")])
    assert set(frame["quantity"]) == set(module.ENDS), "an editor without captures has whole updates only"


def planted(
    *, moved: float = 0.1, chance: float = 0.1, coherence: float = 1.0, other: float = 1.0, same: float = 1.0
) -> pd.DataFrame:
    """A table with these means; `other` is by how much the arms without LN exceed StableEdit."""
    rows = []
    for arm in ("stableedit", "no_ln_every", "memit"):
        for seed in SEEDS:
            noise, more = 1 + 0.01 * seed, 1.0 if arm == "stableedit" else other
            ends = {"coherence": coherence * noise, "coherence_low": 0.9, "coherence_high": 1.1, "cosine": 0.01}
            if arm == "memit":
                ends |= {"coherence_low": np.nan, "coherence_high": np.nan}
            rows += [("controls", arm, seed, name, "", "", value) for name, value in ends.items()]
            if arm == "memit":
                continue
            curves = {"moved": moved * more, "chance": chance, "own_way": more}
            for edits in (10, 20, 30):
                rows += [
                    ("controls", arm, seed, n, str(edits), "", v * noise) for n, v in curves.items() if n != "chance"
                ]
                rows.append(("controls", arm, seed, "chance", str(edits), "", chance))
                rows.append(("controls", arm, seed, "time", str(edits), "10", moved * more))
            pairs = [(w, r) for w in "xy" for r in "xy"]
            rows += [("controls", arm, seed, "kind", w, r, (same if w == r else 1.0) * noise**2) for w, r in pairs]
            # Relations differ from seed to seed in how much they disturb each other.
            rows.append(("controls", arm, seed, "kind", "z", "z", same * noise))
    return pd.DataFrame(rows, columns=list(module.COLUMNS))


def _answer(frame: pd.DataFrame, *words: str) -> str:
    found = [one.answer for one in module.verdicts(frame) if all(word in one.claim for word in words)]
    assert len(found) == 1, words
    return found[0]


@pytest.mark.parametrize(("coherence", "answer"), [(1.0, "shown"), (2.0, "opposite"), (0.8, "opposite")])
def test_updates_that_add_up_are_not_called_orthogonal(coherence: float, answer: str) -> None:
    frame = planted(coherence=coherence)
    assert _answer(frame, "StableEdit:", "orthogonal") == answer
    assert _answer(frame, "MEMIT:", "orthogonal") == answer


@pytest.mark.parametrize(("moved", "answer"), [(0.05, "shown"), (0.2, "opposite")])
def test_keys_that_are_moved_by_more_than_chance_are_not_called_spared(moved: float, answer: str) -> None:
    assert _answer(planted(moved=moved), "StableEdit:", "chance") == answer


@pytest.mark.parametrize(("other", "answer"), [(2.0, "shown"), (0.5, "opposite"), (1.0, "not shown")])
def test_the_control_without_ln_decides_whether_ln_spares_earlier_edits(other: float, answer: str) -> None:
    frame = planted(other=other)
    assert _answer(frame, "no LN: earlier edits are moved more") == answer
    assert _answer(frame, "no LN: changes at an earlier key add up") == answer


@pytest.mark.parametrize(("same", "answer"), [(1.5, "shown"), (0.5, "opposite")])
def test_relations_that_disturb_their_own_are_seen(same: float, answer: str) -> None:
    assert _answer(planted(same=same), "StableEdit:", "of one relation") == answer


def test_the_picture_is_drawn_with_and_without_editors_that_have_no_maps() -> None:
    whole = planted()
    for frame in (whole, whole[whole["arm"] != "memit"]):
        with plots.style():
            picture = module.draw(frame)
            FigureCanvasAgg(picture).draw()
        axes = [ax for ax in picture.axes if ax.get_label() != "<colorbar>"]
        assert len(axes) == 7
        assert all(ax.get_xlabel() and ax.get_title() for ax in axes)


def test_the_controls_have_the_norms_of_the_run_that_they_are_compared_with() -> None:
    for scale in (scales.quick(), scales.full()):
        found = module.NEEDS.resolve(scale)
        base = {need.seed: need.directory for need in found if need.arm == "stableedit"}
        for need in found:
            if need.arm in module.MAPPED[1:]:
                assert need.after == (base[need.seed],)
    assert len(module.NEEDS.resolve(scales.quick())) <= 10
