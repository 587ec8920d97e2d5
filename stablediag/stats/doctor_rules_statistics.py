"""Rules of what is asked, of what numbers can hold, and of the statistics behind the normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from stablediag.stats.doctor_rules import (
    Evidence,
    Finding,
    Floats,
    Rule,
    Verdict,
    found,
    judge,
    mean_over_time,
    too_few,
    unknown,
    worst,
)
from stablediag.stats.intervals import Interval, mean_interval
from stablediag.stats.spectra import mp_condition

_STABLEEDIT = "StableEdit, arXiv:2605.11836"
#: steps of a scope from which the law of its whitened norms is read
_LEAST = 12


def _conflicts(evidence: Evidence, threshold: float) -> Finding:
    quality = evidence.table("quality")
    quality = quality[(quality["kind"] == "exact") & quality["n"].notna()]
    counts = {}
    for metric in ("efficacy", "efficacy_last_target"):
        rows = quality[(quality["metric"] == metric) & (quality["step"] >= 0)]
        if rows.empty:
            return unknown(
                "quality has no evaluation of efficacy after edits: set evaluation.schedule and its probe efficacy"
            )
        counts[metric] = int(rows.sort_values("step")["n"].iloc[-1])
    asked, current = counts["efficacy"], counts["efficacy_last_target"]
    share = mean_interval(np.repeat([1.0, 0.0], [asked - current, current]))
    verdict: Verdict = "bad" if share.value > threshold else "info" if asked > current else "ok"
    hint = (
        f"{asked - current} of {asked} written edits were taught again under the same prompt later."
        if asked > current
        else ""
    )
    return Finding(verdict, share.value, share.low, share.high, "", hint)


def _precision(evidence: Evidence, threshold: float) -> Finding:
    findings = []
    if "realised_cosine" not in evidence.table("updates"):
        return unknown('updates.realised_cosine was not recorded: add the recorder "realised_update"')
    for module, part in evidence.modules("updates", "realised_ratio", target=False):
        ratio = part["realised_ratio"].to_numpy(np.float64)
        # An update that vanished altogether has no direction left.
        cosine = np.where(ratio > 0, part["realised_cosine"].to_numpy(np.float64), 0.0)
        lost = np.sqrt(np.maximum(ratio**2 + 1 - 2 * ratio * cosine, 0.0))
        kept = f"{100 * float(np.median(ratio * cosine)):.3g} % of the update arrived along its own direction"
        if "unchanged_fraction" in part and part["unchanged_fraction"].notna().any():
            kept += f", {100 * float(part['unchanged_fraction'].median()):.3g} % of the entries did not change"
        findings.append(found(mean_over_time(lost), threshold, where=module, hint=kept + "."))
    return worst(findings)


def _scope(evidence: Evidence, threshold: float) -> Finding:
    scopes, modules = set(evidence.parts.get("tracking", {})), set(evidence.parts.get("updates", {}))
    shared = scopes - modules
    if not shared:
        return Finding("ok", 1.0, hint="every module has statistics of its own.")
    findings = []
    energies = {
        m: part["grad_sq"].to_numpy(np.float64) for m, part in evidence.modules("updates", "grad_sq", target=False)
    }
    for scope in sorted(shared):
        members = sorted(m for m in modules - scopes if _member(scope, evidence.shapes.get(m)))
        known = [m for m in members if m in energies]
        if len(members) == 1:
            findings.append(Finding("ok", 1.0, where=scope))
        if len(known) < 2:
            continue
        roots = {m: 0.5 * float(np.log(np.median(energies[m]))) for m in known}
        large, small = max(roots, key=lambda m: roots[m]), min(roots, key=lambda m: roots[m])
        length = min(len(energies[large]), len(energies[small]))
        with np.errstate(divide="ignore"):
            gap = 0.5 * np.log(energies[large][:length] / energies[small][:length])
        between = mean_over_time(gap[np.isfinite(gap)])
        ratio = Interval(*(math.exp(between.value), between.n, math.nan, math.exp(between.low), math.exp(between.high)))
        hint = f"{len(members)} modules share {scope}; gradients of {large} are this much longer than those of {small}."
        findings.append(found(ratio, threshold, where=scope, hint=hint))
    if not findings:
        names = ", ".join(sorted(shared))
        return unknown(
            f'statistics are shared ({names}), and updates.grad_sq was not recorded: add the recorder "leverage"'
        )
    return worst(findings)


def _member(scope: str, shape: tuple[int, int] | None) -> bool:
    """Whether a module of this shape belongs to a shared scope; of a name without a shape in it, every module does."""
    return not scope.startswith("shape:") or shape is None or scope == f"shape:{shape[0]}x{shape[1]}"


def _dims(evidence: Evidence, scope: str) -> int | None:
    """Dimension of a scope's rows."""
    if scope.startswith("shape:"):
        return int(scope.rpartition("x")[2])
    shape = evidence.shapes.get(scope)
    return shape[1] if shape is not None else None


