"""A small scale whose runs are written by `fake.write_run`, and builders on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from figures import registry
from figures.needs import Scale
from figures.scales import streams
from stablediag.stats import embed
from tests.figures.fake import Plant, write_run

COMMON = (
    "model.path=absent-model", "edits_per_step=10", "warmup.size=30", "evaluation.subsample=5", "snapshots.prompts=40",
    "evaluation.capability=true",
)  # fmt: skip


@pytest.fixture(autouse=True)
def a_quick_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two principal components in place of UMAP, which compiles for seconds; its own test is in tests/stats."""

    def plane(reference: np.ndarray, others: Mapping[str, np.ndarray], **_: object) -> tuple:
        centre = reference.mean(axis=0)
        axes = np.linalg.svd(reference - centre, full_matrices=False)[2][:2].T
        return (reference - centre) @ axes, {name: (cloud - centre) @ axes for name, cloud in others.items()}

    monkeypatch.setattr(embed, "umap_plane", plane)


@pytest.fixture
def scale() -> Scale:
    """Three seeds, 80 and 150 edits, two streams of 60."""
    sizes = {"new": 60, "relation": 60}
    return Scale(
        name="test",
        seeds=(0, 1, 2),
        stream_seeds=(0, 1),
        settings={
            "healthy": ("data.size=80",),
            "stress": ("data.size=150",),
            **streams(sizes, step=10, warmup=30, probes=5),
        },
        common=COMMON,
    )


@pytest.fixture
def fill(scale: Scale, tmp_path: Path) -> Callable[..., Path]:
    """Write every run that a figure needs; plants by arm."""

    def write(name: str, plants: Mapping[str, Plant] | None = None) -> Path:
        root = tmp_path / "runs"
        for need in registry.module(name).NEEDS.resolve(scale):
            if not (root / need.directory).exists():
                write_run(need, root, (plants or {}).get(need.arm, Plant()))
        return root

    return write
