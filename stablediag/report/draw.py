"""Drawings as matplotlib figures of one column, and as SVG that can stand inside a page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stablediag import plots
from stablediag.report.colours import GRID, class_of
from stablediag.report.courses import Drawing, Series

_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
#: markers in a legend, around (17, 6)
_SHAPES = {
    "o": "M14 6a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "s": "M14 3h6v6h-6z",
    "^": "M17 2.5l3.5 6.5h-7z",
    "D": "M17 2l4 4-4 4-4-4z",
    "v": "M17 9.5l3.5-6.5h-7z",
    "P": "M16 2.5h2v2.5h2.5v2h-2.5v2.5h-2v-2.5h-2.5v-2h2.5z",
    "X": "M14 3l3 3 3-3-3 3 3 3-3-3-3 3 3-3z",
    "*": "M17 1.5l1.2 3.2h3.3l-2.6 2 1 3.3-2.9-2-2.9 2 1-3.3-2.6-2h3.3z",
}
#: attributes in which numbers are rounded to a hundredth of a point
_PLACES = ("d", "x", "y", "transform", "width", "height", "points")
_HEIGHT = 2.1


def figure(drawing: Drawing, looks: Mapping[tuple[int, str], plots.Look]) -> Figure:
    """Draw the curves in the looks of their runs and modules.

    Parameters
    ----------
    drawing : Drawing
    looks : mapping of (int, str) to Look
        By run and module; module "" is a run as a whole.
    """
    made, axes = plots.canvas(1, 1, width="single", height=_HEIGHT)
    ax: Axes = axes[0, 0]
    if drawing.warmup is not None:
        ax.axvspan(0, drawing.warmup, color=GRID, alpha=0.6, linewidth=0, zorder=0)
    if drawing.line is not None:
        ax.axhline(drawing.line, color=plots.GREY, linewidth=0.8, linestyle=(0, (3, 1.5)), zorder=1)
    for one in drawing.series:
        (_draw_rows if drawing.rows else _draw)(ax, one, looks[(one.run, one.part)])
    if drawing.rows:
        return _in_rows(made, ax, drawing)
    ax.set(xlabel=drawing.xlabel, ylabel=drawing.ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if drawing.log:
        plots.log_axis(ax.yaxis)
    return made


def _draw(ax: Axes, one: Series, look: plots.Look) -> None:
    points, thin = one.kind == "points", one.kind in ("null", "second")
    dashes: Any = (0, (1, 1.2)) if one.kind == "null" else (0, (2.5, 1.2)) if one.kind == "second" else look.line
    ax.plot(
        one.x, one.y, color=look.color, linestyle=dashes, linewidth=0.9 if thin else 1.2,
        marker=None if one.kind == "null" else look.marker, markevery=1 if points else max(1, len(one.x) // 6), zorder=3,
    )  # fmt: skip
    if one.low is None or one.high is None:
        return
    if points:
        ax.vlines(one.x, one.low, one.high, color=look.color, linewidth=0.9, zorder=2)
    else:
        ax.fill_between(one.x, one.low, one.high, color=look.color, alpha=0.18, linewidth=0, zorder=2)


def _draw_rows(ax: Axes, one: Series, look: plots.Look) -> None:
    if one.kind == "before":
        ax.plot(one.x, one.y, color=plots.GREY, marker="|", markersize=9, markeredgewidth=1.2, linestyle="", zorder=2)
        return
    if one.low is not None and one.high is not None:
        ax.hlines(one.y, one.low, one.high, color=look.color, linewidth=1.0, zorder=2)
    ax.plot(one.x, one.y, color=look.color, marker=look.marker, markersize=4, linestyle="", zorder=3)


def _in_rows(made: Figure, ax: Axes, drawing: Drawing) -> Figure:
    """Names at the left, the first one on top; they are a run's, so that no mathematics is read in them."""
    ax.set_yticks(range(len(drawing.rows)), drawing.rows, parse_math=False)
    ax.set_ylim(len(drawing.rows) - 0.5, -0.5)
    ax.set(xlabel=drawing.xlabel, xlim=(-0.03, 1.03))
    ax.grid(axis="y", visible=False)
    return made


