"""What recorders of one run make together is what each would have made alone: rows, states, and nothing kept too long."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace

import pytest
import torch

from stablediag.editors.base import Applied, Proposal, Tracked
from stablediag.maths.niw import DiagNIW
from stablediag.maths.update import Dense, LowRank
from stablediag.recorders._rows import Groups, StepRows
from stablediag.recorders.alarm import Alarm
from stablediag.recorders.base import Row, every
from stablediag.recorders.innovation import edit_units
from stablediag.recorders.prequential import Prequential
from stablediag.recorders.registry import share
from stablediag.recorders.updates import AdjacentCosine, Sized, StepUpdates, UpdateNorm, compact
from stablediag.recorders.variogram import Variogram
from stablediag.types import Capture

MODULES = ("model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj")
D, P, N = 24, 40, 12
#: index and phase of every step: a mid-stream warm-up, and a step that was skipped
PLAN = (
    *((0, "warmup"), (1, "target"), (2, "target"), (3, "target"), (5, "target"), (6, "target")),
    *((7, "warmup"), (8, "target"), (9, "target"), (10, "target")),
)


def make_steps(step_view, *, rows=N):
    """Two modules with statistics of their own; several rows an edit, not in order."""
    generator = torch.Generator().manual_seed(0)
    states, made = dict.fromkeys(MODULES, DiagNIW.empty(D)), []
    for index, phase in PLAN:
        applied, captures = [], {}
        edits = torch.arange(rows).flip(0) // 2
        for module in MODULES:
            keys, grads = torch.randn(rows, P, generator=generator), torch.randn(rows, D, generator=generator) + 1
            before, states[module] = states[module], states[module].update(grads)
            tracked = {module: Tracked(states[module], before.nu, before.mean, None, states[module].nu)}
            captures[module] = Capture(module, keys, grads, edits, edits, edits, torch.ones(rows), None, 0.0)
            applied.append(Applied(Proposal(module, LowRank(keys.mT, grads), tracked), None))
        place = sum(other == "target" for _, other in PLAN[: len(made)])
        made.append(step_view(index, applied, phase=phase, captures=captures, total=11, target_step=place))
    return made


def fresh(report=None, **options):
    cosine = AdjacentCosine(**options) if report is None else AdjacentCosine(report=report, **options)
    return [UpdateNorm(), cosine, Prequential(probes=4), Variogram(depth=2), Alarm()]


def record(recorders, steps):
    return {r.name: [item for step in steps for item in told(r, step)] for r in recorders}


def together(recorders, steps):
    """As in a run: every recorder at a step before the next one."""
    found = {recorder.name: [] for recorder in recorders}
    for step in steps:
        for recorder in recorders:
            found[recorder.name] += told(recorder, step)
    return found


def told(recorder, step):
    return [(item.table, dict(item.key), dict(item.values)) for item in recorder.on_step(step) if isinstance(item, Row)]


def same_state(left, right):
    (a, said), (b, other) = left.state_dict(), right.state_dict()
    return json.dumps(said) == json.dumps(other) and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    "options", [{}, {"report": every(3)}, {"reset_after_warmup": False}], ids=["plain", "thinned", "across"]
)
@pytest.mark.parametrize("backwards", [False, True])
def test_shared_or_not_the_rows_and_the_state_are_the_same(step_view, options, backwards):
    steps = make_steps(step_view)
    alone, shared = fresh(**options), fresh(**options)
    if backwards:
        shared.reverse()
    share(shared)
    expected, found = record(alone, steps), together(shared, steps)
    assert found == expected
    assert sum(values["cosine"] is not None for _, _, values in expected["adjacent_cosine"]) >= 4
    by_name = {recorder.name: recorder for recorder in shared}
    assert all(same_state(recorder, by_name[recorder.name]) for recorder in alone)


def test_the_alarm_asks_the_cosine_of_the_run_where_that_means_the_same(step_view):
    for options, asked in (({}, True), ({"reset_after_warmup": False}, False)):
        recorders = fresh(**options)
        share(recorders)
        assert (recorders[-1].cosine is recorders[1]) is asked
        assert recorders[1].asked is asked
    without = [Alarm(), UpdateNorm()]
    share(without)
    assert without[0].cosine.updates is without[1].updates


def test_what_several_need_is_made_once(step_view, monkeypatch):
    formed, summed = [], []
    monkeypatch.setattr(LowRank, "dense", lambda self: formed.append(1) or self.left @ self.right)
    grouped = Groups.sums
    monkeypatch.setattr(Groups, "sums", lambda self, rows: summed.append(1) or grouped(self, rows))
    steps = make_steps(step_view)[:4]
    recorders = fresh()
    share(recorders)
    together(recorders, steps)
    assert len(formed) == len(steps) * len(MODULES)
    once = len(summed)
    formed.clear()
    summed.clear()
    together(fresh(), steps)
    assert len(formed) > 2 * len(steps) * len(MODULES)
    assert len(summed) > once


def kept(step):
    """The step with its updates as the writer multiplied them out, in the layout of a linear layer's weight."""
    applied = []
    for one in step.applied:
        update = one.proposal.update
        change = (update.right.mT @ update.left.mT).mT
        assert not change.is_contiguous()
        applied.append(replace(one, change=change))
    return replace(step, applied=tuple(applied))


