"""Run stores with tables and provenance that are given, for commands that only read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from stablediag.store.run import Run
from stablediag.types import RunInfo

KEYS = {
    "steps": ["step"], "updates": ["step", "module"], "tracking": ["step", "module"],
    "quality": ["step", "metric", "kind"], "edits": ["position"],
}  # fmt: skip
_TYPES = {"i": "INTEGER", "u": "INTEGER", "f": "REAL"}


def provenance(**changes: Any) -> RunInfo:
    """Provenance of a run of the testbed by editor ln; `changes` replace whole fields."""
    plain: dict[str, Any] = {
        "spec": {"name": "planted", "seed": 0, "data": {"seed": 0, "source": "testbed"}, "model": {"path": "testbed"},
                 "editor": {"name": "ln", "params": {"lr": 0.1}}, "evaluation": {"schedule": "end", "metrics": []}},
        "digest": "0" * 64, "versions": {"engine": "1", "stablediag": "0.1.0"}, "code": {}, "device": "cpu", "model": {},
        "dataset": {"target": {"source": "testbed", "count": 60, "sha256": "a" * 64}}, "seeds": {}, "created": "now",
    }  # fmt: skip
    return RunInfo(**(plain | changes))


def planted(
    path: Path, info: RunInfo, tables: Mapping[str, pd.DataFrame] | None = None, *, state: str = "complete"
) -> Path:
    """A run directory that holds them."""
    frames = {"steps": pd.DataFrame({"step": [0]})} | dict(tables or {})
    frames = {name: _ready(name, frame) for name, frame in frames.items()}
    columns = {
        name: {str(key): _TYPES.get(frame[key].dtype.kind, "TEXT") for key in frame} for name, frame in frames.items()
    }
    writer = Run.create(path, info=info, columns=columns, keys={name: KEYS[name] for name in frames})
    with writer.transaction(0) as tx:
        for name, frame in frames.items():
            for row in frame.to_dict("records"):
                key = {str(column): row[column] for column in KEYS[name]}
                tx.row(name, key, {str(column): value for column, value in row.items() if column not in key})
    if state == "complete":
        writer.finish("complete")
    else:
        writer.close()
    return path


def _ready(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    if name == "edits":
        return frame.assign(position=range(len(frame)))
    return frame.assign(cosine=frame["cosine"].astype(float)) if "cosine" in frame else frame