def _startup(evidence: Evidence, threshold: float) -> Finding:
    findings, unused, unsized = [], 0, 0
    for scope, part in evidence.modules("tracking", "nu", "whitening_active"):
        active = part[part["whitening_active"] > 0]
        d = _dims(evidence, scope)
        if active.empty:
            unused += 1
        elif d is None:
            unsized += 1
        else:
            nu = float(active["nu"].iloc[0])
            before = len(part) - len(active)
            shrunk = math.sqrt(max(0.0, 1 - (d + 1) / nu))
            hint = f"nu = {nu:.0f} rows for d = {d} at the first whitened step of the stream"
            hint += f", after {before} that were not whitened." if before else "."
            findings.append(
                Finding(judge(Finding("ok", shrunk), threshold, above=False), shrunk, where=scope, hint=hint)
            )
    if findings:
        return worst(findings, above=False)
    if unsized:
        return unknown(
            "the run does not say how wide its modules are (info.model.modules): run it with `stablediag run`"
        )
    if unused:
        return unknown("this editor inverts no covariance: there is no nu - d - 1 to grow past")
    return unknown("no target step has statistics yet")


def _divisor(evidence: Evidence, threshold: float) -> Finding:
    """Power of (nu - 1)/(nu - d - 1) in the whitened norms: 0 with the right divisor, 1 with nu - 1."""
    findings, short = [], 0
    for scope, part in evidence.modules("tracking", "whitened_index", "nu", target=False):
        d = _dims(evidence, scope)
        if d is None:
            continue
        short = max(short, len(part))
        if len(part) < _LEAST:
            continue
        nu, index = part["nu"].to_numpy(np.float64), part["whitened_index"].to_numpy(np.float64)
        usable = (nu > d + 1) & (index > 0)
        if usable.sum() < _LEAST:
            continue
        nu, index = nu[usable], index[usable]
        power = _slope_of_changes(np.log(index), np.log((nu - 1) / (nu - d - 1)))
        if power.low <= 0 and power.high >= 1:
            late = f"whitened from nu = {nu[0]:.0f} on, d = {d}: too late, or too noisy, for the divisor to show"
            findings.append(Finding("unknown", power.value, power.low, power.high, scope, late))
        else:
            findings.append(found(power, threshold, where=scope))
    if not findings:
        return (
            too_few(short, _LEAST, "steps under full whitening") if short else unknown("no width of a module is known")
        )
    # One divisor serves all scopes: the median of them is not moved by the drift of one.
    ranked = sorted(findings, key=lambda f: f.value)
    return ranked[len(ranked) // 2]


def _slope_of_changes(y: Floats, x: Floats) -> Interval:
    """Slope of step-to-step changes through 0: what drifts slowly drops out; the error is of the changes, taken as independent."""
    dy, dx = np.diff(y), np.diff(x)
    energy = float(dx @ dx)
    value = float(dx @ dy) / energy
    df = len(dx) - 1
    se = math.sqrt(float(np.square(dy - value * dx).sum()) / df / energy)
    half = float(stats.t.ppf(0.975, df)) * se
    return Interval(value, len(dx), se, value - half, value + half)


def _floored(evidence: Evidence, threshold: float) -> Finding:
    findings = []
    for scope, part in evidence.modules("tracking", "floored_fraction"):
        late = part["floored_fraction"].to_numpy(np.float64)[-max(1, len(part) // 2) :]
        findings.append(found(_exact(float(late.mean())), threshold, where=scope))
    return worst(findings)


def _conditioning(evidence: Evidence, threshold: float) -> Finding:
    findings = []
    for scope, part in evidence.modules("tracking", "condition_raw"):
        last = part.iloc[-1]
        values = last.to_dict()
        inverted = values.get("condition_floored", math.nan)
        condition = float(inverted if pd.notna(inverted) else values["condition_raw"])
        d = _dims(evidence, scope)
        hint = ""
        nu = float(values.get("nu", math.nan))
        if d is not None and nu > d:
            hint = f"pure noise alone has {float(mp_condition(nu, d)):.3g} at nu = {nu:.0f}: a fall towards it is no finding."
        findings.append(found(_exact(condition), threshold, where=scope, hint=hint))
    return worst(findings)


def _exact(value: float) -> Interval:
    return Interval(value, 1, 0.0, value, value)


#: what is asked of the editor, and what its numbers can hold
DATA_RULES: Sequence[Rule] = (
    Rule(
        "data_conflicts",
        "the stream teaches every prompt once",
        "share of written edits whose prompt a later edit taught again, the same answer or another",
        0.01,
        {"quality": ("metric", "kind", "step", "n")},
        _conflicts,
        "No editor keeps two answers to one prompt, and the same one twice repeats its update: drop the earlier ones "
        "(data.duplicates, `stablediag data audit`), or judge by efficacy_last_target.",
        f"{_STABLEEDIT}; MEMIT, arXiv:2210.07229",
    ),
    Rule(
        "precision_loss",
        "the weights keep the update that was computed",
        "length of what rounding changed, over the length of the update",
        0.1,
        {"updates": ("realised_ratio",)},
        _precision,
        "Keep fp32 master weights (editor.params.master: fp32), or raise the learning rate above the spacing of the dtype.",
        "Micikevicius et al. 2018, arXiv:1710.03740",
        {"updates": ("realised_cosine", "unchanged_fraction")},
    ),
)
#: the statistics behind the normalisation
STATISTICS_RULES: Sequence[Rule] = (
    Rule(
        "statistics_scope",
        "rows that share statistics have one distribution",
        "ratio of gradient lengths of the modules that share statistics, largest over smallest",
        1.5,
        {"tracking": ("nu",), "updates": ("norm",)},
        _scope,
        "Give every module its own statistics (editor.params.stats_scope: layer): pooled ones hold the scatter between "
        "modules, and scale none of them right.",
        f"{_STABLEEDIT}, Algorithm 1 (one normaliser a layer); the released code shares by shape",
        {"updates": ("grad_sq",)},
    ),
    Rule(
        "divisor",
        "the covariance is divided by nu - d - 1 (3.7)",
        "power of (nu - 1)/(nu - d - 1) by which whitened norms are too long: 0 by nu - d - 1, 1 by nu - 1",
        0.5,
        {"tracking": ("whitened_index", "nu")},
        _divisor,
        "Whitened norms fall as rows come in, as under a divisor of nu - 1: divide the scatter by nu - d - 1.",
        f"{_STABLEEDIT}, Corollary 3.3 and Assumption 3.7; E|v|^2 = d (1 - (d+1)/nu) for exchangeable rows",
    ),
    Rule(
        "startup",
        "statistics are past their start when edits are written (3.7: nu - d - 1)",
        "factor sqrt(1 - (d+1)/nu) on the first whitened update of the stream",
        0.7,
        {"tracking": ("nu", "whitening_active"), "steps": ("phase", "written")},
        _startup,
        "Warm up for longer, or start from a proper prior or shrinkage: the first updates after the switch are that much "
        "shorter, and the inverse is mostly noise.",
        f"{_STABLEEDIT}, Assumption 3.7 and Theorem 3.6 (nu > d + 1)",
    ),
    Rule(
        "floored_fraction",
        "the spectrum is bounded below (3.1(b))",
        "share of directions that the eigenvalue floor holds up, later half of the run",
        0.01,
        {"tracking": ("floored_fraction",)},
        _floored,
        "Directions without variance are scaled by the floor alone: shrink the covariance (editor.params.shrinkage) or lower "
        "the floor.",
        f"{_STABLEEDIT}, Assumption 3.1(b)",
    ),
    Rule(
        "conditioning",
        "the spectrum is bounded on both sides (3.1(b))",
        "condition number that is inverted, at the end",
        1e7,
        {"tracking": ("condition_raw",)},
        _conditioning,
        "The inverse root loses its digits: shrink the covariance, raise the floor, or keep statistics in float64.",
        f"{_STABLEEDIT}, Assumption 3.1(b), Figure 7; Marchenko and Pastur 1967, doi:10.1070/SM1967v001n04ABEH001994",
        {"tracking": ("condition_floored", "nu")},
    ),
)
