"""What the weights keep: simulated writing against the figure's numbers, and planted losses that the verdicts must follow."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch

from figures import diagnosis_precision as figure
from figures import scales
from figures.frames import ArmRun
from figures.verdict import Verdict
from stablediag import plots
from stablediag.errors import DataError
from stablediag.store.run import Run
from stablediag.store.state import save_state

MODULE = "layers.1.down"
SHAPE = (48, 24)
STEPS = 5


def written(folder: Path, precision: str, rate: float, seed: int, *, score: float = 0.5) -> tuple[ArmRun, float]:
    """A run whose updates were really rounded, and the share of their sum that its last weights hold, by the definition."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(SHAPE, generator=generator)
    weight = first.clone() if precision == figure.SINGLE else first.bfloat16()
    master, begun, total, rows = weight.float(), weight.double(), torch.zeros(SHAPE), []
    for step in range(STEPS):
        update = rate * torch.randn(SHAPE, generator=generator)
        before = weight.double()
        if precision == figure.PLACE:
            weight = weight + update.bfloat16()
        else:
            master = master + update
            weight = master.to(weight.dtype)
        total += update
        taken, wanted = weight.double() - before, update.double()
        # A zero realised change has no cosine.
        cosine = float((taken * wanted).sum() / (taken.norm() * wanted.norm())) if taken.norm() > 0 else None
        unchanged = float((taken == 0).double().mean())
        ratio = float(taken.norm() / wanted.norm())
        values = (step, MODULE, float(wanted.norm()), float(weight.double().norm()), ratio, cosine, unchanged)
        rows.append(values)
    names = ["step", "module", "norm", "weight_norm", "realised_ratio", "realised_cosine", "unchanged_fraction"]
    kept = first if precision == figure.SINGLE else total
    tensors = {f"recorder/coherence/kept/{MODULE}": kept, f"weights/{MODULE}.weight": weight.T.contiguous()}
    state = save_state(folder / f"{precision}-{rate}-{seed}" / "state", tensors, meta={})
    tables = {"updates": pd.DataFrame(rows, columns=names), **quality(score)}
    run = cast(Run, SimpleNamespace(table=tables.__getitem__, checkpoint=(STEPS - 1, state)))
    moved = weight.double() - begun
    share = float((moved * total.double()).sum() / total.double().square().sum())
    return ArmRun(f"{precision}:{rate:g}", "controls", seed, run), share


def quality(score: float) -> dict[str, pd.DataFrame]:
    names = ["efficacy", "generalization", "specificity"]
    rows = [(step, name, "token", value) for step, value in ((-1, 0.1), (STEPS - 1, score)) for name in names]
    rows += [(STEPS - 1, "specificity_agreement", "token", score), (STEPS - 1, "specificity_kl", "nats", 0.25)]
    steps = {"step": range(STEPS), "phase": "target", "target_step": range(STEPS), "edits": 2, "skipped": None}
    edits = {"immediate": [1.0], "immediate_exact": [1.0], "retained": [1.0]}
    table = pd.DataFrame(rows, columns=["step", "metric", "kind", "value"])
    return {"quality": table, "steps": pd.DataFrame(steps), "edits": pd.DataFrame(edits)}


def test_rounding_is_that_of_torch() -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(1)) * 10.0 ** torch.arange(-10, 10).repeat(
        1000
    )
    # Halfway between neighbours, where ties go to the even one: 1 + 2^-8 and 1 + 3 2^-8.
    values = torch.cat([values, -values, torch.tensor([0.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8])])
    assert np.array_equal(figure.to_bfloat16(values.numpy()), values.bfloat16().float().numpy())


def test_the_expected_share_is_that_of_weights_really_written() -> None:
    generator = torch.Generator().manual_seed(2)
    shares = []
    for relative in (3e-4, 1e-3, 3e-3, 1e-1):
        weight = torch.randn(200_000, generator=generator).bfloat16()
        update = relative * torch.randn(200_000, generator=generator)
        taken = (weight + update.bfloat16()).float() - weight.float()
        kept = float((taken * update).sum() / update.square().sum())
        assert figure.expected_kept(relative) == pytest.approx(kept, abs=0.02)
        shares.append(kept)
    assert shares[0] < 0.3 < 0.9 < shares[2]
    for level, size in zip((0.5, 0.9), figure.expected_sizes((0.5, 0.9)), strict=True):
        assert figure.expected_kept(size) == pytest.approx(level, abs=0.02)


