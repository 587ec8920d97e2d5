"""Short runs of the testbed, each with one thing wrong, that the doctor is asked about."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from stablediag.data.load import load_stream
from stablediag.engine.moments import collect_moments, save_moments, testbed_documents
from stablediag.engine.session import run
from stablediag.maths import whiten
from stablediag.models import load_model
from stablediag.spec import Spec
from stablediag.spec.streams import DataSpec
from stablediag.store.run import Run
from stablediag.types import Edit

MODULES = ["layers.[1-3].mlp.down_proj"]
STEP = 24
#: StableEdit at a rate that teaches: 240 warm-up edits that are written, 480 edits
HEALTHY: Mapping[str, Any] = {
    "model": {"path": "testbed", "modules": MODULES, "device": "cpu"},
    "data": {"source": "testbed", "size": 20 * STEP},
    "warmup": {"size": 10 * STEP, "placement": "start"},
    "edits_per_step": STEP,
    "editor": {"preset": "paper", "params": {"lr": 0.013}},
    "evaluation": {"schedule": "end", "subsample": 200},
    "recorders": "full",
    "snapshots": {"schedule": "never"},
    "checkpoint": {"every": 10000},
    "threads": 1,
}
UNASKED = {"schedule": "never"}
STANDARD = "standard"


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping with some values replaced."""
    found = dict(base)
    for key, value in changes.items():
        inner = found.get(key)
        both = isinstance(value, Mapping) and isinstance(inner, Mapping)
        found[key] = merged(inner, value) if both else value
    return found


@dataclass(frozen=True)
class World:
    """Where runs and their edit files go, and the facts that edits are made of."""

    folder: Path

    @cached_property
    def new(self) -> list[Edit]:
        """Facts that the model does not know."""
        return list(load_stream(DataSpec(size=720, seed=7)))

    @cached_property
    def known(self) -> list[Edit]:
        """Facts that it knows, `target_true` their answers."""
        return list(load_stream(DataSpec(stream="counterfactual", size=480, seed=7)))

    def file(self, name: str, facts: Iterable[tuple[Edit, str | None]]) -> str:
        """An edit file of facts and answers."""
        path = self.folder / f"{name}.jsonl"
        with path.open("w", encoding="utf-8") as handle:
            for row, (edit, answer) in enumerate(facts):
                asked = [{"prompt": probe.prompt, "answer": probe.answer} for probe in edit.locality[:1]]
                record = {"id": f"r{row}", "prompt": edit.prompt, "target": answer, "rephrases": [], "locality": asked}
                handle.write(json.dumps(record) + "\n")
        return str(path)

    def run(self, name: str, changes: Mapping[str, Any], *, base: Mapping[str, Any] = HEALTHY) -> Run:
        """Carry a run out."""
        return run(Spec.from_mapping(merged(base, changes)), self.folder / name, progress=False)


def _editor(**params: object) -> dict[str, Any]:
    return {"editor": {"params": params}}


def healthy(world: World) -> Run:
    return world.run("healthy", {"evaluation": {"capability": True}})


def cold(world: World) -> Run:
    """No warm-up, and an eigenvalue floor far up in the spectrum."""
    changes = {"warmup": {"size": 0}, "recorders": STANDARD, "evaluation": UNASKED, "data": {"size": 6 * STEP}}
    return world.run("cold", changes | _editor(floor=0.3))


def too_fast(world: World) -> Run:
    """A learning rate fifty times too high."""
    return world.run("too_fast", {"evaluation": {"capability": True}, "recorders": STANDARD} | _editor(lr=0.6))


def diverged(world: World) -> Run:
    """A learning rate at which no gradient has to do with the one before."""
    recorders = ["update_norm", "conditioning", "prequential"]
    changes = {"data": {"size": 240}, "edits_per_step": 12, "recorders": recorders, "evaluation": UNASKED}
    return world.run("diverged", changes | _editor(lr=30.0))


def overflow(world: World) -> Run:
    """A learning rate beyond float32; steps that are not finite are skipped."""
    changes = {
        "guard": "skip",
        "data": {"size": 5 * STEP},
        "warmup": {"size": 0},
        "recorders": "light",
        "evaluation": UNASKED,
    }
    return world.run("overflow", changes | _editor(lr=1e38))


def burst(world: World) -> Run:
    """One step of new facts in a stream of known ones."""
    facts = [(edit, edit.target_true) for edit in world.known[: 15 * STEP]]
    facts[8 * STEP : 9 * STEP] = [(edit, edit.target) for edit in world.new[:STEP]]
    data = {"source": world.file("burst", facts), "size": len(facts)}
    return world.run("burst", {"data": data, "warmup": {"data": {}}, "recorders": STANDARD, "evaluation": UNASKED})


