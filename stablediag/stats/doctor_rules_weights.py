"""Rules of the steps that the weights take, of how these grow, and of what updates do to each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stablediag.errors import DataError
from stablediag.stats.collapse import feedback
from stablediag.stats.doctor_rules import (
    GRAVITY,
    Evidence,
    Finding,
    Floats,
    Rule,
    Verdict,
    exp_of,
    found,
    mean_over_time,
    thinned,
    too_few,
    trend,
    unknown,
    worst,
)
from stablediag.stats.growth import growth_table
from stablediag.stats.intervals import Interval

_STABLEEDIT = "StableEdit, arXiv:2605.11836"
#: steps whose size is judged, at least
_FIRST = 5
#: neighbours on either side that an update is compared with
_NEAR = 5
#: evaluations of norm feedback from which a slope follows
_FEEDBACK = 8


def _step_size(evidence: Evidence, threshold: float) -> Finding:
    """Of the first quarter of the steps: what comes later may be a consequence of growth."""
    findings = []
    for module, part in evidence.modules("updates", "norm", "weight_norm", "weight_ratio"):
        first = part.iloc[: max(_FIRST, len(part) // 4)]
        start = float((part["weight_norm"] / part["weight_ratio"]).iloc[0])
        sizes = first["norm"].to_numpy(np.float64) / start
        mean = mean_over_time(sizes)
        hint = ""
        if mean.value > 0:
            hint = f"updates without a common direction move the weight by its own length in {1 / mean.value**2:.3g} steps."
        findings.append(found(mean, threshold, where=module, hint=hint))
    return worst(findings)


def _finite(evidence: Evidence, threshold: float) -> Finding:
    steps = evidence.table("steps")
    if not {"skipped", "dropped_rows", "rows"} <= set(steps):
        return unknown("steps does not say what was skipped or left out: run it with `stablediag run`")
    skipped = int(steps["skipped"].notna().sum())
    dropped = float(steps["dropped_rows"].sum()) / max(1.0, float(steps["rows"].sum()))
    share = max(dropped, skipped / max(1, len(steps)))
    broken = [m for m, p in evidence.parts.get("updates", {}).items() if "norm" in p and np.isinf(p["norm"]).any()]
    hint = f"{skipped} steps were skipped, {100 * dropped:.3g} % of the rows left out" if share else ""
    if broken:
        hint += ("; " if hint else "") + f"updates of {broken[0]} are infinite"
        share = max(share, 1.0)
    where = broken[0] if broken else ""
    verdict: Verdict = "bad" if share > threshold else "info" if share > 0 else "ok"
    return Finding(verdict, share, where=where, hint=hint + "." if hint else "")


def _tails(evidence: Evidence, threshold: float) -> Finding:
    findings, longest = [], 0
    for module, part in evidence.modules("updates", "norm"):
        y = part["norm"].to_numpy(np.float64)
        longest = max(longest, len(y))
        if len(y) < 2 * _NEAR + 1:
            continue
        near = pd.Series(y).rolling(2 * _NEAR + 1, center=True, min_periods=_NEAR + 1).median().to_numpy()
        ratio = np.where(near > 0, y / np.where(near > 0, near, 1.0), np.nan)
        if not np.isfinite(ratio).any():
            continue
        place = int(np.nanargmax(ratio))
        hint = f"the longest is that of step {int(part['step'].iloc[place])}."
        findings.append(found(_exact(float(ratio[place])), threshold, where=module, hint=hint))
    if not findings:
        return too_few(longest, 2 * _NEAR + 1)
    result = worst(findings)
    tail = {s: float(p["grad_tail"].median()) for s, p in evidence.modules("tracking", "grad_tail")}
    if tail:
        scope = max(tail, key=lambda s: tail[s])
        extra = f"Gradients of {scope} have E|v|^4 / (E|v|^2)^2 = {tail[scope]:.3g} within a step."
        return Finding(result.verdict, result.value, result.low, result.high, result.where, f"{result.hint} {extra}")
    return result


def _norm_trend(evidence: Evidence, threshold: float) -> Finding:
    findings, longest = [], 0
    for module, part in evidence.modules("updates", "norm"):
        y = part["norm"].to_numpy(np.float64)
        y = y[np.isfinite(y) & (y > 0)]
        longest = max(longest, len(y))
        line = trend(np.log(y)) if len(y) else None
        if line is not None:
            findings.append(found(exp_of(line), threshold, where=module))
    return worst(findings) if findings else too_few(longest, 8)


def _weight_growth(evidence: Evidence, threshold: float) -> Finding:
    findings = []
    for module, part in evidence.modules("updates", "weight_ratio", target=False):
        findings.append(found(_exact(float(part["weight_ratio"].iloc[-1])), threshold, where=module))
    result = worst(findings)
    laws = growth_table(_One(evidence.parts["updates"][result.where]), reps=100) if result.where else pd.DataFrame()
    if not len(laws):
        return result
    law = laws.iloc[0]
    sure = (
        f"{law['law']} (BIC leads by {law['lead']:.3g})" if law["lead"] >= 2 else f"not told apart ({law['law']} leads)"
    )
    hint = f"law of growth: {sure}"
    if math.isfinite(law["exponent"]):
        hint += f", exponent 2H {law['exponent']:.2g} [{law['exponent_low']:.2g}, {law['exponent_high']:.2g}]"
    return Finding(result.verdict, result.value, result.low, result.high, result.where, hint + ".")


class _One:
    """Updates of one module as `growth_table` asks for them."""

    def __init__(self, updates: pd.DataFrame) -> None:
        self._updates = updates

    def table(self, name: str, /) -> pd.DataFrame:
        if name != "updates":
            raise KeyError(name)
        return self._updates


def _norm_feedback(evidence: Evidence, threshold: float) -> Finding:
    findings, longest = [], 0
    for module, part in evidence.modules("value_norms", "weight_norm", "new_sq", "old_sq", target=False):
        longest = max(longest, len(part))
        if len(part) < _FEEDBACK:
            continue
        squares = (thinned(np.square(part["weight_norm"])), thinned(part["new_sq"]), thinned(part["old_sq"]))
        try:
            fit = feedback(*squares)
        except DataError as error:
            findings.append(unknown(str(error)))
            continue
        s = fit.difference
        hint = f"s_new {fit.new.value:.3g} [{fit.new.low:.3g}, {fit.new.high:.3g}], s_old {fit.old.value:.3g} "
        hint += f"[{fit.old.low:.3g}, {fit.old.high:.3g}]."
        findings.append(found(Interval(s.value, s.n, math.nan, s.low, s.high), threshold, where=module, hint=hint))
    return worst(findings) if findings else too_few(longest, _FEEDBACK, "evaluations of value_norms")


def _coherence(evidence: Evidence, threshold: float) -> Finding:
    findings = []
    for module, part in evidence.modules("updates", "coherence", target=False):
        last = part.iloc[-1]
        gamma, half = float(last["coherence"]), 0.0
        hint = ""
        if "coherence_high" in part and pd.notna(last["coherence_high"]):
            half = float(last["coherence_high"]) - 1
            hint = f"without any coherence it lies within {1 - half:.3g} and {1 + half:.3g}."
        findings.append(
            found(Interval(gamma, 1, half / 1.96, gamma - half, gamma + half), threshold, where=module, hint=hint)
        )
    return worst(findings)


def _adjacent(evidence: Evidence, threshold: float) -> Finding:
    """By the distance from 0: updates that undo each other are as little orthogonal as those that repeat each other."""
    findings, longest = [], 0
    for module, part in evidence.modules("updates", "cosine"):
        longest = max(longest, len(part))
        if len(part) < 8:
            continue
        mean = mean_over_time(part["cosine"])
        away = mean if mean.value >= 0 else Interval(-mean.value, mean.n, mean.se, -mean.high, -mean.low)
        verdict = found(away, threshold).verdict
        hint = ""
        if "cosine_sd" in part and part["cosine_sd"].notna().any():
            sd = float(part["cosine_sd"].median()) / math.sqrt(len(part))
            hint = f"{mean.value / sd:.3g} standard deviations of the null law from 0." if sd > 0 else ""
        if verdict == "bad":
            hint = f"{hint} Neighbouring steps {'undo' if mean.value < 0 else 'repeat'} each other.".lstrip()
        findings.append(Finding(verdict, mean.value, mean.low, mean.high, module, hint))
    if not findings:
        return too_few(longest, 8, "adjacent target steps")
    return max(findings, key=lambda f: (GRAVITY[f.verdict], abs(f.value)))


def _interference(evidence: Evidence, threshold: float) -> Finding:
    findings, longest = [], 0
    for module, part in evidence.modules("interference", "past_sq", "own_sq"):
        longest = max(longest, len(part))
        own = _late(part["own_sq"])
        if len(part) < 4 or not 0 < own.mean() < math.inf:
            continue
        ratio = mean_over_time(_late(part["past_sq"]) / own.mean())
        hint = ""
        if "chance_sq" in part and part["chance_sq"].notna().any():
            hint = f"keys at random would feel {float(np.nanmean(_late(part['chance_sq']))) / float(own.mean()):.3g}."
        findings.append(found(ratio, threshold, where=module, hint=hint))
    return worst(findings) if findings else too_few(longest, 4, "records of interference")


def _late(values: pd.Series) -> Floats:
    late: Floats = values.to_numpy(np.float64)[len(values) // 2 :]
    return late


def _exact(value: float) -> Interval:
    return Interval(value, 1, 0.0, value, value)


#: the steps that the weights take
STEP_RULES: Sequence[Rule] = (
    Rule(
        "step_size",
        "one update is small against the weight that it changes",
        "length of an update over that of the unedited weight, first quarter of the steps",
        0.5,
        {"updates": ("norm", "weight_norm", "weight_ratio")},
        _step_size,
        "The learning rate is too high, or too many edits share a step: every step overwrites what the weight held.",
        f"{_STABLEEDIT}, Theorem 3.8(b); a random walk reaches its start's length after the inverse square of the step",
    ),
    Rule(
        "finite_numbers",
        "all numbers stay finite",
        "share of steps skipped, or of rows left out",
        0.0,
        {"steps": ("step",)},
        _finite,
        "Gradients or updates overflow: lower the learning rate, or keep the statistics in float64.",
        "Micikevicius et al. 2018, arXiv:1710.03740",
        {"steps": ("skipped", "dropped_rows", "rows"), "updates": ("norm",)},
    ),
    Rule(
        "tails",
        "updates have moments: none outweighs its neighbours (3.7)",
        "longest update over the median of its neighbours",
        5.0,
        {"updates": ("norm",)},
        _tails,
        "A few rows make the step: clip their gradients, look for broken records, or raise the ridge.",
        f"{_STABLEEDIT}, Assumption 3.7 (fourth moments)",
        {"tracking": ("grad_tail",)},
    ),
)
#: how updates and weights grow
WEIGHT_RULES: Sequence[Rule] = (
    Rule(
        "norm_trend",
        "update norms stay bounded (3.8(b))",
        "factor by which the length of updates changed over the run, by a line through its logarithm",
        2.0,
        {"updates": ("norm",)},
        _norm_trend,
        "Updates grow as the run goes on: look at norm_feedback and exchangeability for what drives them.",
        f"{_STABLEEDIT}, Theorem 3.8(b) and Corollary 3.9",
    ),
    Rule(
        "norm_feedback",
        "solved values do not grow faster with the weight than those they replace",
        "s_new - s_old: slopes of |v|^2 against |W|^2, new values less present ones",
        0.0,
        {"value_norms": ("weight_norm", "new_sq", "old_sq")},
        _norm_feedback,
        "The norm feeds on itself and will grow exponentially: anchor the norm of new values (NAS).",
        "NAS, arXiv:2602.02543",
    ),
    Rule(
        "weight_growth",
        "the edited weight stays close to its size",
        "|W| at the end over |W| at the start",
        2.0,
        {"updates": ("weight_ratio",)},
        _weight_growth,
        "Old knowledge is what is left of the start: make smaller steps, fewer of them, or anchor the norm.",
        "NAS, arXiv:2602.02543; Schwarz 1978, doi:10.1214/aos/1176344136",
        {"updates": ("norm", "weight_norm", "coherence")},
    ),
)
#: what updates do to each other
INTERPLAY_RULES: Sequence[Rule] = (
    Rule(
        "coherence",
        "updates do not add up: inner products of all pairs vanish (3.8(c))",
        "Gamma = |W_T - W_0|^2 / sum |DW_t|^2: 1 without coherence, T when all updates point one way",
        2.0,
        {"updates": ("coherence",)},
        _coherence,
        "A common direction is left in the updates: centre the value gradients, or raise the gain of the tracked mean.",
        f"{_STABLEEDIT}, Theorem 3.8(c)",
        {"updates": ("coherence_low", "coherence_high")},
    ),
    Rule(
        "adjacent_cosine",
        "consecutive updates are orthogonal (3.8(c))",
        "mean cosine of consecutive updates of the stream, either sign",
        0.1,
        {"updates": ("cosine",)},
        _adjacent,
        "Centre the value gradients, or mix the stream; steps that undo each other are too long for the direction they share.",
        f"{_STABLEEDIT}, Theorem 3.8(c), Figures 4, 11 and 12",
        {"updates": ("cosine_sd",)},
    ),
    Rule(
        "interference",
        "an update leaves the keys of earlier edits alone (3.8(c))",
        "energy that a step moves at keys of earlier edits, over that at its own",
        0.5,
        {"interference": ("past_sq", "own_sq")},
        _interference,
        "Keys overlap: edit fewer of one relation at once, raise the ridge, or use a method that spares earlier keys.",
        f"{_STABLEEDIT}, Theorem 3.8(c); AlphaEdit, arXiv:2410.02355",
        {"interference": ("chance_sq",)},
    ),
)
