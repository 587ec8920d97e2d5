"""Interactive figures, where plotly is installed: its script and the curves as data, inside the page."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stablediag.errors import SpecError
from stablediag.plots import Look
from stablediag.report.colours import DARK
from stablediag.report.courses import Drawing, Floats, Series

_STARTER = Path(__file__).with_name("page.js")


def available() -> bool:
    """Whether plotly is installed (the extra `report`)."""
    return importlib.util.find_spec("plotly") is not None


def scripts() -> tuple[str, str]:
    """plotly.js and what starts it.

    Raises
    ------
    SpecError
        plotly is not installed.
    """
    if not available():
        raise SpecError("interactive figures need plotly; install stablediag[report], or leave --interactive out")
    from plotly.offline import get_plotlyjs

    return get_plotlyjs(), _STARTER.read_text(encoding="utf-8")


def data(drawings: Sequence[Drawing], looks: Mapping[tuple[int, str], Look]) -> str:
    """All curves as JSON that can stand inside a ``<script type="application/json">``."""
    figures = {drawing.id: _figure(drawing, looks) for drawing in drawings}
    text = json.dumps(figures, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _figure(drawing: Drawing, looks: Mapping[tuple[int, str], Look]) -> dict[str, Any]:
    return {
        "x": drawing.xlabel,
        "y": drawing.ylabel,
        "log": drawing.log,
        "line": drawing.line,
        "warmup": drawing.warmup,
        "rows": list(drawing.rows),
        "curves": [_curve(one, looks[(one.run, one.part)]) for one in drawing.series],
    }


def _curve(one: Series, look: Look) -> dict[str, Any]:
    dash = {"null": "dot", "second": "dash"}.get(one.kind, "solid" if isinstance(look.line, str) else "longdash")
    named = {"null": " (to compare with)", "second": " (at the end)", "before": " (unedited)"}.get(one.kind, "")
    return {
        "name": look.label + named,
        "x": _numbers(one.x),
        "y": _numbers(one.y),
        "low": None if one.low is None else _numbers(one.low),
        "high": None if one.high is None else _numbers(one.high),
        "kind": one.kind,
        "color": look.color,
        "dark": DARK.get(look.color.lower(), look.color),
        "dash": dash,
    }


def _numbers(values: Floats) -> list[float | None]:
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]
