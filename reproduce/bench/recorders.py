"""Processor seconds that the recorders add to a step: in a run of the embedded model, and at the width of a large one.

``--size testbed`` edits the embedded model, keeps the steps, and shows them again to the recorders of each preset, as a run
has them: what several of them need counts for the one that needs it first. ``--size 8b`` makes steps of random keys and
gradients, so that they can be measured on a machine that could not hold the model, for the recorders that need no more. Tells
what grows with the width; `bench` measures the standard recorders inside a real step of a model between the two.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reproduce.bench.ours import edit_batch
from reproduce.bench.report import save
from reproduce.bench.timing import Clock, machine, timed
from stablediag.editors.base import Applied, Proposal, Tracked
from stablediag.engine.session import Session
from stablediag.engine.view import ModelView
from stablediag.engine.weights import WeightWriter
from stablediag.maths.niw import NIW
from stablediag.maths.update import LowRank
from stablediag.models import LoadedModel, ResolvedModule
from stablediag.recorders.base import BaseRecorder, Item, Recorder, RunView, StepView
from stablediag.recorders.registry import RECORDERS, build_recorders, share
from stablediag.spec import Spec
from stablediag.types import Capture, Edit

CPU = torch.device("cpu")
#: presets that are measured in a run
MEASURED = ("light", "standard", "full")
#: what can be measured without a model; the rest needs whiteners or captures
NAMES = ("update_norm", "adjacent_cosine", "prequential", "variogram", "alarm")
#: edits of a run, and those of its warm-up
EDITS, WARMUP = 1000, 500
#: steps that are left out: there is nothing to compare with, and no whitening yet
SKIPPED = 5


@dataclass
class _Keeper(BaseRecorder):
    """Keeps what recorders are shown."""

    name = "keeper"
    steps: list[StepView] = field(default_factory=list)
    starts: list[RunView] = field(default_factory=list)

    def on_run_start(self, run: RunView) -> Iterable[Item]:
        self.starts.append(run)
        return ()

    def on_step(self, step: StepView) -> Iterable[Item]:
        self.steps.append(step)
        return ()


@dataclass(frozen=True)
class Replay:
    """A run that is over: its steps, its stream, and the processor seconds of its steps."""

    spec: dict[str, Any]
    start: RunView
    steps: Sequence[StepView]
    stream: Sequence[Edit]
    seconds: float

    def recorders(self, preset: str) -> list[Recorder]:
        """Fresh recorders of a preset, at the start of the run."""
        made = build_recorders(Spec.from_mapping(self.spec | {"recorders": preset}), self.stream)
        for recorder in made:
            list(recorder.on_run_start(self.start))
        return made


def replay(*, edits: int = EDITS, warmup: int = WARMUP, per_step: int = 100) -> Replay:
    """Edit the embedded model with StableEdit and keep the steps."""
    spec = {
        "model": {"path": "testbed", "modules": ["layers.[1-3].mlp.down_proj"]},
        "data": {"source": "testbed", "stream": "new", "size": edits},
        "warmup": {"size": warmup, "placement": "start"},
        "edits_per_step": per_step,
        "editor": {"name": "ln", "preset": "paper", "params": {"lr": 1.3e-2}},
        "evaluation": {"schedule": "never"},
        "snapshots": {"schedule": "never"},
        "recorders": "light",  # so that the writer keeps what recorders compare
        "threads": 1,
    }
    keeper = _Keeper()
    with tempfile.TemporaryDirectory() as folder:
        session = Session.create(Spec.from_mapping(spec), Path(folder) / "run", progress=False)
        session.recorders[:] = [keeper]
        stream = session.target
        timings = session.run().table("timings")
    seconds = float(timings["seconds_cpu"].iloc[SKIPPED:].median())
    return Replay(spec, keeper.starts[0], keeper.steps, stream, seconds)


@dataclass
class _Told:
    """A recorder at one step."""

    recorder: Recorder
    step: StepView

    def prepare(self) -> None:
        pass

    def run(self, clock: Clock) -> None:
        if self.recorder.schedule(self.step.step, self.step.total):
            list(self.recorder.on_step(self.step))


def preset_cost(run: Replay, preset: str, *, repeats: int) -> dict[str, float]:
    """Processor seconds by recorder: the mean over the steps, of each step the median over the repeats."""
    found: dict[str, list[list[float]]] = {}
    for _ in range(repeats):
        recorders = run.recorders(preset)
        passed: dict[str, list[float]] = {recorder.name: [] for recorder in recorders}
        for step in run.steps:
            for recorder in recorders:
                passed[recorder.name].append(timed(_Told(recorder, step), CPU).cpu_seconds)
        for name, seconds in passed.items():
            found.setdefault(name, []).append(seconds[SKIPPED:])
    return {
        name: statistics.fmean(statistics.median(step) for step in zip(*seconds, strict=True))
        for name, seconds in found.items()
    }


def measure_run(*, repeats: int = 5, edits: int = EDITS, warmup: int = WARMUP, per_step: int = 100) -> dict[str, Any]:
    """Every preset in a run of the embedded model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        described = machine(CPU)
        run = replay(edits=edits, warmup=warmup, per_step=per_step)
        cost = {preset: preset_cost(run, preset, repeats=repeats) for preset in MEASURED}
    finally:
        torch.set_num_threads(threads)
    return {
        "size": {"edits": per_step, "steps": len(run.steps), "modules": len(run.steps[-1].captures)},
        "machine": described,
        "step_cpu_seconds": run.seconds,
        "cpu_seconds": cost,
        "share": {preset: sum(seconds.values()) / run.seconds for preset, seconds in cost.items()},
    }


