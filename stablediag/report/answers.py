"""Figures on what came of a run: quality along the stream, success by edit, the alarm, hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stablediag.errors import StablediagError
from stablediag.report.courses import Drawing, Floats, Series
from stablediag.report.curves import abscissa, by_edits, lacks, place, stretches, together, warmup_end
from stablediag.report.runs import Read
from stablediag.stats.embed import mean_shift

#: metrics that come first, and how they are called
METRICS = {
    "efficacy": "Efficacy",
    "generalization": "Generalization",
    "specificity": "Specificity",
    "specificity_agreement": "Locality unchanged",
    "specificity_kl": "Divergence at locality prompts",
    "capability_mean": "General capability",
}
#: metrics with a figure of their own, at most
MOST_METRICS = 9
#: letters of a row's name
LONGEST = 24
#: stretches of edits that success is averaged over, and edits in each
MOST_STRETCHES, LEAST_EDITS = 30, 10
#: snapshots whose states are read
MOST_SNAPSHOTS = 20


def quality(reads: Sequence[Read]) -> tuple[list[Drawing], list[str]]:
    """Metrics that were measured along the run as curves with 95 % intervals, those at the end alone as rows."""
    missing, rows = [], []
    for number, read in enumerate(reads):
        found = read.tables.found("quality")
        if {"step", "metric", "value"} <= set(found) and len(found):
            rows.append(found.assign(run=number, metric=found["metric"].astype(str)))
    without = [read for i, read in enumerate(reads) if all((part["run"] != i).all() for part in rows)]
    if without:
        missing.append(lacks("Quality", without, reads, "the section evaluation of the spec"))
    if not rows:
        return [], missing
    frame = pd.concat(rows, ignore_index=True)
    frame["kind"] = frame["kind"].astype(str) if "kind" in frame else ""
    frame = frame[~frame["metric"].str.startswith("capability:") & np.isfinite(frame["value"])]
    chosen = {name: _reading(part) for name, part in frame.groupby("metric", sort=True)}
    names = [*(name for name in METRICS if name in chosen), *(name for name in chosen if name not in METRICS)]
    along = [name for name in names if chosen[name].groupby("run")["step"].nunique().max() >= 3]
    ends = [name for name in names if name not in along and chosen[name]["value"].between(0, 1).all()]
    ends = [name for name in ends if set(chosen[name]["kind"]) != {"nats"}]
    drawings = [_metric(chosen[name], i, name, reads) for i, name in enumerate(along[:MOST_METRICS])]
    if ends:
        drawings.insert(0, _at_the_end({name: chosen[name] for name in ends[:MOST_METRICS]}, len(reads)))
    only = [name for name in names if name not in along[:MOST_METRICS] and name not in ends[:MOST_METRICS]]
    if only:
        missing.append(f"In the table of the quality alone: {', '.join(only)}")
    return drawings, missing


def _reading(frame: pd.DataFrame) -> pd.DataFrame:
    """One reading of a metric: of answers by token, else the first one."""
    kinds = list(dict.fromkeys(frame["kind"]))
    return frame[frame["kind"] == ("token" if "token" in kinds else kinds[0])]


def _metric(frame: pd.DataFrame, number: int, name: str, reads: Sequence[Read]) -> Drawing:
    """One metric along the run."""
    kind = str(frame["kind"].iloc[0])
    series = []
    for run, part in enumerate(_by_run(frame, len(reads))):
        if len(part):
            x = place(reads[run], part["step"], edits=by_edits(reads))
            series.append(Series(run, "", x, part["value"].to_numpy(), *_limits(part), "points"))
    caption = f"Metric {name}, {kind or 'one reading'}; bars: 95 % intervals over records."
    if (frame["step"] < 0).any():
        caption += " At 0: the unedited model."
    return Drawing(
        f"quality-{number}", METRICS.get(name, name), abscissa(reads), kind or "value", caption, series,
        warmup=warmup_end(reads),
    )  # fmt: skip


def _at_the_end(metrics: Mapping[str, pd.DataFrame], runs: int) -> Drawing:
    """One row a metric: every run at its end, and the unedited model."""
    series = []
    for run in range(runs):
        parts = [_by_run(frame, runs)[run] for frame in metrics.values()]
        shift = 0.0 if runs == 1 else 0.5 * (run / (runs - 1) - 0.5)
        for kind, chosen in (
            ("before", [part[part["step"] < 0].tail(1) for part in parts]),
            ("rows", [part[part["step"] >= 0].tail(1) for part in parts]),
        ):
            rows = np.array([i for i, part in enumerate(chosen) if len(part)], dtype=np.float64)
            found = pd.concat(chosen) if len(rows) else pd.DataFrame()
            if len(found) and (kind == "rows" or run == 0):
                low, high = _limits(found) if kind == "rows" else (None, None)
                at = rows if kind == "before" else rows + shift
                series.append(Series(run, "", found["value"].to_numpy(np.float64), at, low, high, kind))
    names = tuple(_short(METRICS.get(name, name)) for name in metrics)
    caption = (
        "Measured at the end of the run: share of answer tokens, or of answers, that are right (unchanged); bars: 95 % "
        "intervals over records. Grey ticks: the unedited model."
    )
    return Drawing("quality-end", "Quality at the end", "share", "", caption, series, rows=names)


def _by_run(frame: pd.DataFrame, runs: int) -> list[pd.DataFrame]:
    return [frame[frame["run"] == run].sort_values("step") for run in range(runs)]


def _limits(frame: pd.DataFrame) -> tuple[Floats | None, Floats | None]:
    """Lower and upper limits, NaN where they are not finite; None where there are none."""
    if not {"low", "high"} <= set(frame):
        return None, None
    low, high = (frame[name].where(np.isfinite(frame[name])).to_numpy(np.float64) for name in ("low", "high"))
    return low, high


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def success(reads: Sequence[Read]) -> tuple[list[Drawing], list[str]]:
    """Success right after an edit and at the end, along the stream: together for one run, side by side for several."""
    right: list[Series] = []
    kept: list[Series] = []
    without = []
    for number, read in enumerate(reads):
        frame = read.tables.found("edits")
        for column, series in (("immediate", right), ("retained", kept)):
            if {"position", column} <= set(frame) and frame[column].notna().any():
                kind = "second" if column == "retained" and len(reads) == 1 else "curve"
                series.append(_stretched(frame, column, number, kind))
        if not any(one.run == number for one in (*right, *kept)):
            without.append(read)
    missing = [lacks("Success of single edits", without, reads, "the recorder quality")] if without else []
    share = "Share of answer tokens that are right, over stretches of edits in the order of the stream"
    axes = ("edits of the stream", "right answer tokens")
    if len(reads) == 1:
        caption = (
            f"{share}: solid, right after the edit; dashed, at the end of the run. What lies between is forgotten."
        )
        found = [("success", "Success of edits", caption, [*right, *kept])]
    else:
        found = [
            ("success", "Success right after the edit", f"{share}, just after each was written.", right),
            ("retention", "Success at the end", f"{share}, at the end of the run.", kept),
        ]
    drawings = [Drawing(name, title, *axes, caption, series) for name, title, caption, series in found if series]
    return drawings, missing


def _stretched(frame: pd.DataFrame, column: str, number: int, kind: str) -> Series:
    known = frame.dropna(subset=[column])
    stretch, last = stretches(known["position"], max(1, min(MOST_STRETCHES, len(known) // LEAST_EDITS)))
    means = known[column].groupby(stretch).mean().to_numpy()
    return Series(number, "", last.astype(np.float64) + 1, means, kind=kind)


def alarm(reads: Sequence[Read]) -> tuple[list[Drawing], list[str]]:
    """How near the sequential tests came to an alarm, and when they sounded."""
    series, without = [], []
    notes: list[list[str]] = [[] for _ in reads]
    for number, read in enumerate(reads):
        frame = read.tables.found("alarms")
        if not {"step", "state"} <= set(frame) or not len(frame):
            without.append(read)
            continue
        near = _nearness(frame)
        stretch, last = stretches(frame["step"], 400)
        x = place(read, last, edits=by_edits(reads))
        series.append(Series(number, "", x, near.groupby(stretch).max().to_numpy()))
        notes[number].append(_sounded(frame))
    missing = [lacks("Alarm state", without, reads, "the recorder alarm")] if without else []
    if not series:
        return [], missing
    caption = (
        "The detector that is nearest to its limit, as a share of the way there (of wealth that is bet: in logarithms); "
        "at 1 the alarm sounds and stays on."
    )
    return [
        Drawing(
            "alarm", "Alarm state", abscissa(reads), "nearest detector / limit", caption, series,
            line=1.0, warmup=warmup_end(reads), notes=together(reads, notes),
        )
    ], missing  # fmt: skip


def _nearness(frame: pd.DataFrame) -> pd.Series:
    """Largest share of its limit that a detector has reached."""
    shares = []
    for value, limit, bets in (
        ("e_innovation", "e_limit", True),
        ("e_update", "e_limit", True),
        ("cusum", "cusum_limit", False),
        ("growth", "scale_limit", False),
        ("shrinkage", "scale_limit", False),
    ):
        if {value, limit} <= set(frame):
            numbers = frame[[value, limit]].clip(lower=1e-300) if bets else frame[[value, limit]]
            a, b = (np.log(numbers[c]) if bets else numbers[c] for c in (value, limit))
            shares.append((a / b).clip(lower=0.0))
    if not shares:
        return frame["state"] / 2.0
    return pd.concat(shares, axis=1).max(axis=1)


def _sounded(frame: pd.DataFrame) -> str:
    """When it sounded, in words."""
    loud = frame[frame["state"] >= 2]
    if len(loud):
        which = str(loud["which"].iloc[0]) if "which" in loud and pd.notna(loud["which"].iloc[0]) else "a detector"
        return f"alarm at step {int(loud['step'].iloc[0])} ({which})"
    warned = frame[frame["state"] >= 1]
    return f"warning at step {int(warned['step'].iloc[0])}, no alarm" if len(warned) else "no warning, no alarm"


def hidden(reads: Sequence[Read]) -> tuple[list[Drawing], list[str]]:
    """How far the centre of the hidden states moved, snapshot by snapshot."""
    series, without = [], []
    notes: list[list[str]] = [[] for _ in reads]
    for number, read in enumerate(reads):
        steps = sorted(step for name, step in read.run.arrays() if name == "hidden")
        if len(steps) < 2:
            without.append(read)
            continue
        later = [steps[i] for i in np.unique(np.linspace(1, len(steps) - 1, MOST_SNAPSHOTS).astype(int))]
        try:
            reference = read.run.array("hidden", steps[0])
            moved = np.array([mean_shift(reference, read.run.array("hidden", step)) for step in later])
        except StablediagError as error:
            notes[number].append(f"hidden states cannot be read ({error})")
            continue
        if len(later) < len(steps) - 1:
            notes[number].append(f"{len(later)} of {len(steps) - 1} snapshots are drawn")
        x = place(read, [steps[0], *later], edits=by_edits(reads))
        series.append(Series(number, "", x, np.append(0.0, moved), kind="points"))
    missing = [lacks("Hidden drift", without, reads, "the section snapshots of the spec")] if without else []
    if not series:
        return [], [*missing, *together(reads, notes)]
    caption = (
        "Distance of the centre of the last hidden states of fixed prompts from that of the unedited model, over the "
        "root-mean-square radius of the latter."
    )
    return [
        Drawing(
            "hidden-drift", "Hidden drift", abscissa(reads), "shift of the centre / radius", caption, series,
            warmup=warmup_end(reads), notes=together(reads, notes),
        )
    ], missing  # fmt: skip