def test_what_the_writer_kept_is_taken_and_not_made_again(step_view, monkeypatch):
    steps = make_steps(step_view)
    expected = together(fresh(), steps)
    monkeypatch.setattr(LowRank, "dense", lambda self: pytest.fail("multiplied out once more"))
    recorders = fresh()
    share(recorders)
    found = together(recorders, [kept(step) for step in steps])
    for name in ("update_norm", "adjacent_cosine"):
        for (_, key, mine), (_, same, other) in zip(found[name], expected[name], strict=True):
            assert (key, mine.keys()) == (same, other.keys())
            for column, value in mine.items():
                assert value == (None if other[column] is None else pytest.approx(other[column], rel=1e-5, abs=1e-6))
    assert [values["state"] for _, _, values in found["alarm"]] == [
        values["state"] for _, _, values in expected["alarm"]
    ]


@pytest.mark.parametrize("at", [2, 3, 8])
def test_a_kept_update_is_restored_to_the_last_bit(step_view, at):
    steps = [kept(step) for step in make_steps(step_view)]
    through, stopped, resumed = AdjacentCosine(), AdjacentCosine(), AdjacentCosine()
    record([stopped], steps[:at])
    tensors, meta = stopped.state_dict()
    resumed.load_state_dict({k: t.contiguous().clone() for k, t in tensors.items()}, json.loads(json.dumps(meta)))
    expected = record([through], steps)["adjacent_cosine"]
    assert record([resumed], steps[at:])["adjacent_cosine"] == [
        row for row in expected if row[1]["step"] >= PLAN[at][0]
    ]


def test_of_a_module_that_is_written_twice_the_sum_counts(step_view):
    (step,) = make_steps(step_view)[1:2]
    twice = replace(step, applied=(*kept(step).applied, *kept(step).applied))
    once = together([UpdateNorm()], [step])["update_norm"]
    both = together([UpdateNorm()], [twice])["update_norm"]
    for (_, _, mine), (_, _, other) in zip(both, once, strict=True):
        assert mine["norm"] == pytest.approx(2 * other["norm"], rel=1e-6)


@pytest.mark.parametrize("at", [2, 3, 8])
def test_a_state_of_recorders_by_themselves_is_continued_by_shared_ones(step_view, at):
    """Checkpoints of versions without sharing are of the same form."""
    steps = make_steps(step_view)
    alone, resumed = fresh(), fresh()
    record(alone, steps[:at])
    share(resumed)
    for one, other in zip(alone, resumed, strict=True):
        tensors, meta = one.state_dict()
        other.load_state_dict({k: t.contiguous().clone() for k, t in tensors.items()}, json.loads(json.dumps(meta)))
    assert together(resumed, steps[at:]) == record(alone, steps[at:])


