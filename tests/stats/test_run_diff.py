"""Two runs, or two arms: what differs is named, planted effects are found, and what shares no edits is not paired."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stablediag.errors import DataError
from stablediag.stats.run_curves import PANELS, curve, together
from stablediag.stats.run_diff import ABSENT, Change, changes, compare_runs, pair
from stablediag.stats.run_effects import FURTHER, independent_effects
from stablediag.stats.switches import COLUMNS, effects
from stablediag.types import RunInfo
from tests.stats.test_switches import EDITS, STEPS, Tables, run

PANEL = {panel.name: panel for panel in PANELS}


@dataclass
class Known(Tables):
    """A run of tables that are given, with a provenance."""

    info: RunInfo | None = None


def info(seed: int = 0, *, stream: str | None = "", spec: Any = None, **more: Any) -> RunInfo:
    """Provenance; `stream` is the checksum of the edits, one a seed by default."""
    plain = {
        "name": f"r-seed{seed}",
        "seed": 0,
        "data": {"seed": seed, "source": "f"},
        "editor": {"name": "ln", "params": {"lr": 1}},
    }
    known = {
        "digest": "d", "versions": {"engine": "1", "recorder:quality": "2"}, "code": {"commit": "c"}, "device": "cpu",
        "model": {"sha256": {"model.safetensors": "m"}}, "seeds": {}, "created": "now",
    }  # fmt: skip
    target = {} if stream is None else {"target": {"sha256": stream or f"stream{seed}", "count": EDITS}}
    return RunInfo(spec=plain | (spec or {}), dataset=target, **(known | more))


def made(seed: int = 0, *, stream: str | None = "", spec: Any = None, more: Any = None, **plant: Any) -> Known:
    return Known(dict(run(seed, **plant).held), info(seed, stream=stream, spec=spec, **(more or {})))


def by_metric(table: pd.DataFrame) -> dict[str, Any]:
    return {str(row["metric"]): row for row in table.to_dict("records")}


# --- what differs


def test_changes_are_named_by_path_with_both_values() -> None:
    first = {"a": {"b": 1, "same": [1, 2]}, "then": [{"size": 1}, {"size": 2}], "only": None, "list": [1]}
    second = {"a": {"b": 2, "same": [1, 2]}, "then": [{"size": 1}, {"size": 3}], "other": {}, "list": [1, 2]}
    assert changes([first], [second]) == [
        Change("a.b", (1,), (2,)),
        Change("list", ([1],), ([1, 2],)),
        Change("only", (None,), ()),
        Change("other", (), ({},)),
        Change("then[1].size", (2,), (3,)),
    ]
    assert changes([first], [first]) == []


def test_of_arms_values_are_sets() -> None:
    seeds = [{"seed": 0, "lr": 1}, {"seed": 1, "lr": 1}]
    assert changes(seeds, [{"seed": 1, "lr": 2}, {"seed": 0, "lr": 2}]) == [Change("lr", (1,), (2,))]
    # One run of a side that lacks a value is told from a side that has it throughout, and 1 from True.
    assert changes([{"v": 1}, {}], [{"v": 1}, {"v": 1}]) == [Change("v", (1, ABSENT), (1,))]
    assert changes([{"v": 1}], [{"v": True}]) == [Change("v", (1,), (True,))]


def test_the_name_of_a_spec_is_no_difference_but_versions_and_models_are() -> None:
    other = made(
        spec={"name": "another", "editor": {"name": "ft", "params": {"lr": 1}}},
        more={"versions": {"engine": "2", "recorder:quality": "1"}, "model": {"sha256": {"model.safetensors": "n"}}},
    )
    found = compare_runs([made()], [other])
    assert found.spec == (Change("editor.name", ("ln",), ("ft",)),)
    assert [one.path for one in found.provenance] == [
        "model.sha256.model.safetensors",
        "versions.engine",
        "versions.recorder:quality",
    ]
    said = " ".join(found.notes)
    assert "engine is of version 1 in A and 2 in B" in said
    assert "recorder:quality is of version 2 in A and 1 in B" in said
    assert "models differ" in said
    assert compare_runs([made()], [made()]).provenance == ()


def test_runs_of_one_arm_that_are_no_repeats_are_named() -> None:
    arm = [made(0), made(1, spec={"editor": {"name": "ln", "params": {"lr": 9}}})]
    assert any("runs of B differ in editor.params.lr" in note for note in compare_runs([made(0), made(1)], arm).notes)
    assert not any("no repeats" in note for note in compare_runs([made(0), made(1)], [made(0), made(1)]).notes)


# --- pairing


def test_single_runs_are_paired_where_they_saw_the_same_edits() -> None:
    assert pair([made(0)], [made(3, stream="stream0", noise=1)]).pairs == ((0, 0),)  # whatever the seeds say
    other = pair([made(0)], [made(1, own_edits=True)])
    assert other.kind == "independent"
    assert "different streams:" in other.reason
    # Equal ids in another order: still the same edits.
    again = pair([made(0)], [made(0, stream="permuted")])
    assert again.kind == "paired"
    assert "another order" in again.reason
    # Some in common is not the same.
    part = made(0, stream="half")
    part.held["edits"] = part.held["edits"].iloc[:40]
    assert "40 edits in common" in pair([made(0)], [part]).reason
    bare = [Known({}, info(stream=None)) for _ in range(2)]
    assert pair(bare[:1], bare[1:]).kind == "independent"


def test_arms_are_paired_by_seed() -> None:
    first, second = [made(2), made(0), made(5)], [made(0, noise=1), made(2, noise=1)]
    found = pair(first, second)
    assert found.pairs == ((0, 1), (1, 0))
    assert "1 of other seeds left out" in found.reason
    assert pair(first, [made(8), made(9)]).kind == "independent"
    assert "at data.seed 0" in pair(first, [made(0, stream="x", own_edits=True), made(2)]).reason
    with pytest.raises(DataError, match=r"two runs of one side have data\.seed 2"):
        pair(first, [made(2), made(2)])
    with pytest.raises(DataError, match="at least one run"):
        compare_runs([], first)


# --- effects


def test_paired_arms_have_the_effects_of_switches() -> None:
    first = [made(seed) for seed in range(6)]
    second = [made(seed, harder=0.25, longer=2.0) for seed in reversed(range(6))]
    found = compare_runs(first, second)
    assert found.pairing.kind == "paired"
    assert list(found.metrics.columns) == COLUMNS
    runs = [("a", s, first[s]) for s in range(6)] + [("b", s, second[5 - s]) for s in range(6)]
    wanted, rows = by_metric(effects(runs, {"b": "a"})), by_metric(found.metrics)
    for name, row in wanted.items():
        for key in ("effect", "low", "high", "p_holm", "reference", "value"):
            assert rows[name][key] == pytest.approx(row[key], nan_ok=True), (name, key)
    assert rows["efficacy"]["survives"]
    assert rows["efficacy"]["effect"] < -20
    assert rows["update_norm"]["effect"] == pytest.approx(2.0)
    assert set(found.missing) == {"locality_kl"} | ({"floored"} - set(rows))


def test_further_metrics_are_compared_and_corrected_apart() -> None:
    first, second = [made(s) for s in range(6)], [made(s, harder=0.2, noise=1) for s in range(6)]
    rows = by_metric(compare_runs(first, second).metrics)
    row = rows["generalization exact"]
    assert row["group"] == FURTHER
    assert row["effect"] == pytest.approx(-20, abs=3)
    assert row["p_holm"] == pytest.approx(row["p"])  # alone in its family
    assert row["low"] < row["effect"] < row["high"] < 0
    gaps = [
        100 * (b.held["quality"].iloc[-1]["value"] - a.held["quality"].iloc[-1]["value"]) for a, b in zip(first, second, strict=True)
    ]  # fmt: skip
    mean, half = np.mean(gaps), stats.t.ppf(0.975, 5) * np.std(gaps, ddof=1) / math.sqrt(6)
    assert (row["effect"], row["low"]) == pytest.approx((mean, mean - half))


def test_two_runs_of_other_edits_are_independent_samples() -> None:
    first, second = made(0, own_edits=True), made(1, own_edits=True, harder=0.3)
    found = compare_runs([first], [second])
    assert found.pairing.kind == "independent"
    rows = by_metric(found.metrics)
    values = [100 * one.held["edits"]["immediate"].to_numpy() for one in (first, second)]
    test = stats.ttest_ind(values[1], values[0], equal_var=False)
    ends = test.confidence_interval(0.95)
    row = rows["immediate"]
    assert (row["effect"], row["low"], row["high"]) == pytest.approx(
        (np.diff([v.mean() for v in values])[0], ends.low, ends.high)
    )
    assert row["p"] == pytest.approx(test.pvalue)
    assert row["over"] == "edits, independent"
    assert "retention" not in rows  # of edits that both had right
    assert "retention" in found.missing
    assert found.extensions == ()
    # Steps are no independent draws: geometry has a value and no interval.
    assert rows["update_norm"]["effect"] == pytest.approx(1.0, abs=0.1)
    assert math.isnan(rows["update_norm"]["low"])
    assert rows["update_norm"]["over"] == "nothing"


def test_arms_of_other_edits_are_compared_over_their_runs() -> None:
    first = [made(s, own_edits=True) for s in range(5)]
    second = [made(s, own_edits=True, longer=2.0) for s in range(5, 12)]
    rows = by_metric(compare_runs(first, second).metrics)

    def norms(arm: list[Known]) -> list[float]:
        found = []
        for one in arm:
            table = one.held["updates"]
            means = table[table["step"] >= 2].groupby("module")["norm"].mean()
            found.append(float(np.log(means).mean()))
        return found

    test = stats.ttest_ind(norms(second), norms(first), equal_var=False)
    row = rows["update_norm"]
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.exp(test.confidence_interval(0.95))))
    assert row["survives"]
    assert row["over"] == "seeds, independent"
    # One run on a side: a difference, and nothing to judge it by.
    alone = by_metric(independent_effects(first, second[:1]))
    assert math.isnan(alone["immediate"]["low"])
    assert alone["immediate"]["over"] == "nothing"


def test_no_effect_is_seldom_found() -> None:
    """Independent streams without an effect: 5 % of the intervals miss it, not 20."""
    missed = 0
    for seed in range(24):
        rows = by_metric(independent_effects([made(seed, own_edits=True)], [made(seed + 100, own_edits=True)]))
        missed += not rows["immediate"]["low"] <= 0 <= rows["immediate"]["high"]
    assert missed <= 5  # chance of more: 1e-3


def test_an_unlike_pairing_would_be_caught() -> None:
    """Pairing takes out the difficulty of the edits: without it the same runs have wider limits."""
    first, second = [made(s) for s in range(4)], [made(s, harder=0.1) for s in range(4)]
    paired, apart = (by_metric(t) for t in (compare_runs(first, second).metrics, independent_effects(first, second)))
    widths = [row["immediate"]["high"] - row["immediate"]["low"] for row in (paired, apart)]
    assert widths[0] < widths[1]


def test_missing_tables_are_named_and_nothing_is_raised() -> None:
    bare = Known({}, info())
    found = compare_runs([bare], [replace(bare)])
    assert len(found.metrics) == 0
    assert "efficacy" in found.missing
    assert list(found.collapse["state"]) == ["unknown", "unknown"]
    assert found.extensions == ("unknown: a run has no collapse point",)
    half = compare_runs([made()], [bare])
    assert "update_norm" in half.missing


def falling(at: int, **more: Any) -> Known:
    """A run whose quality falls below 60 at an evaluation."""
    one = made(**more)
    rows = [
        {"step": step, "metric": name, "kind": "token", "value": 0.9 if step < at else 0.3, "n": EDITS, "se": 0.02}
        for step in range(-1, STEPS + 2) for name in ("efficacy", "generalization", "specificity")
    ]  # fmt: skip
    one.held["quality"] = pd.DataFrame(rows)
    one.held["steps"] = one.held["steps"].assign(edits=10, skipped=None)
    return one


def test_collapse_points_and_their_ratio() -> None:
    found = compare_runs([falling(5)], [falling(9)])
    assert list(found.collapse["state"]) == ["collapsed", "collapsed"]
    assert list(found.collapse["edits"]) == [40, 80]
    assert found.extensions[0].startswith("2 times")
    assert list(compare_runs([falling(5)], [falling(99)]).collapse["state"]) == ["collapsed", "censored"]


# --- curves


def test_a_curve_is_one_number_a_target_step() -> None:
    one = falling(5)
    norm, cosine = curve(one, PANEL["update_norm"]), curve(one, PANEL["cosine"])
    assert list(norm["edits"]) == [10.0 * step for step in range(1, STEPS + 1)]
    table = one.held["updates"]
    first = table[table["step"] == 2]["norm"]
    assert norm["value"].iloc[0] == pytest.approx(math.sqrt(first.iloc[0] * first.iloc[1]))
    assert len(cosine) == STEPS - 1  # the first has no neighbour
    assert curve(one, PANEL["weight_ratio"])["value"].iloc[-1] == table["weight_ratio"].max()
    assert list(curve(one, PANEL["score"])["value"].round())[:4] == [90.0, 90.0, 90.0, 30.0]
    assert len(curve(Known({}, info()), PANEL["score"])) == len(curve(Known({}, info()), PANEL["condition"])) == 0


def test_long_curves_are_thinned_to_block_means() -> None:
    n = 1000
    steps = pd.DataFrame({"step": range(n), "phase": "target", "edits": 1, "skipped": None})
    updates = pd.DataFrame({"step": range(n), "module": "m", "norm": np.exp(np.arange(n) / 100.0)})
    found = curve(Known({"steps": steps, "updates": updates}, info()), PANEL["update_norm"], points=100)
    assert len(found) == 100
    assert np.log(found["value"].iloc[0]) == pytest.approx(0.045)
    assert found["edits"].iloc[0] == pytest.approx(5.5)


def test_the_mean_curve_stops_where_a_run_does() -> None:
    long = pd.DataFrame({"edits": [10.0, 20.0, 30.0], "value": [1.0, 2.0, 3.0]})
    short = pd.DataFrame({"edits": [10.0, 20.0], "value": [3.0, 8.0]})
    assert together([long, short], log=False).to_dict("list") == {"edits": [10.0, 20.0], "value": [2.0, 5.0]}
    assert together([long, short], log=True)["value"].iloc[1] == pytest.approx(4.0)
    assert len(together([long, short.iloc[:0]], log=False)) == 0
