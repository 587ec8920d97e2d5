"""Rules of what comes of it all: the answers of the edited model, and what the early warning said on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stablediag.stats.doctor_rules import Evidence, Finding, Rule, found, too_few, unknown
from stablediag.stats.intervals import Interval, mean_interval

_STABLEEDIT = "StableEdit, arXiv:2605.11836"
_STATES = ("quiet", "warning", "alarm")
#: columns of the detectors that watch one thing, and what that is
_WATCH: Mapping[tuple[str, ...], str] = {
    ("e_innovation", "cusum", "growth", "shrinkage"): "gradients",
    ("e_update",): "pairs of updates",
}
#: edits that a share must be of
_LEAST = 20


def _alarm(evidence: Evidence, threshold: float) -> Finding:
    rows = evidence.table("alarms").sort_values("step")
    state = rows["state"].to_numpy(np.float64)
    highest = float(np.nanmax(state))
    if highest < 1:
        blind = [name for columns, name in _WATCH.items() if _empty(rows, columns)]
        if len(blind) == len(_WATCH):
            return unknown("quiet, but it saw neither gradients nor pairs of updates: this editor has none")
        if blind:
            return Finding(
                "info", highest, hint=f"quiet, but it saw no {blind[0]}: some of its detectors had nothing to go by."
            )
        return Finding("ok", highest)
    first = rows.iloc[int(np.argmax(state == highest))]
    behind = f" ({first['which']})" if "which" in rows and isinstance(first["which"], str) else ""
    hint = f"{_STATES[int(highest)]} since step {int(first['step'])}{behind}."
    return Finding("bad" if highest >= threshold else "info", highest, hint=hint)


def _empty(rows: pd.DataFrame, columns: Sequence[str]) -> bool:
    """Whether these are columns of the table, and none of them has a value."""
    known = [column for column in columns if column in rows]
    return bool(known) and not rows[known].notna().any(axis=None)


def _efficacy(evidence: Evidence, threshold: float) -> Finding:
    taken = evidence.table("edits")["immediate"].dropna()
    if len(taken) < _LEAST:
        return too_few(len(taken), _LEAST, "edits")
    return found(mean_interval(taken), threshold, above=False)


def _cumulative(evidence: Evidence, threshold: float) -> Finding:
    edits = evidence.table("edits").dropna(subset=["immediate"]).sort_values("step", kind="stable")
    if len(edits) < 3 * _LEAST:
        return too_few(len(edits), 3 * _LEAST, "edits")
    third = len(edits) // 3
    early, late = (edits["immediate"].to_numpy(np.float64)[part] for part in (slice(None, third), slice(-third, None)))
    effect = _difference(mean_interval(late), mean_interval(early))
    hint = ""
    if effect.low > 0:
        hint = "Later edits take better. Whether weights or statistics carry it shows in runs that start with one of them alone."
    return found(effect, threshold, hint=hint, above=False)


def _forgetting(evidence: Evidence, threshold: float) -> Finding:
    edits = evidence.table("edits").dropna(subset=["immediate", "retained"])
    if len(edits) < _LEAST:
        reason = "the run has not ended, or did not evaluate at its end: set evaluation.schedule to end"
        return too_few(len(edits), _LEAST, "edits") if len(edits) else unknown(f"edits.retained is empty: {reason}")
    lost = edits["immediate"] - edits["retained"]
    return found(mean_interval(lost, bounds=(-1.0, 1.0)), threshold)


def _locality(evidence: Evidence, threshold: float) -> Finding:
    quality = evidence.table("quality")
    agreement = _last(quality, "specificity_agreement", "token")
    if agreement is not None:
        a = agreement
        return found(Interval(1 - a.value, a.n, a.se, 1 - a.high, 1 - a.low), threshold)
    return _loss(quality, "specificity", "token", threshold)


def _capability(evidence: Evidence, threshold: float) -> Finding:
    return _loss(evidence.table("quality"), "capability_mean", "exact", threshold)


def _loss(quality: pd.DataFrame, metric: str, kind: str, threshold: float) -> Finding:
    """Fall of a metric from the unedited model to the end."""
    before, after = _last(quality[quality["step"] < 0], metric, kind), _last(quality, metric, kind)
    if before is None or after is None:
        what = "evaluation.capability: true" if metric.startswith("capability") else f"evaluation.probes with {metric}"
        return unknown(f"quality.{metric} was not measured before and after the edits: set {what}")
    return found(_difference(before, after), threshold)


def _last(quality: pd.DataFrame, metric: str, kind: str) -> Interval | None:
    """The latest value after the first edit; of a table without one, the latest."""
    rows = quality[(quality["metric"] == metric) & (quality["kind"] == kind) & quality["value"].notna()]
    after = rows[rows["step"] >= 0]
    if rows.empty or (after.empty and quality["step"].max() >= 0):
        return None
    row: dict[Any, Any] = (rows if after.empty else after).sort_values("step").iloc[-1].to_dict()
    value, low, high, n = (float(row.get(name, math.nan)) for name in ("value", "low", "high", "n"))
    low, high = (value if math.isnan(limit) else limit for limit in (low, high))
    return Interval(value, 0 if math.isnan(n) else int(n), math.nan, low, high)


def _difference(a: Interval, b: Interval) -> Interval:
    """a - b of independent estimates, limits at the distances of either (conservative for the same records)."""
    value = a.value - b.value
    down, up = math.hypot(a.value - a.low, b.high - b.value), math.hypot(a.high - a.value, b.value - b.low)
    return Interval(value, min(a.n, b.n), math.nan, value - down, value + up)


#: what comes of it
QUALITY_RULES: Sequence[Rule] = (
    Rule(
        "early_warning",
        "the run gave no cause for an alarm",
        "highest state of the early warning: 0 quiet, 1 warning, 2 alarm",
        2.0,
        {"alarms": ("state",)},
        _alarm,
        "See the detectors behind it; --stop-on-alarm ends such a run.",
        "Ville 1939; Shafer and Vovk 2019",
        {"alarms": ("which", "e_innovation", "cusum", "growth", "shrinkage", "e_update")},
    ),
    Rule(
        "efficacy",
        "edits take",
        "share of answer tokens right just after the edit",
        0.6,
        {"edits": ("immediate", "step")},
        _efficacy,
        "The editor never taught most of it: raise the learning rate, or edit modules that hold the fact.",
        _STABLEEDIT,
    ),
    Rule(
        "cumulative_effect",
        "later edits take at least as well as early ones (positive cumulative effect)",
        "immediate success of the last third of the edits less that of the first third",
        -0.05,
        {"edits": ("immediate", "step")},
        _cumulative,
        "Later edits take worse: the weight is used up, or the statistics are stale.",
        f"{_STABLEEDIT} (positive cumulative effect)",
    ),
    Rule(
        "forgetting",
        "earlier edits stay",
        "share of answer tokens right just after the edit and wrong at the end, net",
        0.2,
        {"edits": ("immediate", "retained")},
        _forgetting,
        "Earlier edits are overwritten: see interference, coherence and weight_growth.",
        _STABLEEDIT,
    ),
    Rule(
        "locality",
        "answers that have nothing to do with the edits stay",
        "share of locality answers that changed",
        0.1,
        {"quality": ("metric", "kind", "step", "value")},
        _locality,
        "Updates reach unrelated prompts: make smaller steps, or centre and whiten the value gradients.",
        _STABLEEDIT,
        {"quality": ("n", "low", "high")},
    ),
    Rule(
        "capability",
        "general capability stays (GLUE)",
        "fall of the mean accuracy over the capability tasks",
        0.05,
        {"quality": ("metric", "kind", "step", "value")},
        _capability,
        "The model itself is damaged: see weight_growth and locality.",
        f"{_STABLEEDIT}; Wang et al. 2019, arXiv:1804.07461",
        {"quality": ("n", "low", "high")},
    ),
)
