"""Rules of the stream of gradients: does it keep one law, and can a running mean follow it?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stablediag.stats.doctor_rules import (
    GRAVITY,
    Evidence,
    Finding,
    Floats,
    Rule,
    exp_of,
    found,
    mean_over_time,
    too_few,
    unknown,
    worst,
)
from stablediag.stats.drift import power_law
from stablediag.stats.drift_tables import drift_table
from stablediag.stats.intervals import Interval

_STABLEEDIT = "StableEdit, arXiv:2605.11836"
#: steps before and after a jump that it is judged by
_BEFORE, _AFTER = 8, 3
#: robust standard errors that a jump must exceed: the largest of some thousand places stays below it
_Z = 6.0
#: steps from which a law is fitted to the error of the mean
_FEWEST = 8
#: squared error of a stale mean, in units of what noise alone leaves, that is worth a verdict
_COSTS = 3.0


def _switch(evidence: Evidence, threshold: float) -> Finding:
    findings = []
    longest = 0
    for name, columns in (
        ("whitened_index", ("whitened_index",)),
        ("prior_error", ("prior_error", "prior_error_null")),
    ):
        for scope, part in evidence.modules("tracking", *columns):
            y = _levels(part, name)
            longest = max(longest, len(y))
            if len(y) >= _BEFORE + _AFTER:
                findings.append(_jump(y, part["step"].to_numpy(), threshold, scope, name))
    if not longest:
        return unknown(
            'neither tracking.whitened_index nor prior_error: add the recorders "whitened_norm", "prequential"'
        )
    return worst(findings) if findings else too_few(longest, _BEFORE + _AFTER, "target steps")


def _levels(part: pd.DataFrame, name: str) -> Floats:
    """Logarithm of a series that is constant where the stream keeps its law."""
    y = part[name].to_numpy(np.float64)
    if name == "prior_error":
        # Squared innovation over the noise of a batch mean: 1 where nothing moved, and unbiased, so that it may be small.
        y = 1 + y / part["prior_error_null"].to_numpy(np.float64)
    floor = 0.1 * max(float(np.median(y)), 1e-300)
    logs: Floats = np.log(np.maximum(y, floor))
    return logs


def _jump(y: Floats, steps: np.ndarray, threshold: float, scope: str, name: str) -> Finding:
    """The largest change of level within three steps, against the scatter from step to step."""
    windows = np.lib.stride_tricks.sliding_window_view
    before = np.median(windows(y, _BEFORE)[: len(y) - _BEFORE - _AFTER + 1], axis=1)
    after = windows(y, _AFTER)[_BEFORE:].mean(axis=1)
    scatter = 1.4826 * float(np.median(np.abs(np.diff(y)))) / math.sqrt(2)
    error = scatter * math.sqrt(1 / _AFTER + math.pi / 2 / _BEFORE)
    place = int(np.argmax(np.abs(after - before)))
    size = float(after[place] - before[place])
    half = _Z * error
    jump = exp_of(Interval(abs(size), len(y), error, abs(size) - half, abs(size) + half))
    # The windows tell how large it is; the step is that of the largest single change near by.
    near = slice(max(1, place + _BEFORE - _AFTER), place + _BEFORE + _AFTER)
    at = int(steps[near][np.argmax(np.abs(np.diff(y))[near.start - 1 : near.stop - 1])])
    way = "rose" if size > 0 else "fell"
    finding = found(jump, threshold, where=scope, hint=f"{name} {way} by this factor at step {at}.")
    # Short of the stated certainty a jump is only worth a look when it is large.
    milder = finding.verdict == "info" and jump.value <= threshold
    return Finding("ok", jump.value, jump.low, jump.high, scope) if milder else finding


def _exchangeable(evidence: Evidence, threshold: float) -> Finding:
    findings = []
    for scope, part in evidence.modules("tracking", "whitened_index"):
        late = np.log(np.maximum(part["whitened_index"].to_numpy(np.float64)[len(part) // 2 :], 1e-300))
        mean = mean_over_time(late)
        level = exp_of(mean)
        away = exp_of(mean if mean.value >= 0 else Interval(-mean.value, mean.n, mean.se, -mean.high, -mean.low))
        judged = found(away, threshold, where=scope)
        hint = "gradients shrink: the tracked scale is stale, updates are too small." if level.value < 1 else ""
        hint = hint or "gradients grow, or their mean has moved: updates are too large."
        seen = hint if judged.verdict != "ok" else ""
        findings.append(Finding(judged.verdict, level.value, level.low, level.high, scope, seen))
    # Far below 1 is as bad as far above: rank by the distance.
    return max(findings, key=lambda f: (GRAVITY[f.verdict], abs(math.log(max(f.value, 1e-300)))), default=worst([]))


def _drift(evidence: Evidence, threshold: float) -> Finding:
    drifts = drift_table(_Pooled(evidence))
    findings = []
    for row in drifts.to_dict("records"):
        module = str(row["module"])
        if not row["visible"]:
            findings.append(_followed(evidence, module, threshold))
            continue
        law = f"{row['kind']} drift, alpha {row['alpha']:.2g} from the {row['alpha_from']}"
        if not math.isfinite(row["margin"]):
            # Probes alone do not tell how steps add up: p may be anything from 0 to 2.
            alpha = Interval(row["alpha"] - 0.5, 0, math.nan, row["alpha_low"] - 1, row["alpha_high"])
            findings.append(found(alpha, threshold, where=module, hint=f"{law}, its coherence unknown.", above=False))
            continue
        margin = Interval(row["margin"], 0, math.nan, row["margin_low"], row["margin_high"])
        judged = found(margin, threshold, where=module, above=False)
        law = f"{law}, threshold {row['threshold']:.2g}"
        hint = f"{law}."
        verdict = judged.verdict
        if math.isfinite(row["horizon"]):
            hint = f"{law}; a plain mean is at its best after {row['horizon']:.3g} of the run's {evidence.total} steps."
            if verdict == "bad" and row["horizon_high"] > evidence.total:
                # The lag does not vanish, but this run ends before it costs anything.
                verdict = "info"
        findings.append(Finding(verdict, margin.value, margin.low, margin.high, module, hint))
    if not findings:
        return unknown("too few probes or batches to fit a law of drift: make the run longer or record more often")
    return worst(findings, above=False)


def _followed(evidence: Evidence, scope: str, threshold: float) -> Finding:
    r"""Where batch means show no drift: does the mean's own error fall?

    The squared error of a plain mean that follows a drift goes like :math:`t^{p - 2\alpha}`, so that minus half of its
    exponent is the margin. A drift that is slow against the noise of a batch shows here long before it shows between batches.
    """
    unseen = Finding("ok", where=scope, hint="no drift above the noise of the batches is seen.")
    part = dict(evidence.modules("tracking", "prior_error_null", "edits", target=False)).get(scope)
    if part is None or "prior_error" not in part:
        return unseen
    n = part["edits"].to_numpy(np.float64)
    before = _seen(evidence, part) - n
    error = part["prior_error"].to_numpy(np.float64)
    usable = np.isfinite(error) & (before > 0)
    if usable.sum() < _FEWEST:
        return unseen
    still = (part["prior_error_null"].to_numpy(np.float64) * n)[usable] / before[usable]
    lag = error[usable] - still
    late = slice(len(lag) // 2, None)
    ratio = float(lag[late].mean() / still[late].mean())
    law = power_law(part["step"].to_numpy(np.float64)[usable] + 1, lag)
    shows = law is not None and law.visible
    if not ratio > _COSTS or not (shows or mean_over_time(lag[late]).low > 0):
        return unseen
    hint = f"the mean misses {1 + ratio:.3g} times what it would if nothing moved"
    if law is None or not shows:
        return Finding("info", where=scope, hint=f"{hint}; no law of drift fits.")
    return found(law.exponent, threshold, where=scope, hint=f"{hint}; margin from how its error falls.", above=False)


def _seen(evidence: Evidence, part: pd.DataFrame) -> Floats:
    """Edits behind the estimate after the step of every row; of a recorder that reports some steps alone, not those of its rows."""
    steps = evidence.table("steps")
    own: Floats = np.cumsum(part["edits"].to_numpy(np.float64))
    if not {"edits", "skipped"} <= set(steps):
        return own
    every = steps.sort_values("step")
    total = every["edits"].astype(float).where(every["skipped"].isna(), 0.0).fillna(0.0).cumsum().to_numpy()
    place = np.searchsorted(every["step"].to_numpy(), part["step"].to_numpy(), side="right") - 1
    return np.maximum(own, total[np.maximum(place, 0)])


class _Pooled:
    """The tables as `drift_table` asks for them."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence

    def table(self, name: str, /) -> pd.DataFrame:
        return self._evidence.tables[name]


