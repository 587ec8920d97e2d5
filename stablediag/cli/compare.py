"""The command compare: what two runs, or two arms of several seeds, differ in, and what that did."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from stablediag.cli.output import AsJson, plain, records, table

if TYPE_CHECKING:
    import pandas as pd

    from stablediag.stats.run_diff import Change, Comparison
    from stablediag.stats.switches import Measure
    from stablediag.store.run import Run

Runs = Annotated[
    list[Path], typer.Argument(help="two runs, A and B; with --with, the runs of A, one a seed", metavar="RUN...")
]
With = Annotated[
    list[Path] | None, typer.Option("--with", help="the runs of B, one a seed (several may follow)", metavar="RUN...")
]
Drawing = Annotated[Path | None, typer.Option(help="draw both over one another into this PDF, PNG or SVG file")]
Force = Annotated[bool, typer.Option("--force", help="replace the file of --figure")]
All = Annotated[bool, typer.Option("--all", help="print every difference and every metric")]

#: differing paths that only one side has, up to which they are printed
_FEW = 6
_WIDTH = 48
_MARKS = (
    "* the interval excludes no effect, ** it does so after Holm's correction for the number of effects in these tables"
)


class Command(TyperCommand):
    """A command whose option --with takes all values up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Click's parser, on ``--with B1 --with B2`` for ``--with B1 B2``."""
        return super().parse_args(ctx, list(_spread(args)))


def _spread(args: Sequence[str]) -> Iterator[str]:
    greedy = False
    for place, one in enumerate(args):
        if one.startswith("-") and one != "-":
            greedy = one == "--with" or one.startswith("--with=")
            yield one
        elif greedy and args[place - 1] != "--with":
            yield from ("--with", one)
        else:
            yield one


def compare(
    run_dirs: Runs,
    others: With = None,
    as_json: AsJson = False,
    figure: Drawing = None,
    force: Force = False,
    everything: All = False,
) -> None:
    """Compare two runs, A with B, or two arms of several seeds: RUN... --with RUN...

    Says what differs in spec, versions, model and data, then quality and geometry with 95% intervals, and collapse points.
    Effects are of B against A, paired over edits and seeds where both saw the same edits, else independent.
    """
    from stablediag.errors import SpecError
    from stablediag.stats.run_diff import compare_runs
    from stablediag.store.run import Run

    if not others and len(run_dirs) != 2:
        raise SpecError(
            f"compare: {len(run_dirs)} run{'s' * (len(run_dirs) > 1)}: give two, A and B, or the runs of A, then --with and those of B"
        )
    paths = (run_dirs, others) if others else (run_dirs[:1], run_dirs[1:])
    sides = [[Run.open(path) for path in side] for side in paths]
    if figure is not None:
        from stablediag.compare_figure import check_target

        check_target(figure, force=force)
    found = compare_runs(sides[0], sides[1])
    labels = tuple(_label(name, side) for name, side in zip("AB", sides, strict=True))
    if figure is not None:
        from stablediag.compare_figure import save

        save(sides[0], sides[1], figure, labels=(labels[0], labels[1]), force=force)
    unfinished = [run for side in sides for run in side if run.state != "complete"]
    notes = [*(f"{run.path} is not complete: what it has is compared" for run in unfinished), *found.notes]
    if as_json:
        typer.echo(json.dumps(_json(found, sides, notes, figure), indent=2, default=str))
        return
    typer.echo("\n".join(_text(found, sides, labels, notes, everything)))
    if figure is not None:
        typer.echo(f"\ndrawn: {figure}")


def _label(side: str, runs: Sequence[Run]) -> str:
    names = list(dict.fromkeys(str(run.info.spec.get("name", run.path.name)) for run in runs))
    alike = [letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))]
    shared = re.sub(r"[-_ ]?(seed)?[-_ ]?$", "", "".join(alike)) if len(names) > 1 else names[0]
    return f"{side}: {_short(shared or names[0])}"


def _json(
    found: Comparison, sides: Sequence[Sequence[Run]], notes: Sequence[str], figure: Path | None
) -> dict[str, Any]:
    rows = records(found.metrics.drop(columns=["variation", "against"]))
    return {
        "runs": {
            name: [{"path": str(run.path), "name": run.info.spec.get("name"), "digest": run.info.digest, "state": run.state}
                   for run in side] for name, side in zip("AB", sides, strict=True)
        },
        "pairing": {"kind": found.pairing.kind, "reason": found.pairing.reason, "pairs": [
            {"A": str(sides[0][i].path), "B": str(sides[1][j].path)} for i, j in found.pairing.pairs
        ]},
        "spec": [_change(one) for one in found.spec],
        "provenance": [_change(one) for one in found.provenance],
        "metrics": [{("A" if key == "reference" else "B" if key == "value" else key): value for key, value in row.items()}
                    for row in rows],
        "not_compared": list(found.missing),
        "collapse": [{"arm": "AB"[row["arm"]], "run": str(sides[row["arm"]][row["run"]].path), "state": row["state"],
                      "edits": plain(row["edits"]), "text": row["text"]} for row in found.collapse.to_dict("records")],
        "extension": list(found.extensions),
        "notes": list(notes),
        "figure": None if figure is None else str(figure),
    }  # fmt: skip


