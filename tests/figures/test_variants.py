"""Runs of the figures of diagnosis: what a variant changes, and which runs it builds on."""

from __future__ import annotations

import pytest

from figures.scales import full, quick
from figures.variants import SEEDS, Variant, Variants
from stablediag.errors import SpecError

PLAIN = Variant("plain", "stableedit")
SAME_NORMS = Variant("same", "stableedit", ("editor.params.match={run: '@plain', mode: every}", "editor.params.lr=0.5"))
LATE = Variant("late", "stableedit", ("warmup.size=0", "init.weights_from='@same'", "init.stats_from='@plain'"))


def test_a_run_that_is_named_is_that_of_the_same_seed_and_is_made_before() -> None:
    found = {(need.arm, need.seed): need for need in Variants(full=(LATE,), hidden=(PLAIN, SAME_NORMS)).resolve(full())}
    assert set(found) == {(label, seed) for label in ("plain", "same", "late") for seed in SEEDS["full"]}
    for seed in SEEDS["full"]:
        plain, same, late = (found[label, seed] for label in ("plain", "same", "late"))
        assert same.after == (plain.directory,)
        assert late.after == (same.directory, plain.directory)
        assert {need.spec.data.seed for need in (plain, same, late)} == {seed}


def test_hidden_runs_that_nothing_builds_on_are_not_made() -> None:
    assert {need.arm for need in Variants(full=(PLAIN,), hidden=(SAME_NORMS,)).resolve(full())} == {"plain"}


def test_changes_win_over_the_setting_and_the_label_does_not_count() -> None:
    larger = Variant("larger", "stableedit", ("data.size=1500", "recorders=light"))
    twin = Variant("twin", "stableedit")
    first, second, *rest = Variants(full=(PLAIN, larger)).resolve(full())
    third = Variants(full=(twin,)).resolve(full())[0]
    assert len(rest) == 4
    assert (first.spec.data.size, second.spec.data.size) == (1000, 1500)
    assert second.spec.recorders == "light"
    assert first.digest == third.digest != second.digest


def test_the_quick_scale_has_its_own_variants_and_sizes() -> None:
    both = Variants(full=(PLAIN, SAME_NORMS), quick=(PLAIN,))
    assert [(need.arm, need.seed, need.spec.data.size) for need in both.resolve(quick())] == [
        ("plain", seed, 200) for seed in SEEDS["quick"]
    ]
    assert {need.arm for need in Variants(full=(PLAIN, SAME_NORMS)).resolve(quick())} == {"plain", "same"}


def test_a_label_that_does_not_exist_is_named() -> None:
    with pytest.raises(SpecError, match=r"no variant 'plain': use one of same"):
        Variants(full=(SAME_NORMS,)).resolve(full())


def test_a_match_without_a_run_is_refused() -> None:
    with pytest.raises(SpecError, match="run"):
        Variants(full=(Variant("a", "stableedit", ("editor.params.match={mode: every}",)),)).resolve(full())
