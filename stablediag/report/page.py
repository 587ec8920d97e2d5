"""A report as one HTML page that loads nothing: everything that comes from a run is escaped, and the page's policy forbids the rest."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stablediag import __version__
from stablediag.citations import bibtex_of
from stablediag.plots import Look
from stablediag.report import answers, colours, curves, draw, interactive, tables
from stablediag.report.courses import Drawing
from stablediag.report.runs import Read

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Figure:
    """A figure in the page."""

    drawing: Drawing
    svg: Markup


def render(reads: Sequence[Read], *, title: str | None = None, with_scripts: bool = False) -> str:
    """The page.

    Parameters
    ----------
    reads : sequence of Read
    title : str, optional
        Default: the name of the run, or how many there are.
    with_scripts : bool
        Interactive figures beside the drawn ones; needs plotly, and a policy that lets its two scripts run.

    Raises
    ------
    SpecError
        `with_scripts` without plotly.
    """
    drawings, missing = collect(reads)
    looks = looks_of(reads, drawings)
    rows, head = tables.quality(reads)
    style = colours.style_sheet() + (_HERE / "page.css").read_text(encoding="utf-8")
    scripts = interactive.scripts() if with_scripts else ()
    rules = tables.rules(reads)
    page = _environment().get_template("page.html.j2")
    return page.render(
        title=title or (reads[0].name if len(reads) == 1 else f"{len(reads)} runs"),
        policy=policy(style, scripts),
        style=Markup(style),
        scripts=[Markup(_closed(script)) for script in scripts],
        data=Markup(interactive.data(drawings, looks)) if with_scripts else None,
        version=__version__,
        reads=reads,
        several=len(reads) > 1,
        summaries=[tables.summary(read) for read in reads],
        rules=rules,
        grave=[row for row in rules if {"bad", "info"} & set(row.verdicts)],
        rest=[row for row in rules if not {"bad", "info"} & set(row.verdicts)],
        counts=[_counts(read) for read in reads],
        answered=[_answered(read) for read in reads],
        causes=[_cause(rules, i) for i in range(len(reads))],
        figures=[Figure(one, Markup(draw.svg(one, looks))) for one in drawings],
        missing=missing,
        warmup=any(one.warmup is not None for one in drawings),
        legend=_legend(looks, drawings),
        quality=rows,
        quality_head=head,
        edits=tables.edits(reads),
        differences=tables.differences(reads) if len(reads) > 1 else [],
        specs=[tables.spec_text(read) for read in reads],
        events=[tables.events(read) for read in reads],
        provenance=[tables.provenance(read) for read in reads],
        citations=bibtex_of([read.run for read in reads]),
    )


def collect(reads: Sequence[Read]) -> tuple[list[Drawing], list[str]]:
    """All figures of a report, and a line on each that cannot be drawn."""
    answered, courses = answers.quality(reads), curves.course_drawings(reads)
    parts = [answered, answers.success(reads), courses, answers.alarm(reads), answers.hidden(reads)]
    return [one for found, _ in parts for one in found], [line for _, lines in parts for line in lines]


def looks_of(reads: Sequence[Read], drawings: Sequence[Drawing]) -> dict[tuple[int, str], Look]:
    """Look of every run; in a report on one run, of every module, with ink for the run as a whole."""
    if len(reads) > 1:
        return {(i, ""): look for i, look in enumerate(colours.looks([read.label for read in reads]))}
    parts = list(dict.fromkeys(one.part for drawing in drawings for one in drawing.series if one.part))
    whole = {(0, ""): Look("whole run", colours.INK, "o", "-")}
    return whole | {(0, look.label): look for look in colours.looks(parts)}


def policy(style: str, scripts: Sequence[str] = ()) -> str:
    """Content security policy: nothing but this style sheet, and these scripts where there are any.

    plotly writes styles while it draws, so that with scripts inline styles are allowed.
    """
    rules = ["default-src 'none'", f"style-src {_hash(style) if not scripts else _INLINE}"]
    if scripts:
        rules.append("script-src " + " ".join(_hash(_closed(script)) for script in scripts))
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])


_INLINE = "'unsafe-inline'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode()}'"


def _closed(script: str) -> str:
    """A script that cannot end its element early."""
    return script.replace("</script", "<\\/script")


def _counts(read: Read) -> str:
    found: Counter[str] = Counter(read.diagnosis["verdict"] if len(read.diagnosis) else ())
    return ", ".join(f"{found[name]} {name}" for name in ("bad", "info", "ok", "unknown") if name in found)


def _answered(read: Read) -> bool:
    return bool(len(read.diagnosis)) and bool((read.diagnosis["verdict"] != "unknown").any())


def _cause(rules: Sequence[tables.RuleRow], number: int) -> tables.RuleRow | None:
    return next((row for row in rules if row.cells[number]["first"]), None)


def _legend(looks: dict[tuple[int, str], Look], drawings: Sequence[Drawing]) -> list[tuple[Markup, str]]:
    used = {(one.run, one.part) for drawing in drawings for one in drawing.series}
    return [(Markup(draw.swatch(look)), look.label) for key, look in looks.items() if key in used]


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
