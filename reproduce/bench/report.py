"""The result of a benchmark, as text and as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: the headline numbers, at the top level of the JSON file
NUMBERS = (
    "step_ratio",
    "step_ratio_diagonal",
    "ridge_ratio",
    "overhead_diagonal",
    "overhead_whitened",
    "recorder_share",
)


def save(result: Mapping[str, Any], out: Path | None) -> None:
    """Write a result as JSON, into a folder that is made where it is missing; nothing without a path."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def report(result: Mapping[str, Any]) -> str:
    """The result as text."""
    m, w = result["machine"], result["workload"]
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in m["gemm_gflops"].items())
    lines = [
        f"{w['size']} on {m['device']}: {m['cpu']}, {m['cores']} cores, {m['threads']} threads, "
        f"load before {m['load_before']}, torch {m['torch']}, transformers {m['transformers']}",
        f"GEMM GFLOP/s: {rates}",
        f"{w['parameters'] / 1e6:.0f}M parameters in {w['dtype']}; {w['edits']} edits, {w['tokens']} tokens, "
        f"{w['answer_rows']} answer rows, {len(w['modules'])} modules; condition number {w['condition_number']:.2g}, "
        f"{w['floored_fraction']:.0%} of the directions floored",
        "",
        f"{'one step':<20} {'median s':>9} {'min':>8} {'max':>8} {'n':>2} {'CPU s':>8}  error against float64",
    ]
    for name, arm in result["arms"].items():
        who, _, recipe = name.partition(", ")
        error = f"{result['differences'][recipe][f'{who}_float64']:.1e}" if recipe else "-"
        lines.append(_row(name, arm, error))
        lines.append("    " + ", ".join(f"{part} {seconds:.3f}" for part, seconds in arm["parts"].items()))
    for recipe, found in result["differences"].items():
        lines.append(
            f"{recipe}: the arms' updates differ by {found['ours_released']:.1e}; "
            f"on our rows the released arithmetic is {found['released_same_rows_float64']:.1e} from float64"
        )
        if "released_other_padding" in found:
            lines.append(f"    the released arm with other padding: {found['released_other_padding']:.1e} from itself")
    d = result["ridge"]["shape"]
    lines += ["", f"ridge and update of one layer, {d['d_in']} x {d['d_out']}, {d['rows']} rows"]
    lines += [_row(name, arm, f"{arm['error']:.1e}") for name, arm in result["ridge"]["arms"].items()]
    lines.append(f"residual of the float64 reference: {result['ridge']['reference_residual']:.1e}")
    if result["recorder_seconds"] is not None:
        costs = ", ".join(f"{name} {seconds:.4f}" for name, seconds in result["recorder_seconds"].items())
        lines += ["", f"recorders, seconds a step: {costs}"]
    lines.append("")
    lines += [_verdict(name, result) for name in NUMBERS]
    lines += [f"overhead over our own capture, {r}: {x:.3f}" for r, x in result["overhead_by_parts"].items()]
    return "\n".join(lines)


def _row(name: str, arm: Mapping[str, Any], error: str) -> str:
    s, cpu = arm["seconds"], arm["cpu_seconds"]["median"]
    peak = f", {arm['extra_peak_bytes'] / 2**30:.2f} GiB extra" if arm["extra_peak_bytes"] is not None else ""
    return f"{name:<20} {s['median']:>9.3f} {s['min']:>8.3f} {s['max']:>8.3f} {s['n']:>2} {cpu:>8.2f}  {error}{peak}"


def _verdict(name: str, result: Mapping[str, Any]) -> str:
    value, spread_ = result[name], result["spreads"].get(name)
    text = f"{name}: " + ("not measured (the recorders cannot be imported)" if value is None else f"{value:.3f}")
    if spread_ is not None:
        text += f" ({spread_['min']:.3f} to {spread_['max']:.3f})"
    gate = result["gates"].get(name)
    if gate is not None and gate["met"] is not None:
        text += f"; gate {gate['sense']} {gate['bound']:g}: {'met' if gate['met'] else 'NOT met'}"
    return text
