"""Runs that are nothing but tables and arrays in memory, for figures that read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd

from figures.frames import ArmRun
from stablediag.store.run import Run


@dataclass
class Tables:
    """What a figure asks of a run."""

    held: Mapping[str, pd.DataFrame]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    info: Any = field(default_factory=lambda: SimpleNamespace(model={"modules": {"m": [4, 4]}}))

    def tables(self) -> list[str]:
        """Names."""
        return sorted(self.held)

    def table(self, name: str) -> pd.DataFrame:
        """A copy."""
        return self.held[name].copy()

    def array(self, name: str, step: int) -> np.ndarray:
        """By name and step."""
        return self.arrays[f"{name}@{step}"]


def in_memory(arm: str, seed: int, tables: Tables) -> ArmRun:
    """A run with these tables."""
    return ArmRun(arm, "controls", seed, cast(Run, tables))


def steps(warmup: int, target: int, edits: int) -> pd.DataFrame:
    """Table `steps` of a warm-up at the start and a target stream."""
    phases = ["warmup"] * warmup + ["target"] * target
    return pd.DataFrame(
        {
            "step": range(warmup + target),
            "phase": phases,
            "target_step": [None] * warmup + list(range(target)),
            "edits": edits,
            "skipped": None,
        }
    )
