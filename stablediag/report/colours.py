"""Colours of a report in a light and in a dark page, and which run or module has which."""

from __future__ import annotations

from collections.abc import Sequence

from stablediag.plots import GREY, Look

INK, GRID = "#000000", "#e6e6e6"
#: colour of a figure -> the same on a dark page; matplotlib draws in the first, the page's style sheet chooses
DARK = {
    INK: "#e8e8e8",
    GRID: "#3a3d42",
    GREY: "#9a9da3",
    "#0072b2": "#58b0ee",
    "#d55e00": "#ff8f4d",
    "#009e73": "#35d0a2",
    "#b5588a": "#ef9fcb",
    "#a87000": "#f3b838",
    "#3a8fc4": "#a5d8f8",
    "#6b2a8c": "#c79be0",
    "#6e6a00": "#cdc95a",
}
_CURVES = [color for color in DARK if color not in (INK, GRID, GREY)]
_LINES = ("-", (0, (5, 1.5)), (0, (2, 1)), (0, (5, 1, 1, 1)))
_MARKERS = "os^DvPX*"


def looks(labels: Sequence[str]) -> list[Look]:
    """One look a label: colour, marker and line differ, so that curves stay apart in grey."""
    return [
        Look(label, _CURVES[i % len(_CURVES)], _MARKERS[i % len(_MARKERS)], _LINES[(i + i // len(_CURVES)) % len(_LINES)])
        for i, label in enumerate(labels)
    ]  # fmt: skip


def class_of(color: str) -> str | None:
    """Name of a colour in the style sheet; None for one that is the same on every page."""
    known = color.lower()
    return known[1:] if known in DARK else None


def style_sheet() -> str:
    """Rules that give the classes ``f-COLOUR`` (fill) and ``s-COLOUR`` (stroke) their colour on a light and a dark page."""
    light = "".join(f"--c-{c[1:]}:{c};" for c in DARK)
    dark = "".join(f"--c-{c[1:]}:{other};" for c, other in DARK.items())
    uses = "\n".join(f".f-{c[1:]}{{fill:var(--c-{c[1:]})}}.s-{c[1:]}{{stroke:var(--c-{c[1:]})}}" for c in DARK)
    return f":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n@media print{{:root{{{light}}}}}\n{uses}\n"
