"""Run stores with known content, written without a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stablediag.store.run import Run
from stablediag.types import RunInfo

MODULES = ("layers.1.down", "layers.2.down")
STEP, MODULE = {"step": "INTEGER"}, {"step": "INTEGER", "module": "TEXT"}
KEYS: Mapping[str, Mapping[str, str]] = {
    "steps": STEP,
    "updates": MODULE,
    "tracking": MODULE,
    "interference": MODULE,
    "alarms": STEP,
    "quality": {"step": "INTEGER", "metric": "TEXT", "kind": "TEXT"},
    "edits": {"position": "INTEGER"},
}
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "steps": {"phase": "TEXT", "edits": "INTEGER", "written": "INTEGER"},
    "updates": dict.fromkeys(("norm", "weight_norm", "weight_ratio", "cosine"), "REAL"),
    "tracking": dict.fromkeys(("prior_error", "prior_error_null", "condition_floored", "condition_noise"), "REAL"),
    "interference": dict.fromkeys(("moved", "moved_null"), "REAL"),
    "alarms": dict.fromkeys(("e_innovation", "e_limit", "cusum", "cusum_limit"), "REAL") | {"state": "INTEGER"},
    "quality": dict.fromkeys(("value", "low", "high"), "REAL") | {"n": "INTEGER", "protocol": "TEXT"},
    "edits": {"edit_id": "TEXT", "step": "INTEGER", "immediate": "REAL", "retained": "REAL"},
}


def info(name: str, *, spec: Mapping[str, Any] | None = None, versions: Mapping[str, str] | None = None) -> RunInfo:
    """Provenance with a spec of this version."""
    given = {
        "name": name,
        "model": {"path": "testbed"},
        "data": {"source": "testbed", "size": 100},
        "editor": {"name": "ln", "preset": "paper", "params": {"lr": 0.01}},
        "edits_per_step": 10,
    } | dict(spec or {})
    return RunInfo(
        spec=given,
        digest=hashlib.sha256(str(given).encode()).hexdigest(),
        versions={"stablediag": "0.1.0", "engine": "1"} | dict(versions or {}),
        code={"commit": "c0ffee", "dirty": False},
        device="cpu",
        model={"path": "testbed", "modules": {m: [16, 8] for m in MODULES}},
        dataset={"target": {"source": "testbed", "count": 100, "sha256": "ab" * 32}},
        seeds={"run": 0, "data": 0},
        created="2026-01-01T00:00:00+00:00",
    )


def write_run(
    path: Path,
    name: str = "one",
    *,
    steps: int = 24,
    warmup: int = 4,
    modules: Sequence[str] = MODULES,
    tables: Sequence[str] = tuple(COLUMNS),
    state: str | None = "complete",
    norm: float = 1.0,
    evaluated: Sequence[int] = (-1, 11, 23),
    metrics: Sequence[str] = ("efficacy", "specificity"),
    edit_id: str = "edit",
    event: str = "",
    spikes: Mapping[int, float] | None = None,
    alarm_at: int | None = None,
    hidden: bool = False,
    **given: Any,
) -> Path:
    """A run of `steps` steps of 10 edits; `tables` are those that it has, `spikes` multiply the norm of single steps."""
    rng = np.random.default_rng(0)
    columns = {table: COLUMNS[table] for table in tables}
    writer = Run.create(path, info=info(name, **given), columns=columns, keys={table: KEYS[table] for table in tables})
    with writer.transaction(-1) as tx:
        if "quality" in tables and -1 in evaluated:
            for metric in metrics:
                tx.row("quality", {"step": -1, "metric": metric, "kind": "token"}, _measured(0.1))
        if hidden:
            tx.array("hidden", -1, np.random.default_rng(1).standard_normal((20, 4)).astype("f4"))
    for step in range(steps):
        with writer.transaction(step) as tx:
            told = {"phase": "warmup" if step < warmup else "target", "edits": 10, "written": 1}
            if "steps" in tables:
                tx.row("steps", {"step": step}, told)
            for module in modules:
                size = norm * (spikes or {}).get(step, 1.0) * (1 + 0.05 * rng.standard_normal())
                values = {
                    "updates": {"norm": size, "weight_norm": 10.0, "weight_ratio": 1 + step / 100, "cosine": 0.01},
                    "tracking": {"prior_error": 1 / (step + 1), "prior_error_null": 1.0}
                    | {"condition_floored": 1e3 / (step + 1), "condition_noise": 500.0 / (step + 1)},
                    "interference": {"moved": 0.2, "moved_null": 0.1},
                }
                for table, row in values.items():
                    if table in tables:
                        tx.row(table, {"step": step, "module": module}, row)
            if "alarms" in tables:
                loud = alarm_at is not None and step >= alarm_at
                tests = {"e_innovation": 80.0 if loud else 1.5, "e_limit": 80.0, "cusum": 1.0, "cusum_limit": 8.0}
                tx.row("alarms", {"step": step}, tests | {"state": 2 if loud else 0})
            if "quality" in tables and step in evaluated:
                for metric in metrics:
                    tx.row("quality", {"step": step, "metric": metric, "kind": "token"}, _measured(0.9))
            if "edits" in tables and step >= warmup:
                row = {"edit_id": f"{edit_id}{step}", "step": step, "immediate": 1.0, "retained": float(step % 3 > 0)}
                tx.row("edits", {"position": step - warmup}, row)
            if event and step == 2:
                tx.event("said", event)
            if hidden and step == steps - 1:
                tx.array("hidden", step, np.random.default_rng(2).standard_normal((20, 4)).astype("f4"))
    if state is None:
        writer.close()
    else:
        writer.finish(state)  # type: ignore[arg-type]
    return path


def _measured(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 100, "protocol": "teacher_forced/1"}
