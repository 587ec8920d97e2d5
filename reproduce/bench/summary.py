"""From samples to the numbers that the result file holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reproduce.bench.timing import Series, spread
from reproduce.bench.workload import DIAGONAL, SIZES, WHITENED, Recipe, Workload
from stablediag.maths.whiten import Whitener


@dataclass(frozen=True)
class Gate:
    """A bound that a number of this benchmark must keep on a CPU at size 100m."""

    name: str
    sense: str
    bound: float

    def check(self, value: float | None) -> dict[str, Any]:
        """The verdict on a measured value, JSON-ready; ``met`` is null without a value."""
        met = None if value is None else (value >= self.bound if self.sense == ">=" else value <= self.bound)
        return {"value": value, "sense": self.sense, "bound": self.bound, "met": met}


GATES = (
    Gate("step_ratio", ">=", 1.5),
    Gate("ridge_ratio", ">=", 40.0),
    Gate("overhead_diagonal", "<=", 0.10),
    Gate("recorder_share", "<=", 0.05),
)


@dataclass(frozen=True, eq=False)
class Measured:
    """Everything that was measured.

    Attributes
    ----------
    series : mapping of str to Series
        Samples by arm, every arm with the same rounds.
    differences : mapping of str to mapping
        Relative differences between the updates, by recipe.
    whitener : Whitener
        Of our whitened step.
    recorders : mapping of str to float, or None
        Seconds of a step by recorder.
    ridge : mapping
        What `compare_ridge` returned.
    """

    size: str
    machine: Mapping[str, Any]
    work: Workload
    series: Mapping[str, Series]
    differences: Mapping[str, Mapping[str, float]]
    whitener: Whitener
    recorders: Mapping[str, float] | None
    ridge: Mapping[str, Any]

    def ratio(self, recipe: Recipe) -> dict[str, float]:
        """Released over ours, round by round: a round's arms ran one after the other."""
        ours, released = self.series[f"ours, {recipe.name}"], self.series[f"released, {recipe.name}"]
        return spread([r / o for r, o in zip(released.seconds, ours.seconds, strict=True)])

    def overhead(self, who: str, recipe: Recipe) -> dict[str, float]:
        """What an arm takes beyond the capture floor of its round, as a share of the floor."""
        step, floor = self.series[f"{who}, {recipe.name}"].seconds, self.series["floor"].seconds
        return spread([(s - f) / f for s, f in zip(step, floor, strict=True)])


def assemble(measured: Measured) -> dict[str, Any]:
    """One JSON-ready dictionary; the headline numbers stand at its top level."""
    arms = {name: series.summary() for name, series in measured.series.items()}
    spreads = {
        "step_ratio": measured.ratio(WHITENED),
        "step_ratio_diagonal": measured.ratio(DIAGONAL),
        "ridge_ratio": measured.ridge["ratio"],
        "overhead_diagonal": measured.overhead("ours", DIAGONAL),
        "overhead_whitened": measured.overhead("ours", WHITENED),
        "overhead_released_diagonal": measured.overhead("released", DIAGONAL),
        "overhead_released_whitened": measured.overhead("released", WHITENED),
    }
    numbers: dict[str, float | None] = {name: found["median"] for name, found in spreads.items()}
    whole = arms["ours, whitened"]["seconds"]["median"]
    cost = measured.recorders
    numbers["recorder_share"] = None if cost is None else sum(cost.values()) / whole
    gated = measured.size == "100m" and measured.work.device.type == "cpu"
    return {
        **numbers,
        "gates": {gate.name: gate.check(numbers[gate.name]) for gate in GATES} if gated else {},
        "machine": dict(measured.machine),
        "workload": _workload(measured),
        "arms": arms,
        "spreads": spreads,
        "overhead_by_parts": {r.name: _own_parts(arms[f"ours, {r.name}"]["parts"]) for r in (DIAGONAL, WHITENED)},
        "differences": {name: dict(found) for name, found in measured.differences.items()},
        "ridge": dict(measured.ridge),
        "recorder_seconds": None if cost is None else dict(cost),
    }


def _workload(measured: Measured) -> dict[str, Any]:
    work, parameters = measured.work, list(measured.work.model.parameters())
    return {
        "size": measured.size,
        "model": asdict(SIZES[measured.size]),
        "parameters": sum(parameter.numel() for parameter in parameters),
        "dtype": str(parameters[0].dtype).removeprefix("torch."),
        "modules": list(work.modules),
        "edits": len(work.tokens),
        "tokens": sum(work.tokens.lengths),
        "answer_rows": sum(work.tokens.answer_lengths),
        "token_budget": work.token_budget,
        "condition_number": float(measured.whitener.condition().floored),
        "floored_fraction": float(measured.whitener.floored_fraction),
    }


def _own_parts(parts: Mapping[str, float]) -> float:
    """What the step adds to its own capture: less noisy than a difference of two runs, blind to what capture wastes."""
    return sum(seconds for name, seconds in parts.items() if name != "capture") / parts["capture"]
