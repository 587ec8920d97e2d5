"""The ridge of one layer at its true size: normal equations by LU against the dual form applied in place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from reproduce.bench.released import normal_equations
from reproduce.bench.timing import Clock, interleave, spread
from stablediag.engine.weights import WeightWriter
from stablediag.maths.ridge import dual_ridge
from stablediag.maths.update import LowRank
from stablediag.models import ResolvedModule

RIDGE = 10.0


@dataclass
class _Layer:
    """Random keys and targets, and a float32 weight that starts at zero, so that afterwards it is the update."""

    keys: Tensor
    targets: Tensor
    module: nn.Linear = field(init=False)

    def __post_init__(self) -> None:
        d_in, d_out = self.keys.shape[1], self.targets.shape[1]
        self.module = nn.Linear(d_in, d_out, bias=False, device=self.keys.device, dtype=torch.float32)
        self.module.requires_grad_(False)

    def prepare(self) -> None:
        self.module.weight.zero_()


class _Ours(_Layer):
    def run(self, clock: Clock) -> None:
        entry = ResolvedModule("layer", self.module, "linear", self.keys.shape[1], self.targets.shape[1])
        with clock.part("solve"):
            update = LowRank(self.keys.T, dual_ridge(self.keys, self.targets, RIDGE))
        with clock.part("apply"):
            WeightWriter({"layer": entry}).apply("layer", update)


class _Released(_Layer):
    def run(self, clock: Clock) -> None:
        with clock.part("solve"):
            shift = normal_equations(self.keys, self.targets, RIDGE)
        with clock.part("apply"):
            self.module.weight += shift.T


def compare_ridge(
    shape: tuple[int, int, int], device: torch.device, *, repeats: int, released_repeats: int, progress: Any = print
) -> dict[str, Any]:
    """Time both, and judge both by a float64 solution that is itself checked by its normal equations.

    Parameters
    ----------
    shape : tuple of int
        d_in, d_out, rows.
    device : torch.device
    repeats, released_repeats : int
        Rounds; the released arm may take part in fewer, since it takes a minute at the true size on a CPU.
    progress : callable
        Is told of every sample.

    Returns
    -------
    dict
        JSON-ready; ``ratio`` is the median over the rounds that both arms ran.
    """
    d_in, d_out, rows = shape
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(rows, d_in, generator=generator).to(device)
    targets = torch.randn(rows, d_out, generator=generator).to(device)
    arms: dict[str, _Ours | _Released] = {"ours": _Ours(keys, targets), "released": _Released(keys, targets)}
    # A small run first: what a library sets up at its first call is no part of the comparison.
    for kind in (_Ours, _Released):
        kind(keys[:, :128].contiguous(), targets).run(Clock(device))
    series = interleave(arms, repeats=repeats, device=device, limits={"released": released_repeats}, progress=progress)
    exact, residual = _reference(keys, targets)
    scale = torch.linalg.vector_norm(exact)
    errors = {
        name: float(torch.linalg.vector_norm(arm.module.weight.T.double() - exact) / scale)
        for name, arm in arms.items()
    }
    ratios = [r / o for r, o in zip(series["released"].seconds, series["ours"].seconds, strict=False)]
    return {
        "shape": {"d_in": d_in, "d_out": d_out, "rows": rows, "ridge": RIDGE},
        "ratio": spread(ratios),
        "arms": {name: found.summary() | {"error": errors[name]} for name, found in series.items()},
        "reference_residual": residual,
    }


def _reference(keys: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """The solution in float64, and its relative residual in ``(H'H + lam I) Delta = H'U``."""
    h, u = keys.double(), targets.double()
    shift = h.T @ dual_ridge(h, u, RIDGE, dtype=torch.float64)
    right = h.T @ u
    left = (h.T @ (h @ shift)).add_(shift, alpha=RIDGE)
    return shift, float(torch.linalg.vector_norm(left.sub_(right)) / torch.linalg.vector_norm(right))
