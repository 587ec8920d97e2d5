"""The figures of the simulated theory: what they compute agrees with the oracles, and their verdicts follow the data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from figures import registry
from stablediag import plots
from synthetic.grid import run_cells

NAMES = [name for name in registry.FIGURES if name.startswith("theory-")]
Made = Callable[[str], pd.DataFrame]


def module(name: str) -> registry.TheoryModule:
    found = registry.module(name)
    assert registry.simulated(found)
    return found


@pytest.fixture(scope="module")
def made() -> Made:
    """The table behind a figure at the quick scale, computed once."""
    known: dict[str, pd.DataFrame] = {}

    def make(name: str) -> pd.DataFrame:
        if name not in known:
            cells = module(name).cells(True)
            known[name] = module(name).prepare(cells, run_cells(cells))
        return known[name].copy()

    return make


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_drawn_labelled_and_judged(name: str, made: Made) -> None:
    frame = made(name)
    assert np.isfinite(frame["value" if "value" in frame else "slope"]).all()
    with plots.style():
        picture = module(name).draw(frame)
        picture.canvas.draw()
    axes = [ax for ax in picture.axes if ax.get_label() != "<colorbar>"]
    assert all(ax.get_xlabel() or ax.get_title() for ax in axes)
    assert all(ax.lines or ax.collections for ax in axes)
    answers = [one.answer for one in module(name).verdicts(frame)]
    assert answers
    assert set(answers) <= {"shown", "not shown", "opposite"}


@pytest.mark.parametrize("name", NAMES)
def test_the_two_scales_share_no_random_numbers(name: str) -> None:
    quick, full = module(name).cells(True), module(name).cells(False)
    assert {cell.digest() for cell in quick}.isdisjoint(cell.digest() for cell in full)
    assert len({cell.seed for cell in full}) == len(full)


@pytest.mark.parametrize("name", ["theory-warmup", "theory-forgetting", "theory-nas", "theory-lag"])
def test_measured_values_are_those_of_the_oracle(name: str, made: Made) -> None:
    frame = made(name)
    known = frame[frame["se"] > 0]
    z = (known["value"] - known["exact"]) / known["se"]
    assert z.abs().max() < 5
    assert len(z) > 20


def _answers(name: str, frame: pd.DataFrame) -> list[str]:
    return [one.answer for one in module(name).verdicts(frame)]


def test_a_tight_bound_is_seen(made: Made) -> None:
    frame = made("theory-mean")
    measured = frame[frame["kind"] == "measured"].set_index(["alpha", "direction", "step"])["value"]
    keys = frame.loc[frame["kind"] == "paper", ["alpha", "direction", "step"]]
    frame.loc[frame["kind"] == "paper", "value"] = [1.5 * measured[tuple(key)] for key in keys.to_numpy()]
    assert set(_answers("theory-mean", frame)) == {"shown"}


def test_an_error_at_the_floor_is_not_called_below_it(made: Made) -> None:
    frame = made("theory-covariance")
    assert set(_answers("theory-covariance", frame)) == {"opposite"}
    frame.loc[frame["kind"] == "measured", "value"] = 20.0
    assert set(_answers("theory-covariance", frame)) == {"not shown"}


def test_interference_is_seen_where_it_was_planted(made: Made) -> None:
    frame = made("theory-interference")
    found = dict(zip(frame["setting"].unique(), _answers("theory-interference", frame), strict=True))
    assert {name for name, answer in found.items() if answer == "opposite"} == {"relu", "uncentred", "signal"}
    assert {answer for name, answer in found.items() if name not in ("relu", "uncentred", "signal")} == {"shown"}


def test_a_surrogate_that_does_not_fall_is_not_called_vacuous(made: Made) -> None:
    frame = made("theory-noise")
    assert set(_answers("theory-noise", frame)) == {"opposite"}
    frame["slope"] = 0.0
    frame.loc[frame["curve"] == "condition", "value"] = 3.0
    assert set(_answers("theory-noise", frame)) == {"shown"}


def test_growth_without_feedback_is_not_called_exponential(made: Made) -> None:
    frame = made("theory-nas")
    assert _answers("theory-nas", frame)[0] == "shown"
    frame["value"] = 1.0 + 0.001 * frame["edits"]
    assert _answers("theory-nas", frame) == ["not shown", "not shown"]


def test_a_map_on_which_ln_always_wins_is_said_to_be_one(made: Made) -> None:
    frame = made("theory-closed-loop")
    frame["se"] = 0.01
    frame["value"] = np.where(frame["metric"] == "log kl", -1.0, 1.0)
    assert set(_answers("theory-closed-loop", frame)) == {"shown"}
    frame["value"] = -frame["value"]
    assert set(_answers("theory-closed-loop", frame)) == {"opposite"}


def test_averaging_that_never_tracks_below_one_confirms_the_assumption(made: Made) -> None:
    frame = made("theory-tracking")
    frame.loc[frame["alpha"] <= 1, "slope"] = 0.5
    assert set(_answers("theory-tracking", frame)) == {"shown"}
