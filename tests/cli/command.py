"""The command line called inside the test process, and spec files of a tiny run."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from stablediag.cli import main
from stablediag.engine.prepare import resolve
from stablediag.spec import Spec

MODULES = ["layers.[1-2].mlp.down_proj"]


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


def command(*arguments: object) -> Done:
    """Call `stablediag ARGUMENTS`; anything that is not an exit (a traceback, for a user) fails the test."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["stablediag", *map(str, arguments)]
    code: Any = 0
    with patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code or 0
    return Done(code, out.getvalue(), err.getvalue())


def refused(*arguments: object, says: tuple[str, ...]) -> str:
    """Call a command that must end with exit code 1 and one line on stderr holding all of `says`; that line."""
    done = command(*arguments)
    assert done.code == 1, done
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1, done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    for text in says:
        assert text in done.err, done.err
    return done.err


def write_spec(path: Path, model_dir: Path, stream: Path, **changes: Any) -> Path:
    """A spec file of a run of three steps on a tiny model; `changes` replace whole sections."""
    spec = {
        "model": {"path": str(model_dir), "modules": MODULES, "device": "cpu"},
        "data": {"source": str(stream), "size": 30},
        "edits_per_step": 10,
        "editor": {"preset": "paper", "params": {"lr": 0.02}},
        "threads": 1,
    }
    path.write_text(yaml.safe_dump({**spec, **changes}), encoding="utf-8")
    return path


def resolved(spec: Spec) -> Spec:
    """The spec as a run stores it: with the editor's parameters written out."""
    return resolve(spec)[0]
