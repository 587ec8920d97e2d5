"""The embedded testbed: a synthetic world, edit streams over it, and a small causal LM that was trained on it.

Importing this package, its worlds and its streams needs no torch; the training recipe and the check do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stablediag.testbed.streams import edit_stream, snapshot_probes
    from stablediag.testbed.tasks import CapabilityTask, capability_tasks

WEIGHTS = Path(__file__).parent / "weights"

_HOMES = {
    "edit_stream": "streams",
    "snapshot_probes": "streams",
    "capability_tasks": "tasks",
    "CapabilityTask": "tasks",
}

__all__ = ["WEIGHTS", "CapabilityTask", "capability_tasks", "edit_stream", "snapshot_probes"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
