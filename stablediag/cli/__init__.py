"""The command line. Every listing has ``--json``; every user error is one line on stderr and exit code 1."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from stablediag.cli import (
    checks,
    cite,
    compare,
    data,
    doctor,
    editors,
    evaluate,
    models,
    moments,
    report,
    runs,
    switches,
    testbed,
    train,
)
from stablediag.errors import StablediagError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Theory verification and diagnostics for lifelong model editing.",
    epilog="Start with `stablediag run SPEC --dry-run`. Exit codes: 0 done, 1 an error (one line on stderr), "
    "2 wrong usage, 3 doctor found something bad, 130 interrupted.",
)
app.command()(runs.run)
app.command()(runs.resume)
app.command("ls")(runs.list_command)
app.command()(runs.show)
app.command()(doctor.doctor)
app.command(cls=compare.Command)(compare.compare)
app.command()(cite.cite)
app.command()(switches.switches)
app.command()(switches.controls)
app.command()(report.report)
app.command()(runs.export)
app.command()(evaluate.evaluate)
app.command("export-model")(models.export_model)
app.command("suggest-modules")(models.suggest_modules)
app.command()(models.presets)
app.command()(editors.editors)
app.command()(moments.moments)
app.command()(train.train)
app.add_typer(data.app, name="data")
app.command()(checks.check)
app.add_typer(testbed.app, name="testbed")


def _version(wanted: bool) -> None:
    if wanted:
        from stablediag import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `stablediag` command."""
    try:
        app()
    except StablediagError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