def test_a_previous_update_in_factors_is_compared_with_a_matrix(step_view):
    """A checkpoint may hold factors where the present version keeps a matrix."""
    steps = make_steps(step_view)
    recorder, thin = AdjacentCosine(), AdjacentCosine()
    list(recorder.on_step(steps[1]))
    expected = told(recorder, steps[2])
    kept = {}
    for module in MODULES:
        factors = steps[1].applied[MODULES.index(module)].proposal.update
        kept |= {f"{module}/left_t": factors.left.mT.contiguous(), f"{module}/right": factors.right}
    thin.load_state_dict(kept, {"modules": list(MODULES), "place": 1})
    for (_, _, mine), (_, _, other) in zip(told(thin, steps[2]), expected, strict=True):
        assert mine["cosine"] == pytest.approx(other["cosine"], abs=1e-6)


def test_asked_twice_about_a_step_the_answer_is_the_same(step_view):
    steps = make_steps(step_view)
    recorder = AdjacentCosine()
    list(recorder.on_step(steps[1]))
    first = recorder.compare(steps[2])
    assert recorder.compare(steps[2]) is first
    assert all(values["cosine"] is not None for values in recorder.compare(steps[3]).values())


@pytest.mark.parametrize("shared", [StepUpdates, StepRows])
def test_nothing_is_kept_longer_than_the_step(step_view, shared):
    (step,) = make_steps(step_view)[:1]
    source = shared()
    made = source.of(step)
    assert source.of(step) is made
    tensor = step.applied[0].proposal.update.left
    alive, update = weakref.ref(step), weakref.ref(tensor)
    del step, made, tensor
    gc.collect()
    assert alive() is None
    assert update() is None
    assert not source._made


def test_small_updates_are_multiplied_out_and_large_ones_when_that_is_shorter():
    def low(p, d, n):
        return LowRank(torch.zeros(1, 1).expand(p, n), torch.zeros(1, 1).expand(n, d))

    assert isinstance(compact(low(40, 24, 4)), Dense)  # 4 times 4 * 64 exceeds 40 * 24
    assert isinstance(compact(low(40, 24, 3)), LowRank)
    # 2^24 entries: the factors of 1024 rows have half as many.
    assert isinstance(compact(low(4096, 4096, 1024)), LowRank)


def test_an_own_copy_is_made_only_of_what_belongs_to_others():
    matrix = torch.randn(6, 5)
    assert not Sized.of(Dense(matrix)).own
    assert not Sized.of(Dense(matrix.mT)).own  # the layout of a linear layer's weight, which a checkpoint restores
    assert Sized.of(Dense(torch.randn(6, 10)[:, ::2])).own
    assert Sized.of(LowRank(torch.randn(6, 4), torch.randn(4, 5))).own
    thin = Sized.of(LowRank(torch.randn(60, 1), torch.randn(1, 50)))
    assert not thin.own
    assert thin.norm == pytest.approx(float(torch.linalg.matrix_norm(thin.update.dense())), rel=1e-6)


def test_modules_share_groups_only_of_the_same_rows(step_view):
    """A guard may drop rows of one module: its edits are then its own."""
    (step,) = make_steps(step_view)[1:2]
    same, other = (batch.groups for batch in StepRows().of(step))
    assert other is same
    odd = step.captures[MODULES[1]]
    captures = dict(step.captures) | {MODULES[1]: replace(odd, edit_ids=odd.edit_ids.roll(1))}
    first, second = StepRows().of(replace(step, captures=captures))
    for batch in (first, second):
        edits = captures[batch.scope.name].edit_ids
        torch.testing.assert_close(batch.sums, edit_units(batch.rows, edits), rtol=0, atol=0)
    assert not torch.equal(second.sums, first.groups.sums(second.rows))


def test_groups_are_those_of_the_sums_over_edits():
    edits = torch.tensor([4, 0, 4, 2, 0, 0, 4])
    groups, rows = Groups.of(edits), torch.randn(7, 3)
    assert torch.equal(groups.sums(rows), edit_units(rows, edits))
    assert torch.equal(groups.unit, torch.unique(edits, return_inverse=True)[1])
    assert groups.n == 3
