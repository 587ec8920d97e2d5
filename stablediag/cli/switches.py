"""The commands switches and controls: a spec beside its variations, and what each of them does to quality and geometry."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stablediag.cli.output import AsJson, Quiet, progress, records, table, terminal

if TYPE_CHECKING:
    import pandas as pd

    from stablediag.engine.compare import Outcome, Planned
    from stablediag.spec import Spec
    from stablediag.spec.variations import Catalogue, LeftOut
    from stablediag.stats.switches import Measure

SpecPath = Annotated[
    Path,
    typer.Argument(help="spec file (YAML) of an LN editor, or preset:ID; `vary` may list data.seed", metavar="SPEC"),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="values that win over the file, such as data.size=500", metavar="KEY=VALUE")
]
Seeds = Annotated[
    int | None, typer.Option(help="number of seeds (default: those of vary, else 3; 1 if nothing is drawn)")
]
Only = Annotated[list[str] | None, typer.Option(help="this variation alone, with what it needs (repeatable)")]
Root = Annotated[Path, typer.Option(help="where the runs are made; complete ones are kept, unfinished ones resumed")]
Matched = Annotated[
    bool,
    typer.Option("--matched", help="give every variation the update norms of what it is compared with, step by step"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print what would be run and why; write nothing")]
Write = Annotated[Path | None, typer.Option(help="write the specs into this folder instead of running them")]

_MARKS = (
    "* the interval excludes no effect, ** it does so after Holm's correction for the number of effects in these tables"
)
_PLAIN = (
    "Each effect is that of the change with everything that follows from it, the length of the steps included; --matched "
    "tells the two apart."
)
_MATCHED = (
    "Update norms are those of what is compared with, step by step: what is left is the effect on the direction of the "
    "updates. Most changes also change their length: run without --matched for both together."
)


def switches(
    spec: SpecPath,
    overrides: Overrides = None,
    seeds: Seeds = None,
    only: Only = None,
    root: Root = Path("runs"),
    as_json: AsJson = False,
    with_matched: Matched = False,
    dry_run: DryRun = False,
    write: Write = None,
    quiet: Quiet = False,
) -> None:
    """Turn each switch between StableEdit as printed and as released on its own, and print what it does.

    Effects on quality and geometry are paired by seed and edit, with 95% intervals. Started again, the command keeps runs that
    are complete and resumes the others. Exit code 1 if a run failed.
    """
    from stablediag.spec.variation_switches import switches as catalogue

    _compare(catalogue, spec, overrides or [], seeds, only or [], root, as_json, with_matched, dry_run, write, quiet)


def controls(
    spec: SpecPath,
    overrides: Overrides = None,
    seeds: Seeds = None,
    only: Only = None,
    root: Root = Path("runs"),
    as_json: AsJson = False,
    with_matched: Matched = False,
    dry_run: DryRun = False,
    write: Write = None,
    quiet: Quiet = False,
) -> None:
    """Run the controls of Lifelong Normalization beside a spec, and print what each of them does.

    No LN at equal norms, centring and scaling alone, shuffled and frozen statistics, carry-over of statistics or weights, frozen
    weights on an i.i.d. stream, a permuted stream, and bfloat16 weights. As `stablediag switches` otherwise.
    """
    from stablediag.spec.variation_controls import controls as catalogue

    _compare(catalogue, spec, overrides or [], seeds, only or [], root, as_json, with_matched, dry_run, write, quiet)


def _compare(
    catalogue: Callable[[Spec], Catalogue],
    spec: Path,
    overrides: Sequence[str],
    seeds: int | None,
    only: Sequence[str],
    root: Path,
    as_json: bool,
    with_matched: bool,
    dry_run: bool,
    write: Path | None,
    quiet: bool,
) -> None:
    from stablediag.engine.compare import base_specs, plan
    from stablediag.errors import SpecError
    from stablediag.spec.variation_switches import keeps_norms
    from stablediag.spec.variations import matched

    bases = base_specs(spec, overrides, seeds)
    if with_matched and not keeps_norms(bases[0]):
        raise SpecError(f"{spec}: --matched needs the norm of every update: use recorders light, standard or full")
    whole = catalogue(bases[0])
    chosen = (matched(whole) if with_matched else whole).only(only)
    planned, more = plan(bases, chosen, root)
    left_out = [*chosen.left_out, *more]
    if write is not None:
        _write(planned, write, root)
    elif dry_run:
        _print_plan(planned, left_out, as_json)
    else:
        outcomes = _run(planned, quiet)
        _print(outcomes, left_out, as_json, with_matched)
        if any(outcome.error is not None for outcome in outcomes):
            raise typer.Exit(1)


def _run(planned: Sequence[Planned], quiet: bool) -> list[Outcome]:
    from stablediag.engine.compare import carry_out

    terminal()
    outcomes = []
    try:
        for outcome in carry_out(planned, progress=progress(quiet)):
            outcomes.append(outcome)
            if not quiet:
                one, place = outcome.planned, f"[{len(outcomes)}/{len(planned)}]"
                end = f"failed: {outcome.error}" if outcome.error else f"{outcome.seconds:.1f} s"
                typer.echo(f"{place} {one.variation.name}, seed {one.seed}: {end}", err=True)
    except KeyboardInterrupt:
        typer.echo("interrupted: the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    return outcomes


def _write(planned: Sequence[Planned], folder: Path, root: Path) -> None:
    """One spec file a run, numbered in the order in which they can be run."""
    from stablediag.errors import SpecError

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError(f"--write {folder}: not an empty folder; choose another")
    folder.mkdir(parents=True, exist_ok=True)
    unique = list({one.path: one for one in planned}.values())
    digits = len(str(len(unique)))
    for number, one in enumerate(unique, 1):
        variation = one.variation
        head = (
            [f"{variation.what}: {variation.question}", f"source: {variation.source}"]
            if variation.source
            else [variation.what]
        )
        path = folder / f"{number:0{digits}d}-{variation.name}-seed{one.seed}.yaml"
        path.write_text("".join(f"# {line}\n" for line in head) + one.spec.resolved_yaml(), encoding="utf-8")
        typer.echo(path)
    typer.echo(f"run them in this order: `stablediag run FILE --root {shlex.quote(str(root))}`", err=True)


def _print_plan(planned: Sequence[Planned], left_out: Sequence[LeftOut], as_json: bool) -> None:
    rows = []
    for one in planned:
        rows.append({
            "variation": one.variation.name, "seed": one.seed, "state": one.state, "run": str(one.path), "what": one.variation.what,
            "question": one.variation.question, "against": one.variation.against, "source": one.variation.source,
            "changes": dict(one.variation.changes),
        })  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"runs": rows, "left_out": [vars(one) for one in left_out]}, indent=2))
        return
    shown = {row["variation"]: row for row in rows}
    typer.echo(
        table([{key: row[key] for key in ("variation", "against", "what", "question")} for row in shown.values()])
    )
    typer.echo()
    typer.echo(table([{key: row[key] for key in ("run", "state")} for row in rows]))
    for line in _left_out(left_out):
        typer.echo(line)


def _left_out(left_out: Sequence[LeftOut]) -> Iterator[str]:
    if left_out:
        yield "\nleft out:"
        yield from (f"  {one.name} ({one.what}): {one.reason}" for one in left_out)


def _print(outcomes: Sequence[Outcome], left_out: Sequence[LeftOut], as_json: bool, with_matched: bool) -> None:
    from stablediag.stats.switches import MEASURES, effects, means
    from stablediag.store.run import Run

    runs = [
        (one.variation.name, one.seed, Run.open(one.path)) for one in (o.planned for o in outcomes if o.error is None)
    ]
    variations = {o.planned.variation.name: o.planned.variation for o in outcomes}
    against = {name: one.against for name, one in variations.items() if one.against is not None}
    held = {(name, seed) for name, seed, _ in runs}
    usable = [one for one in runs if one[0] not in against or (against[one[0]], one[1]) in held]
    found = effects(usable, against, groups={name: one.groups for name, one in variations.items()})
    levels = means([one for one in usable if one[0] not in against])
    failed = [o for o in outcomes if o.error is not None]
    seeds = len({o.planned.seed for o in outcomes})
    notes = [_MATCHED if with_matched else _PLAIN]
    if seeds == 1:
        notes.append(
            "One seed: intervals are over its edits alone and say nothing about another seed; geometry has none."
        )
    elif seeds < 5:
        notes.append(
            f"{seeds} seeds: intervals are wide, and few effects can survive the correction; five seeds tell more."
        )
    if as_json:
        text = {
            "matched": with_matched,
            "notes": notes,
            "references": records(levels),
            "effects": records(found),
            "runs": [_outcome(outcome) for outcome in outcomes],
            "left_out": [vars(one) for one in left_out],
        }
        typer.echo(json.dumps(text, indent=2))
        return
    for group in ("quality", "geometry"):
        measures = [m for m in MEASURES if m.group == group and (found["metric"] == m.name).any()]
        if measures:
            typer.echo(f"{group}: {'; '.join(f'{m.label}{_unit(m)}' for m in measures)}\n")
            _table(_rows(found[found["group"] == group], levels, measures, against))
            typer.echo()
    if not len(found):
        typer.echo("nothing to compare: no two runs recorded the same measure")
    for line in (_MARKS, *notes, *_left_out(left_out)):
        typer.echo(line)
    if failed:
        typer.echo(
            "\nfailed:\n" + "\n".join(f"  {o.planned.variation.name}, seed {o.planned.seed}: {o.error}" for o in failed)
        )


def _outcome(outcome: Outcome) -> dict[str, Any]:
    one = outcome.planned
    return {
        "variation": one.variation.name, "seed": one.seed, "run": str(one.path), "error": outcome.error,
        "what": one.variation.what, "question": one.variation.question, "source": one.variation.source,
    }  # fmt: skip


def _unit(measure: Measure) -> str:
    if measure.scale == "ratio":
        return " (factor)"
    return f" ({measure.unit})" if measure.unit else ""


def _rows(
    found: pd.DataFrame, levels: pd.DataFrame, measures: Sequence[Measure], against: Mapping[str, str]
) -> list[dict[str, str]]:
    """References with their own values, each followed by what is compared with it."""
    rows = []
    cells = {(row["variation"], row["metric"]): row for row in found.to_dict("records")}
    for level in levels.to_dict("records"):
        mine = [
            name for name, other in against.items() if other == level["variation"] and name in set(found["variation"])
        ]
        if not mine:
            continue
        own = {
            measure.label: f"{level[measure.name]:.3g}" if math.isfinite(level[measure.name]) else "-"
            for measure in measures
        }
        rows.append({"variation": f"{level['variation']} itself", **own})
        rows += _compared(mine, cells, measures, against, found)
    return rows


def _compared(
    names: Sequence[str],
    cells: Mapping[Any, Any],
    measures: Sequence[Measure],
    against: Mapping[str, str],
    found: pd.DataFrame,
) -> list[dict[str, str]]:
    rows = []
    for name in names:
        own = {measure.label: _cell(cells.get((name, measure.name))) for measure in measures}
        nested = f" (to {against[name]})" if against[name] != "base" else ""
        rows.append({"variation": f"{name}{nested}", **own})
        deeper = [other for other in against if against[other] == name and other in set(found["variation"])]
        rows += _compared(deeper, cells, measures, against, found)
    return rows


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    ratio = row["scale"] == "ratio"

    def shown(value: float) -> str:
        if ratio:
            return f"{value:.4f}" if 0 < abs(value - 1) < 0.005 else f"{value:.3g}"
        small = abs(value) < 1e-6
        return f"{value:+.1f}" if row["unit"] == "points" and abs(value) >= 0.05 else f"{0.0 if small else value:+.2g}"

    text = f"{'x' if ratio else ''}{shown(row['effect'])}"
    if math.isnan(row["low"]):
        return text
    mark = "**" if row["survives"] else "*" if not row["low"] <= (1.0 if ratio else 0.0) <= row["high"] else ""
    return f"{text}{mark} [{shown(row['low'])}, {shown(row['high'])}]"


def _table(rows: list[dict[str, str]]) -> None:
    """Aligned text; in a terminal folded to its width, intervals on a line of their own, what survives in bold."""
    if not sys.stdout.isatty():
        typer.echo(table([dict(row) for row in rows]))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(rows[0]):
        shown.add_column(name, no_wrap=place > 0)
    for row in rows:
        reference = row["variation"].endswith(" itself")
        texts = (cell.replace(" [", "\n[") for cell in row.values())
        shown.add_row(*(Text(text, style="dim" if reference else "bold" if "**" in text else "") for text in texts))
    Console().print(shown)
