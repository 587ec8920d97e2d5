"""Error of a running mean on streams whose mean and drift are known."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from figures import diagnosis_noise
from figures import diagnosis_tracking as tracking
from figures import diagnosis_tracking_laws as laws
from figures.frames import ArmRun
from figures.scales import full, quick
from stablediag import plots
from stablediag.errors import DataError
from stablediag.stats.theory import mean as law
from stablediag.store.state import save_state
from tests.figures.fake_stream import STEPS, D, Stream, stream
from tests.figures.test_figures import nothing_overlaps

SEEDS = (0, 1, 2)


def line(size: float, exponent: float = 0.0) -> np.ndarray:
    """A drift of one direction and sizes size * t^-exponent, [STEPS, D]."""
    moves = np.zeros((STEPS, D))
    moves[1:, 0] = size * np.arange(2, STEPS + 1) ** -exponent
    return moves


def runs(folder: Path, drift: np.ndarray) -> list[ArmRun]:
    """The arm with a drift and its control without one, at three seeds."""
    return [
        stream(arm, seed, folder, drift=drift if arm == "no_warmup" else None)
        for seed in SEEDS
        for arm in tracking.ARMS
    ]


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """A drift on a line that never decays and ends far above the noise."""
    return tracking.prepare(runs(tmp_path_factory.mktemp("steady"), line(0.15)))


def answers(frame: pd.DataFrame) -> dict[str, str]:
    names = ("control", "exact", "holds", "tight", "lag", "decays", "surrogate")
    return dict(zip(names, [one.answer for one in tracking.verdicts(frame)], strict=True))


def changed(frame: pd.DataFrame, arm: str, kind: str, factor: float) -> pd.DataFrame:
    hit = (frame["arm"] == arm) & (frame["kind"] == kind)
    assert hit.any()
    return frame.assign(value=frame["value"].where(~hit, factor * frame["value"]))


def test_a_steady_drift_on_a_line_is_read_as_what_it_is(steady: pd.DataFrame) -> None:
    numbers = steady[(steady["target_step"] == 0) & (steady["arm"] == "no_warmup")].groupby("kind")["value"].mean()
    assert numbers["coherence"] == pytest.approx(2.0, abs=0.15)
    assert numbers["alpha"] == pytest.approx(0.0, abs=0.02)
    found = answers(steady)
    assert found["exact"] == "shown"
    assert found["holds"] == "shown"
    assert found["lag"] == "shown"
    assert found["decays"] == "opposite"
    assert found["surrogate"] == "opposite"


def test_the_laws_meet_the_measured_error_step_by_step(steady: pd.DataFrame) -> None:
    mine = steady[(steady["arm"] == "no_warmup") & (steady["target_step"] > STEPS / 2)]
    means = mine.groupby("kind")["value"].mean()
    assert means["measured"] == pytest.approx(means["exact"], rel=0.15)
    assert means["worst"] == pytest.approx(means["exact"], rel=0.15)
    assert means["paper"] > means["worst"]
    assert means["measured"] > 3 * means["noise"]


def test_drift_of_independent_directions_is_told_from_that_of_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    moves = 0.4 * rng.standard_normal((STEPS, D)) / np.sqrt(D)
    moves[0] = 0.0
    frame = tracking.prepare(runs(tmp_path, moves))
    p = frame[(frame["kind"] == "coherence") & (frame["arm"] == "no_warmup")]["value"].mean()
    assert 0.4 < p < 1.6


def test_a_drift_that_dies_out_fulfils_the_assumption_and_noise_is_left(tmp_path: Path) -> None:
    found = answers(tracking.prepare(runs(tmp_path, line(0.15, 1.6))))
    assert found["decays"] == "shown"
    assert found["surrogate"] == "shown"
    assert found["lag"] != "shown"


@pytest.mark.parametrize(
    ("arm", "kind", "factor", "of", "verdict", "answer"),
    [
        ("no_warmup_frozen", "prior", 3.0, "prior_noise", "control", "opposite"),
        ("no_warmup_frozen", "prior", 1.0, "prior_noise", "control", "shown"),
        ("no_warmup", "prior", 3.0, "prior_exact", "exact", "opposite"),
        ("no_warmup", "paper", 0.5, "measured", "holds", "opposite"),
        ("no_warmup", "paper", 1.3, "measured", "tight", "shown"),
        ("no_warmup", "paper", 9.0, "measured", "tight", "opposite"),
        ("no_warmup", "shadow", 0.2, "prior", "lag", "shown"),
        ("no_warmup", "shadow", 0.8, "prior", "lag", "opposite"),
    ],
)
def test_a_planted_error_turns_the_verdict(
    steady: pd.DataFrame, arm: str, kind: str, factor: float, of: str, verdict: str, answer: str
) -> None:
    keys = ["arm", "seed", "target_step"]
    known = steady[steady["kind"] == of].set_index(keys)["value"]
    hit = (steady["arm"] == arm) & (steady["kind"] == kind)
    planted = steady.copy()
    spread = 1 + 0.02 * (steady.loc[hit, "seed"] - 1)
    planted.loc[hit, "value"] = (
        factor * spread * known.reindex(pd.MultiIndex.from_frame(steady.loc[hit, keys])).to_numpy()
    )
    assert answers(planted)[verdict] == answer


def test_without_drift_the_control_has_its_laws(steady: pd.DataFrame) -> None:
    frozen = steady[(steady["arm"] == "no_warmup_frozen") & (steady["target_step"] > 0)]
    wide = frozen.pivot(index=["seed", "target_step"], columns="kind", values="value")
    assert (wide["drift"] == 0).all()
    np.testing.assert_allclose(wide["exact"], wide["noise"])
    steps = wide.index.get_level_values("target_step").to_numpy()
    np.testing.assert_allclose(wide["noise"] * steps, 1.0, rtol=0.15)


def test_the_error_after_a_step_weighs_what_was_before_it_and_the_batch() -> None:
    record = np.array(
        [[np.nan, 3.0, 0.0, 9.0, 0.0, 3.0], [8.0, 2.0, 0.0, 6.0, 0.0, 3.0], [5.0, 9.0, 0.0, 9.0, 0.0, 3.0]]
    )
    found = laws.errors(record, np.zeros(3), np.nan, np.array([2.0, 2.0, 4.0]), top_share=0.5, d=4)
    # Gains 1, 1/2, 1/2: (1 - x)^2 before + x^2 noise.
    np.testing.assert_allclose(found["measured"], [3.0, 8 / 4 + 2 / 4, 5 / 4 + 9 / 4])
    np.testing.assert_allclose(found["noise"], [3.0, 3 / 4 + 2 / 4, (3 / 4 + 2 / 4) / 4 + 9 / 4])
    np.testing.assert_array_equal(found["exact"], found["noise"])


def test_the_expected_lag_is_that_of_the_exact_law() -> None:
    rows, sizes = np.full(9, 4.0), np.linspace(0.0, 0.4, 9)
    after, before = laws.expected_lag(laws.displacement(sizes, 2.0), rows)
    exact = law.exact_mse(sizes[:, None], np.zeros(9), n=4)
    np.testing.assert_allclose(after, exact.lag2, atol=1e-12)
    np.testing.assert_allclose(before[1:], exact.prediction[1:], atol=1e-12)
    assert np.isnan(before[0])


def test_the_expected_lag_of_independent_steps_is_the_mean_over_them() -> None:
    rows, sizes = np.array([3.0, 5.0, 4.0, 4.0, 8.0, 2.0]), np.array([0.0, 0.5, 0.1, 0.3, 0.2, 0.4])
    after, _ = laws.expected_lag(laws.displacement(sizes, 1.0), rows)
    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * 6)).reshape(6, -1).T  # all of them, so that the mean is exact
    lag = law.lag((signs * sizes)[..., None], rows / rows.cumsum())
    np.testing.assert_allclose(after, np.square(lag[..., 0]).mean(axis=0), atol=1e-12)


def test_an_update_moves_the_mean_of_the_next_step() -> None:
    probes = pd.DataFrame({"step": [0, 1, 2, 2], "module": ["a", "a", "a", "b"], "mean_sq": [4.0, -1.0, 9.0, 1.0]})
    np.testing.assert_array_equal(laws.drift_squares(probes, "a", 3), [0.0, 4.0, -1.0])
    np.testing.assert_array_equal(laws.drift_squares(probes, "a", 4), [0.0, 4.0, -1.0, 9.0])
    np.testing.assert_array_equal(laws.drift_squares(probes.iloc[:0], "a", 2), [0.0, 0.0])


def test_sizes_are_roots_of_means_over_neighbours_without_the_first_step() -> None:
    np.testing.assert_allclose(laws.drift_sizes(np.array([0.0, 4.0, 1.0, 1.0])), [0.0, *[2.0**0.5] * 3])
    np.testing.assert_array_equal(laws.drift_sizes(np.full(4, -1.0)), 0.0)
    assert laws.drift_sizes(np.zeros(1)).tolist() == [0.0]


@pytest.mark.parametrize("p", [0.5, 1.0, 1.7])
def test_the_coherence_is_found_from_a_noiseless_variogram(p: float) -> None:
    sizes = np.abs(np.sin(np.arange(40.0))) + 0.1
    gamma = laws.displacement(sizes, p)
    pairs = np.array([[t, k, gamma[t, t - k]] for t in range(40) for k in (1, 2, 4, 8, 16, 32) if t >= k])
    assert laws.coherence([(sizes, pairs)]) == pytest.approx(p, abs=0.01)
    assert np.isnan(laws.coherence([(np.zeros(40), pairs)]))


def test_windows_cover_every_step_once_and_give_standard_errors() -> None:
    steps = np.arange(1, 21)
    frame = pd.DataFrame({"arm": "x", "kind": "measured", "target_step": np.tile(steps, 2), "value": np.tile(steps, 2)})
    found = tracking.windows(frame)
    assert found["target_step"].is_monotonic_increasing
    assert found["value"].iloc[0] >= 2
    last = found.iloc[-1]
    member = steps[steps >= 2 * last["value"] - 20]
    np.testing.assert_allclose(last["value"], member.mean())
    np.testing.assert_allclose(last["se"], np.std(np.tile(member, 2), ddof=1) / np.sqrt(2 * len(member)))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    pair = [stream(arm, 0, tmp_path) for arm in tracking.ARMS]
    with pytest.raises(DataError, match="no_warmup_frozen"):
        tracking.prepare(pair[:1])
    with pytest.raises(DataError, match="warm-up"):
        tracking.prepare([stream("no_warmup", 1, tmp_path, warmup=3), pair[1]])
    held = cast(Stream, pair[0].run)
    held.tables["tracking"] = held.tables["tracking"].drop(columns="prior_error")
    with pytest.raises(DataError, match=r"prior_error.*prequential"):
        tracking.prepare(pair)


def test_it_is_drawn_with_what_is_not_positive_inside_the_picture(steady: pd.DataFrame) -> None:
    frame = changed(steady, "no_warmup", "measured", -1.0)
    with plots.style():
        picture = tracking.draw(frame)
        FigureCanvasAgg(picture).draw()
    assert len(picture.axes) == 4
    assert all(ax.get_xlabel() and ax.get_ylabel() and ax.get_title() for ax in picture.axes)
    assert all(ax.get_position().width > 0.3 and ax.get_position().height > 0.2 for ax in picture.axes)
    nothing_overlaps(picture)


def test_further_controls_are_further_seeds_of_the_control(tmp_path: Path) -> None:
    pair = [stream(arm, 0, tmp_path) for arm in tracking.ARMS]
    more = [stream(arm, 0, tmp_path) for arm in tracking.MORE]
    frame = tracking.prepare([*pair, *more])
    assert set(frame["arm"]) == set(tracking.ARMS)
    seeds = frame[(frame["arm"] == "no_warmup_frozen") & (frame["target_step"] == 3)].groupby("kind")["seed"].nunique()
    assert (seeds == 3).all()


def test_the_figure_shares_its_runs_with_that_of_noise_but_for_further_controls() -> None:
    for scale, more in ((full(), set(tracking.MORE)), (quick(), set())):
        known = {need.digest for need in diagnosis_noise.NEEDS.resolve(scale)}
        assert {need.arm for need in tracking.NEEDS.resolve(scale) if need.digest not in known} == more
    streams = {need.arm: need.spec.data for need in tracking.NEEDS.resolve(full()) if need.seed == 0}
    assert len({(data.offset, data.arrange) for data in streams.values()}) == 4


def test_a_run_too_short_for_a_covariance_is_named(tmp_path: Path) -> None:
    pair = [stream(arm, 0, tmp_path) for arm in ("no_warmup", "no_warmup_frozen")]
    empty = save_state(tmp_path / "empty" / "state", {}, meta={})
    cast(Stream, pair[0].run).checkpoint = (0, empty)
    with pytest.raises(DataError, match="no covariance at its end"):
        tracking.prepare(pair)
