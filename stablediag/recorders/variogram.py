"""How far the mean gradient moves in 1, 2, 4, ... steps, without a tracker and without the noise of the batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from stablediag.errors import SpecError
from stablediag.recorders._gram import units_from
from stablediag.recorders._rows import StepRows
from stablediag.recorders.base import BaseRecorder, Item, Row, Schedule, SqlType, StepView, any_of, every, first


@dataclass(frozen=True, eq=False)
class _Ring:
    """The last batch means, each with its noise; that of step s lies at place s modulo the depth.

    Attributes
    ----------
    means : Tensor, float64, shape [depth, d]
    noise : Tensor, float64, shape [depth]
        Estimated variance of each mean.
    steps : Tensor, int64, shape [depth], on the CPU
        Step of each; -1 where there is none yet.
    """

    means: Tensor
    noise: Tensor
    steps: Tensor

    @classmethod
    def empty(cls, depth: int, d: int, device: torch.device) -> _Ring:
        means = torch.zeros(depth, d, dtype=torch.float64, device=device)
        return cls(means, means.new_zeros(depth), torch.full((depth,), -1, dtype=torch.int64))

    def on(self, device: torch.device) -> _Ring:
        """The same on another device: a checkpoint is loaded on the CPU."""
        return _Ring(self.means.to(device), self.noise.to(device), self.steps)

    def put(self, step: int, mean: Tensor, noise: Tensor) -> None:
        """Take one batch, in place of the oldest."""
        place = step % len(self.steps)
        self.means[place], self.noise[place], self.steps[place] = mean, noise, step


@dataclass
class Variogram(BaseRecorder):
    r"""Squared distance of the mean gradients of two steps, unbiased.

    Table ``variogram``, a row per step, scope and lag k = 1, 2, 4, ...: ``value``
    :math:`= \|\bar v_{t-k} - \bar v_t\|^2 - \mathrm{tr}S_{t-k}/(n(n-1)) - \mathrm{tr}S_t/(n(n-1))`, whose mean is
    :math:`\|\mu_{t-k} - \mu_t\|^2`; negative values are part of that. It grows as :math:`k^2` where the mean moves on a
    line, as k where its steps are independent, and not at all where nothing drifts. Rows of an edit are one unit, as in
    `Prequential`.

    Target steps alone count, and a warm-up empties the memory; steps that were skipped are no partners. A step of one edit
    has no estimate of its noise and no rows. It needs captures, no tracker.

    Parameters
    ----------
    depth : int
        Longest lag, and batch means kept per scope, ``8 d depth`` bytes.
    report : Schedule
        Steps that get rows; every step is remembered. All of the first thousand and every tenth after them by default:
        neighbours at long lags say the same again.

    Raises
    ------
    SpecError
        A depth below 1.

    See Also
    --------
    stablediag.stats.drift.coherence : exponent of the growth, with an interval.

    Notes
    -----
    Matheron, Economic Geology 58 (1963) 1246, doi:10.2113/gsecongeo.58.8.1246, for the variogram; the noise of the means is
    subtracted here.
    """

    depth: int = 64
    report: Schedule = field(default_factory=lambda: any_of([first(1000), every(10)]))
    name = "variogram"
    keys: ClassVar[Mapping[str, Mapping[str, SqlType]]] = {
        "variogram": {"step": "INTEGER", "module": "TEXT", "lag": "INTEGER"}
    }
    columns: Mapping[str, Mapping[str, SqlType]] = field(
        default_factory=lambda: {"variogram": {"value": "REAL"}}, init=False
    )
    rows: StepRows = field(default_factory=StepRows, init=False, repr=False)
    _rings: dict[str, _Ring] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise SpecError(f"recorders.variogram: depth must be at least 1, not {self.depth}")

    @property
    def lags(self) -> list[int]:
        """1, 2, 4, ... up to the depth."""
        return [1 << power for power in range(self.depth.bit_length())]

    def on_step(self, step: StepView) -> Iterable[Item]:
        """A row per scope and lag, of a due target step."""
        if step.phase == "warmup":
            self._rings.clear()
            return
        due = self.report(step.step, step.total)
        for batch in self.rows.of(step):
            name, grads = batch.scope.name, batch.grads
            mean = grads.mean(dim=0, dtype=torch.float64)
            units = units_from(batch.groups.sums(grads - mean.to(grads)), len(grads))
            if units.n < 2:
                continue
            ring = self._rings.get(name) or _Ring.empty(self.depth, grads.shape[1], grads.device)
            self._rings[name] = ring = ring.on(grads.device)
            if due:
                for lag, value in self._compare(ring, step.step, mean, units.noise):
                    yield Row("variogram", {"step": step.step, "module": name, "lag": lag}, {"value": value})
            ring.put(step.step, mean, units.noise)

    def _compare(self, ring: _Ring, step: int, mean: Tensor, noise: Tensor) -> list[tuple[int, float]]:
        """Lag and value, for those lags whose partner is remembered."""
        known = [lag for lag in self.lags if step >= lag and int(ring.steps[(step - lag) % self.depth]) == step - lag]
        if not known:
            return []
        places = torch.tensor([(step - lag) % self.depth for lag in known], device=mean.device)
        values = (ring.means[places] - mean).square().sum(dim=1) - ring.noise[places] - noise
        plain: list[float] = values.tolist()
        return [(lag, value) for lag, value in zip(known, plain, strict=True) if abs(value) < float("inf")]

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The remembered means, by scope."""
        tensors: dict[str, Tensor] = {}
        for scope, ring in self._rings.items():
            tensors |= {f"{scope}/means": ring.means, f"{scope}/noise": ring.noise, f"{scope}/steps": ring.steps}
        return tensors, {"scopes": list(self._rings)}

    def load_state_dict(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._rings = {
            scope: _Ring(*(tensors[f"{scope}/{part}"].clone() for part in ("means", "noise", "steps")))
            for scope in meta["scopes"]
        }
