"""Every figure from stores with planted effects: its files, its columns, its verdicts, and nothing drawn over anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from figures import build, registry
from figures.frames import ArmRun
from figures.needs import Scale
from stablediag import plots
from stablediag.store.run import Run
from tests.figures.fake import Plant

COLUMNS = {
    "figure-3": {"setting", "arm", "seed", "cloud", "prompt", "x", "y", "cka", "shift"},
    "figure-4": {"setting", "arm", "seed", "target_step", "norm", "norm_min", "norm_max", "cosine", "d"},
    "figure-7": {"setting", "arm", "seed", "series", "target_step", "nu", "value", "floored"},
    "figure-8": {"arm", "seed", "series", "target_step", "nu", "value"},
    "figure-11": {"setting", "arm", "seed", "target_step", "cosine"},
    "figure-12": {"setting", "arm", "seed", "target_step", "norm"},
    "figure-13": {"arm", "seed", "series", "target_step", "nu", "value"},
    "figure-14": {"arm", "seed", "series", "target_step", "nu", "value"},
    "table-3": {"arm", "seed", "part", "ms_per_edit", "ratio", "machine"},
    "table-4": {"setting", "arm", "seed", "metric", "value"},
}
HIGH = {"efficacy": 0.8, "generalization": 0.7, "specificity": 0.9, "specificity_agreement": 0.9}
LOW = {"efficacy": 0.3, "generalization": 0.2, "specificity": 0.4, "specificity_agreement": 0.4}
#: arms as the paper would have them
AS_CLAIMED = {
    "stableedit": Plant(quality=HIGH, seconds=0.14),
    "no_ln": Plant(norms=(0.01, 0.01), cosine=0.5, quality=LOW, shift=1.0),
    "ultraedit_no_ln": Plant(norms=(0.01, 0.01), cosine=0.5),
    "no_ln_first": Plant(cosine=0.5, quality=LOW, shift=1.0),
    "no_ln_every": Plant(cosine=0.5, quality=LOW),
    "no_warmup": Plant(quality=LOW),
    "no_whitening": Plant(quality=LOW),
    "ultraedit": Plant(quality=LOW, seconds=0.1),
    "stats_only_warmup": Plant(quality=LOW),
}
#: and the other way round
OPPOSITE = {
    "stableedit": Plant(quality=LOW, norms=(1.0, 3.0), cosine=0.4, seconds=0.08, shift=1.0),
    "no_ln": Plant(norms=(50.0, 50.0), quality={**HIGH, "specificity": 1.2}),
    "ultraedit_no_ln": Plant(norms=(50.0, 50.0)),
    "no_ln_first": Plant(quality=HIGH),
    "no_ln_every": Plant(quality=HIGH),
    "no_warmup": Plant(quality=HIGH),
    "no_whitening": Plant(quality=HIGH),
    "ultraedit": Plant(quality=HIGH, norms=(1.0, 3.0), cosine=0.4, seconds=0.1),
    "stats_only_warmup": Plant(quality=HIGH),
}
DRIFT = ("figure-7", "figure-8", "figure-13", "figure-14")
OTHERS = tuple(name for name in registry.FIGURES if name not in DRIFT)


def answers(
    name: str, fill: Callable[..., Path], scale: Scale, out: Path, plants: dict[str, Plant] | None
) -> list[str]:
    root = fill(name, plants)
    assert build.build([name], scale, root, out, jobs=1) == 0
    return [one["answer"] for one in json.loads((out / f"{name}.json").read_text())["verdicts"]]


@pytest.mark.parametrize("name", list(registry.FIGURES))
def test_files_columns_and_legends(name: str, fill: Callable[..., Path], scale: Scale, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answers(name, fill, scale, out, AS_CLAIMED)
    for suffix in ("csv", "pdf", "png", "json"):
        assert (out / f"{name}.{suffix}").stat().st_size > 200
    frame = pd.read_csv(out / f"{name}.csv")
    assert set(frame.columns) >= COLUMNS[name]
    module = registry.module(name)
    assert module.TITLE in (out / "SUMMARY.md").read_text()
    needs = module.NEEDS.resolve(scale)
    root = tmp_path / "runs"
    table = module.prepare([ArmRun(n.arm, n.setting, n.seed, Run.open(root / n.directory)) for n in needs])
    with plots.style():
        figure = module.draw(table)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        for legend in figure.legends:
            box = legend.get_window_extent(renderer)
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1
            assert not any(box.overlaps(ax.get_tightbbox(renderer)) for ax in figure.axes)
        assert all(ax.get_legend() is None for ax in figure.axes)
        inner = [ax.get_tightbbox(renderer) for ax in figure.axes]
        assert not any(a.overlaps(b) for i, a in enumerate(inner) for b in inner[i + 1 :])
    assert matplotlib.rcParams["pdf.fonttype"] == 3, "the style leaked out of its block"


@pytest.mark.parametrize("name", OTHERS)
def test_planted_claims_are_found_and_their_opposites_too(
    name: str, fill: Callable[..., Path], scale: Scale, tmp_path: Path
) -> None:
    assert set(answers(name, fill, scale, tmp_path / "out", AS_CLAIMED)) == {"shown"}


@pytest.mark.parametrize("name", OTHERS)
def test_planted_opposites_are_found(name: str, fill: Callable[..., Path], scale: Scale, tmp_path: Path) -> None:
    assert set(answers(name, fill, scale, tmp_path / "out", OPPOSITE)) == {"opposite"}


@pytest.mark.parametrize("name", DRIFT)
def test_pure_noise_shows_nothing(name: str, fill: Callable[..., Path], scale: Scale, tmp_path: Path) -> None:
    assert set(answers(name, fill, scale, tmp_path / "out", None)) == {"not shown"}


@pytest.mark.parametrize("name", DRIFT)
def test_more_than_noise_is_found(name: str, fill: Callable[..., Path], scale: Scale, tmp_path: Path) -> None:
    plants = dict.fromkeys(("stableedit", "no_warmup"), Plant(extra_fall=50.0, extra_slope=-2.0))
    assert set(answers(name, fill, scale, tmp_path / "out", plants)) == {"shown"}


def test_tables_have_markdown_with_every_arm(fill: Callable[..., Path], scale: Scale, tmp_path: Path) -> None:
    answers("table-4", fill, scale, tmp_path / "out", AS_CLAIMED)
    text = (tmp_path / "out" / "table-4.md").read_text()
    for arm in registry.module("table-4").NEEDS.arms:
        assert f"| {plots.look(arm).label} |" in text
    assert "±" in text
