"""The visuals by themselves: looks that differ, bands only where there are seeds, readable axes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from stablediag import plots


def test_every_arm_has_a_look_of_its_own() -> None:
    curves = [look for look in plots.LOOKS.values() if look.marker]
    assert len({look.marker for look in curves}) == len(curves)
    assert len({str(look.line) for look in plots.LOOKS.values()}) >= len(plots.LOOKS) - 2
    assert len({look.label for look in plots.LOOKS.values()}) == len(plots.LOOKS)
    # On white paper nothing may vanish, printed in grey or not.
    assert all(np.dot(to_rgb(look.color), (0.2126, 0.7152, 0.0722)) < 0.7 for look in plots.LOOKS.values())


def test_order_of_arms_is_fixed_and_unknown_ones_come_last() -> None:
    assert plots.ordered(["mine", "no_ln", "stableedit", "no_ln"]) == ["stableedit", "no_ln", "mine"]
    assert plots.look("mine").label == "mine"


def curve(seeds: int) -> pd.DataFrame:
    x = np.arange(1, 21)
    return pd.DataFrame({"arm": "stableedit", "x": x, "mean": x, "min": x - 1.0, "max": x + 1.0, "n": seeds})


@pytest.mark.parametrize(("seeds", "bands"), [(1, 0), (3, 1)])
def test_a_band_needs_more_than_one_seed(seeds: int, bands: int) -> None:
    _, axes = plots.canvas(1, 1, height=2)
    ax = plots.band_lines(curve(seeds), axes[0, 0], x="x")
    assert len(ax.collections) == bands
    assert ax.lines[0].get_markevery() == 2


def test_narrow_logarithmic_axes_have_plain_numbers() -> None:
    figure, axes = plots.canvas(1, 2, height=2)
    axes[0, 0].plot([1, 2, 3], [2, 3, 30])
    axes[0, 1].plot([1, 2, 3], [1, 1e3, 1e6])
    for ax in axes.flat:
        plots.log_axis(ax.yaxis)
    FigureCanvasAgg(figure).draw()
    assert {"2", "5", "10", "20"} <= {text.get_text() for text in axes[0, 0].get_yticklabels()}
    assert any("10^" in text.get_text() for text in axes[0, 1].get_yticklabels())


def test_dots_leave_room_for_an_arm_without_a_value() -> None:
    frame = pd.DataFrame(
        {"arm": ["stableedit", "no_ln"], "mean": [0.5, np.nan], "low": [0.4, np.nan], "high": [0.6, np.nan]}
    )
    _, axes = plots.canvas(1, 1, height=2)
    ax = plots.dots(frame, axes[0, 0])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["StableEdit", "no LN, same rate"]


def test_clouds_have_an_ellipse_each() -> None:
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame(rng.standard_normal((30, 2)), columns=["x", "y"]).assign(cloud=c) for c in ("before", "after")
    ]
    _, axes = plots.canvas(1, 1, height=2)
    ax = plots.clouds(pd.concat(parts), axes[0, 0], arm="ultraedit")
    assert len(ax.patches) == 2
    assert len(ax.collections) == 2


def test_crosses_have_a_bar_for_every_finite_interval_and_grow_along_the_curve() -> None:
    frame = pd.DataFrame(
        {
            "arm": "stableedit",
            "x": [1.0, 2.0, 1.5],
            "y": [1.0, 2.0, 3.0],
            "x_low": [0.9, 1.9, np.nan],
            "x_high": [1.1, 2.1, np.nan],
            "y_low": [0.5, 1.5, 2.5],
            "y_high": [1.5, 2.5, 3.5],
        }
    )
    _, axes = plots.canvas(1, 1, height=2)
    lines = plots.crosses(frame, axes[0, 0], x="x", y="y", sizes=(2, 5)).lines
    curve, marked = lines[0], [line for line in lines if line.get_marker() == "o"]
    # In the order of the rows: a curve may turn back.
    assert list(curve.get_xdata()) == [1.0, 2.0, 1.5]
    assert [line.get_markersize() for line in marked] == [2, 3.5, 5]
    horizontal = [line for line in lines[1:] if len(line.get_xdata()) == 2 and len(set(line.get_ydata())) == 1]
    vertical = [line for line in lines[1:] if len(line.get_xdata()) == 2 and len(set(line.get_xdata())) == 1]
    assert (len(horizontal), len(vertical)) == (2, 3)
