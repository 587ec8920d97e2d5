"""The figure of transferred rates: planted curves whose peaks move or stay, and choices that are not judged on their own data."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest

from figures import diagnosis_transfer as figure
from figures import scales
from figures.frames import ArmRun
from figures.verdict import Verdict
from stablediag import plots
from stablediag.errors import DataError
from stablediag.store.run import Run

#: condition -> factor by which the best rate moves there, of an editor whose rates transfer and of one whose do not
STAYS = {figure.TUNED: 1.0, "few": 1.0, "many": 1.0, "released": 1.0, "one": 1.0}
MOVES = {**STAYS, "released": 16.0}
LADDER = 2.0 ** np.arange(-2, 7)


def planted(moved: Mapping[str, Mapping[str, float]], *, noise: float = 0.3, seeds: int = 3) -> pd.DataFrame:
    """Scores 80 - 12 log2(rate / best)^2, with noise; the best rate is 1 where rates are tuned, `moved` elsewhere."""
    rng = np.random.default_rng(3)
    rows = []
    for method, factors in moved.items():
        for condition, factor in factors.items():
            for rate in LADDER:
                for seed in range(seeds):
                    score = max(5.0, 80 - 12 * np.log2(rate / factor) ** 2) + noise * rng.standard_normal()
                    rows.append((method, condition, rate, seed, score, score, score, score))
    names = ["method", "condition", "rate", "seed", "efficacy", "generalization", "specificity", "score"]
    return pd.DataFrame(rows, columns=names)


def found(verdicts: list[Verdict], *parts: str) -> Verdict:
    chosen = [verdict for verdict in verdicts if all(part in verdict.claim for part in parts)]
    assert len(chosen) == 1, [verdict.claim for verdict in verdicts]
    return chosen[0]


@pytest.mark.parametrize(
    ("ln", "without", "answers"),
    [
        (STAYS, MOVES, ("shown", "not shown", "shown", "shown", "opposite")),
        (MOVES, STAYS, ("opposite", "not shown", "opposite", "opposite", "shown")),
        (STAYS, STAYS, ("not shown", "not shown", "not shown", "shown", "shown")),
        (STAYS, {**STAYS, "one": 8.0}, ("shown", "shown", "not shown", "shown", "shown")),
    ],
)
def test_verdicts_follow_the_planted_peaks(ln: dict, without: dict, answers: tuple[str, ...]) -> None:
    verdicts = figure.verdicts(planted({"stableedit": ln, "no_ln": without}))
    asked = [
        ("transfers better with LN than without (",),
        ("transfers better", "where the loss is the same"),
        ("loss: mean", "less with LN than without"),
        ("loss: mean", "at most", "StableEdit"),
        ("loss: mean", "at most", "(without LN)"),
    ]
    assert tuple(found(verdicts, *parts).answer for parts in asked) == answers
    assert found(verdicts, "20 edits", "less with LN").answer == "not shown"
    times = f"{ln['released']:g} with, {without['released']:g} without"
    assert times in found(verdicts, "loss: mean", "less with LN than without").effect


def test_the_loss_is_that_of_the_curve() -> None:
    table = figure.losses(planted({"stableedit": MOVES, "no_ln": {**STAYS, "one": 4.0}}, noise=0.0))
    lost = table.groupby(["method", "condition"])["loss"].mean()
    assert lost["stableedit", "released"] == pytest.approx(75.0)
    assert lost["no_ln", "one"] == pytest.approx(12 * 2**2)
    assert lost["no_ln", "released"] == pytest.approx(0.0)
    assert set(table["tuned"]) == {1.0}


def test_a_seed_is_judged_by_what_the_others_chose() -> None:
    """Where rates do not matter, the best on the same data always seems to gain; a held-out choice gains nothing on average."""
    rng = np.random.default_rng(0)
    frame = planted({"stableedit": {figure.TUNED: 1.0, "few": 1.0}})
    held_out, same = [], []
    for _ in range(50):
        flat = frame.assign(score=50 + rng.standard_normal(len(frame)))
        held_out.append(figure.losses(flat)["loss"].mean())
        means = flat[flat["condition"] == "few"].groupby("rate")["score"].mean()
        same.append(means.max() - means[figure.best_rate(flat, "stableedit", figure.TUNED)])
    error = np.std(held_out, ddof=1) / np.sqrt(len(held_out))
    assert abs(np.mean(held_out)) < 4 * error
    assert np.mean(same) > 5 * error


def test_between_rates_the_score_lies_on_the_line_over_the_logarithm() -> None:
    frame = planted({"stableedit": STAYS}, noise=0.0)
    gone = frame[~((frame["condition"] == "few") & (frame["rate"] == 1.0))]
    # The neighbours 1/2 and 2 score 68 each, so that the middle is 68, and the best that is left as well.
    assert figure.losses(gone).query("condition == 'few'")["loss"].tolist() == pytest.approx([0.0] * 3)


def test_a_best_rate_at_the_end_of_the_ladder_is_said() -> None:
    frame = planted({"stableedit": {**STAYS, "few": 64.0}, "no_ln": STAYS})
    told = found(figure.verdicts(frame), "20 edits", "at most", "StableEdit")
    assert "end of the ladder" in told.effect
    assert "64 times" in told.effect
    assert "end of the ladder" not in found(figure.verdicts(frame), "20 edits", "at most", "(without LN)").effect


def test_what_is_missing_is_one_clear_error() -> None:
    frame = planted({"stableedit": STAYS, "no_ln": STAYS})
    with pytest.raises(DataError, match="two or more"):
        figure.verdicts(frame[frame["seed"] == 0])
    with pytest.raises(DataError, match="stableedit at setting few has one rate"):
        figure.verdicts(frame[(frame["condition"] != "few") | (frame["rate"] == 1.0)])
    with pytest.raises(DataError, match="no runs of no_ln at setting tuned"):
        figure.verdicts(frame[(frame["method"] != "no_ln") | (frame["condition"] != figure.TUNED)])
    short = frame[(frame["method"] != "no_ln") | (frame["condition"] != "few") | (frame["rate"] > 1.0)]
    with pytest.raises(DataError, match=r"no_ln at setting few was run at rates 2 to 64, and 1 was tuned: extend"):
        figure.verdicts(short)


def test_the_table_takes_editor_setting_and_rate_from_the_runs() -> None:
    def run(score: float) -> Run:
        metrics = ["efficacy", "generalization", "specificity"]
        rows = [
            {"step": s, "metric": m, "kind": "token", "value": v} for s, v in ((-1, 0.1), (1, score)) for m in metrics
        ]
        steps = pd.DataFrame({"step": [0, 1], "phase": "target", "edits": 5, "skipped": None})
        tables = {"quality": pd.DataFrame(rows), "steps": steps}
        return cast(Run, SimpleNamespace(table=tables.__getitem__))

    runs = [ArmRun("stableedit:few:0.013", "controls", seed, run(0.5 + seed / 10)) for seed in (1, 0)]
    frame = figure.prepare([*runs, ArmRun("no_ln:one:2", "controls", 0, run(0.25))])
    assert frame[["method", "condition", "rate", "seed"]].to_numpy().tolist() == [
        ["no_ln", "one", 2.0, 0],
        ["stableedit", "few", 0.013, 0],
        ["stableedit", "few", 0.013, 1],
    ]
    assert frame["score"].tolist() == pytest.approx([25.0, 50.0, 60.0])


def test_runs_are_few_and_every_tuned_rate_is_on_every_ladder() -> None:
    full, quick = figure.NEEDS.resolve(scales.full()), figure.NEEDS.resolve(scales.quick())
    assert len({need.digest for need in full}) == len(full) <= 150
    assert len({need.digest for need in quick}) == len(quick) <= 12
    for need in full:
        assert set(need.arm.split(":")[:1]) <= set(figure.METHODS)
    for ladders in figure.RATES.values():
        inner = sorted(ladders[figure.TUNED])[1]
        assert all(min(rates) <= inner <= max(rates) for rates in ladders.values())


def test_one_panel_per_setting_and_one_of_losses() -> None:
    with plots.style():
        picture = figure.draw(planted({"stableedit": STAYS, "no_whitening": STAYS, "no_ln": MOVES}))
    titles = [ax.get_title() for ax in picture.axes]
    assert len(titles) == len(figure.CONDITIONS) + 1
    assert titles[0].startswith("(a)")
    assert "lost by the tuned rate" in titles[-1]
    assert [text.get_text() for text in picture.legends[0].get_texts()] == list(figure.METHODS.values())
    # The tuned rate stands at 1 in every panel, and the peak of the moved one at 16.
    line = next(line for line in picture.axes[3].get_lines() if line.get_label() == plots.look("no_ln").label)
    assert line.get_xdata()[int(np.argmax(line.get_ydata()))] == 16.0
