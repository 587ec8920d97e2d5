"""The command report: one HTML page on a run or several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stablediag.cli.output import terminal


def report(
    run_dirs: Annotated[
        list[Path], typer.Argument(help="run directories; several are shown side by side", metavar="RUN...")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="file to write (default: RUN/report.html; of several runs report.html in this folder)"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the file if it is there")] = False,
    title: Annotated[str | None, typer.Option(help="heading of the page (default: the run's name)")] = None,
    interactive: Annotated[
        bool | None,
        typer.Option(
            "--interactive/--static",
            help="interactive figures beside the drawn ones (default: where plotly is installed; adds about 5 MB)",
        ),
    ] = None,
) -> None:
    """Write one self-contained HTML page on a run: the doctor's table, figures, tables, spec, provenance, citations.

    The page loads nothing, and runs no script unless its figures are interactive. Unfinished runs are reported with what is missing.
    """
    terminal()
    from stablediag.report import write_report

    place = out or (run_dirs[0] / "report.html" if len(run_dirs) == 1 else Path("report.html"))
    path = write_report(run_dirs, place, force=force, title=title, with_scripts=interactive)
    typer.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