def svg(drawing: Drawing, looks: Mapping[tuple[int, str], plots.Look]) -> str:
    """The figure as an ``<svg>`` element without styles, scripts, images, or names that another figure has.

    Colours that differ on a dark page are classes of `colours.style_sheet`; text is text, in the page's font.
    """
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": drawing.id,
        "axes.formatter.use_mathtext": False,
    }
    with plots.style(), mpl.rc_context(settings):
        written = io.BytesIO()
        figure(drawing, looks).savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return page_svg(written.getvalue(), name=drawing.id, label=drawing.title)


def page_svg(source: bytes, *, name: str, label: str) -> str:
    """What matplotlib wrote, as it can stand in a page under a policy without inline styles.

    Parameters
    ----------
    source : bytes
        SVG file.
    name : str
        Prefix of its identifiers.
    label : str
        What a screen reader says.
    """
    root = ElementTree.fromstring(source)
    _drop(root, (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"))
    referenced = _references(root)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = dict(element.attrib)
        element.attrib.clear()
        element.attrib.update(_plain(attributes, referenced, name))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib.update({"class": "chart", "role": "img", "aria-label": label})
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub(r"\s*\n\s*", " ", text).replace("> <", "><")


def _drop(element: ElementTree.Element, tags: Sequence[str]) -> None:
    for child in list(element):
        if child.tag in tags:
            element.remove(child)
        else:
            _drop(child, tags)


def _references(root: ElementTree.Element) -> set[str]:
    found: set[str] = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            found.update(_REFERENCE.findall(value))
            if key == f"{{{_LINK}}}href":
                found.add(value.removeprefix("#"))
    return found


def _plain(attributes: Mapping[str, str], referenced: set[str], name: str) -> dict[str, str]:
    """Attributes of one element: declarations of its style as attributes, known colours as classes."""
    given = {key: value for key, value in attributes.items() if key != "style"} | _declared(attributes.get("style", ""))
    plain, classes = {}, []
    for key, value in given.items():
        if key == "id":
            if value in referenced:
                plain["id"] = f"{name}-{value}"
        elif key == f"{{{_LINK}}}href":
            plain["href"] = f"#{name}-{value.removeprefix('#')}"
        elif key in ("fill", "stroke") and class_of(value):
            classes.append(f"{key[0]}-{class_of(value)}")
        elif key in _PLACES:
            plain[key] = _NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
        else:
            plain[key] = _REFERENCE.sub(rf"url(#{name}-\1)", value)
    if classes:
        plain["class"] = " ".join(classes)
    return plain


def _declared(style: str) -> dict[str, str]:
    """Declarations of a style attribute; of fonts, size and weight alone: the family is the page's."""
    found: dict[str, str] = {}
    for declaration in style.split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key == "font":
            size = re.search(r"([\d.]+)px", value)
            found |= {"font-size": size[1]} if size else {}
            found |= {"font-weight": "bold"} if "bold" in value else {}
        elif key == "font-size":
            found[key] = value.removesuffix("px")
        elif key and key != "font-family":
            found[key] = value
    return found


def swatch(look: plots.Look, *, dotted: bool = False) -> str:
    """A line with its marker for a legend, as ``<svg>``; dotted: that of a level to compare with, without a marker."""
    color = class_of(look.color)
    stroke = f'class="s-{color}"' if color else f'stroke="{look.color}"'
    fill = f'class="s-{color} f-{color}"' if color else f'stroke="{look.color}" fill="{look.color}"'
    dashes = (1, 1.2) if dotted else () if isinstance(look.line, str) else look.line[1]
    broken = f' stroke-dasharray="{" ".join(f"{1.4 * length:g}" for length in dashes)}"' if dashes else ""
    shape = "" if dotted else f'<path d="{_SHAPES[look.marker]}" stroke-width="1" {fill}/>'
    line = f'<path d="M0 6H34" fill="none" stroke-width="1.6"{broken} {stroke}/>'
    return f'<svg viewBox="0 0 34 12" class="swatch" aria-hidden="true">{line}{shape}</svg>'