@dataclass(frozen=True)
class Width:
    """Sizes of a step: edits with equally many rows each."""

    d_in: int
    d_out: int
    edits: int
    rows_per_edit: int
    modules: int


WIDTHS = {"tiny": Width(96, 24, 20, 1, 2), "8b": Width(14336, 4096, 100, 4, 7)}


class _Stream:
    """Steps of random rows; the statistics are counted, and their d x d part is left out."""

    def __init__(self, size: Width) -> None:
        self.size = size
        self.model = nn.ModuleList(nn.Linear(size.d_in, size.d_out, bias=False) for _ in range(size.modules))
        self.modules = {
            f"m{i}": ResolvedModule(f"m{i}", module, "linear", size.d_in, size.d_out)
            for i, module in enumerate(self.model)
        }
        loaded = LoadedModel(self.model, None, self.modules, {}, None)
        self.view = ModelView(loaded, WeightWriter(self.modules))
        blank = torch.zeros(size.d_out, dtype=torch.float64)
        self.states = dict.fromkeys(self.modules, NIW(blank, 0.0, torch.zeros(1, 1), 0.0))
        self.place = 0

    def step(self, total: int) -> StepView:
        size = self.size
        n = size.edits * size.rows_per_edit
        edits = torch.arange(n) // size.rows_per_edit
        captures, applied = {}, []
        for name in self.modules:
            keys, grads = torch.randn(n, size.d_in), torch.randn(n, size.d_out)
            captures[name] = Capture(name, keys, grads, edits, edits, edits, torch.ones(n), None, 0.0)
            before = self.states[name]
            mean = before.mean + (grads.double().mean(dim=0) - before.mean) * (n / (before.nu + n))
            self.states[name] = after = NIW(mean, before.kappa + n, before.scale, before.nu + n)
            tracked = {name: Tracked(after, before.nu, before.mean, None, after.nu)}
            applied.append(Applied(Proposal(name, LowRank(keys.mT, grads), tracked), None))
        self.place += 1
        return StepView(
            step=self.place - 1,
            total=total,
            phase="target",
            target_step=self.place - 1,
            batch=edit_batch(size.edits),
            captures=captures,
            applied=applied,
            written=True,
            view=self.view,
        )


def measure_width(size: str, *, repeats: int = 5) -> dict[str, Any]:
    """Median processor seconds a step, after two steps that fill the memories."""
    torch.manual_seed(0)
    described, stream = machine(CPU), _Stream(WIDTHS[size])
    recorders = [RECORDERS[name]() for name in NAMES]
    share(recorders)
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(repeats + 2):
        step = stream.step(repeats + 2)
        for recorder in recorders:
            found[recorder.name].append(timed(_Told(recorder, step), CPU).cpu_seconds)
    cost = {name: statistics.median(seconds[2:]) for name, seconds in found.items()}
    return {"size": WIDTHS[size].__dict__, "machine": described, "cpu_seconds": cost}


def report(result: dict[str, Any]) -> str:
    """The result as text."""
    if "share" not in result:
        return "\n".join(
            f"{name:16s} {1e3 * seconds:8.2f} ms a step" for name, seconds in result["cpu_seconds"].items()
        )
    lines = [f"step without recorders {1e3 * result['step_cpu_seconds']:.1f} ms"]
    for preset, cost in result["cpu_seconds"].items():
        whole = 1e3 * sum(cost.values())
        lines.append(f"{preset}: {whole:.2f} ms a step, {result['share'][preset]:.1%}")
        lines += [f"  {name:16s} {1e3 * seconds:8.2f} ms" for name, seconds in cost.items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m reproduce.bench.recorders", description=__doc__)
    parser.add_argument("--size", choices=("testbed", *sorted(WIDTHS)), default="testbed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    chosen = parser.parse_args(argv)
    if chosen.repeats < 1:
        parser.error("--repeats must be at least 1")
    if chosen.size == "testbed":
        result = measure_run(repeats=chosen.repeats)
    else:
        result = measure_width(chosen.size, repeats=chosen.repeats)
    print(report(result))
    save(result, chosen.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
