"""What `stablediag run --dry-run` prints: the resolved spec, the edited modules, and what the run will cost."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from stablediag.data.report import ReadReport
    from stablediag.engine.estimate import Estimate, Rates
    from stablediag.engine.estimate_parts import Work
    from stablediag.model_outline import Outline
    from stablediag.models import ResolvedModule
    from stablediag.spec import Spec

_GIB, _MIB = 2**30, 2**20


def dry_run_of(spec: Spec, path: Path) -> None:
    """Print spec, modules and cost. Where the model's weights are absent, its shapes alone are used, and that is said."""
    from stablediag.model_outline import outline

    model = spec.model
    found = outline(model.path, modules=model.modules, dtype=model.dtype) if model.revision is None else None
    if found is None:
        _of_model(spec, path)
    else:
        _of_outline(spec, path, found)


def told_streams(reports: Mapping[str, ReadReport]) -> Iterator[str]:
    """What was read from files, a line a stream: the layout that was found, the field that is taught, what was left out."""
    for name, report in reports.items():
        for part in report.segments or (report,):
            if part.layout not in (None, "own") or part.skipped:
                told = f"; {part.told()}" if part.told() else ""
                yield f"{name}: {part.edits} edits of {part.source}, layout {part.layout}, teaching {part.target}{told}"


def _of_model(spec: Spec, path: Path) -> None:
    from stablediag.engine.estimate import counted, estimate, measured_rates
    from stablediag.engine.prepare import Prepared

    prepared = Prepared(spec, run_dir=path)
    editor: Any = prepared.editor
    loaded = prepared.loaded
    rows: Any = editor.needs.tokens if editor.needs is not None else "answer"
    work = counted(prepared.plan, loaded.tokenizer, rows=rows)
    modules = list(loaded.modules.values())
    dtype = loaded.info["dtype"]
    cost = estimate(prepared.spec, _params(spec), loaded.model, modules, work=work, dtype=dtype)
    _print(prepared.spec, path, modules, list(told_streams(prepared.reports)))
    _print_cost(cost, [measured_rates(dtype, loaded.device)])


def _of_outline(spec: Spec, path: Path, found: Outline) -> None:
    from stablediag.engine.estimate import estimate, h200_rates, measured_rates

    params = _params(spec)
    modules: list[ResolvedModule] = list(found.modules.values())
    work, told = _work(spec, getattr(params, "tokens", "answer"))
    cost = estimate(spec, params, found.model, modules, work=work, dtype=found.dtype)
    size = cost.memory["model"] / _GIB
    absent = f"model: {spec.model.path} without its weights, shapes from {found.source}; they take {size:.1f} GiB"
    _print(spec, path, modules, [absent, *told])
    _print_cost(cost, [h200_rates(found.dtype), measured_rates(found.dtype)])


def _params(spec: Spec) -> Any:
    from stablediag.editors.base import resolve_params

    return resolve_params(spec.editor.name, spec.editor.preset, spec.editor.params)


def _work(spec: Spec, rows: Any) -> tuple[Work, list[str]]:
    """What is edited: counted where the data and a tokenizer are at hand, else as the spec says."""
    from stablediag.data.load import load_stream
    from stablediag.data.stream import EditStream
    from stablediag.engine.estimate import assumed, counted
    from stablediag.engine.plan import plan_steps
    from stablediag.models import load_tokenizer
    from stablediag.spec import TESTBED

    listed = [spec.data, *([] if spec.warmup_data is None else [spec.warmup_data])]
    sources = [part.source for one in listed for part in (one, *one.then)]
    gone = [source for source in dict.fromkeys(sources) if source != TESTBED and not _there(source)]
    told = [f"data: {source} is not there: sizes as the spec says" for source in gone]
    if gone:
        return assumed(spec, rows=rows), told
    target = load_stream(spec.data)
    warmup = EditStream.of([]) if spec.warmup_data is None else load_stream(spec.warmup_data, split="warmup")
    plan = plan_steps(target, warmup, edits_per_step=spec.edits_per_step, placement=spec.warmup.placement)
    told += told_streams({"target": target.report} | ({} if not len(warmup) else {"warmup": warmup.report}))
    if not _has_tokenizer(Path(os.path.expanduser(spec.model.path))):
        return assumed(spec, rows=rows), [*told, "tokenizer: not at hand: tokens are assumed"]
    return counted(plan, load_tokenizer(spec.model.path), rows=rows), told


def _there(source: str) -> bool:
    path = os.path.expanduser(source)
    return os.path.exists(path) or any(letter in path for letter in "*?[")


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def _print(spec: Spec, path: Path, modules: Sequence[ResolvedModule], lines: Sequence[str]) -> None:
    typer.echo(spec.resolved_yaml().rstrip())
    typer.echo(f"# run directory: {path}\n# digest: {spec.digest()}")
    for line in lines:
        typer.echo(f"# {line}")
    for module in modules:
        typer.echo(f"# module: {module.name} ({module.layout}, d_in {module.d_in}, d_out {module.d_out})")


def _print_cost(cost: Estimate, machines: Sequence[Rates]) -> None:
    work = cost.work
    tokens = f"{work.tokens} tokens, {work.rows} rows a module" if work.counted else f"about {work.tokens} tokens"
    typer.echo(
        f"# cost without evaluation: {work.steps} steps, {work.edits} edits, {tokens}, {cost.flops:.3g} FLOP, "
        f"{_size(cost.memory_bytes)} beside the model"
    )
    for part in (*cost.parts, *cost.evaluation):
        times = ", ".join(f"{_time(rates.seconds([part]))} on {rates.name}" for rates in machines)
        typer.echo(f"#   {part.name}: {part.flops:.3g} FLOP, about {times}")
    for rates in machines:
        whole = f"{_time(rates.seconds(cost.parts))} and {_time(rates.seconds(cost.evaluation))} of evaluation"
        how = "measured just now" if rates.measured else "expected, not measured"
        typer.echo(
            f"# time on {rates.name}: about {whole} ({how}: {rates.model / 1e12:.3g} TFLOP/s in passes, "
            f"{rates.dense / 1e12:.3g} in float64 products, {rates.eigen / 1e12:.3g} in eigendecompositions)"
        )
    for what, held in (("memory", cost.memory), ("disk", cost.disk)):
        listed = ", ".join(f"{name} {_size(size)}" for name, size in held.items())
        typer.echo(f"# {what}: about {_size(sum(held.values()))} ({listed})")
    for line in cost.assumed:
        typer.echo(f"# assumed: {line}")


def _size(count: float) -> str:
    size, unit = (count / _GIB, "GiB") if count >= _GIB else (count / _MIB, "MiB")
    return f"{size:.1f} {unit}" if size < 100 else f"{size:.0f} {unit}"


def _time(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} s"
