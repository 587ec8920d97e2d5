"""What of a fall is noise: on streams of which that is known."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from figures import diagnosis_noise as noise
from figures.frames import ArmRun
from figures.scales import full, quick
from stablediag import plots
from stablediag.errors import DataError
from stablediag.stats import bands, spectra
from stablediag.store.state import save_state
from tests.figures.fake_stream import STEPS, Stream, stream
from tests.figures.test_figures import nothing_overlaps

SEEDS = (0, 1, 2)
WARMUP = {"no_warmup": 0, "stableedit": 5}


def runs(folder: Path, *, sizes: np.ndarray | None = None, frozen_sizes: np.ndarray | None = None) -> list[ArmRun]:
    """Both arms and their controls at three seeds."""
    found = []
    for seed in SEEDS:
        for arm, steps in WARMUP.items():
            found.append(stream(arm, seed, folder, sizes=sizes, warmup=steps))
            found.append(stream(f"{arm}_frozen", seed, folder, sizes=frozen_sizes, warmup=steps))
    return found


@pytest.fixture(scope="module")
def stationary(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Nothing happens, in the runs or in their controls."""
    return noise.prepare(runs(tmp_path_factory.mktemp("still")))


def answers(frame: pd.DataFrame, figure: str) -> set[str]:
    found = {one.answer for one in noise.verdicts(frame) if one.claim.startswith(figure)}
    assert found
    return found


def planted(frame: pd.DataFrame, statistic: str, series: str, power: float) -> pd.DataFrame:
    """One series falls by an additional power of the rows."""
    hit = (frame["statistic"] == statistic) & (frame["series"] == series)
    return frame.assign(value=frame["value"].where(~hit, frame["value"] * frame["nu"] ** -power))


def test_of_a_stationary_stream_nothing_is_left_beyond_the_controls(stationary: pd.DataFrame) -> None:
    told = [one.answer for one in noise.verdicts(stationary)]
    assert "shown" not in told
    assert told.count("opposite") <= 1  # nor do the controls fall by more, chance apart
    table = noise.falls(stationary).groupby(["statistic", "arm", "series"])["fall"].mean().unstack()
    shifts = table.loc["mean_shift", [*noise.CONTROLS, "measured"]]
    assert np.abs(shifts - 1).to_numpy().max() < 0.25


@pytest.mark.parametrize(("statistic", "figure"), [(k, v[3]) for k, v in noise.STATISTICS.items()])
def test_a_fall_beyond_the_controls_is_seen_and_one_short_of_them_too(
    stationary: pd.DataFrame, statistic: str, figure: str
) -> None:
    assert answers(planted(stationary, statistic, "measured", 2.0), figure) == {"shown"}
    assert answers(planted(stationary, statistic, "frozen", 2.0), figure) == {"opposite"}


def test_one_control_that_keeps_up_is_enough_to_doubt(stationary: pd.DataFrame) -> None:
    frame = planted(stationary, "mean_shift", "measured", 2.0)
    hit = (frame["statistic"] == "mean_shift") & (frame["series"] == "frozen")
    # Steeper than the run at one seed, as flat as ever at the others: on average it is not the strongest.
    frame = frame.assign(
        value=frame["value"].where(~(hit & (frame["seed"] == 0)), frame["value"] * frame["nu"] ** -2.5)
    )
    frame = planted(frame, "mean_shift", "scaled", 1.0)
    assert answers(frame, "Figure 13") == {"not shown"}


def test_identity_noise_is_reported_and_does_not_decide(stationary: pd.DataFrame) -> None:
    steep = planted(planted(stationary, "condition", "measured", 2.0), "condition", "isotropic", 9.0)
    assert answers(steep, "Figure 7") == {"shown"}
    told = [one.effect for one in noise.verdicts(steep)]
    assert "Marchenko-Pastur" in told[0]
    assert "Marchenko-Pastur" not in told[-1]


def test_shrinking_gradients_alone_steepen_the_surrogates_and_are_explained(tmp_path: Path) -> None:
    shrinking = np.linspace(1.0, 0.3, STEPS)
    table = noise.falls(noise.prepare(runs(tmp_path, sizes=shrinking)))
    means = table[table["arm"] == "no_warmup"].groupby(["statistic", "series"])["fall"].mean().unstack()
    for statistic in ("mean_shift", "cov_shift"):
        row = means.loc[statistic]
        assert row["measured"] - row["stationary"] > 0.2
        assert row["measured"] - row["scaled"] == pytest.approx(0, abs=0.15)


