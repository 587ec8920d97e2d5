"""stablediag: theory verification and diagnostics for lifelong model editing.

The public names are imported on first use, so that ``import stablediag`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Edit": "stablediag.types",
    "EditBatch": "stablediag.types",
    "Probe": "stablediag.types",
    "Capture": "stablediag.types",
    "Spec": "stablediag.spec",
    "load_spec": "stablediag.spec:load",
    "NIW": "stablediag.maths.niw",
    "DiagNIW": "stablediag.maths.niw",
    "LowRank": "stablediag.maths.update",
    "Dense": "stablediag.maths.update",
    "ln_update": "stablediag.maths.ln",
    "write_report": "stablediag.report",
    "compare_runs": "stablediag.stats.run_diff",
    "bibtex": "stablediag.citations",
    "load_model": "stablediag.models",
    "load_stream": "stablediag.data",
    "evaluate": "stablediag.evaluation.evaluate",
    "suggest_modules": "stablediag.engine.suggest",
    "export_model": "stablediag.engine.exporting",
    "load_run_model": "stablediag.engine.exporting",
    "Editor": "stablediag.editors.base",
    "BaseEditor": "stablediag.editors.base",
    "check_editor": "stablediag.editors.conformance",
    "Recorder": "stablediag.recorders.base",
    "check_recorder": "stablediag.recorders.conformance",
    "Run": "stablediag.store.run",
    "run": "stablediag.engine.session",
    "resume": "stablediag.engine.session",
    "diagnose": "stablediag.stats.doctor",
    "first_cause": "stablediag.stats.doctor",
    "watch": "stablediag.engine.watch",
    "StablediagError": "stablediag.errors",
}

__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted(__all__)
