"""The tables of a report as plain rows: everything here is text or numbers, and the page escapes it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stablediag.errors import StablediagError
from stablediag.report.runs import Read
from stablediag.spec import Spec
from stablediag.stats.doctor import first_cause
from stablediag.stats.run_diff import leaves

#: how a verdict is marked beside its colour
LETTERS = {"bad": "B", "info": "i", "ok": "o", "unknown": "-"}
#: edits and events that are listed, of each sort
MOST_ROWS = 20
_ABSENT = "-"
#: a metric's row of the unedited model, and its last one
_Ends = tuple[Mapping[Any, Any] | None, Mapping[Any, Any] | None]


@dataclass(frozen=True)
class RuleRow:
    """One rule of the doctor, with the answer of every run."""

    rule: str
    claim: str
    measures: str
    cites: str
    threshold: str
    cells: tuple[Mapping[str, str], ...]
    first: bool

    @property
    def verdicts(self) -> tuple[str, ...]:
        """One verdict a run."""
        return tuple(cell["verdict"] for cell in self.cells)


def rules(reads: Sequence[Read]) -> list[RuleRow]:
    """The doctor's answers in the order of causes, runs side by side; `first`: the first cause of some run."""
    answered = [read.diagnosis for read in reads if len(read.diagnosis)]
    if not answered:
        return []
    causes = [first_cause(read.diagnosis) if len(read.diagnosis) else None for read in reads]
    by_rule = [
        {str(row["rule"]): row for row in read.diagnosis.to_dict("records")} if len(read.diagnosis) else {}
        for read in reads
    ]
    rows = []
    for told in answered[0].to_dict("records"):
        name = str(told["rule"])
        cells = tuple(_answer(rows_of.get(name), name == cause) for rows_of, cause in zip(by_rule, causes, strict=True))
        rows.append(
            RuleRow(
                name, str(told["claim"]), str(told["measures"]), str(told["cites"]), f"{told['threshold']:g}", cells,
                name in causes,
            )
        )  # fmt: skip
    return rows


def _answer(row: Mapping[Any, Any] | None, first: bool) -> Mapping[str, str]:
    if row is None:
        return {
            "verdict": "unknown",
            "letter": LETTERS["unknown"],
            "value": "",
            "interval": "",
            "seen": "",
            "first": "",
        }
    interval = row["interval"]
    told = interval is not None and interval[0] != interval[1]
    return {
        "verdict": str(row["verdict"]),
        "letter": LETTERS.get(str(row["verdict"]), "?"),
        "value": number(row["value"]),
        "interval": f"{number(interval[0])} to {number(interval[1])}" if told else "",
        "seen": ": ".join(filter(None, (str(row["where"] or ""), str(row["hint"] or "")))),
        "first": "first cause" if first else "",
    }


def number(value: Any) -> str:
    """Three significant digits; a dash for what is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return _ABSENT
    return f"{value:.3g}"


def quality(reads: Sequence[Read]) -> tuple[list[list[str]], list[str]]:
    """Metrics down; of one run the unedited model and the end with its interval, of several the end of each.

    Returns
    -------
    rows : list of list of str
    head : list of str
    """
    ends = [_at_ends(read) for read in reads]
    names = list(dict.fromkeys(key for found in ends for key in found))
    if len(reads) == 1:
        head = ["metric", "reading", "unedited", "at the end", "95 % interval", "records"]
        return [[*name, *_alone(ends[0][name])] for name in names], head
    head = ["metric", "reading", *(f"{read.letter}: at the end" for read in reads)]
    return [[*name, *(_in_short(found.get(name)) for found in ends)] for name in names], head


def _at_ends(read: Read) -> dict[tuple[str, str], _Ends]:
    """The unedited model's row and the last one, by metric and kind."""
    frame = read.tables.found("quality")
    if not {"step", "metric", "value"} <= set(frame) or not len(frame):
        return {}
    found: dict[tuple[str, str], _Ends] = {}
    for key, part in frame.assign(kind=frame.get("kind", "")).groupby(["metric", "kind"], sort=False, observed=True):
        before, after = part[part["step"] < 0], part[part["step"] >= 0]
        rows = [p.sort_values("step").iloc[-1].to_dict() if len(p) else None for p in (before, after)]
        found[(str(key[0]), str(key[1]))] = (rows[0], rows[1])
    return found


def _alone(ends: _Ends) -> list[str]:
    before, after = ends
    shown = after or {}
    return [
        number(before["value"]) if before else _ABSENT,
        number(after["value"]) if after else _ABSENT,
        _limits(shown),
        f"{shown['n']:.0f}" if "n" in shown and not pd.isna(shown["n"]) else _ABSENT,
    ]


def _in_short(ends: _Ends | None) -> str:
    if ends is None or ends[1] is None:
        return _ABSENT
    limits = _limits(ends[1])
    return number(ends[1]["value"]) + (f" ({limits})" if limits != _ABSENT else "")


def _limits(row: Mapping[Any, Any]) -> str:
    low, high = row.get("low"), row.get("high")
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return _ABSENT
    return f"{number(low)} to {number(high)}"


