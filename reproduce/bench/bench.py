"""One edit step, ours beside the released arithmetic: ``python -m reproduce.bench.bench --size 100m --device cpu``.

Needs torch, transformers, numpy and safetensors only, so that it runs on a bare GPU machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reproduce.bench.layer import compare_ridge
from reproduce.bench.ours import NEEDS, FloorArm, OursArm, Outcome, Stats, history
from reproduce.bench.recording import recorder_cost
from reproduce.bench.released import ReleasedArm, shifts_of
from reproduce.bench.report import report, save
from reproduce.bench.summary import Measured, assemble
from reproduce.bench.timing import Arm, Clock, Series, gemm_rates, interleave, machine
from reproduce.bench.workload import (
    DIAGONAL,
    SIZES,
    WHITENED,
    Recipe,
    Workload,
    build,
    part_of,
    relative_difference,
)
from stablediag.engine.capture import capture
from stablediag.engine.weights import WeightWriter

# Tokens in one forward pass: little padding on a CPU, few launches on a GPU.
TOKEN_BUDGET = {"cpu": 512, "cuda": 1024}
RECIPES = (DIAGONAL, WHITENED)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Bench:
    """Everything that the arms share."""

    work: Workload
    writer: WeightWriter
    saved: dict[str, torch.Tensor]
    starts: Mapping[str, Stats]

    def ours(self, recipe: Recipe) -> OursArm:
        """Our arm of a recipe."""
        return OursArm(self.work, self.writer, recipe, self.starts[recipe.name], self.saved)

    def released(self, recipe: Recipe, *, extra_padding: int = 0) -> ReleasedArm:
        """The released arm of a recipe."""
        start = self.starts[recipe.name]
        return ReleasedArm(self.work, self.writer, recipe, start, self.saved, extra_padding=extra_padding)


def set_up(size: str, device: torch.device, *, dtype: str | None = None, token_budget: int | None = None) -> Bench:
    """Build the model and the statistics that the step starts from (one capture, which also warms up)."""
    # bfloat16 products are very slow on many CPUs.
    chosen = dtype or ("float32" if device.type == "cpu" else "bfloat16")
    work = build(SIZES[size], device, dtype=DTYPES[chosen], token_budget=token_budget or TOKEN_BUDGET[device.type])
    writer = WeightWriter(work.modules)
    captures = capture(work.model, work.modules, work.tokens, NEEDS, token_budget=work.token_budget)
    starts = {recipe.name: history(captures, recipe) for recipe in RECIPES}
    return Bench(work, writer, writer.snapshot(), starts)


def measure_steps(bench: Bench, *, repeats: int, progress: Any) -> tuple[dict[str, Series], dict[str, Arm]]:
    """Time the five arms in turn; each of ours stands beside the floor."""
    arms: dict[str, Arm] = {
        "released, diagonal": bench.released(DIAGONAL),
        "ours, diagonal": bench.ours(DIAGONAL),
        "floor": FloorArm(bench.work),
        "ours, whitened": bench.ours(WHITENED),
        "released, whitened": bench.released(WHITENED),
    }
    _warm_up(bench)
    return interleave(arms, repeats=repeats, device=bench.work.device, progress=progress), arms


def _warm_up(bench: Bench) -> None:
    """Every arm once, on the first mini-batch: allocations and first calls are no part of the comparison."""
    work = bench.work
    small = Workload(work.model, work.modules, part_of(work.tokens, 10), work.token_budget, work.device)
    few = Bench(small, bench.writer, bench.saved, bench.starts)
    arms: list[Arm] = [*(few.released(r) for r in RECIPES), *(few.ours(r) for r in RECIPES), FloorArm(small)]
    for arm in arms:
        arm.prepare()
        arm.run(Clock(work.device))
        if isinstance(arm, ReleasedArm):
            arm.forget()


def compare_shifts(bench: Bench, arms: Mapping[str, Arm], recipe: Recipe) -> tuple[dict[str, float], Outcome]:
    """How far the arms' updates are apart, and from a float64 evaluation of the released arithmetic on our rows."""
    ours, released = arms[f"ours, {recipe.name}"], arms[f"released, {recipe.name}"]
    assert isinstance(ours, OursArm)
    assert isinstance(released, ReleasedArm)
    assert ours.outcome is not None
    outcome, start = ours.outcome, bench.starts[recipe.name]
    mine = outcome.shifts()
    exact = shifts_of(outcome.captures, start, recipe, dtype=torch.float64)
    same_rows = shifts_of(outcome.captures, start, recipe, dtype=torch.float32)
    found = {
        "ours_released": relative_difference(released.shifts, mine),
        "ours_float64": relative_difference(mine, exact),
        "released_float64": relative_difference(released.shifts, exact),
        "released_same_rows_float64": relative_difference(same_rows, exact),
    }
    if next(bench.work.model.parameters()).dtype == torch.bfloat16:
        # In bfloat16 the rows depend on the shape of the batch: this is how much, within the released arm.
        padded = bench.released(recipe, extra_padding=8)
        padded.prepare()
        padded.run(Clock(bench.work.device))
        found["released_other_padding"] = relative_difference(padded.shifts, released.shifts)
        padded.forget()
    return found, outcome


def run(
    size: str,
    device: torch.device,
    *,
    repeats: int = 3,
    dtype: str | None = None,
    token_budget: int | None = None,
    progress: Any = print,
) -> dict[str, Any]:
    """The whole benchmark as one JSON-ready dictionary."""
    described = machine(device) | {"gemm_gflops": gemm_rates(device)}
    bench = set_up(size, device, dtype=dtype, token_budget=token_budget)
    series, arms = measure_steps(bench, repeats=repeats, progress=progress)
    differences, outcomes = {}, {}
    for recipe in RECIPES:
        differences[recipe.name], outcomes[recipe.name] = compare_shifts(bench, arms, recipe)
    for arm in arms.values():
        if isinstance(arm, ReleasedArm):
            arm.forget()
    whitened = outcomes[WHITENED.name]
    ridge = compare_ridge(
        SIZES[size].ridge,
        device,
        repeats=repeats,
        released_repeats=1 if device.type == "cpu" else repeats,
        progress=progress,
    )
    measured = Measured(
        size=size,
        machine=described,
        work=bench.work,
        series=series,
        differences=differences,
        whitener=whitened.whitener,
        recorders=recorder_cost(bench.work, bench.writer, whitened, bench.saved, repeats=repeats),
        ridge=ridge,
    )
    return assemble(measured)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m reproduce.bench.bench", description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (at least 3 for a result worth keeping)")
    parser.add_argument("--threads", type=int, help="CPU threads (torch's default)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the model (cpu: float32, cuda: bfloat16)")
    parser.add_argument("--token-budget", type=int, help="padded tokens in one forward pass of ours")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device: use --device cpu")
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    result = run(options.size, device, repeats=options.repeats, dtype=options.dtype, token_budget=options.token_budget)
    print(report(result))
    save(result, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