@pytest.mark.parametrize("precision", [figure.MASTER, figure.PLACE])
def test_the_table_holds_what_was_really_kept(precision: str, tmp_path: Path) -> None:
    runs, shares = zip(
        *(written(tmp_path, name, rate, 0) for rate in (1e-4, 2e-3, 1e-1) for name in (figure.SINGLE, precision)),
        strict=True,
    )
    frame = figure.prepare(runs).set_index(["precision", "rate"])
    for one, share in zip(runs, shares, strict=True):
        name, rate = one.arm.split(":")
        row = frame.loc[(name, float(rate))]
        table = one.run.table("updates")
        kept = (table["realised_ratio"] * table["realised_cosine"].astype(float).fillna(0.0)).mean()
        assert row["kept"] == pytest.approx(kept)
        assert row["relative"] == pytest.approx(float(rate), rel=0.1)
        if name == figure.SINGLE:
            assert math.isnan(row["kept_total"])
            assert math.isnan(row["expected"])
            assert share == pytest.approx(1.0, abs=1e-4)
        else:
            assert row["kept_total"] == pytest.approx(share, abs=1e-5)
    lost = frame.loc[precision]
    assert lost.loc[1e-4, "kept_total"] < 0.6 < 0.7 < lost.loc[2e-3, "kept_total"]


def test_an_update_that_vanishes_is_kept_by_nothing(tmp_path: Path) -> None:
    runs = [written(tmp_path, name, 1e-9, 0)[0] for name in (figure.SINGLE, figure.PLACE)]
    frame = figure.prepare(runs).set_index("precision")
    assert frame.loc[figure.PLACE, "kept"] == pytest.approx(0.0, abs=1e-3)
    assert frame.loc[figure.PLACE, "unchanged"] > 99


def test_a_difference_is_to_float32_at_the_same_rate_and_seed(tmp_path: Path) -> None:
    runs = [
        written(tmp_path, name, rate, seed, score=base + seed / 10 - (0.05 if name == figure.PLACE else 0.0))[0]
        for name in (figure.PLACE, figure.SINGLE)
        for rate, base in ((1e-3, 0.3), (1e-2, 0.6))
        for seed in (0, 1)
    ]
    frame = figure.prepare(runs)
    differences = frame.groupby("precision")["difference"]
    assert differences.get_group(figure.PLACE).tolist() == pytest.approx([-5.0] * 4)
    assert differences.get_group(figure.SINGLE).tolist() == pytest.approx([0.0] * 4)
    assert frame["unedited"].tolist() == pytest.approx([10.0] * 8)
    assert frame["locality_kl"].tolist() == pytest.approx([0.25] * 8)


