"""Commands on runs: run, resume, ls, show, export."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stablediag.cli.dry_run import dry_run_of, told_streams
from stablediag.cli.output import AsJson, Quiet, RunPath, emit, progress, records, resumable, table, terminal
from stablediag.cli.quality import side_by_side
from stablediag.errors import SpecError, StoreError

if TYPE_CHECKING:
    from stablediag.spec import Spec

StopOnAlarm = Annotated[
    bool, typer.Option("--stop-on-alarm", help="stop behind the step at which the recorder `alarm` sounds; exit code 3")
]


def run(
    spec: Annotated[
        Path, typer.Argument(help="spec file (YAML), or preset:ID (see `stablediag presets`)", metavar="SPEC")
    ],
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
        bool,
        typer.Option(
            "--dry-run",
            help="print the resolved spec, the modules and the cost (also without the model's weights); write nothing",
        ),
    ] = False,
    stop_on_alarm: StopOnAlarm = False,
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
        with resumable(path):
            terminal()
            if dry_run:
                if number:
                    typer.echo("---")
                dry_run_of(one, path)
            elif path in finished:
                typer.echo(f"{path}: complete already")
            else:
                _carry_out(one, path, quiet, stop_on_alarm)


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


def _carry_out(spec: Spec, path: Path, quiet: bool, stop_on_alarm: bool) -> None:
    from stablediag.engine.session import Session

    session = Session.create(spec, path, progress=progress(quiet), stop_on_alarm=stop_on_alarm)
    for line in told_streams(session.reports):
        typer.echo(line, err=True)
    done = session.run()
    typer.echo(f"{path}: {done.state}, {len(done.table('steps'))} steps, digest {done.info.digest[:8]}")


def resume(run_dir: RunPath, stop_on_alarm: StopOnAlarm = False, quiet: Quiet = False) -> None:
    """Continue an interrupted or failed run from its last checkpoint."""
    with resumable(run_dir):
        terminal()
        from stablediag.engine.session import resume as resume_run

        done = resume_run(run_dir, progress=progress(quiet), stop_on_alarm=stop_on_alarm)
    typer.echo(f"{run_dir}: {done.state}, {len(done.table('steps'))} steps, digest {done.info.digest[:8]}")


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
    emit(rows, as_json)


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
        "streams": {name: _stream(found) for name, found in info.dataset.items() if "count" in found},
        "steps": len(steps),
        "edits": int(steps["edits"].sum()) if len(steps) else 0,
        "skipped_steps": int(steps["skipped"].notna().sum()) if len(steps) else 0,
        "dropped_rows": int(steps["dropped_rows"].sum()) if len(steps) else 0,
        "problems": opened.verify(),
    }
    quality = opened.table("quality") if "quality" in opened.tables() else None
    if quality is not None and len(quality):
        last = quality[quality["step"] == quality["step"].max()]
        summary["quality"] = records(last)
    for name in ("events", "journal"):
        summary[name] = records(opened.table(name))
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    measured = summary.pop("quality", [])
    for key, value in summary.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            typer.echo(f"{key}:\n" + "\n".join(f"  {line}" for line in table(value).splitlines()))
        else:
            typer.echo(f"{key}: {_summed(value)}")
    if measured:
        typer.echo(f"quality at step {measured[0]['step']}:\n{_measured(measured)}")


def _stream(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a stream was made of, and what was left out."""
    named = {key: found.get(key) for key in ("source", "count", "layout", "target", "skipped", "left_out")}
    parts = found.get("segments")
    return {key: value for key, value in named.items() if value} | (
        {"segments": [_stream(part) for part in parts]} if parts else {}
    )


def _measured(rows: list[dict[str, Any]]) -> str:
    from stablediag.evaluation.measured import Measured

    names = Measured.__dataclass_fields__
    if not names.keys() <= rows[0].keys():  # a run of a version that kept no intervals
        return table(rows)
    return "\n\n".join(side_by_side([Measured(**{name: _number(row[name]) for name in names}) for row in rows]))


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def _summed(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_summed(item)}" for key, item in value.items() if item not in (None, {}))
    return "; ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


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