def _bias(evidence: Evidence, threshold: float) -> Finding:
    shares = dict(evidence.modules("updates", "bias_share"))
    findings = []
    for scope, part in evidence.modules("tracking", "nu", "prior_error_null", "edits", target=False):
        n = part["edits"].to_numpy(np.float64)
        gain = n / _seen(evidence, part)
        # The first batch has nothing before it, and no error.
        known = part["prior_error"].notna().to_numpy()
        part, gain = part[known], gain[known]
        noise = part["prior_error_null"].to_numpy(np.float64)
        lag = (1 - gain) ** 2 * part["prior_error"].to_numpy(np.float64) + gain**2 * noise
        # What the mean would miss if nothing moved.
        still = noise * gain
        late = slice(len(part) // 2, None)
        if len(part) < 8 or not float(np.mean(still[late])) > 0:
            continue
        unit = float(np.mean(still[late]))
        own = shares.get(scope)
        coherent = float(own["bias_share"].median()) if own is not None else float(np.median(gain[late]))
        scale = coherent / unit
        mean = mean_over_time(lag[late])
        energy = Interval(mean.value * scale, mean.n, mean.se * scale, mean.low * scale, mean.high * scale)
        hint = f"the mean misses {mean.value / unit:.3g} times what it would if nothing moved."
        # Energy of the error over that of the rest, as a share of both.
        share = Interval(*(_share(energy.value), energy.n, math.nan, _share(energy.low), _share(energy.high)))
        findings.append(found(share, threshold, where=scope, hint=hint))
    return worst(findings)


def _share(ratio: float) -> float:
    kept = max(ratio, 0.0)
    return 1.0 if math.isinf(kept) else kept / (1 + kept)


#: the stream of gradients
STREAM_RULES: Sequence[Rule] = (
    Rule(
        "distribution_switch",
        "the stream keeps one distribution",
        "largest factor by which the whitened norms or the squared innovations changed within three steps",
        1.5,
        {"tracking": ("step",)},
        _switch,
        "Look at what the stream turned to at that step; forget the earlier statistics there, or warm up on both parts.",
        f"{_STABLEEDIT}, Assumption 3.4; E|v|^2 = d (1 - (d+1)/nu) for exchangeable rows",
        {"tracking": ("whitened_index", "prior_error", "prior_error_null")},
    ),
    Rule(
        "exchangeability",
        "gradients keep the scale that the statistics remember",
        "whitened-norm index I_t, later half: 1 for exchangeable gradients",
        1.5,
        {"tracking": ("whitened_index",)},
        _exchangeable,
        "Forget old statistics (editor.params.forget), or lower the learning rate: the model moves under them.",
        f"{_STABLEEDIT}, Theorem 3.8; E|v|^2 = d (1 - (d+1)/nu) for exchangeable rows",
    ),
    Rule(
        "drift_decay",
        "the drift of the gradients' mean decays fast enough to be tracked (3.4)",
        "margin alpha - p/2 of the drift exponent over the threshold that its coherence sets",
        0.0,
        {"variogram": ("value", "lag"), "tracking": ("prior_error_null", "effective_rank")},
        _drift,
        "A plain mean falls behind: forget (see stats.retune.recommend for the gain), or make smaller steps. Shifts of the "
        "tracked mean itself decay even without any decay of the drift, and prove nothing.",
        f"{_STABLEEDIT}, Assumption 3.4 and Appendix B.6.3",
        {"probes": ("mean_sq", "sigma_change"), "tracking": ("prior_error", "edits"), "steps": ("edits", "skipped")},
    ),
    Rule(
        "bias_share",
        "the error of the tracked mean is a vanishing part of the update (3.8(a))",
        "share of the update's energy that comes from the error of the mean, later half",
        0.5,
        {"tracking": ("nu", "prior_error", "prior_error_null", "edits")},
        _bias,
        "The update points where the stale mean points: raise the gain (editor.params.forget), or warm up on data like this.",
        f"{_STABLEEDIT}, Theorems 3.5 and 3.8(a); Bai and Saranadasa 1996",
        {"updates": ("bias_share",), "steps": ("edits", "skipped")},
    ),
)