def planted(
    *, kept_low: float = 0.3, kept_high: float = 1.0, cost: float = 0.0, noise_kl: float = 1.0, gap: float = 0.0
) -> pd.DataFrame:
    """Rates 1e-4 to 1e-1, three seeds: in place `kept_low` is kept at the two lowest and `kept_high` at the others."""
    rng = np.random.default_rng(0)
    rows = []
    for precision in figure.PRECISIONS:
        for i, rate in enumerate((1e-4, 1e-3, 1e-2, 1e-1)):
            for seed in range(3):
                small = 0.01 * rng.standard_normal()
                place = precision == figure.PLACE
                kept = (kept_low if i < 2 else kept_high) + small if place else 1.0
                score = (12.0, 40.0, 80.0, 20.0)[i] + 10 * small - (cost if place else 0.0)
                rows.append(
                    {
                        "precision": precision, "rate": rate, "seed": seed, "kept": kept, "relative": rate / 10,
                        "kept_total": math.nan if precision == figure.SINGLE else kept, "unchanged": 50.0,
                        "expected": kept + gap if place else math.nan, "score": score, "unedited": 10.0,
                        "difference": -cost if place else 0.0, "locality_kl": 1e-4 * (noise_kl if place else 1.0) * (1 + small),
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def found(frame: pd.DataFrame, *parts: str) -> Verdict:
    every = figure.verdicts(frame)
    chosen = [verdict for verdict in every if all(part in verdict.claim for part in parts)]
    assert len(chosen) == 1, [verdict.claim for verdict in every]
    return chosen[0]


LOSSY, WHOLE = {"kept_low": 0.3}, {"kept_low": 1.0}


@pytest.mark.parametrize(
    ("parts", "plant", "answer"),
    [
        (("0.0001", "over a tenth of a step"), LOSSY, "shown"),
        (("0.0001", "over a tenth of a step"), WHOLE, "opposite"),
        (("best rate, 0.01,", "tenth of a step"), LOSSY, "opposite"),
        (("best rate, 0.01,", "tenth of a step"), {"kept_high": 0.5}, "shown"),
        (("tenth of the whole run",), LOSSY, "shown"),
        (("tenth of the whole run",), WHOLE, "opposite"),
        (("float32 master than in place",), LOSSY, "shown"),
        (("float32 master than in place",), {"kept_low": 1.5}, "opposite"),
        (("explains",), {"gap": 0.0}, "shown"),
        (("explains",), {"gap": 0.2}, "opposite"),
        (("quality follows",), {**LOSSY, "cost": 5.0}, "shown"),
        (("quality follows",), LOSSY, "opposite"),
        (("quality follows",), {**WHOLE, "cost": 5.0}, "not shown"),
        (("best rate", "costs"), {"cost": 5.0}, "shown"),
        (("best rate", "costs"), {}, "opposite"),
        (("divergence",), {"noise_kl": 3.0}, "shown"),
        (("divergence",), {"noise_kl": 0.5}, "opposite"),
    ],
)
def test_verdicts_follow_what_was_planted(parts: tuple[str, ...], plant: dict, answer: str) -> None:
    assert found(planted(**plant), *parts).answer == answer


def test_where_nothing_is_learnt_there_is_no_quality_to_lose() -> None:
    frame = planted(**LOSSY).assign(unedited=26.0)
    verdict = found(frame, "quality follows")
    assert verdict.answer == "not shown"
    assert "nothing to lose" in verdict.effect


def test_the_rate_at_which_the_update_is_lost_lies_between_the_right_neighbours() -> None:
    frame = planted(kept_low=0.3, kept_high=0.7)
    place = figure.crossing(frame, 0.5)
    assert place.n == 3
    assert place.mean == pytest.approx(10**-2.5, rel=0.05)
    assert figure.crossing(frame, 0.9).n == 0
    assert figure.crossing(planted(**WHOLE), 0.5).n == 0
    assert figure.crossing(frame[frame["rate"] != 1e-2], 0.5).n == 0
    assert "below rate 0.003" in found(frame, "0.0001", "over a tenth of a step").effect


def test_what_is_missing_is_one_clear_error(tmp_path: Path) -> None:
    frame = planted()
    with pytest.raises(DataError, match=r"no runs of bf16_master: make them"):
        figure.verdicts(frame[frame["precision"] != figure.MASTER])
    with pytest.raises(DataError, match="seed 0 has no run with float32 weights"):
        figure.prepare([written(tmp_path, figure.PLACE, 1e-3, 0)[0]])
    one, _ = written(tmp_path, figure.SINGLE, 1e-3, 0)
    bare = cast(Run, SimpleNamespace(table=one.run.table, checkpoint=None))
    with pytest.raises(DataError, match="has no checkpoint"):
        figure.prepare([ArmRun(one.arm, one.setting, one.seed, bare)])


def test_runs_differ_in_dtype_master_and_rate_alone() -> None:
    full, quick = figure.NEEDS.resolve(scales.full()), figure.NEEDS.resolve(scales.quick())
    assert len({need.digest for need in full}) == len(full) == 3 * 3 * len(figure.RATES)
    assert len(quick) <= 12
    for need in full:
        precision, rate = need.arm.split(":")
        dtype, master = need.spec.model.dtype, need.spec.editor.params["master"]
        assert (dtype == "float32") == (precision == figure.SINGLE)
        assert (master == "model") == (precision == figure.PLACE)
        assert need.spec.editor.params["lr"] == float(rate)


def test_six_panels_and_a_legend_that_names_every_line() -> None:
    with plots.style():
        picture = figure.draw(planted())
    assert [ax.get_title()[:3] for ax in picture.axes] == ["(a)", "(b)", "(c)", "(d)", "(e)", "(f)"]
    assert len(picture.legends[0].get_texts()) == len(figure.PRECISIONS) + 2
    lines = {line.get_label(): line for line in picture.axes[0].get_lines()}
    kept = lines[plots.look(figure.PLACE).label]
    assert kept.get_xdata().tolist() == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert kept.get_ydata()[0] == pytest.approx(0.3, abs=0.05)
    # Float32 weights are the reference of the differences, and have no share of the whole run.
    assert plots.look(figure.SINGLE).label not in {line.get_label() for line in picture.axes[4].get_lines()}
