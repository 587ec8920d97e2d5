"""Curves along a run, thinned to what a figure can show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stablediag.report.courses import COURSES, Course, Drawing, Floats, Series
from stablediag.report.runs import Read

#: modules of one run that get a curve each; of more, the mean and the extremes are drawn
MOST_MODULES = 6
#: runs whose bands do not yet hide each other
MOST_BANDS = 4


def by_edits(reads: Sequence[Read]) -> bool:
    """Whether every run says how many edits its steps had."""
    return all(read.edits_at() is not None for read in reads)


def place(read: Read, steps: ArrayLike, *, edits: bool) -> Floats:
    """Abscissa of steps: edits written by their end (warm-up included), or the number of steps."""
    numbers: Floats = np.asarray(steps, dtype=np.float64)
    told = read.edits_at() if edits else None
    if told is None:
        return numbers + 1
    return np.interp(numbers, told.index.to_numpy(np.float64), told.to_numpy(np.float64))


def course_drawings(reads: Sequence[Read]) -> tuple[list[Drawing], list[str]]:
    """The courses that were recorded, and a line on each that was not."""
    drawings, missing = [], []
    for course in COURSES:
        found = [_course(course, reads, i) for i in range(len(reads))]
        without = [read for read, (series, _) in zip(reads, found, strict=True) if not series]
        if without:
            missing += _lacking(course, without, reads)
        drawn = [one for series, _ in found for one in series]
        if drawn:
            drawings.append(_drawing(course, drawn, reads, together(reads, [said for _, said in found])))
    return drawings, missing


def _lacking(course: Course, without: Sequence[Read], reads: Sequence[Read]) -> list[str]:
    """Runs in which a course was not recorded, and runs in which it has no values although it was."""
    empty = [read for read in without if course.column in read.tables.found(course.table)]
    absent = [read for read in without if read not in empty]
    lines = [lacks(course.title, absent, reads, f"the recorder {course.recorder}")] if absent else []
    if empty:
        where = f" of {', '.join(read.letter for read in empty)}" if len(reads) > 1 else ""
        lines.append(
            f"{course.title}{where}: recorded, but without values (the editor does not have it, or the run is too short)"
        )
    return lines


def lacks(what: str, without: Sequence[Read], reads: Sequence[Read], by: str) -> str:
    """One line on what was not recorded, and what would record it."""
    where = f" of {', '.join(read.letter for read in without)}" if len(reads) > 1 else ""
    return f"{what}{where}: not recorded ({by})"


def together(reads: Sequence[Read], notes: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Notes on several runs, what holds of several said once, with the letters of those that it is not said of all."""
    lines = []
    for note in dict.fromkeys(note for said in notes for note in said):
        told = [read.letter for read, said in zip(reads, notes, strict=True) if note in said]
        lines.append(note if len(told) == len(reads) else f"{', '.join(told)}: {note}")
    return tuple(lines)


def warmup_end(reads: Sequence[Read]) -> float | None:
    """Edits at which the warm-up ends, where it is the same in all runs."""
    ends = {read.warmup_edits() for read in reads}
    return ends.pop() if len(ends) == 1 and by_edits(reads) else None


def abscissa(reads: Sequence[Read]) -> str:
    """Label of the horizontal axis."""
    if not by_edits(reads):
        return "steps"
    return "edits, warm-up included" if any(read.warmup_edits() for read in reads) else "edits"


