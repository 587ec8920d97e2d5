"""Run stores with planted effects, written without a model: what a figure must find is known in advance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from figures.needs import Need
from stablediag.data.load import dataset_info, load_stream
from stablediag.engine.provenance import ENGINE_VERSION
from stablediag.recorders.registry import TABLE_KEYS, build_recorders, recorder_columns
from stablediag.stats.spectra import noise_curves
from stablediag.store.run import Run
from stablediag.store.state import save_state
from stablediag.types import RunInfo

D = 8
ROWS = 24
MODULES = ("layers.1.down", "layers.2.down")
STEPS = {
    "phase": "TEXT", "target_step": "INTEGER", "edits": "INTEGER", "rows": "INTEGER", "loss": "REAL",
    "written": "INTEGER", "dropped_rows": "INTEGER", "skipped": "TEXT",
}  # fmt: skip


@dataclass(frozen=True)
class Plant:
    """What one arm's runs hold: norms from first to last step, mean cosine, quality, time, and drift.

    `extra_fall` multiplies the condition number and the largest eigenvalue by a factor that falls from it to 1;
    `extra_slope` multiplies the drift surrogates by (rows so far) to this power; `scrambled` gives every prompt another
    one's hidden state.
    """

    norms: tuple[float, float] = (2.0, 1.5)
    cosine: float = 0.0
    quality: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.1
    shift: float = 0.0
    extra_fall: float = 1.0
    extra_slope: float = 0.0
    scrambled: bool = False


def write_run(need: Need, root: Path, plant: Plant, *, state: str = "complete") -> Path:
    """A run store for a need, up to date by every criterion of `figures.runs.status`."""
    rng = np.random.default_rng([need.seed, len(need.arm)])
    path = root / need.directory
    recorders = build_recorders(need.spec, ())
    columns = {"steps": STEPS, **recorder_columns(recorders)}
    keys = {"steps": {"step": "INTEGER"}, **{name: TABLE_KEYS[name] for name in columns if name != "steps"}}
    writer = Run.create(path, info=_info(need, recorders), columns=columns, keys=keys)
    size, step_size, warmup = need.spec.data.size, need.spec.edits_per_step, need.spec.warmup.size
    phases = ["warmup"] * -(-warmup // step_size) + ["target"] * -(-size // step_size)
    spectrum = np.linspace(0.5, 2.0, D)
    noise = noise_curves([ROWS] * len(phases), spectrum, seed=need.seed + 50, repeats=20)
    last, targets = len(phases) - 1, phases.count("target")
    with writer.transaction(-1) as tx:
        _quality(tx, -1, {})
        if need.spec.snapshots.schedule.terms:
            reference = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
            tx.array("hidden", -1, reference)
    for step, phase in enumerate(phases):
        target = step - phases.count("warmup") if phase == "target" else None
        with writer.transaction(step) as tx:
            steps = {"phase": phase, "target_step": target, "edits": step_size, "rows": ROWS, "loss": 1.0, "written": 1}
            tx.row("steps", {"step": step}, steps)
            seconds = plant.seconds * (1 + 0.02 * rng.random())
            split = {"seconds": seconds, "seconds_capture": 0.7 * seconds, "seconds_editor": 0.3 * seconds}
            tx.row("timings", {"step": step}, {**split, "seconds_record": 0.01})
            part = (target or 0) / max(targets - 1, 1)
            fall = plant.extra_fall ** (1 - part)
            slope = float(noise["nu"][step]) ** plant.extra_slope
            for module in MODULES:
                norm = plant.norms[0] ** (1 - part) * plant.norms[1] ** part * (1 + 0.01 * rng.standard_normal())
                cosine = plant.cosine + 0.01 * rng.standard_normal() if target else None
                tx.row("updates", {"step": step, "module": module}, {"norm": norm, "cosine": cosine})
                tracked = {
                    "nu": float(noise["nu"][step]),
                    "condition_raw": noise["condition"][step] * fall,
                    "condition_floored": noise["condition"][step] * fall,
                    "eig_max": noise["eig_max"][step] * fall,
                    "mean_shift": noise["mean_shift"][step] * slope,
                    "cov_shift": noise["cov_shift"][step] * slope,
                }
                tx.row("tracking", {"step": step, "module": module}, tracked)
            if target is not None:
                tx.row("edits", {"position": target}, {"edit_id": f"e{target}", "step": step, "immediate": 0.9})
            if step == last:
                _quality(tx, step, {k: v + 0.002 * rng.standard_normal() for k, v in plant.quality.items()})
                if need.spec.snapshots.schedule.terms:
                    after = (reference[::-1] if plant.scrambled else reference) + np.float32(plant.shift)
                    tx.array("hidden", step, after + 0.05 * rng.standard_normal((40, 6)).astype("f4"))
                tx.checkpoint(
                    step, save_state(path / "state" / f"step-{step:08d}", _state(spectrum, len(phases)), meta={})
                )
    writer.finish(state)  # type: ignore[arg-type]
    return path


def _quality(tx: object, step: int, values: Mapping[str, float]) -> None:
    defaults = {"efficacy": 0.1, "generalization": 0.1, "specificity": 1.0, "capability_mean": 0.9}
    if step >= 0:
        defaults["specificity_agreement"] = 1.0
    for metric, value in (defaults | dict(values)).items():
        kind = "exact" if metric == "capability_mean" else "token"
        tx.row("quality", {"step": step, "metric": metric, "kind": kind}, {"value": value, "n": 10})  # type: ignore[attr-defined]


def _state(spectrum: np.ndarray, steps: int) -> dict[str, torch.Tensor]:
    nu = float(ROWS * steps)
    found = {}
    for i, module in enumerate(MODULES):
        # Modules differ a little, so that taking them in another order shows.
        scale = torch.from_numpy(np.diag(spectrum ** (1 + 0.1 * i) * (nu - D - 1)))
        found |= {f"editor/{module}/niw/scale": scale, f"editor/{module}/niw/nu": torch.tensor(nu)}
    return found


def _info(need: Need, recorders: list) -> RunInfo:
    spec = need.spec
    dataset = {"target": dataset_info(spec.data, load_stream(spec.data))}
    if spec.warmup_data is not None:
        dataset["warmup"] = dataset_info(spec.warmup_data, load_stream(spec.warmup_data, split="warmup"))
    versions = {"engine": str(ENGINE_VERSION)} | {f"recorder:{r.name}": str(r.version) for r in recorders}
    model = {"modules": {name: [16, D] for name in MODULES}}
    return RunInfo(
        spec=spec.canonical(), digest=need.digest, versions=versions, code={}, device="test", model=model,
        dataset=dataset, seeds={"run": 0, "data": need.seed}, created="2000-01-01T00:00:00+00:00",
    )  # fmt: skip
