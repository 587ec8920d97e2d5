"""What an editor adds to the work that it cannot do without: a step of 100 edits on the embedded model, and on a deep one.

``python -m reproduce.bench.editors --out FILE``. For the LN family that work is the capture; for locate-and-edit methods
it is the optimisation of the targets, as this package does it and with the whole passes of the releases. One processor
thread; all ratios are of processor seconds, which other load on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from reproduce.bench.report import save
from reproduce.bench.summary import Gate
from reproduce.bench.timing import Arm, Clock, Sample, interleave, machine, spread
from stablediag.data.load import load_stream
from stablediag.editors import locate_goal
from stablediag.editors.base import Applied, Editor, editor_class, resolve_params
from stablediag.engine import targets as engine_targets
from stablediag.engine.guard import guard
from stablediag.engine.moments import collect_moments, save_moments, testbed_documents
from stablediag.engine.replay import Replay
from stablediag.engine.targets import Targets
from stablediag.engine.view import ModelView
from stablediag.engine.weights import WeightWriter
from stablediag.models import LoadedModel, load_model, resolve_modules
from stablediag.spec import DataSpec
from stablediag.types import Edit, EditBatch

CPU = torch.device("cpu")
MODULES = ("layers.[1-3].mlp.down_proj",)
#: steps before the one that is timed: statistics are past the threshold of whitening, keys are remembered
HISTORY = 2
#: tokens of text behind the key statistics
TOKENS = 20_000
#: layers of the deep model: the embedded one has 4, of which the upper 3 are edited, so that nothing is left above them
DEEP = 8
#: rounds of the deep model at most: its steps take ten times as long
DEEP_ROUNDS = 3

#: editor, preset and parameters by the name of the arm
LN: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "ultraedit": ("ln", "ultraedit", {"lr": 1.3e-2}),
    "stableedit": ("ln", "paper", {"lr": 1.3e-2}),
}
LOCATE: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "memit": ("memit", "testbed", {}),
    "alphaedit": ("alphaedit", "testbed", {}),
}
#: a random model's keys have no directions that text hardly uses: half of them are taken for the null space
DEEP_PARAMS: Mapping[str, dict[str, Any]] = {"alphaedit": {"threshold": 1.0}}
GATES = {
    ("testbed", "ultraedit", "ratio"): 1.15,
    ("testbed", "stableedit", "ratio"): 1.25,
    ("testbed", "memit", "ratio_whole_passes"): 1.1,
    ("testbed", "alphaedit", "ratio_whole_passes"): 1.1,
    ("testbed", "memit", "ratio"): 1.1,
    ("testbed", "alphaedit", "ratio"): 1.1,
    ("deep", "memit", "ratio"): 1.1,
    ("deep", "alphaedit", "ratio"): 1.1,
}


@dataclass(frozen=True, eq=False)
class World:
    """A model, its key statistics, and edits: `size` of them a step."""

    loaded: LoadedModel
    moments: Path
    edits: tuple[Edit, ...]
    size: int

    def batch(self, index: int) -> EditBatch:
        """The edits of a step."""
        return EditBatch(index, "target", self.edits[index * self.size : (index + 1) * self.size])


def make_world(folder: Path, *, layers: int | None = None, size: int = 100, tokens: int = TOKENS) -> World:
    """The embedded model, or a random one like it with more layers; its statistics are written into `folder`."""
    loaded = load_model("testbed", modules=MODULES, device="cpu")
    if layers is not None:
        from transformers import LlamaConfig, LlamaForCausalLM

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = LlamaConfig.from_dict(loaded.model.config.to_dict() | {"num_hidden_layers": layers})
            model = LlamaForCausalLM(config).eval().requires_grad_(False)
        info = loaded.info | {"name": f"random, {layers} layers", "sha256": {}}
        loaded = replace(loaded, model=model, modules=resolve_modules(model, MODULES), info=info)
    found = collect_moments(loaded, testbed_documents(), tokens=tokens)
    moments = save_moments(folder / f"{layers}.safetensors", found, model=loaded.info, source={"text": "testbed"})
    edits = load_stream(DataSpec(source="testbed", stream="new", size=size * (HISTORY + 1)))
    return World(loaded, moments, tuple(edits), size)


class StepArm:
    """One step of an editor as the session carries it out; what it cannot do without is the part ``floor``."""

    def __init__(self, world: World, editor: str, preset: str, params: Mapping[str, Any]) -> None:
        self.world = world
        self.writer = WeightWriter(world.loaded.modules)
        initial = self.writer.snapshot()
        self.view = ModelView(world.loaded, self.writer)
        resolved = resolve_params(editor, preset, dict(params))
        self.editor: Editor = editor_class(editor)(resolved, world.loaded.modules)
        self.asked: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.targets: Targets | None = None
        for index in range(HISTORY):
            self._step(world.batch(index), Clock(CPU))
        self.weights = self.writer.snapshot()
        tensors, self.meta = self.editor.state_dict()
        self.state = {name: tensor.clone() for name, tensor in tensors.items()}
        self.prepare()
        self.run(Clock(CPU))  # first calls are no part of the comparison
        self.writer.restore(initial)

    def prepare(self) -> None:
        """Put weights and state back to where they were after the history."""
        self.writer.restore(self.weights)
        self.editor.load_state_dict({name: tensor.clone() for name, tensor in self.state.items()}, self.meta)

    def run(self, clock: Clock) -> None:
        """One step."""
        self._step(self.world.batch(HISTORY), clock)

    def _step(self, batch: EditBatch, clock: Clock) -> None:
        editor, view = self.editor, self.view
        captures = {}
        if editor.needs is not None:
            with clock.part("floor"):
                captures = view.capture_edits(batch.edits, editor.needs, minibatch=editor.minibatch)
            captures = guard(captures, batch, policy="raise").captures
        with self._timed_targets(clock):
            applied = [
                Applied(proposal, self.writer.apply(proposal.module, proposal.update))
                for proposal in editor.step(view, batch, captures)
            ]
            editor.commit(view, applied)

    @contextmanager
    def _timed_targets(self, clock: Clock) -> Iterator[None]:
        """The optimisation of the targets is the part ``floor``; how it was asked for, and what it found, is kept."""
        optimise = locate_goal.optimise_targets

        def timed(*args: Any, **kwargs: Any) -> Targets:
            with clock.part("floor"):
                self.targets = optimise(*args, **kwargs)
            self.asked = args, kwargs
            return self.targets

        with patch.object(locate_goal, "optimise_targets", timed):
            yield


@dataclass(eq=False)
class WholePassesArm:
    """The targets of another arm's step, with all layers in every pass, as the releases have it."""

    step: StepArm
    targets: Targets | None = field(default=None, init=False)

    def prepare(self) -> None:
        """As the step finds it."""
        self.step.prepare()

    def run(self, clock: Clock) -> None:
        """The optimisation alone."""
        assert self.step.asked is not None  # it ran when it was made
        args, kwargs = self.step.asked

        def whole(model: Any, layers: Sequence[str]) -> Replay:
            return Replay(model, ())

        with patch.object(engine_targets, "Replay", whole), clock.part("floor"):
            self.targets = engine_targets.optimise_targets(*args, **kwargs)