@dataclass(frozen=True)
class Edits:
    """What became of the edits of one run: counts, and some of those that failed."""

    label: str
    counts: tuple[tuple[str, str], ...]
    lists: tuple[tuple[str, list[tuple[str, str, str, str]]], ...]


def edits(reads: Sequence[Read]) -> list[Edits]:
    """Counts of edits by outcome; the first ones that were forgotten, and that did not take. Runs without are left out."""
    return [found for read in reads if (found := _edits(read)) is not None]


def _edits(read: Read) -> Edits | None:
    frame = read.tables.found("edits")
    if not {"position", "immediate"} <= set(frame) or not len(frame):
        return None
    known = frame["immediate"].notna()
    counts = [
        ("edits", f"{len(frame):,}"),
        ("of the answer tokens right just after the edit", _mean(frame["immediate"])),
    ]
    failed = frame[known & (frame["immediate"] < 1)]
    lists = [(f"did not take ({len(failed):,} of {int(known.sum()):,}, not all tokens right)", failed)]
    if "retained" in frame and frame["retained"].notna().any():
        counts.append(("at the end", _mean(frame["retained"])))
        both = frame[known & frame["retained"].notna()]
        lost = both[(both["immediate"] >= 1) & (both["retained"] < 1)]
        lists.insert(0, (f"forgotten ({len(lost):,} of the {int((both['immediate'] >= 1).sum()):,} that took)", lost))
    shown = tuple((title, list(_listed(part.head(MOST_ROWS)))) for title, part in lists if len(part))
    return Edits(read.label, tuple(counts), shown)


def _mean(values: pd.Series) -> str:
    return number(float(values.mean()))


def _listed(frame: pd.DataFrame) -> Iterator[tuple[str, str, str, str]]:
    for row in frame.to_dict("records"):
        retained = number(row.get("retained"))
        yield f"{row['position']}", str(row.get("edit_id") or _ABSENT), number(row["immediate"]), retained


def flattened(value: Any) -> Iterator[tuple[str, str]]:
    """Values of nested mappings by dotted path, as text."""
    for path, leaf in leaves(value):
        yield path, leaf if isinstance(leaf, str) else json.dumps(leaf, ensure_ascii=False, default=str)


def differences(reads: Sequence[Read]) -> list[tuple[str, list[str]]]:
    """Everything in which runs differ: specs, versions, code, model and data, by dotted path with the value of every run."""
    told = [dict(flattened(_known(read))) for read in reads]
    paths = list(dict.fromkeys(path for one in told for path in one))
    rows = [(path, [one.get(path, _ABSENT) for one in told]) for path in paths if path != "spec.name"]
    return [(path, values) for path, values in rows if len(set(values)) > 1]


def provenance(read: Read) -> list[tuple[str, str]]:
    """Where a run comes from, without its spec."""
    known = _known(read)
    del known["spec"]
    return [("digest", read.run.info.digest), ("created", read.run.info.created), *flattened(known)]


def _known(read: Read) -> dict[str, Any]:
    info = read.run.info
    return {
        "spec": info.spec,
        "versions": info.versions,
        "code": info.code,
        "device": info.device,
        "model": info.model,
        "dataset": info.dataset,
        "seeds": info.seeds,
    }


def spec_text(read: Read) -> tuple[str, str]:
    """The resolved spec as YAML; as JSON with the reason where this version cannot read it."""
    try:
        return Spec.from_mapping(dict(read.run.spec)).resolved_yaml(), ""
    except StablediagError as error:
        return json.dumps(
            read.run.spec, indent=2, ensure_ascii=False, default=str
        ), f"not a spec of this version: {error}"


def summary(read: Read) -> list[tuple[str, str]]:
    """What a run is, in a few lines."""
    info, steps = read.run.info, read.tables.found("steps")
    editor, model, data = (info.spec.get(name) or {} for name in ("editor", "model", "data"))
    facts = [
        ("run", str(read.run.path)),
        ("state", read.state),
        ("digest", info.digest[:16]),
        ("created", info.created),
        ("model", str(model.get("path", _ABSENT))),
        ("data", str(data.get("source", _ABSENT))),
        ("editor", " ".join(str(editor[key]) for key in ("name", "preset") if editor.get(key))),
    ]
    facts.append(("steps", f"{len(steps):,}"))
    if "edits" in steps and "phase" in steps:
        warm = steps["phase"] == "warmup"
        warmup = f", and {steps.loc[warm, 'edits'].sum():,.0f} of the warm-up" if warm.any() else ""
        facts.append(("edits", f"{steps.loc[~warm, 'edits'].sum():,.0f}{warmup}"))
    return facts


def events(read: Read) -> list[tuple[str, str, str]]:
    """What happened to a run: the last events of its loop."""
    frame = read.tables.found("events")
    if not {"step", "kind", "text"} <= set(frame):
        return []
    return [(f"{row['step']}", str(row["kind"]), str(row["text"])) for row in frame.tail(MOST_ROWS).to_dict("records")]
