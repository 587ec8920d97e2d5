"""The command line. Every listing has ``--json``; every user error is one line on stderr and exit code 1."""

from __future__ import annotations

import json
import os
import shlex
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stablediag.errors import SpecError, StablediagError, StoreError

if TYPE_CHECKING:
    from stablediag.spec import Spec
    from synthetic.certify import Row

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Theory verification and diagnostics for lifelong model editing.",
    epilog="Start with `stablediag run SPEC --dry-run`. Exit codes: 0 done, 1 an error (one line on stderr), "
    "2 wrong usage, 130 interrupted.",
)
testbed_app = typer.Typer(
    no_args_is_help=True, help="The embedded testbed: a small model of a synthetic knowledge world."
)
app.add_typer(testbed_app, name="testbed")

RunPath = Annotated[Path, typer.Argument(help="run directory, such as runs/NAME-DIGEST")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bar (there is none outside a terminal)")]


def _table(rows: list[dict[str, Any]]) -> str:
    """Rows as aligned text columns."""
    if not rows:
        return "(none)"
    header = list(rows[0])
    cells = [header] + [[_cell(row.get(name)) for name in header] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _emit(rows: list[dict[str, Any]], as_json: bool) -> None:
    typer.echo(json.dumps(rows, indent=2) if as_json else _table(rows))


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


def _terminal() -> None:
    """Keep stderr for what the user must read."""
    from stablediag.models import silence_advice

    silence_advice()


def _progress(quiet: bool) -> bool:
    return not quiet and sys.stderr.isatty()


@contextmanager
def _resumable(path: Path) -> Iterator[None]:
    """Turn Ctrl-C into one line that says how to go on, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        text = "interrupted before the run began: nothing was written"
        if (path / "run.sqlite").exists():
            text = f"interrupted: continue with `stablediag resume {shlex.quote(str(path))}`"
        typer.echo(text, err=True)
        raise typer.Exit(130) from None


@app.command()
def run(
    spec: Annotated[Path, typer.Argument(help="spec file (YAML)", metavar="SPEC")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="values that win over the file, such as data.size=500 editor.params.lr=1e-3", metavar="KEY=VALUE"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="run directory, new or empty (a spec that makes one run only)")
    ] = None,
    root: Annotated[Path, typer.Option(help="where run directories NAME-DIGEST are made, without --out")] = Path(
        "runs"
    ),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the resolved spec, the modules and the cost; write nothing")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Edit a model as a spec says, and record it.

    A spec with `vary` makes one run per combination; started again, it skips those that are complete.
    """
    from stablediag.engine.prepare import resolve
    from stablediag.spec import load_many

    specs = [resolve(one)[0] for one in load_many(spec, overrides or [])]
    if out is not None and len(specs) > 1:
        raise SpecError(f"{spec} makes {len(specs)} runs, --out names one: give --root")
    planned = [(one, out or root / f"{one.name}-{one.digest()[:8]}") for one in specs]
    finished = _finished(planned) if len(planned) > 1 and not dry_run else set()
    for number, (one, path) in enumerate(planned):
        with _resumable(path):
            _terminal()
            if dry_run:
                if number:
                    typer.echo("---")
                _dry_run(one, path)
            elif path in finished:
                typer.echo(f"{path}: complete already")
            else:
                _carry_out(one, path, quiet)


def _finished(planned: list[tuple[Spec, Path]]) -> set[Path]:
    """The runs of a sweep that are complete; what would stop a later one is refused before the first one starts."""
    from stablediag.store.run import Run

    finished = set()
    for spec, path in planned:
        if (path / "run.sqlite").exists():
            found = Run.open(path)
            if found.state == "complete" and found.info.digest == spec.digest():
                finished.add(path)
                continue
            raise StoreError(f"{path} holds an unfinished run: continue it with `stablediag resume {path}`")
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StoreError(f"{path} is not empty: choose another --root")
    return finished


def _carry_out(spec: Spec, path: Path, quiet: bool) -> None:
    from stablediag.engine.session import run as run_spec

    done = run_spec(spec, path, progress=_progress(quiet))
    typer.echo(f"{path}: {done.state}, {len(done.table('steps'))} steps, digest {done.info.digest[:8]}")


def _dry_run(spec: Spec, path: Path) -> None:
    from stablediag.engine.estimate import estimate
    from stablediag.engine.prepare import Prepared

    prepared = Prepared(spec, run_dir=path)
    editor: Any = prepared.editor
    cost = estimate(
        prepared.plan,
        prepared.loaded,
        scopes=len(getattr(editor, "scopes", editor.modules)),
        covariance=getattr(editor, "keeps_covariance", True),
        tokens=editor.needs.tokens if editor.needs is not None else "answer",
    )
    typer.echo(prepared.spec.resolved_yaml().rstrip())
    typer.echo(f"# run directory: {path}\n# digest: {prepared.spec.digest()}")
    for module in prepared.loaded.modules.values():
        typer.echo(f"# module: {module.name} ({module.layout}, d_in {module.d_in}, d_out {module.d_out})")
    typer.echo(
        f"# cost without evaluation: {cost.steps} steps, {cost.edits} edits, {cost.tokens} tokens, "
        f"{cost.rows} rows a module, {cost.flops:.3g} FLOP, about {cost.seconds:.2g} s here, "
        f"{cost.memory_bytes / 2**20:.2g} MiB beside the model"
    )


@app.command()
def resume(run_dir: RunPath, quiet: Quiet = False) -> None:
    """Continue an interrupted or failed run from its last checkpoint."""
    with _resumable(run_dir):
        _terminal()
        from stablediag.engine.session import resume as resume_run

        done = resume_run(run_dir, progress=_progress(quiet))
    typer.echo(f"{run_dir}: {done.state}, {len(done.table('steps'))} steps, digest {done.info.digest[:8]}")


@app.command("ls")
def list_command(
    root: Annotated[Path, typer.Argument(help="folder of run directories")] = Path("runs"), as_json: AsJson = False
) -> None:
    """List runs with their state (running, complete, broken), spec digest and number of steps."""
    from stablediag.store.run import list_runs

    if not root.is_dir():
        raise SpecError(f"{root}: no such folder; give the folder that holds run directories")
    rows = list_runs(root)
    if not as_json:
        rows = [row | {"digest": row["digest"] and row["digest"][:8]} for row in rows]
    _emit(rows, as_json)


@app.command()
def show(run_dir: RunPath, as_json: AsJson = False) -> None:
    """Print what a run is, what it measured last, what happened to it, and whether its files are sound."""
    from stablediag.store.run import Run

    opened = Run.open(run_dir)
    steps = opened.table("steps")
    info = opened.info
    summary: dict[str, Any] = {
        "path": str(run_dir),
        "state": opened.state,
        "digest": info.digest,
        "created": info.created,
        "editor": info.spec["editor"],
        "model": info.spec["model"]["path"],
        "data": info.spec["data"]["source"],
        "steps": len(steps),
        "edits": int(steps["edits"].sum()) if len(steps) else 0,
        "skipped_steps": int(steps["skipped"].notna().sum()) if len(steps) else 0,
        "dropped_rows": int(steps["dropped_rows"].sum()) if len(steps) else 0,
        "problems": opened.verify(),
    }
    quality = opened.table("quality") if "quality" in opened.tables() else None
    if quality is not None and len(quality):
        last = quality[quality["step"] == quality["step"].max()]
        summary["quality"] = _records(last[["step", "metric", "kind", "value", "n"]])
    for table in ("events", "journal"):
        summary[table] = _records(opened.table(table))
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    for key, value in summary.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            typer.echo(f"{key}:\n" + "\n".join(f"  {line}" for line in _table(value).splitlines()))
        else:
            typer.echo(f"{key}: {_summed(value)}")


def _records(frame: Any) -> list[dict[str, Any]]:
    """Rows of a DataFrame as plain values, None for what is missing: JSON has no NaN."""
    return [{str(k): None if v != v else v for k, v in row.items()} for row in frame.to_dict("records")]


def _summed(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_summed(item)}" for key, item in value.items() if item not in (None, {}))
    return "; ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


@app.command()
def export(
    run_dir: RunPath,
    to: Annotated[Literal["csv", "parquet"], typer.Option(help="file format")] = "csv",
    out: Annotated[Path | None, typer.Option(help="folder to write (default: RUN_DIR/export)")] = None,
) -> None:
    """Write every table of a run as one CSV or Parquet file each, and print their paths."""
    from stablediag.store.export import export as export_run
    from stablediag.store.run import Run

    for path in export_run(Run.open(run_dir), out or run_dir / "export", to=to):
        typer.echo(path)


@app.command()
def check(
    names: Annotated[
        list[str] | None, typer.Argument(help="claims, such as theorem-3.5 (default: all)", metavar="CLAIM")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="fewer settings and replicates, same level")] = False,
    reps: Annotated[int | None, typer.Option(help="replicates of every setting (default: each claim's own)")] = None,
    seed: Annotated[int, typer.Option(help="base of all seeds")] = 0,
    jobs: Annotated[int, typer.Option(help="processes")] = min(2, os.cpu_count() or 1),
    cache: Annotated[Path, typer.Option(help="folder of finished cells")] = Path("runs/checks"),
    no_cache: Annotated[bool, typer.Option("--no-cache", help="compute everything, keep nothing")] = False,
    list_claims: Annotated[bool, typer.Option("--list", help="list the claims and their sources")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Check the theorems by simulation against exact oracles.

    Every row compares a measured number with the exact value, the sharper and the paper's bound. Exit code 1 if a
    statement does not come out as the theory predicts or a planted violation goes unseen.
    """
    from synthetic.checks import claims, run_checks
    from synthetic.claims import Scale

    if list_claims:
        _emit([{"claim": one.id, "title": one.title, "source": one.source} for one in claims(names or [])], as_json)
        return
    try:
        report = run_checks(
            names or [],
            scale=Scale(quick=quick, seed=seed, reps=reps),
            jobs=jobs,
            cache_dir=None if no_cache else cache,
            progress=_progress(quiet),
        )
    except KeyboardInterrupt:
        text = "interrupted: nothing was kept" if no_cache else "interrupted: start again, finished cells are kept"
        typer.echo(text, err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps([one.as_dict() for one in report.rows], indent=2))
    else:
        typer.echo(_table([line for one in report.rows for line in _check_lines(one)]))
    typer.echo(report.summary(), err=as_json)
    if not report.ok:
        raise typer.Exit(1)


def _check_lines(one: Row) -> list[dict[str, Any]]:
    """A row of checks as it is printed: a long setting goes on in lines of its own."""
    verdict = one.verdict if not one.planted else f"planted, {'caught' if one.caught else 'MISSED'}"
    setting, *more = textwrap.wrap(one.setting.removeprefix("planted: "), 64)
    line = {
        "claim": one.claim,
        "setting": setting,
        "measured": f"{one.measured:.4g} ± {one.error:.2g}" if one.error else f"{one.measured:.4g}",
        **{name: getattr(one, name) for name in ("exact", "tight", "paper", "slack")},
        "verdict": verdict if one.ok else f"{verdict} (!)",
        "seconds": f"{one.seconds:.1f}",
    }
    return [line, *(dict.fromkeys(line, "") | {"setting": f"  {rest}"} for rest in more)]


@testbed_app.command("train")
def testbed_train(
    out: Annotated[Path, typer.Argument(help="folder for the model, new or empty")],
    seed: Annotated[int, typer.Option(help="seed of initialisation and data order")] = 0,
    quiet: Quiet = False,
) -> None:
    """Rebuild the testbed's weights from the recipe (about half an hour on two cores)."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SpecError(f"{out} is not empty: name another folder for the model")
    from stablediag.testbed.recipe import Recipe, train

    train(out, Recipe(seed=seed), progress=_progress(quiet))
    typer.echo(f"{out}: trained; `stablediag testbed check {out}` measures it")


@testbed_app.command("check")
def testbed_check(
    model: Annotated[Path | None, typer.Argument(help="model folder (default: the committed weights)")] = None,
    as_json: AsJson = False,
) -> None:
    """Print recall per template and accuracy per capability task; exit code 1 if a threshold is missed."""
    from dataclasses import asdict

    _terminal()
    from stablediag.testbed import WEIGHTS
    from stablediag.testbed.check import check

    rows = check(model or WEIGHTS)
    _emit([asdict(row) | {"passed": row.passed} for row in rows], as_json)
    if not all(row.passed for row in rows):
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the `stablediag` command."""
    try:
        app()
    except StablediagError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
