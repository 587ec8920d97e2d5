"""The command cite: what to cite for runs, as BibTeX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stablediag.cli.output import AsJson

Runs = Annotated[list[Path], typer.Argument(help="run directories", metavar="RUN...")]
Out = Annotated[Path | None, typer.Option(help="write into this file, which must not exist, instead of printing")]


def cite(run_dirs: Runs, as_json: AsJson = False, out: Out = None) -> None:
    """Print BibTeX of what runs are to be cited by: this package, and the works behind editor, data, metrics and recorders.

    Each entry stands once, with a comment that says what it is for. What has no work behind it, or a source that only you know,
    is listed at the end.
    """
    from stablediag.citations import bibtex_of, citations, entry
    from stablediag.errors import StoreError
    from stablediag.store.run import Run

    runs = [Run.open(path) for path in run_dirs]
    text = bibtex_of(runs)
    if as_json:
        cited, untold = citations(runs)
        entries = [
            {"key": one.reference.key, "uses": list(one.uses), "identifiers": list(one.reference.identifiers),
             "bibtex": entry(one.reference)}
            for one in cited
        ]  # fmt: skip
        text = json.dumps({"entries": entries, "without": untold}, indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        with open(out, "x", encoding="utf-8") as handle:
            handle.write(text)
    except OSError as error:
        raise StoreError(f"--out {out}: {error.strerror or error}: choose another file") from None
    typer.echo(out)