def _change(one: Change) -> dict[str, Any]:
    return {"path": one.path, "A": list(one.first), "B": list(one.second)}


def _text(
    found: Comparison, sides: Sequence[Sequence[Run]], labels: Sequence[str], notes: Sequence[str], everything: bool
) -> Iterator[str]:
    for label, side in zip(labels, sides, strict=True):
        yield label
        yield from (f"   {run.path} ({run.state}, {run.info.digest[:12]})" for run in side)
    yield f"{found.pairing.kind}: {found.pairing.reason}"
    yield from _changes("spec", found.spec, everything)
    yield from _changes("versions, model and data", found.provenance, everything)
    yield from _metrics(found, everything)
    yield "\ncollapse (score at most 60, after one above)"
    for row in found.collapse.to_dict("records"):
        yield f"  {'AB'[row['arm']]} {sides[row['arm']][row['run']].path.name}: {row['text']}"
    yield from (f"  horizon of B over that of A: {text}" for text in found.extensions)
    if notes:
        yield "\nto know"
        yield from (f"  {note}" for note in notes)


def _changes(title: str, changes: Sequence[Change], everything: bool) -> Iterator[str]:
    yield f"\n{title}" + ("" if changes else ": no difference")
    alone = [one for one in changes if not one.first or not one.second]
    folded = len(alone) > _FEW and not everything
    shown = [one for one in changes if not (folded and one in alone)]
    if shown:
        rows = [{"path": one.path, "A": _values(one.first), "B": _values(one.second)} for one in shown]
        yield from (f"  {line}" for line in table(rows).splitlines())
    if folded:
        heads = dict.fromkeys(".".join(one.path.split("[")[0].split(".")[:2]) for one in alone)
        yield f"  and {len(alone)} that only one of the two has, under {', '.join(heads)} (--all prints them)"


def _values(values: Sequence[Any]) -> str:
    if not values:
        return "-"
    return "; ".join(_short(value if isinstance(value, str) else json.dumps(value, default=str)) for value in values)


def _short(text: str) -> str:
    """One line of a stored text, fit for a terminal; of a checksum the beginning."""
    clean = "".join(one if one.isprintable() else "?" for one in text)
    if len(clean) in (40, 64) and all(one in "0123456789abcdef" for one in clean):
        return clean[:12]
    return clean if len(clean) <= _WIDTH else clean[: _WIDTH - 3] + "..."


def _metrics(found: Comparison, everything: bool) -> Iterator[str]:
    from stablediag.stats.run_effects import FURTHER
    from stablediag.stats.switches import MEASURES

    known = {measure.name: measure for measure in MEASURES}
    for group in ("quality", "geometry"):
        rows = found.metrics[found.metrics["group"] == group]
        if len(rows):
            yield f"\n{group}"
            yield from _rows(rows, lambda name: _name(known[name]))
    further = found.metrics[found.metrics["group"] == FURTHER]
    if len(further) and everything:
        yield "\nfurther metrics of the last evaluation, corrected among themselves"
        yield from _rows(further, str)
    elif len(further):
        sure = int(further["survives"].sum())
        yield f"\n{len(further)} further metrics of the last evaluation, {sure} of them with ** (--all prints them)"
    if found.missing:
        yield f"\nnot compared, for want of records on either side: {', '.join(map(_plain_name, found.missing))}"
    if len(found.metrics):
        yield _MARKS


def _name(measure: Measure) -> str:
    unit = f" ({measure.unit})" if measure.unit else ""
    return f"{_plain_name(measure.name)}{unit}"


def _plain_name(name: str) -> str:
    return name.replace("_", " ")


def _rows(rows: pd.DataFrame, name: Callable[[str], str]) -> Iterator[str]:
    shown = [
        {
            "measure": name(row["metric"]), "A": _number(row["reference"]), "B": _number(row["value"]),
            "B - A": _effect(row, "difference"), "B / A": _effect(row, "ratio"), "over": _over(row),
        }
        for row in rows.to_dict("records")
    ]  # fmt: skip
    for column in ("B - A", "B / A"):
        if not any(row[column] for row in shown):
            for row in shown:
                del row[column]
    yield from (f"  {line}" for line in table([dict(row) for row in shown]).splitlines())


def _over(row: Mapping[Any, Any]) -> str:
    if row["over"] == "nothing":
        return "no interval"
    counted = [f"{row['seeds']} seeds" if row["seeds"] > 1 else "", f"{row['edits']} edits" if row["edits"] else ""]
    independent = ", independent" if row["over"].endswith("independent") else ""
    return (" and ".join(filter(None, counted)) or "edits") + independent


def _effect(row: Mapping[Any, Any], scale: str) -> str:
    if row["scale"] != scale:
        return ""
    text = _number(row["effect"], sign=scale == "difference")
    if math.isnan(row["low"]):
        return text
    mark = (
        "**" if row["survives"] else "*" if not row["low"] <= (1.0 if scale == "ratio" else 0.0) <= row["high"] else ""
    )
    low, high = (_number(row[name], sign=scale == "difference") for name in ("low", "high"))
    return f"{text}{mark} [{low}, {high}]"


def _number(value: float, *, sign: bool = False) -> str:
    if math.isnan(value):
        return "-"
    small = 0.0 if abs(value) < 1e-9 else value
    return f"{small:+.3g}" if sign and small else f"{small:.4g}"
