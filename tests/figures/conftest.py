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
    "model.path=./absent-model", "edits_per_step=10", "warmup.size=30", "evaluation.subsample=5", "snapshots.prompts=40",
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


@pytest.fixture(scope="session")
def scale() -> Scale:
    """Three seeds, 60 and 100 edits, two streams of 50."""
    return Scale(
        name="test",
        seeds=(0, 1, 2),
        stream_seeds=(0, 1),
        settings={
            "healthy": ("data.size=60",),
            "stress": ("data.size=100",),
            **streams({"new": 50, "relation": 50}, step=10, warmup=30, probes=5),
        },
        common=COMMON,
    )


@pytest.fixture
def fill(scale: Scale, tmp_path: Path) -> Callable[[str], Path]:
    """Write every run that a figure needs into a folder of the test's own."""

    def write(name: str) -> Path:
        return filled(name, scale, tmp_path / "runs", {})

    return write


@pytest.fixture(scope="session")
def shared(scale: Scale, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, Mapping[str, Plant]], Path]:
    """The same in a folder that all tests with one set of plants share and none may change."""
    base = tmp_path_factory.mktemp("planted")

    def write(name: str, plants_name: str, plants: Mapping[str, Plant]) -> Path:
        return filled(name, scale, base / plants_name, plants)

    return write


def filled(name: str, scale: Scale, root: Path, plants: Mapping[str, Plant]) -> Path:
    """Write the runs of a figure that `root` lacks."""
    for need in registry.module(name).NEEDS.resolve(scale):
        if not (root / need.directory).exists():
            write_run(need, root, plants.get(need.arm, Plant()))
    return root
