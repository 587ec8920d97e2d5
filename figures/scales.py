"""The two scales at which the figures are built: full, and quick (the same code on fewer seeds and shorter streams)."""

from __future__ import annotations

import json
from collections.abc import Mapping

from figures.needs import Scale
from stablediag.testbed import WEIGHTS

#: edits of each short stream; medical and one relation have no more
STREAM_SIZES = {"new": 1000, "counterfactual": 1000, "medical": 900, "relation": 700, "claims": 1000}


def full() -> Scale:
    """Three seeds; 2,000 edits (within what the model can hold) and 6,000 (beyond it), 100 a step."""
    return Scale(
        name="full",
        seeds=(0, 1, 2),
        stream_seeds=(0, 1, 2),
        settings={
            "healthy": ("data.size=2000",),
            "stress": ("data.size=6000",),
            **streams(STREAM_SIZES, step=50, warmup=500, probes=100),
        },
    )


def quick() -> Scale:
    """Two seeds; 600 and 1,000 edits, 50 a step."""
    short = ("edits_per_step=50", "warmup.size=200", "evaluation.subsample=150", "snapshots.prompts=300")
    return Scale(
        name="quick",
        seeds=(0, 1),
        stream_seeds=(0, 1),
        settings={
            "healthy": ("data.size=600", *short),
            "stress": ("data.size=1000", *short),
            **streams(dict.fromkeys(STREAM_SIZES, 300), step=50, warmup=200, probes=50),
        },
    )


def streams(sizes: Mapping[str, int], *, step: int, warmup: int, probes: int) -> dict[str, tuple[str, ...]]:
    """Settings of the short runs on other streams; all warm up on `new`, whose pool is large enough for every one."""
    found = {}
    for name, size in sizes.items():
        if name == "claims" and not claims_usable():
            continue
        found[f"stream:{name}"] = (
            f"data.stream={name}",
            f"data.size={size}",
            *(["data.relation=sport"] if name == "relation" else []),
            f"edits_per_step={step}",
            f"warmup.size={warmup}",
            "warmup.data={stream: new}",
            f"evaluation.subsample={probes}",
            "evaluation.capability=false",
            "snapshots.schedule=never",
        )
    return found


def claims_usable() -> bool:
    """Whether the shipped model judges claims well enough, by the check that was stored with its weights."""
    try:
        checks = json.loads((WEIGHTS / "recipe.json").read_text(encoding="utf-8"))["checks"]
    except (OSError, ValueError, KeyError):
        return False
    return any(row["name"] == "claims" and row["used_in_studies"] for row in checks)
