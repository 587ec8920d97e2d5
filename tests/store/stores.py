"""Small runs to write, break and read."""

from pathlib import Path

import numpy as np
import pandas as pd

from stablediag.store import Run, RunWriter
from stablediag.types import RunInfo

COLUMNS = {
    "steps": {"phase": "TEXT", "edits": "INTEGER", "loss": "REAL"},
    "updates": {"norm": "REAL", "cosine": "REAL", "rank": "INTEGER", "note": "TEXT"},
    "edits": {"step": "INTEGER", "immediate": "REAL", "retained": "REAL"},
}
KEYS = {"steps": ["step"], "updates": ["step", "module"], "edits": {"edit": "TEXT"}}
INFO = RunInfo(
    spec={"name": "demo", "seed": 0},
    digest="ab" * 32,
    versions={"torch": "2"},
    code={"dirty": False},
    device="cpu",
    model={"path": "testbed"},
    dataset={"count": 3},
    seeds={"run": 0},
    created="2026-01-02T03:04:05+00:00",
)


def new(path: Path) -> RunWriter:
    return Run.create(path, info=INFO, columns=COLUMNS, keys=KEYS)


def step(writer: RunWriter, number: int) -> None:
    with writer.transaction(number) as t:
        t.row("steps", {}, {"phase": "target", "edits": 10, "loss": 1 / (number + 1)})
        t.row("updates", {"module": "a"}, {"norm": float(number), "rank": 3})
        t.row("updates", {"step": number, "module": "a"}, {"cosine": float("nan")})
        t.row("edits", {"edit": f"e{number}"}, {"step": number, "immediate": 1.0})
        t.row("timings", {}, {"seconds": 0.5})
        t.array("spectrum", number, np.arange(number + 1.0))
        t.event("note", f"step {number}")


def contents(run: Run) -> dict[str, pd.DataFrame]:
    return {name: run.table(name) for name in run.tables() if name not in ("journal", "timings")}


def assert_same(one: Run, two: Run) -> None:
    left, right = contents(one), contents(two)
    assert left.keys() == right.keys()
    for name in left:
        pd.testing.assert_frame_equal(left[name], right[name], check_exact=True)