def test_the_shares_are_those_of_the_logarithms(stationary: pd.DataFrame) -> None:
    wide = pd.DataFrame({"measured": [2.0, 4.0], "frozen": [1.0, 2.0], "stationary": [0.2, 0.4], "scaled": [2.0, 4.0]})
    told = noise._shares(wide)
    assert "frozen weights 50 %" in told
    assert "constant noise 10 %" in told
    assert "scaled noise 100 %" in told


def test_noise_of_one_size_is_that_of_the_other_simulation() -> None:
    rows, spectrum = [30] * 15, np.linspace(0.5, 2.0, 10)
    mine = noise.scaled_noise(rows, np.full(15, 7.0), spectrum, seed=0, repeats=60, prior=1e-3)
    other = spectra.noise_curves(rows, spectrum, seed=1, repeats=60, prior=1e-3)[list(noise.STATISTICS)].to_numpy()
    np.testing.assert_array_equal(np.isnan(mine), np.isnan(other))
    known = ~np.isnan(mine)
    np.testing.assert_allclose(mine[known], other[known], rtol=0.15)


def test_noise_whose_size_falls_has_the_law_of_its_own_sizes() -> None:
    rows, sizes = [40] * 20, np.geomspace(1.0, 0.05, 20)
    found = noise.scaled_noise(rows, sizes, np.ones(10), seed=0, repeats=60, prior=0.0)[:, 1]
    trace = 10 * sizes / sizes.mean()
    gain = 1 / np.arange(1, 21)
    variance = np.concatenate([[np.nan], (np.cumsum(trace) / 40 / np.arange(1, 21) ** 2)[:-1]])
    expected = gain * np.sqrt(trace / 40 + variance)
    np.testing.assert_allclose(found[1:], expected[1:], rtol=0.12)
    assert bands.slope(np.arange(1, 21), found) < -1.3


def test_a_run_without_its_control_or_without_a_recorder_is_named(tmp_path: Path) -> None:
    one, twin = stream("no_warmup", 0, tmp_path), stream("no_warmup_frozen", 0, tmp_path)
    with pytest.raises(DataError, match="no_warmup_frozen"):
        noise.prepare([one])
    with pytest.raises(DataError, match="make the runs"):
        noise.prepare([twin])
    held = cast(Stream, one.run)
    held.tables["tracking"] = held.tables["tracking"].drop(columns="trace")
    with pytest.raises(DataError, match=r"trace.*prequential"):
        noise.prepare([one, twin])


def test_it_is_drawn_with_a_panel_for_each_statistic_and_arm(stationary: pd.DataFrame) -> None:
    with plots.style():
        picture = noise.draw(stationary)
        FigureCanvasAgg(picture).draw()
    nothing_overlaps(picture)
    assert len(picture.axes) == 9
    assert all(ax.lines and ax.get_title() and ax.get_ylabel() for ax in picture.axes)
    assert [len(ax.lines) for ax in picture.axes[:6]] == [5, 4, 4] * 2


def test_a_control_differs_from_its_run_in_what_is_frozen_alone() -> None:
    needs = noise.NEEDS.resolve(full())
    assert len(needs) == 12
    assert len(noise.NEEDS.resolve(quick())) <= 10
    by = {(need.arm, need.seed): need.spec for need in needs}
    real, control = by["no_warmup", 1], by["no_warmup_frozen", 1]
    assert control.data == real.data.model_copy(update={"arrange": "iid"})
    changed = {"target_apply": False, "warmup_apply": False}
    assert control.editor.params == real.editor.params | changed
    assert control.model_copy(update={"data": real.data, "editor": real.editor, "name": real.name}) == real


def test_a_run_too_short_for_a_covariance_is_named(tmp_path: Path) -> None:
    pair = [stream(arm, 0, tmp_path) for arm in ("no_warmup", "no_warmup_frozen")]
    empty = save_state(tmp_path / "empty" / "state", {}, meta={})
    cast(Stream, pair[0].run).checkpoint = (0, empty)
    with pytest.raises(DataError, match="no covariance at its end"):
        noise.prepare(pair)
