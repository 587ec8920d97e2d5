"""What the recorders of the presets add to a step.

They need the whole package, so they are imported only when they are measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from reproduce.bench.ours import Outcome, edit_batch
from reproduce.bench.timing import Clock, timed
from reproduce.bench.workload import Workload
from stablediag.engine.weights import Realised, WeightWriter


class _Writing:
    """Writing the step's updates, with or without keeping them and comparing what the weights received."""

    def __init__(self, writer: WeightWriter, outcome: Outcome, saved: Mapping[str, Tensor], *, measure: bool) -> None:
        self.writer, self.outcome, self.saved, self.measure = writer, outcome, saved, measure
        self.written: dict[str, tuple[Realised | None, Tensor | None]] = {}

    def prepare(self) -> None:
        self.writer.restore(dict(self.saved))

    def run(self, clock: Clock) -> None:
        for name, update in self.outcome.updates.items():
            self.written[name] = self.writer.write(name, update, measure=self.measure)


class _Recording:
    """One recorder at one step."""

    def __init__(self, recorder: Any, step: Any) -> None:
        self.recorder, self.step = recorder, step

    def prepare(self) -> None:
        pass

    def run(self, clock: Clock) -> None:
        list(self.recorder.on_step(self.step))


def recorder_cost(
    work: Workload,
    writer: WeightWriter,
    outcome: Outcome,
    saved: Mapping[str, Tensor],
    *,
    repeats: int,
    preset: str = "standard",
) -> dict[str, float] | None:
    """Median seconds by recorder of one whitened step; what the writer keeps and measures for them is included.

    They are asked about the same step under the numbers 0, 1, 2, ...: what they measure may be nonsense, what it costs is
    that of any step after the first. What several of them need counts for the one that needs it first. Those of a preset
    that need more than a step's view are not among them.

    Returns
    -------
    dict or None
        None where the recorders cannot be imported (a machine without the package's other dependencies).
    """
    try:
        from stablediag.editors.base import Applied, Proposal, Tracked
        from stablediag.engine.view import ModelView
        from stablediag.models import LoadedModel
        from stablediag.recorders.base import StepView
        from stablediag.recorders.registry import PRESETS, RECORDERS, keeps, share
    except ImportError:
        return None
    recorders = [RECORDERS[name]() for name in PRESETS[preset]]
    share(recorders)
    keeping = WeightWriter(work.modules, keeps=keeps(recorders))
    writings = (
        _Writing(writer, outcome, saved, measure=False),
        _Writing(keeping, outcome, saved, measure=False),
        measured := _Writing(keeping, outcome, saved, measure=True),
    )
    # The first round meets cold caches.
    rounds = [[timed(one, work.device).seconds for one in writings] for _ in range(repeats + 1)][1:]
    cost = {
        "kept_updates": statistics.median(kept - plain for plain, kept, _ in rounds),
        "realised_measurement": statistics.median(whole - kept for _, kept, whole in rounds),
    }
    statistic = outcome.after.niw if outcome.after.niw is not None else outcome.after.grads
    tracked = Tracked(statistic, outcome.before.grads.nu, outcome.before.grads.mean, outcome.factor, statistic.nu)
    applied = [
        Applied(Proposal(name, update, {} if i else {"shape": tracked}, outcome.whitener), *measured.written[name])
        for i, (name, update) in enumerate(outcome.updates.items())
    ]
    view = ModelView(LoadedModel(work.model, None, work.modules, {}, None), writer)
    step = StepView(
        step=0,
        total=repeats + 1,
        phase="target",
        target_step=0,
        batch=edit_batch(len(work.tokens)),
        captures=outcome.captures,
        applied=applied,
        written=True,
        view=view,
    )
    seconds: dict[str, list[float]] = {recorder.name: [] for recorder in recorders}
    for place in range(repeats + 1):
        now = replace(step, step=place, target_step=place, batch=replace(step.batch, index=place))
        for recorder in recorders:
            seconds[recorder.name].append(timed(_Recording(recorder, now), work.device).seconds)
    # The first step has nothing before it.
    return cost | {name: statistics.median(samples[1:]) for name, samples in seconds.items()}
