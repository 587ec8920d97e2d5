"""The figure of `stablediag compare`: two sides of runs, one over the other."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from stablediag.errors import SpecError, StoreError
from stablediag.plots import canvas, legend_below, log_axis, style, whole_steps
from stablediag.stats.run_curves import PANELS, curve, together
from stablediag.stats.switches import RunLike

FORMATS = ("pdf", "png", "svg")
#: colour, line style and marker of either side, apart in grey and for colour-blind readers
SIDES: tuple[tuple[str, Any, str], ...] = (("#0072B2", "-", "o"), ("#D55E00", (0, (4, 1.5)), "^"))
_COLUMNS = 3
#: rounding errors of equal numbers are not drawn as a course
_LEAST_SPAN = 1e-4


def overlay(first: Sequence[RunLike], second: Sequence[RunLike], *, labels: tuple[str, str] = ("A", "B")) -> Figure:
    """Every quantity that a run of either side recorded, along the edits: thin lines are runs, thick ones their means.

    Parameters
    ----------
    first, second : sequence of Run
    labels : (str, str)
        Names of the two sides, shown as they are.

    Raises
    ------
    StoreError
        No run recorded anything that could be drawn.
    """
    drawn = []
    for panel in PANELS:
        sides = [[curve(run, panel) for run in side] for side in (first, second)]
        if any(len(one) for side in sides for one in side):
            drawn.append((panel, sides))
    if not drawn:
        raise StoreError("--figure: neither side recorded anything to draw: use recorders light or standard")
    rows, columns = -(-len(drawn) // _COLUMNS), min(len(drawn), _COLUMNS)
    figure, axes = canvas(rows, columns, width="double", height=0.55 + 1.75 * rows)
    for ax, (panel, sides) in zip(axes.flat, drawn, strict=False):
        for curves, (color, line, marker) in zip(sides, SIDES, strict=True):
            known = [one for one in curves if len(one)]
            mean = together(known, log=panel.log)
            many = len(known) > 1
            for one in known if many else ():
                ax.plot(one["edits"], one["value"], color=color, linewidth=0.5, alpha=0.45, zorder=2)
            if len(mean):
                every = max(1, len(mean) // 6)
                ax.plot(
                    mean["edits"], mean["value"], color=color, linestyle=line, marker=marker, markevery=every, zorder=3
                )
        low, high = ax.get_ylim()
        if not panel.log and high - low < _LEAST_SPAN:
            middle = (low + high) / 2
            ax.set_ylim(middle - 0.1, middle + 0.1)
        ax.set_ylabel(panel.label)
        ax.set_xlabel("edits written")
        if panel.log:
            log_axis(ax.yaxis)
        whole_steps(ax)
    for ax in axes.flat[len(drawn) :]:
        ax.set_axis_off()
    names = [
        label if len(runs) == 1 else f"{label} ({len(runs)} runs)"
        for label, runs in zip(labels, (first, second), strict=True)
    ]
    entries = [
        Line2D([], [], color=color, linestyle=line, marker=marker, label=_shown(name))
        for name, (color, line, marker) in zip(names, SIDES, strict=True)
    ]
    missing = [panel.label for panel in PANELS if panel not in [one for one, _ in drawn]]
    gaps = [f"not recorded: {', '.join(missing)}"] if missing else []
    for label, place in zip(labels, (0, 1), strict=True):
        absent = [panel.label for panel, sides in drawn if not any(len(one) for one in sides[place])]
        gaps += [f"not recorded by {_shown(label)}: {', '.join(absent)}"] if absent else []
    note = "\n".join(gaps)
    return legend_below(figure, entries, columns=2, note=note)


def check_target(path: Path, *, force: bool = False) -> None:
    """Refuse a file that cannot be drawn into, before there is anything to draw.

    Raises
    ------
    SpecError
        The name has another ending than pdf, png or svg.
    StoreError
        The file is there already, and `force` is not given; or its folder is not.
    """
    if path.suffix.lower().lstrip(".") not in FORMATS:
        raise SpecError(f"--figure {path}: name a file that ends in {', '.join(FORMATS)}")
    if path.exists() and not force:
        raise StoreError(f"--figure {path} is there already: choose another name, or add --force")
    if not path.parent.is_dir():
        raise StoreError(f"--figure {path}: there is no folder {path.parent}: choose another folder")


def save(
    first: Sequence[RunLike], second: Sequence[RunLike], path: Path, *, labels: tuple[str, str], force: bool = False
) -> None:
    """Draw `overlay` into a file, which is there whole or not at all; the same runs give the same bytes.

    Raises
    ------
    SpecError, StoreError
        See `check_target` and `overlay`; or the file cannot be written.
    """
    check_target(path, force=force)
    kind = path.suffix.lower().lstrip(".")
    buffer = io.BytesIO()
    with style():
        stamp = {"pdf": "CreationDate", "svg": "Date"}.get(kind)
        overlay(first, second, labels=labels).savefig(buffer, format=kind, metadata={stamp: None} if stamp else None)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        part.write_bytes(buffer.getvalue())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StoreError(f"--figure {path}: {error.strerror or error}: choose another folder") from None


def _shown(text: str) -> str:
    """A name as it is: no mathematics, no line breaks, no leading underscore, which would hide it from the legend."""
    clean = " ".join("".join(one if one.isprintable() else " " for one in text).split()).replace("$", r"\$")
    return clean if not clean.startswith("_") else f"\u200b{clean}"
