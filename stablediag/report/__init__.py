"""One self-contained HTML page on a run, or on several side by side: the doctor first, then figures, tables and provenance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stablediag.errors import StoreError
from stablediag.report import interactive
from stablediag.report.courses import COURSES
from stablediag.report.page import render
from stablediag.report.runs import read_runs
from stablediag.store._files import write_durably
from stablediag.store.run import Run

__all__ = ["COLUMNS", "report_html", "write_report"]

#: columns of the tables that a report reads beside those of the doctor
COLUMNS: dict[str, tuple[str, ...]] = {
    table: tuple(dict.fromkeys(column for one in COURSES if one.table == table for column in one.columns))
    for table in dict.fromkeys(one.table for one in COURSES)
} | {
    "steps": ("step", "phase", "edits"),
    "quality": ("step", "metric", "kind", "value", "n", "low", "high"),
    "edits": ("position", "edit_id", "immediate", "retained"),
    "alarms": (
        *("step", "state", "which", "e_innovation", "e_update", "e_limit", "cusum", "cusum_limit"),
        *("growth", "shrinkage", "scale_limit"),
    ),
    "events": ("step", "n", "kind", "text"),
    "journal": ("id", "kind", "text"),
}


def report_html(runs: Sequence[str | Path | Run], *, title: str | None = None, with_scripts: bool | None = None) -> str:
    """The report on runs as text.

    Parameters
    ----------
    runs : sequence of path or Run
        One, or up to twelve that are shown side by side. They may be complete, killed, or being written.
    title : str, optional
    with_scripts : bool, optional
        Interactive figures beside the drawn ones. Default: where plotly is installed (the extra `report`).

    Raises
    ------
    SpecError
        No run, one run twice, too many runs, or `with_scripts` without plotly.
    StoreError
        Not a run, or one whose database cannot be read.
    """
    scripts = interactive.available() if with_scripts is None else with_scripts
    return render(read_runs(runs, columns=COLUMNS), title=title, with_scripts=scripts)


def write_report(
    runs: Sequence[str | Path | Run],
    out: str | Path,
    *,
    force: bool = False,
    title: str | None = None,
    with_scripts: bool | None = None,
) -> Path:
    """Write the report on runs to a file that is there whole or not at all, and return its path.

    Parameters
    ----------
    runs, title, with_scripts
        As in `report_html`.
    out : path
    force : bool
        Replace the file where there is one.

    Raises
    ------
    SpecError
        As in `report_html`.
    StoreError
        Not a run; the file is there already, or cannot be written.
    """
    path = Path(out)
    # What is not a run is said before where a report on it cannot go.
    opened = [one if isinstance(one, Run) else Run.open(one) for one in runs]
    _check_free(path, force)
    # Text of a run may hold half a surrogate pair, which no encoding has.
    page = report_html(opened, title=title, with_scripts=with_scripts).encode("utf-8", "backslashreplace")
    _check_free(path, force)
    try:
        write_durably(path, page)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}; choose another --out") from None
    return path


def _check_free(path: Path, force: bool) -> None:
    if path.is_dir():
        raise StoreError(f"{path} is a folder: give the name of a file, such as {path / 'report.html'}")
    if not path.parent.is_dir():
        raise StoreError(f"{path.parent}: no such folder; make it, or choose another --out")
    if path.exists() and not force:
        raise StoreError(f"{path} is there already: give --force to replace it, or another --out")