def stretches(steps: ArrayLike, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut the distinct steps into stretches of equal length, at most so many.

    Returns
    -------
    number : ndarray of int, shape [n]
        Stretch of every value of `steps`.
    last : ndarray of int, shape [at most `most`]
        Last step of every stretch.
    """
    given = np.asarray(steps)
    every = np.unique(given)
    parts = min(most, len(every))
    of_step = np.arange(len(every)) * parts // max(len(every), 1)
    last = every[np.append(np.flatnonzero(np.diff(of_step)), len(every) - 1)] if len(every) else every
    return of_step[np.searchsorted(every, given)], last


def _course(course: Course, reads: Sequence[Read], number: int) -> tuple[list[Series], list[str]]:
    """The curves of one run, and what must be said of them; none where the column has no values.

    Alone in the report, a run gets a curve per module, while these are few; otherwise the mean over modules with a band.
    """
    read, alone, banded = reads[number], len(reads) == 1, len(reads) <= MOST_BANDS
    frame = read.tables.found(course.table)
    needed = [course.column, *([course.over] if course.over else [])]
    if not {"step", "module", *needed} <= set(frame):
        return [], []
    known = frame.dropna(subset=needed)
    finite = pd.Series(np.isfinite(known[needed].to_numpy(np.float64)).all(axis=1), index=known.index)
    notes = [] if finite.all() else [f"{int((~finite).sum())} values that are not finite are not drawn"]
    known = known[finite]
    if not len(known):
        return [], notes
    stretch, last = stretches(known["step"], course.most)
    if len(last) < known["step"].nunique():
        notes.append(f"{known['step'].nunique():,} steps are drawn as {len(last)} means")
    x = place(read, last, edits=by_edits(reads))
    grouped = known.groupby([stretch, known["module"].astype(str).to_numpy()], sort=True)
    values = _wide(grouped[course.column].mean())
    if course.over:
        values = values / _wide(grouped[course.over].mean()).replace(0.0, np.nan)
    if alone and values.shape[1] <= MOST_MODULES:
        low, high = _wide(grouped[course.column].min()), _wide(grouped[course.column].max())
        spread = course.over is None and bool((high > low).any(axis=None))
        if spread:
            notes.append("bands: smallest to largest value of each stretch")
        found = [
            Series(number, str(name), x, _row(values, name), *((_row(low, name), _row(high, name)) if spread else ()))
            for name in values
        ]
    else:
        found = [_mean_of(values, x, number, banded=banded)]
        if values.shape[1] > 1:
            said = ", with a band from the smallest to the largest" if banded else ""
            notes.append(f"mean over {values.shape[1]} modules{said}")
    if course.null in frame:
        level = _finite(known[course.null]).groupby(stretch).mean().reindex(range(len(last)))
        if level.notna().any():
            found.append(Series(number, "", x, level.to_numpy(), kind="null"))
    return found, notes


def _wide(values: pd.Series) -> pd.DataFrame:
    """[stretch, module] of a series by stretch and module."""
    return pd.DataFrame(values.unstack())


def _row(frame: pd.DataFrame, name: object) -> Floats:
    return np.asarray(frame[name], dtype=np.float64)


def _mean_of(values: pd.DataFrame, x: Floats, number: int, *, banded: bool) -> Series:
    """Mean over modules, from the smallest to the largest as a band."""
    y = values.mean(axis=1).to_numpy(np.float64)
    if values.shape[1] == 1 or not banded:
        return Series(number, "", x, y)
    low, high = values.min(axis=1).to_numpy(np.float64), values.max(axis=1).to_numpy(np.float64)
    return Series(number, "", x, y, low, high)


def _finite(values: pd.Series) -> pd.Series:
    return values.where(np.isfinite(values))


def _drawing(course: Course, series: Sequence[Series], reads: Sequence[Read], notes: tuple[str, ...]) -> Drawing:
    values = np.concatenate([one.y for one in series] + [one.low for one in series if one.low is not None])
    values = values[np.isfinite(values)]
    positive = bool(len(values)) and values.min() > 0
    wide = positive and (course.log or values.max() / values.min() > 50) and course.line != 0.0
    caption = course.caption
    if any(one.kind == "null" for one in series):
        caption += f" Dotted: {course.null_label}."
    return Drawing(
        course.id,
        course.title,
        abscissa(reads),
        course.unit,
        caption,
        series,
        line=course.line,
        log=bool(wide),
        warmup=warmup_end(reads),
        notes=notes,
    )
