"""Effects of variations: planted ones are found, none are not, and every number agrees with the obvious computation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stablediag.errors import DataError
from stablediag.stats.pairs import holm
from stablediag.stats.switches import COLUMNS, MEASURES, effects, means, read

MODULES = ("layers.1.down", "layers.2.down")
STEPS = 10
EDITS = 60


@dataclass
class Tables:
    """A run of tables that are given."""

    held: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    def table(self, name: str, /) -> pd.DataFrame:
        return self.held[name]

    def tables(self) -> list[str]:
        return list(self.held)


def run(seed: int, *, harder: float = 0.0, longer: float = 1.0, own_edits: bool = False, noise: int = 0) -> Tables:
    """A run of two warm-up and ten target steps.

    `harder` lowers the chance of every answer; `longer` multiplies the updates. Runs of one seed share the difficulty of
    their edits, and with the same `noise` their luck as well.
    """
    rng, luck = np.random.default_rng([seed, 1]), np.random.default_rng([seed, noise, 2])
    easy = rng.uniform(0.5, 1.0, EDITS)
    hit = (luck.random(EDITS) < easy - harder).astype(float)
    kept = hit * (luck.random(EDITS) < 0.9 - harder)
    names = [f"s{seed}e{i}" if own_edits else f"e{i}" for i in range(EDITS)]
    edits = pd.DataFrame({"edit_id": names, "immediate": hit, "immediate_exact": hit, "retained": kept, "step": 2})
    quality = pd.DataFrame([
        {"step": step, "metric": metric, "kind": kind, "value": value - (harder if step > 0 else 0.0), "n": EDITS, "se": 0.05}
        for step in (-1, STEPS + 1)
        for metric, kind, value in (("generalization", "token", 0.7), ("specificity", "token", 0.9), ("generalization", "exact", 0.1))
    ])  # fmt: skip
    quality["value"] += 0.01 * luck.standard_normal(len(quality))
    steps = pd.DataFrame({"step": range(STEPS + 2), "phase": ["warmup"] * 2 + ["target"] * STEPS})
    rows, tracked = [], []
    for step in range(STEPS + 2):
        for place, module in enumerate(MODULES):
            wide = longer * (1 + place) * math.exp(0.05 * luck.standard_normal())
            cosine = None if step < 3 else 0.1 + 0.01 * luck.standard_normal()
            wanted = 0.9 if step % 2 else None
            ratio = 1 + 0.01 * longer * step * (1 + place)
            rows.append({"step": step, "module": module, "norm": 100.0 if step < 2 else wide, "cosine": cosine,
                         "weight_ratio": ratio, "realised_ratio": wanted, "realised_cosine": wanted and 0.8})  # fmt: skip
            moved = {
                "condition_raw": 1e3 / longer / (step + 1),
                "mean_shift": 1.0 / (step + 1),
                "cov_shift": 2.0 / (step + 1),
            }
            floored = 0.1 * longer if step > 5 else None
            tracked.append({"step": step, "module": module, "floored_fraction": floored, **moved})
    return Tables(
        {
            "edits": edits,
            "quality": quality,
            "steps": steps,
            "updates": pd.DataFrame(rows),
            "tracking": pd.DataFrame(tracked),
        }
    )


def by_measure(table: pd.DataFrame, name: str = "changed") -> dict[str, Any]:
    return {str(row["metric"]): row for row in table[table["variation"] == name].to_dict("records")}


def compared(seeds: range, **changed: Any) -> pd.DataFrame:
    runs = [
        (name, seed, run(seed, **(changed if name == "changed" else {})))
        for seed in seeds
        for name in ("base", "changed")
    ]
    return effects(runs, {"changed": "base"})


def test_planted_effects_are_found() -> None:
    table = compared(range(8), harder=0.25, longer=2.0)
    assert list(table.columns) == COLUMNS
    found = by_measure(table)
    assert set(found) == {measure.name for measure in MEASURES} - {"locality_kl"}
    planted = {"immediate": -25, "efficacy": 100 * (0.5 * 0.65 - 0.75 * 0.9), "generalization": -25, "specificity": -25}
    for name, effect in planted.items():
        assert found[name]["survives"], name
        assert found[name]["effect"] == pytest.approx(effect, abs=6), name
        assert found[name]["low"] < found[name]["effect"] < found[name]["high"], name
        assert found[name]["value"] - found[name]["reference"] == pytest.approx(found[name]["effect"])
    assert found["update_norm"]["survives"]
    assert found["update_norm"]["effect"] == pytest.approx(2.0)
    assert found["condition"]["effect"] == pytest.approx(0.5)
    assert found["condition"]["survives"]
    assert found["weight_growth"]["effect"] == pytest.approx(22.0)  # 44 % instead of 22 % in the faster module
    for name in ("cosine", "condition_fall", "mean_shift_fall", "realised"):
        assert not found[name]["survives"], name


def test_the_same_effects_the_other_way_change_sign() -> None:
    runs = [
        (name, seed, run(seed, longer=longer)) for seed in range(4) for name, longer in (("short", 1.0), ("long", 2.0))
    ]
    there = by_measure(effects(runs, {"long": "short"}), "long")
    back = by_measure(effects(runs, {"short": "long"}), "short")
    for name in ("update_norm", "condition"):
        assert there[name]["effect"] == pytest.approx(1 / back[name]["effect"])
    assert there["weight_growth"]["effect"] == pytest.approx(-back["weight_growth"]["effect"])


def test_no_effect_is_no_effect() -> None:
    same = compared(range(5))
    assert not same["survives"].any()
    assert (same["p"] == 1).all()  # equal runs
    # That no edit of some hundreds differs does not show that none ever would.
    shares = same[same["metric"].isin(["immediate", "efficacy", "generalization", "specificity"])]
    assert (shares["effect"] == 0).all()
    np.testing.assert_allclose(shares["high"], 2.776 * 100 * math.sqrt(2 / (302 * 300)), rtol=1e-3)
    # Ten variations that differ in luck alone: the correction is over all of them.
    names = [f"v{i}" for i in range(10)]
    runs = [(name, seed, run(seed, noise=place)) for seed in range(5) for place, name in enumerate(["base", *names])]
    table = effects(runs, dict.fromkeys(names, "base"))
    assert not table["survives"].any()
    assert (table["p"] < 0.05).sum() > 0  # what an uncorrected table would have shown
    np.testing.assert_allclose(table["p_holm"], holm(table["p"].to_numpy(np.float64)))


@pytest.mark.parametrize(("factor", "seen"), [(1 + 1e-8, False), (1 + 1e-4, True)])
def test_rounding_errors_are_no_effect(factor: float, seen: bool) -> None:
    """All seeds agree in them, so that no interval would hold zero."""
    found = by_measure(compared(range(4), longer=factor))["update_norm"]
    assert found["survives"] is seen
    assert (found["low"] <= 1 <= found["high"]) is not seen


def test_one_seed_has_intervals_over_edits_and_says_so() -> None:
    found = by_measure(compared(range(1), harder=0.3, longer=2.0))
    assert found["immediate"]["over"] == found["efficacy"]["over"] == "edits"
    assert (found["immediate"]["seeds"], found["immediate"]["edits"]) == (1, EDITS)
    assert found["immediate"]["survives"]
    # Two standard errors of 5 points each.
    width = found["specificity"]["high"] - found["specificity"]["low"]
    assert width == pytest.approx(2 * 1.96 * 5 * math.sqrt(2), rel=1e-3)
    assert found["specificity"]["over"] == "edits"
    assert found["update_norm"]["over"] == "nothing"
    assert math.isnan(found["update_norm"]["low"])
    assert not found["update_norm"]["survives"]
    several = by_measure(compared(range(3), harder=0.3))
    assert several["immediate"]["over"] == "seeds and edits"
    assert several["specificity"]["over"] == "seeds"


def test_seeds_with_edits_of_their_own() -> None:
    runs = [(name, seed, run(seed, harder=harder, own_edits=True)) for seed in range(6)
            for name, harder in (("base", 0.0), ("changed", 0.25))]  # fmt: skip
    found = by_measure(effects(runs, {"changed": "base"}))
    gaps = [100 * (two.table("edits")["immediate"].mean() - one.table("edits")["immediate"].mean())
            for (_, _, one), (_, _, two) in zip(runs[::2], runs[1::2], strict=True)]  # fmt: skip
    assert found["immediate"]["effect"] == pytest.approx(np.mean(gaps))
    assert found["immediate"]["seeds"] == 6


def test_values_agree_with_the_obvious_computation() -> None:
    one = run(3, longer=1.7)
    values = read(one).values
    updates, edits = one.table("updates"), one.table("edits")
    target = updates[updates["step"] >= 2]
    norms = [target.loc[target["module"] == module, "norm"].mean() for module in MODULES]
    assert values["update_norm"] == pytest.approx(math.sqrt(norms[0] * norms[1]))
    assert values["cosine"] == pytest.approx(target["cosine"].astype(float).mean())
    assert values["weight_growth"] == pytest.approx(100 * (updates["weight_ratio"].max() - 1))
    assert values["efficacy"] == pytest.approx(100 * edits["retained"].mean())
    assert values["retention"] == pytest.approx(100 * edits.loc[edits["immediate_exact"] == 1, "retained"].mean())
    assert values["condition"] == pytest.approx(1e3 / 1.7 / 12)
    # Target steps are 2 to 11; their first and last fifths hold two steps each.
    assert values["mean_shift_fall"] == pytest.approx(math.sqrt(11 * 12) / math.sqrt(3 * 4))
    assert values["floored"] == pytest.approx(17)
    assert values["realised"] == pytest.approx(0.9)
    # A change of length .9 at cosine .8 to an update of length 1.
    assert values["rounding"] == pytest.approx(100 * math.hypot(0.9 * 0.8 - 1, 0.9 * 0.6))
    quality = one.table("quality")
    at_end = quality[(quality["step"] == STEPS + 1) & (quality["kind"] == "token")].set_index("metric")["value"]
    assert values["generalization"] == pytest.approx(100 * at_end["generalization"])


def test_an_update_that_vanished_is_lost_altogether() -> None:
    gone = run(0).table("updates").assign(realised_ratio=0.0, realised_cosine=None)
    assert read(Tables({**run(0).held, "updates": gone})).values["rounding"] == 100
    unmeasured = run(0).table("updates").assign(realised_ratio=None, realised_cosine=None)
    assert math.isnan(read(Tables({**run(0).held, "updates": unmeasured})).values["rounding"])


def test_retention_is_of_edits_that_both_taught() -> None:
    """A run that taught the easy edits alone must not pass for one that keeps edits better."""
    edits = pd.DataFrame(
        {"edit_id": list("abcd"), "immediate": 1.0, "immediate_exact": 1.0, "retained": [1.0, 1.0, 0.0, 0.0]}
    )
    fewer = edits.assign(immediate_exact=[1.0, 1.0, 0.0, 0.0])
    runs = [("base", 0, Tables({"edits": edits})), ("changed", 0, Tables({"edits": fewer}))]
    found = by_measure(effects(runs, {"changed": "base"}))
    assert (found["retention"]["reference"], found["retention"]["value"]) == (50.0, 100.0)
    assert found["retention"]["effect"] == 0.0


def test_what_was_not_recorded_is_not_compared() -> None:
    runs = [("base", 0, run(0)), ("changed", 0, Tables({"steps": run(0).table("steps")}))]
    assert effects(runs, {"changed": "base"}).empty
    unevaluated = Tables({**run(0).held, "quality": run(0).table("quality").query("step < 0")})
    found = by_measure(effects([("base", 0, run(0)), ("changed", 0, unevaluated)], {"changed": "base"}))
    assert "specificity" not in found
    assert "efficacy" in found
    frozen = Tables({**run(0).held, "updates": run(0).table("updates").query("step < 2")})
    found = by_measure(effects([("base", 0, run(0)), ("changed", 0, frozen)], {"changed": "base"}))
    assert "update_norm" not in found
    assert "condition" in found


def test_groups_references_and_repeated_edits() -> None:
    runs = [(name, seed, run(seed)) for seed in range(2) for name in ("base", "late", "one")]
    table = effects(runs, {"one": "late"}, groups={"one": ("geometry",)})
    assert set(table["group"]) == {"geometry"}
    assert set(table["against"]) == {"late"}
    with pytest.raises(DataError, match=r"one: no run of late at the same seed"):
        effects([("one", 0, run(0)), ("late", 1, run(1))], {"one": "late"})
    twice = pd.concat([run(0).table("edits")] * 2, ignore_index=True)
    doubled = Tables({**run(0).held, "edits": twice})
    pd.testing.assert_frame_equal(read(doubled).edits, read(run(0)).edits)


def test_means_are_over_seeds() -> None:
    table = means([("base", seed, run(seed, longer=longer)) for seed, longer in enumerate((1.0, 4.0))])
    assert table["condition"].tolist() == [pytest.approx(1e3 / 12 / 2)]  # geometric: factors 1 and 4 make 2
    assert table["weight_growth"].tolist() == [pytest.approx((22 + 88) / 2)]
    assert means([]).empty