def over_floor(sample: Sample) -> float:
    """Processor seconds of a step over those of what it cannot do without."""
    return sample.cpu_seconds / sample.cpu_parts["floor"]


def over_whole(step: Sample, whole: Sample) -> float:
    """The same as if the targets had been optimised with whole passes."""
    return 1 + (step.cpu_seconds - step.cpu_parts["floor"]) / whole.cpu_parts["floor"]


def compare_editors(
    world: World,
    *,
    repeats: int,
    editors: Sequence[str] | None = None,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    whole_passes: bool = True,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Time all editors in turn.

    Parameters
    ----------
    world : World
    repeats : int
        Rounds.
    editors : sequence of str, optional
        Names of arms; all by default.
    params : mapping of str to mapping, optional
        Further parameters by arm.
    whole_passes : bool
        Time the targets with whole passes as well.
    progress : callable, optional
        Is told of every sample.

    Returns
    -------
    dict
        JSON-ready, by editor: ``ratio`` of the step over its floor, ``floor`` and ``rest`` in processor seconds, and for
        locate-and-edit methods, if asked for, ``whole_passes`` (seconds), ``ratio_whole_passes`` and ``targets_difference``, the
        relative difference that leaving layers out makes to the targets.
    """
    wanted = tuple(editors or (*LN, *LOCATE))
    steps: dict[str, StepArm] = {}
    arms: dict[str, Arm] = {}
    for name in wanted:
        editor, preset, own = (LN | LOCATE)[name]
        more = {"moments": str(world.moments)} if name in LOCATE else {}
        arms[name] = steps[name] = StepArm(world, editor, preset, own | more | dict((params or {}).get(name, {})))
        if name in LOCATE and whole_passes:
            arms[f"{name}, whole passes"] = WholePassesArm(steps[name])
    before = WeightWriter(world.loaded.modules).snapshot()
    series = interleave(arms, repeats=repeats, device=CPU, progress=progress)
    WeightWriter(world.loaded.modules).restore(before)
    found: dict[str, Any] = {}
    for name in wanted:
        samples = series[name].samples
        found[name] = {
            "ratio": spread([over_floor(sample) for sample in samples]),
            "floor": spread([sample.cpu_parts["floor"] for sample in samples]),
            "rest": spread([sample.cpu_seconds - sample.cpu_parts["floor"] for sample in samples]),
            "seconds": spread([sample.seconds for sample in samples]),
        }
        whole = arms.get(f"{name}, whole passes")
        if isinstance(whole, WholePassesArm):
            alone = series[f"{name}, whole passes"].samples
            found[name] |= {
                "whole_passes": spread([sample.cpu_parts["floor"] for sample in alone]),
                "ratio_whole_passes": spread([over_whole(one, two) for one, two in zip(samples, alone, strict=True)]),
                "targets_difference": _apart(steps[name].targets, whole.targets),
            }
    return found


def _apart(a: Targets | None, b: Targets | None) -> float:
    assert a is not None  # both arms ran
    assert b is not None

    def norm(rows: Tensor) -> Tensor:
        return torch.linalg.vector_norm(rows.double())

    return float(norm(a.z - b.z) / norm(b.z))


def judged(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The promises, with what was measured."""
    return {
        f"{world}, {editor}, {number}": Gate(number, "<=", bound).check(found[world][editor][number]["median"])
        for (world, editor, number), bound in GATES.items()
    }


def report(result: Mapping[str, Any]) -> str:
    """The result as text."""
    lines = []
    for world in ("testbed", "deep"):
        lines.append(f"{world}: {result['workload'][world]}")
        for name, one in result[world].items():
            text = f"{name:<11} floor {one['floor']['median']:.3f} s + {one['rest']['median']:.3f} s"
            text += f", ratio {_range(one['ratio'])}"
            if "whole_passes" in one:
                text += (
                    f"; whole passes {one['whole_passes']['median']:.3f} s, ratio {_range(one['ratio_whole_passes'])}"
                )
                text += f", targets differ by {one['targets_difference']:.1e}"
            lines.append(text)
    lines.append("")
    for name, gate in result["gates"].items():
        lines.append(f"{'met   ' if gate['met'] else 'MISSED'} {name} {gate['value']:.3f} <= {gate['bound']}")
    return "\n".join(lines)


def _range(found: Mapping[str, float]) -> str:
    return f"{found['median']:.3f} [{found['min']:.3f}, {found['max']:.3f}]"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m reproduce.bench.editors", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--edits", type=int, default=100, help="edits in a step")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    options = parser.parse_args(argv)
    if options.repeats < 1 or options.edits < 1:
        parser.error("--repeats and --edits must be at least 1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        described = machine(CPU)
        found: dict[str, Any] = {}
        about: dict[str, str] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, layers in (("testbed", None), ("deep", DEEP)):
                world = make_world(Path(folder), layers=layers, size=options.edits)
                config = world.loaded.model.config
                about[name] = (
                    f"{'embedded' if layers is None else 'random'} Llama, hidden {config.hidden_size}, "
                    f"{config.num_hidden_layers} layers, {', '.join(MODULES)}, {options.edits} edits"
                )
                found[name] = (
                    compare_editors(world, repeats=options.repeats)
                    if layers is None
                    # What LN does beside its capture does not depend on the depth.
                    else compare_editors(
                        world,
                        repeats=min(options.repeats, DEEP_ROUNDS),
                        editors=tuple(LOCATE),
                        params=DEEP_PARAMS,
                        whole_passes=False,
                    )
                )
    finally:
        torch.set_num_threads(threads)
    result = {"machine": described, "workload": about, **found, "gates": judged(found)}
    print(report(result))
    save(result, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
