"""Runs as tables in memory whose quality and update geometry are planted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pandas as pd

from figures.frames import ArmRun
from stablediag.errors import StoreError
from stablediag.store.run import Run

STEPS, PER_STEP = 4, 5
#: shares of the unedited model
BEFORE = {"efficacy": 0.02, "generalization": 0.03, "specificity": 0.96}


@dataclass(frozen=True)
class Tables:
    """A run that has nothing but these."""

    tables: Mapping[str, pd.DataFrame]
    spec: Mapping[str, Any] = field(default_factory=dict)

    def table(self, name: str) -> pd.DataFrame:
        """A copy, or the store's error."""
        if name not in self.tables:
            raise StoreError(f"no table {name}: this run has {', '.join(self.tables)}")
        return self.tables[name].copy()


def quality_rows(step: int, shares: Mapping[str, float], kl: float | None) -> list[dict[str, Any]]:
    """Rows of one evaluation, in shares and nats."""
    rows = [
        {"step": step, "metric": metric, "kind": kind, "value": value if kind == "token" else value / 2}
        for metric, value in shares.items()
        for kind in ("token", "exact")
    ]
    if kl is not None:
        rows.append({"step": step, "metric": "specificity_kl", "kind": "nats", "value": kl})
    return rows


def planted(
    arm: str,
    seed: int,
    *,
    shares: Mapping[str, float],
    kl: float | None = 0.1,
    immediate: Sequence[float] | None = None,
    retained: Sequence[float | None] | None = None,
    norms: Sequence[float] = (1.0,) * STEPS,
    params: Mapping[str, Any] | None = None,
    setting: str = "controls",
) -> ArmRun:
    """A run of a warm-up step and `STEPS` target steps whose last evaluation has these shares.

    `immediate` and `retained` have one value per edit; an immediate value of 1 counts as all right.
    """
    edits = STEPS * PER_STEP
    immediate = [1.0] * edits if immediate is None else immediate
    retained = [shares["efficacy"]] * edits if retained is None else retained
    steps = pd.DataFrame(
        {
            "step": range(STEPS + 1),
            "phase": ["warmup"] + ["target"] * STEPS,
            "target_step": [None, *range(STEPS)],
            "edits": PER_STEP,
            "skipped": None,
        }
    )
    after = {"specificity_agreement": shares["specificity"], **shares}
    quality = pd.DataFrame([*quality_rows(-1, BEFORE, None), *quality_rows(STEPS, after, kl)])
    updates = pd.DataFrame(
        [
            {
                "step": step,
                "module": module,
                "norm": 99.0 if step == 0 else norms[step - 1] * factor,
                "weight_ratio": 1 + 0.1 * step * factor,
                "cosine": None if step < 2 else -0.5,
                "realised_ratio": 0.9,
                "unchanged_fraction": 0.2,
            }
            for step in range(STEPS + 1)
            for module, factor in (("a", 1.0), ("b", 3.0))
        ]
    )
    written = pd.DataFrame(
        {
            "position": range(edits),
            "immediate": immediate,
            "immediate_exact": [float(value == 1) for value in immediate],
            "retained": retained,
        }
    )
    spec = {"editor": {"params": {"lr": 1e-2, **(params or {})}}}
    tables = {"steps": steps, "quality": quality, "updates": updates, "edits": written}
    return ArmRun(arm, setting, seed, cast(Run, Tables(tables, spec)))
