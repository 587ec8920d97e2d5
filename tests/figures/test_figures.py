"""Every figure from stores with planted effects: its files, its columns, its verdicts, and nothing drawn over anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
    "no_ln": Plant(norms=(0.01, 0.01), cosine=0.5, quality=LOW, shift=1.0, scrambled=True),
    "ultraedit_no_ln": Plant(norms=(0.01, 0.01), cosine=0.5),
    "no_ln_first": Plant(cosine=0.5, quality=LOW, shift=1.0, scrambled=True),
    "no_ln_every": Plant(cosine=0.5, quality=LOW),
    "no_warmup": Plant(quality=LOW),
    "no_whitening": Plant(quality=LOW),
    "ultraedit": Plant(quality=LOW, seconds=0.1),
    "stats_only_warmup": Plant(quality=LOW),
}
#: and the other way round
OPPOSITE = {
    "stableedit": Plant(quality=LOW, norms=(1.0, 3.0), cosine=0.4, seconds=0.08, shift=1.0, scrambled=True),
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
#: those of the editors and of diagnosis have tests of their own
OWN_TESTS = ("table-editors", "figure-editors", "table-doctor")
RUNS = tuple(
    name
    for name in registry.FIGURES
    if name not in OWN_TESTS and not name.startswith("diagnosis-") and not registry.simulated(registry.module(name))
)
OTHERS = tuple(name for name in RUNS if name not in DRIFT)
MORE_THAN_NOISE = dict.fromkeys(("stableedit", "no_warmup"), Plant(extra_fall=50.0, extra_slope=-2.0))
PLANTS: dict[str, dict[str, Plant]] = {
    "as_claimed": AS_CLAIMED, "opposite": OPPOSITE, "noise": {}, "more_than_noise": MORE_THAN_NOISE
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "plants", "expected"),
    [(name, "as_claimed", "shown") for name in OTHERS]
    + [(name, "opposite", "opposite") for name in OTHERS]
    + [(name, "noise", "not shown") for name in DRIFT]
    + [(name, "more_than_noise", "shown") for name in DRIFT],
)
def test_planted_effects_are_found(
    name: str, plants: str, expected: str, shared: Callable[..., Path], scale: Scale, tmp_path: Path
) -> None:
    root = shared(name, plants, PLANTS[plants])
    needs = registry.module(name).NEEDS.resolve(scale)
    frame = registry.module(name).prepare(
        [ArmRun(n.arm, n.setting, n.seed, Run.open(root / n.directory)) for n in needs]
    )
    found = registry.module(name).verdicts(frame)
    assert {one.answer for one in found} == {expected}, [str(one) for one in found]


@pytest.mark.parametrize("name", RUNS)
def test_files_columns_and_room(name: str, shared: Callable[..., Path], scale: Scale, tmp_path: Path) -> None:
    plants, out = ("noise" if name in DRIFT else "as_claimed"), tmp_path / "out"
    root = shared(name, plants, PLANTS[plants])
    assert build.build([name], scale, root, out, jobs=1) == 0
    for suffix in ("csv", "pdf", "png", "json"):
        assert (out / f"{name}.{suffix}").stat().st_size > 200
    assert set(pd.read_csv(out / f"{name}.csv").columns) >= COLUMNS[name]
    assert registry.module(name).TITLE in (out / "SUMMARY.md").read_text()
    if name == "table-4":
        text = (out / "table-4.md").read_text()
        assert all(f"| {plots.look(arm).label} |" in text for arm in registry.module(name).NEEDS.arms)
    nothing_overlaps(drawn(name, scale, root))
    assert matplotlib.rcParams["pdf.fonttype"] == 3, "the style leaked out of its block"


def drawn(name: str, scale: Scale, root: Path) -> Figure:
    module = registry.module(name)
    runs = [ArmRun(n.arm, n.setting, n.seed, Run.open(root / n.directory)) for n in module.NEEDS.resolve(scale)]
    with plots.style():
        figure = module.draw(module.prepare(runs))
        FigureCanvasAgg(figure).draw()
    return figure


def nothing_overlaps(figure: Figure) -> None:
    """Legends lie inside the page and on no axes, and no axes (labels included) lies on another."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [ax.get_tightbbox(renderer) for ax in figure.axes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert all(ax.get_legend() is None for ax in figure.axes)
    for legend in figure.legends:
        box = legend.get_window_extent(renderer)
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes)


def test_an_overlap_is_noticed(scale: Scale, shared: Callable[..., Path]) -> None:
    figure = drawn("figure-4", scale, shared("figure-4", "as_claimed", AS_CLAIMED))
    figure.axes[0].legend()
    with pytest.raises(AssertionError):
        nothing_overlaps(figure)
