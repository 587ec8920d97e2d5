"""Everything that a run needs, loaded and validated before its directory exists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stablediag.data.load import dataset_info, load_stream
from stablediag.editors.base import editor_class, resolve_params
from stablediag.engine.plan import plan_steps
from stablediag.engine.provenance import collect
from stablediag.errors import SpecError
from stablediag.models import load_model
from stablediag.recorders.base import Recorder
from stablediag.recorders.registry import TABLE_KEYS, build_recorders, recorder_columns
from stablediag.spec import TESTBED, DataSpec, Spec
from stablediag.store.run import Run
from stablediag.types import Edit

#: columns that the loop itself fills, by table
LOOP_COLUMNS: dict[str, dict[str, str]] = {
    "steps": {
        "phase": "TEXT",
        "target_step": "INTEGER",
        "edits": "INTEGER",
        "rows": "INTEGER",
        "loss": "REAL",
        "written": "INTEGER",
        "dropped_rows": "INTEGER",
        "skipped": "TEXT",
    },
    "timings": {
        "seconds": "REAL",
        "seconds_capture": "REAL",
        "seconds_editor": "REAL",
        "seconds_record": "REAL",
        "seconds_evaluate": "REAL",
    },
}
_LOOP_KEYS = {table: {"step": "INTEGER"} for table in LOOP_COLUMNS}


class Prepared:
    """Everything a session needs, loaded and validated, before a run directory exists."""

    def __init__(self, spec: Spec, *, run_dir: Path) -> None:
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        params = resolve_params(spec.editor.name, spec.editor.preset, spec.editor.params)
        if spec.editor.preset == "no_warmup" and spec.warmup.size:
            raise SpecError(
                f"preset no_warmup with warmup.size {spec.warmup.size}: set warmup.size to 0, or choose another preset"
            )
        self.spec = spec
        self.target = load_stream(spec.data)
        warmup_data = spec.warmup_data
        warmup = load_stream(warmup_data, split="warmup") if warmup_data is not None else []
        self.plan = plan_steps(self.target, warmup, edits_per_step=spec.edits_per_step, placement=spec.warmup.placement)
        datasets = {"target": dataset_info(spec.data, self.target)}
        if warmup_data is not None:
            datasets["warmup"] = dataset_info(warmup_data, warmup)
        self.calibration_edits: Sequence[Edit] = ()
        if getattr(params, "lr", None) == "calibrate":
            data = self._calibration_data(params.calibration.edits)
            self.calibration_edits = load_stream(data, split="calibration")
            datasets["calibration"] = dataset_info(data, self.calibration_edits)
        self.loaded = load_model(
            spec.model.path,
            modules=spec.model.modules,
            dtype=spec.model.dtype,
            device=spec.model.device,
            revision=spec.model.revision,
        )
        self.editor = editor_class(spec.editor.name)(params, self.loaded.modules)
        if getattr(params, "match", None) is not None:
            self.editor.reference = reference_norms(params.match.run, run_dir)
            self._check_reference(params.match)
        self.recorders: list[Recorder] = build_recorders(spec, self.target)
        recorder_versions = {f"recorder:{recorder.name}": str(recorder.version) for recorder in self.recorders}
        self.info = collect(spec, self.loaded, datasets, versions=recorder_versions)

    def _check_reference(self, match: Any) -> None:
        """Refuse a reference run that has no norm for a step that must be matched, before anything is edited."""
        matched = {"first": 1, "mean": match.steps, "every": None}[match.mode]
        target = [batch.index for batch in self.plan if batch.phase == "target"]
        steps = {batch.index for batch in self.plan if batch.phase == "warmup"} | set(target[:matched])
        for step in sorted(steps):
            for name in self.editor.modules:
                if (step, name) not in self.editor.reference:
                    raise SpecError(
                        f"match.run: {match.run} has no update norm at step {step} of {name}: "
                        "match a run of the same model, stream and warm-up that records every step"
                    )

    def _calibration_data(self, edits: int) -> DataSpec:
        if self.spec.calibration is not None:
            return self.spec.calibration.model_copy(update={"size": edits})
        beyond = (
            {}
            if self.spec.data.source == TESTBED
            else {"offset": self.spec.data.offset + self.spec.data.size + self.spec.warmup.size}
        )
        return self.spec.data.model_copy(update={"size": edits, **beyond})

    @property
    def keys(self) -> dict[str, dict[str, str]]:
        """Key columns of every table of this run."""
        known: dict[str, dict[str, str]] = {**_LOOP_KEYS, **{table: dict(keys) for table, keys in TABLE_KEYS.items()}}
        return {table: known[table] for table in self.columns}

    @property
    def columns(self) -> dict[str, dict[str, str]]:
        """Columns of every table of this run: the loop's, the recorders', and the editor's own numbers."""
        merged = {table: dict(columns) for table, columns in LOOP_COLUMNS.items()}
        for table, columns in recorder_columns(self.recorders).items():
            merged.setdefault(table, {}).update(columns)
        if self.editor.extra_columns:
            merged.setdefault("updates", {}).update(self.editor.extra_columns)
        return merged


def reference_norms(run: str, run_dir: Path) -> dict[tuple[int, str], float]:
    """Update norms of another run by (step, module).

    Raises
    ------
    SpecError
        If there is no such run, it is not complete, or it recorded no norms.
    """
    path = next((p for p in (Path(run), run_dir.parent / run) if p.is_dir()), None)
    if path is None:
        raise SpecError(f"match.run: no run at {run} or {run_dir.parent / run}: run it first")
    reference = Run.open(path)
    if reference.state != "complete":
        raise SpecError(f"match.run: {path} is not complete: finish it with `stablediag resume {path}`")
    table: Any = reference.table("updates") if "updates" in reference.tables() else {}
    if "norm" not in table or table["norm"].isna().any():
        raise SpecError(
            f"match.run: {path} did not record every update norm: use the standard or the light recorders there"
        )
    return {(int(s), str(m)): float(n) for s, m, n in zip(table["step"], table["module"], table["norm"], strict=True)}
