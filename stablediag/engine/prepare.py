"""Everything that a run needs, loaded and validated before its directory exists."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from stablediag.data.load import dataset_info, load_stream
from stablediag.data.source import expand_source
from stablediag.data.stream import EditStream
from stablediag.editors.base import editor_class, resolve_params
from stablediag.editors.ln_params import LNParams
from stablediag.engine.context import fitting
from stablediag.engine.plan import Plan, plan_steps
from stablediag.engine.provenance import collect
from stablediag.engine.start import named_run, start_of
from stablediag.errors import SpecError, StoreError
from stablediag.models import load_model
from stablediag.recorders.base import Recorder
from stablediag.recorders.registry import TABLE_KEYS, build_recorders, recorder_columns
from stablediag.spec import TESTBED, CapabilitySpec, DataSpec, EditorSpec, Spec
from stablediag.types import RunInfo

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
        "seconds_cpu": "REAL",
        "peak_bytes": "INTEGER",
        "state_bytes": "INTEGER",
    },
}
_LOOP_KEYS = {table: {"step": "INTEGER"} for table in LOOP_COLUMNS}


class Prepared:
    """Everything a session needs, loaded and validated, before a run directory exists."""

    def __init__(self, spec: Spec, *, run_dir: Path) -> None:
        spec, params = resolve(spec)
        if spec.editor.preset == "no_warmup" and spec.warmup.size:
            raise SpecError(
                f"preset no_warmup with warmup.size {spec.warmup.size}: set warmup.size to 0, or choose another preset"
            )
        self.spec = spec
        target = load_stream(spec.data)
        warmup_data = spec.warmup_data
        warmup = EditStream.of([]) if warmup_data is None else load_stream(warmup_data, split="warmup")
        calibration = self._calibration(params)
        # What is wrong with the streams is found before a model is loaded.
        self._plan(target, warmup, calibration, params)
        self.loaded = load_model(
            spec.model.path,
            modules=spec.model.modules,
            dtype=spec.model.dtype,
            device=spec.model.device,
            device_map=spec.model.device_map,
            revision=spec.model.revision,
            offline=spec.model.offline or None,
            chat_template=spec.model.chat_template,
        )
        self.target = fitting(target, self.loaded, policy=spec.data.too_long)
        if warmup_data is not None:
            warmup = fitting(warmup, self.loaded, policy=warmup_data.too_long)
        self.calibration_edits = fitting(calibration, self.loaded, policy=spec.data.too_long)
        self.plan = self._plan(self.target, warmup, self.calibration_edits, params)
        datasets = {"target": dataset_info(spec.data, self.target)}
        if warmup_data is not None:
            datasets["warmup"] = dataset_info(warmup_data, warmup)
        if len(calibration):
            datasets["calibration"] = dataset_info(self._calibration_data(len(calibration)), self.calibration_edits)
        self.reports = {"target": self.target.report} | ({} if warmup_data is None else {"warmup": warmup.report})
        self.editor = editor_class(spec.editor.name)(params, self.loaded.modules)
        ready = getattr(self.editor, "ready", None)
        if ready is not None:
            for edits in (self.target, warmup):
                ready(self.loaded, edits)
        datasets |= named_files(params, spec.evaluation.capability)
        if getattr(params, "match", None) is not None:
            self.editor.reference, datasets["match"] = reference_norms(params.match.run, run_dir)
            self._check_reference(params.match)
        self.start = start_of(spec, run_dir=run_dir, loaded=self.loaded, editor=self.editor)
        datasets |= {f"init_{what}": dict(origin) for what, origin in self.start.origin.items()}
        self.recorders: list[Recorder] = build_recorders(spec, self.target)
        recorder_versions = {f"recorder:{recorder.name}": str(recorder.version) for recorder in self.recorders}
        self.info = collect(spec, self.loaded, datasets, versions=recorder_versions)

    def _plan(self, target: EditStream, warmup: EditStream, held_out: EditStream, params: Any) -> Plan:
        """The steps; refuses streams that meet, to calibrate on what is going to be taught, and a warm-up that is missing."""
        plan = plan_steps(target, warmup, edits_per_step=self.spec.edits_per_step, placement=self.spec.warmup.placement)
        taught = np.union1d(target.ids_hash, warmup.ids_hash)
        shared = held_out.take(np.flatnonzero(np.isin(held_out.ids_hash, taught)))
        if len(shared):
            raise SpecError(
                f"calibration and the streams share {len(shared)} records ({shared[0].id!r}, ...): "
                "name others under `calibration`, for instance with an offset"
            )
        if _freezes(params) and not plan.steps("warmup"):
            raise SpecError(
                "statistics frozen are those at the end of a warm-up, and there is none: "
                "give warmup.size, or use statistics running"
            )
        return plan

    def _check_reference(self, match: Any) -> None:
        """Refuse a reference run that has no norm for a step that must be matched, before anything is edited."""
        matched = {"first": 1, "mean": match.steps, "every": None}[match.mode]
        target = self.plan.steps("target") if self.editor.writes("target") else []
        warmup = set(self.plan.steps("warmup")) if self.editor.writes("warmup") else set()
        steps = warmup | set(target[:matched])
        for step in sorted(steps):
            for name in self.editor.modules:
                if (step, name) not in self.editor.reference:
                    raise SpecError(
                        f"match.run: {match.run} has no update norm at step {step} of {name}: "
                        "match a run of the same model, stream and warm-up that records every step"
                    )

    def _calibration(self, params: Any) -> EditStream:
        """Held-out edits to find a learning rate on, where one has to be found."""
        if getattr(params, "lr", None) != "calibrate":
            return EditStream.of([])
        return load_stream(self._calibration_data(params.calibration.edits), split="calibration")

    def _calibration_data(self, edits: int) -> DataSpec:
        if self.spec.calibration is not None:
            return self.spec.calibration.model_copy(update={"size": edits})
        beyond = (
            {}
            if self.spec.data.source == TESTBED
            else {"offset": self.spec.data.offset + self.spec.data.size + self.spec.warmup.size}
        )
        return self.spec.data.model_copy(update={"size": edits, "then": [], "arrange": "as_read", **beyond})

    @property
    def keys(self) -> dict[str, dict[str, str]]:
        """Key columns of every table of this run."""
        known: dict[str, dict[str, str]] = {**_LOOP_KEYS, **{table: dict(keys) for table, keys in TABLE_KEYS.items()}}
        for recorder in self.recorders:
            known |= {table: dict(keys) for table, keys in getattr(recorder, "keys", {}).items()}
        for table in self.columns:
            if table not in known:
                raise SpecError(
                    f'recorders: table "{table}" has no key columns: declare them in the recorder\'s `keys`'
                )
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


def resolve(spec: Spec) -> tuple[Spec, Any]:
    """The spec with the editor's parameters written out, and these parameters: equal meanings, equal digests.

    Raises
    ------
    SpecError
        An unknown editor, preset or parameter, or a value of the wrong type.
    """
    params = resolve_params(spec.editor.name, spec.editor.preset, spec.editor.params)
    return spec.with_editor_params(params.model_dump(mode="json")), params


def _freezes(params: Any) -> bool:
    """Whether an editor, or the one that it wraps, normalises with what the warm-up left."""
    wrapped = getattr(params, "editor", None)
    if isinstance(wrapped, EditorSpec):
        params = resolve_params(wrapped.name, wrapped.preset, wrapped.params)
    return isinstance(params, LNParams) and params.statistics == "frozen"


def reference_norms(run: str, run_dir: Path) -> tuple[dict[tuple[int, str], float], dict[str, Any]]:
    """Update norms of another run by (step, module), and what identifies them.

    Raises
    ------
    SpecError
        If there is no such run, it is not complete, or it recorded no norms.
    """
    reference = named_run(run, run_dir, "match.run")
    table: Any = reference.table("updates") if "updates" in reference.tables() else {}
    if "norm" not in table or table["norm"].isna().any():
        raise SpecError(
            f"match.run: {reference.path} did not record every update norm: use the standard or the light recorders there"
        )
    norms = {(int(s), str(m)): float(n) for s, m, n in zip(table["step"], table["module"], table["norm"], strict=True)}
    text = json.dumps([[*key, norm] for key, norm in sorted(norms.items())])
    return norms, {"run_digest": reference.info.digest, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def named_files(params: Any, capability: bool | CapabilitySpec) -> dict[str, dict[str, Any]]:
    """What identifies the files that a spec names beside its streams: statistics, a network, task files, an editor's texts.

    Those of a wrapped editor begin with ``wrapped_``.
    """
    folder = capability.folder if isinstance(capability, CapabilitySpec) else None
    named = {
        "moments": (getattr(params, "moments", None), "*"),
        "network": (getattr(params, "network", None), "*.safetensors"),
        "capability": (folder, "*.json"),
    }
    found: dict[str, dict[str, Any]] = {}
    nas, background = getattr(params, "nas", None), getattr(params, "background", None)
    named_streams: tuple[tuple[str, Any, Any], ...] = (
        ("nas", nas is not None and nas.enabled, nas),
        ("background", background is not None and background.count, background),
    )
    for name, used, options in named_streams:
        data: DataSpec | None = options.data if used else None
        if data is not None and data.files:
            parts = [part.source for part in (data, *data.then) if part.source != TESTBED]
            files = [file for source in parts for file in expand_source(source)]
            found[name] = {
                "path": data.source,
                "sha256": {str(file): _sha256(file) for file in files if file.is_file()},
            }
    wrapped = getattr(params, "editor", None)
    if isinstance(wrapped, EditorSpec):
        inner = resolve_params(wrapped.name, wrapped.preset, wrapped.params)
        found |= {f"wrapped_{name}": told for name, told in named_files(inner, False).items()}
    for name, (given, pattern) in named.items():
        if not given:
            continue
        path = Path(given)
        files = sorted(path.rglob(pattern)) if path.is_dir() else [path]
        digests = {
            str(file.relative_to(path)) if file != path else file.name: _sha256(file)
            for file in files
            if file.is_file()
        }
        if digests:
            found[name] = {"path": str(path), "sha256": digests}
    return found


def _sha256(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def check_same(stored: RunInfo, now: RunInfo, path: Path) -> str:
    """Refuse to go on with a run under other conditions; returns what differs but may (package versions).

    Raises
    ------
    StoreError
        Another model, device, dataset, reference run or run to start from, or another version of the engine or of a recorder.
    """
    if stored.model.get("device") != now.model.get("device"):
        raise StoreError(
            f"{path}: the run began on {stored.model.get('device')}, this is {now.model.get('device')}: resume it there"
        )
    for what, old, new in (("model", stored.model, now.model), ("dataset or matched run", stored.dataset, now.dataset)):
        odd = [key for key in sorted({*old, *new}) if _text(old.get(key)) != _text(new.get(key))]
        if odd:
            told = f"the {what} is not the one the run began with ({', '.join(odd)})"
            raise StoreError(f"{path}: {told}: restore it, or start a new run")
    changed = []
    for name in sorted({*stored.versions, *now.versions}):
        began, here = stored.versions.get(name), now.versions.get(name)
        if began == here:
            continue
        if name == "engine" or name.startswith("recorder:"):
            raise StoreError(f"{path}: the run began with {name} version {began}, this is {here}: start a new run")
        changed.append(f"{name} {began} -> {here}")
    return ", ".join(changed)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