def harder(world: World) -> Run:
    """The share of facts that the model does not know grows from a tenth to all, at a rate that teaches none."""
    new, known = iter(world.new), iter(world.known)
    facts: list[tuple[Edit, str | None]] = []
    for step in range(24):
        unknown = round(20 * 0.1 ** (1 - step / 23))
        facts += [(edit, edit.target) for edit, _ in zip(new, range(unknown), strict=False)]
        facts += [(edit, edit.target_true) for edit, _ in zip(known, range(20 - unknown), strict=False)]
    data = {"source": world.file("harder", facts), "size": len(facts)}
    editor = {"preset": "no_ln", "params": {"lr": 1e-3}}
    changes = {"data": data, "edits_per_step": 20, "warmup": {"size": 0}, "editor": editor, "recorders": STANDARD}
    return world.run("harder", changes)


def drifting(world: World) -> Run:
    """One answer gives way to another, in equal parts of a step each; hardly anything is learnt."""
    rng, (first, second) = random.Random(0), (world.new[0].target, world.new[5].target)
    facts = [(edit, first if rng.random() < i / 720 else second) for i, edit in enumerate(world.new)]
    data = {"source": world.file("drifting", facts), "size": len(facts)}
    editor = {"preset": "ultraedit", "params": {"stats_scope": "layer", "lr": 1e-5}}
    changes = {"data": data, "edits_per_step": 18, "warmup": {"size": 0}, "editor": editor, "evaluation": UNASKED}
    return world.run("drifting", changes | {"recorders": STANDARD})


def repeating(world: World) -> Run:
    """Thirty facts, taught twelve times over, under a prior that is next to nothing."""
    facts = [(edit, edit.target) for edit in world.new[:30]] * 12
    data = {"source": world.file("repeating", facts), "size": len(facts)}
    return world.run("repeating", {"data": data, "warmup": {"size": 0}} | _editor(lr=1e-5, prior=1e-10))


def underflow(world: World) -> Run:
    """bfloat16 weights without a master copy, at a small rate."""
    changes = {"model": {"dtype": "bfloat16"}, "data": {"size": 10 * STEP}, "recorders": STANDARD}
    return world.run("underflow", changes | _editor(lr=5e-4, master="model"))


def conflicting(world: World) -> Run:
    """A third of the later edits teach an earlier prompt another answer."""
    rng = random.Random(1)
    facts = [(edit, edit.target) for edit in world.new[: 12 * STEP]]
    for row in range(6 * STEP, 12 * STEP, 3):
        at = rng.randrange(6 * STEP)
        facts[row] = (world.new[at], world.new[at + 7].target)
    data = {"source": world.file("conflicting", facts), "size": len(facts)}
    return world.run("conflicting", {"data": data, "warmup": {"data": {}}, "recorders": STANDARD})


def shared_statistics(world: World) -> Run:
    """One set of statistics for three layers."""
    return world.run("shared", {"evaluation": UNASKED} | _editor(stats_scope="shape"))


def switching(world: World) -> Run:
    """Claims after half of the stream."""
    then = [{"source": "testbed", "stream": "claims", "size": 10 * STEP}]
    return world.run(
        "switching", {"data": {"size": 10 * STEP, "then": then}, "recorders": STANDARD, "evaluation": UNASKED}
    )


def wrong_divisor(world: World) -> Run:
    """The scatter divided by nu - 1."""
    right: Callable[..., Any] = whiten._inverse_root

    def wrong(niw: Any, divisor: float, *rest: Any, **more: Any) -> Any:
        return right(niw, niw.nu - 1 + 0 * divisor, *rest, **more)

    changes = {"data": {"size": 6 * STEP}, "warmup": {"size": 10 * STEP}, "recorders": STANDARD, "evaluation": UNASKED}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whiten, "_inverse_root", wrong)
        return world.run("wrong_divisor", changes)


def unclamped(world: World) -> Run:
    """MEMIT whose new values are as long as the hidden states allow."""
    loaded = load_model("testbed", modules=MODULES, device="cpu")
    moments = str(world.folder / "moments.safetensors")
    found = collect_moments(loaded, testbed_documents(), tokens=8000)
    save_moments(moments, found, model=loaded.info, source={"testbed": True})
    held_out = {"source": "testbed", "stream": "new", "seed": 55, "size": 90}
    probed = {"name": "value_norms", "schedule": {"every": 1}, "params": {"data": held_out, "sample": 20}}
    targets = {"lr": 1000.0, "clamp": 1.5, "weight_decay": 0.0, "steps": 6}
    changes = {
        "data": {"size": 192},
        "edits_per_step": 12,
        "editor": {"name": "memit", "preset": "testbed", "params": {"moments": moments, "targets": targets}},
        "recorders": ["update_norm", probed],
        "evaluation": UNASKED,
    }
    return world.run(
        "unclamped", changes, base={key: HEALTHY[key] for key in HEALTHY if key not in ("warmup", "editor")}
    )


#: name -> how the run is made
RUNS: Mapping[str, Callable[[World], Run]] = {
    make.__name__: make
    for make in (
        healthy, cold, too_fast, diverged, overflow, burst, harder, drifting, repeating, underflow, conflicting,
        shared_statistics, switching, wrong_divisor, unclamped,
    )
}  # fmt: skip
