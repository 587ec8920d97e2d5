"""The error of the tracked mean without knowing the truth: every batch judges the mean that was known before it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stablediag.errors import SpecError
from stablediag.maths.niw import NIW
from stablediag.recorders._gram import Units, largest_eigenvalue, trace_of_square, units_from
from stablediag.recorders._rows import Batch, Groups, StepRows
from stablediag.recorders.base import BaseRecorder, Item, Row, Schedule, SqlType, StepView, every
from stablediag.recorders.updates import number

_REAL = (
    *("prior_error", "prior_error_null", "trace", "trace_squared", "effective_rank", "trace_ratio"),
    *("shadow_mean", "shadow_cov", "lag_squared"),
)


@dataclass(frozen=True, eq=False)
class _Shadow:
    """Half the difference between the moments of two halves of the stream, and an own mean where none is tracked.

    Attributes
    ----------
    mean : Tensor, float64, shape [d]
        Of the two halves' running means.
    scatter : Tensor, float64, shape [d, k]
        Of their scatters, times the probes and two; k = 0 where no covariance is tracked.
    own : Tensor, float64, shape [d]
        Running mean of all rows.
    rows : float
        Rows behind `own`.
    """

    mean: Tensor
    scatter: Tensor
    own: Tensor
    rows: float

    @classmethod
    def empty(cls, d: int, probes: int, device: torch.device) -> _Shadow:
        blank = torch.zeros(d, dtype=torch.float64, device=device)
        return cls(blank, blank.new_zeros(d, probes), blank, 0.0)

    def on(self, device: torch.device) -> _Shadow:
        """The same on another device: a checkpoint is loaded on the CPU."""
        return _Shadow(self.mean.to(device), self.scatter.to(device), self.own.to(device), self.rows)


@dataclass
class Prequential(BaseRecorder):
    r"""Unbiased error of the tracked mean, the dimension of the gradients, and what part of the error is noise.

    Rows of an edit are one unit, so that tokens are not taken for independent. With units :math:`u_i` about the mean
    :math:`m_{t-1}` known before the step, S their scatter and n their number, per scope:

    * ``prior_error`` :math:`\hat E_t = \|\bar u\|^2 - \mathrm{tr} S/(n(n-1))`, whose mean given the past is
      :math:`\|m_{t-1} - \mu_t\|^2`; negative values are part of that. ``prior_error_null``, the subtracted term, is the
      error of a mean of this batch alone. ``edits``: n;
    * ``trace`` and ``trace_squared``: unbiased for :math:`\mathrm{tr}\,\Sigma_t` and :math:`\mathrm{tr}\,\Sigma_t^2` of a
      unit, ``effective_rank`` :math:`= (\mathrm{tr}\,\Sigma)^2/\mathrm{tr}\,\Sigma^2`, ``trace_ratio`` the trace over the
      batch's largest eigenvalue (too small where n is not above the rank: at most n - 1);
    * ``shadow_mean``: noise of :math:`m_{t-1}`, from running means A and B of two random halves of every step's edits,
      :math:`\|m^A - m^B\|^2/4`; ``lag_squared = prior_error - shadow_mean`` is what drift left of the error;
    * ``shadow_cov``: the same in squared Frobenius norm of the covariance known before the step.

    Null: the error at the first step; all but ``edits`` in a step of one edit, and the shadows after it; with fewer than
    four edits what needs four. The shadows follow the tracker's gain and forgetting; a mean that a run starts with counts
    as known. ``shadow_cov`` is null without a full covariance and until it exists. Without a tracker the recorder judges
    a running mean of its own, of all the rows of a module: all columns but ``shadow_cov`` are filled.

    Parameters
    ----------
    seed : int
        Of the halves and of the probes.
    probes : int
        Random directions that the difference of covariances is multiplied with, instead of being kept: its squared norm is
        unbiased, with a relative error of at most ``sqrt(2 / probes)``. 0 leaves ``shadow_cov`` out.
    report : Schedule
        Steps that get a row; the shadows see every step.

    Raises
    ------
    SpecError
        A negative seed or number of probes.

    Notes
    -----
    Bai and Saranadasa, Statistica Sinica 6 (1996) 311; Chen and Qin, Annals of Statistics 38 (2010) 808,
    doi:10.1214/09-AOS716. The numpy form of the error is `stablediag.stats.tracking.prequential_error`.
    """

    seed: int = 0
    probes: int = 32
    report: Schedule = field(default_factory=lambda: every(1))
    name = "prequential"
    columns: Mapping[str, Mapping[str, SqlType]] = field(
        default_factory=lambda: {"tracking": {**dict.fromkeys(_REAL, "REAL"), "edits": "INTEGER"}}, init=False
    )
    rows: StepRows = field(default_factory=StepRows, init=False, repr=False)
    _shadows: dict[str, _Shadow] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.seed < 0 or self.probes < 0:
            raise SpecError(
                f"recorders.prequential: seed and probes must not be negative, not {self.seed} and {self.probes}"
            )

    def on_step(self, step: StepView) -> Iterable[Item]:
        """One row per scope, of a due step."""
        due = self.report(step.step, step.total)
        halves: dict[Groups, Tensor] = {}
        for batch in self.rows.of(step):
            if batch.groups not in halves:
                halves[batch.groups] = _contrast(batch.groups, seed=(self.seed, step.step))
            values = self._observe(batch, halves[batch.groups], due=due)
            if due:
                yield Row("tracking", {"step": step.step, "module": batch.scope.name}, values)

    def _observe(self, batch: Batch, weights: Tensor, *, due: bool) -> dict[str, float | int | None]:
        """Judge the mean before the step, and let the shadows take the step, whose halves have these `weights`."""
        scope, grads = batch.scope, batch.grads
        tracked, device, (m, d) = scope.tracked, grads.device, grads.shape
        probes = self.probes if tracked is not None and isinstance(tracked.after, NIW) else 0
        shadow = (self._shadows.get(scope.name) or _Shadow.empty(d, probes, device)).on(device)
        if tracked is None:
            mean, before, gain, forget = shadow.own, shadow.rows, m / (shadow.rows + m), 1.0
        else:
            mean, before = tracked.before_mean.to(device, torch.float64), float(tracked.before_nu)
            # Statistics that are frozen have the very same mean after the step.
            moves = not torch.equal(tracked.after.mean, tracked.before_mean.to(tracked.after.mean))
            gain = min(1.0, m / float(tracked.after.kappa)) if moves else 0.0
            forget = (float(tracked.after.nu) - m) / before if before > 0 and moves else 1.0
        # Before the first step there is no mean; the batch's own keeps the digits of its scatter.
        point = mean if before > 0 else grads.mean(dim=0, dtype=torch.float64)
        known = tracked is not None and before > 0
        rows = batch.rows if known else grads - point.to(grads)
        values = {}
        if due:
            sums = batch.sums if known else batch.groups.sums(rows)
            values = _values(units_from(sums, m), shadow, before)
        scatter = shadow.scatter
        if probes and gain:
            assert tracked is not None
            about = rows - (tracked.after.mean.to(device, torch.float64) - point).to(rows)
            directions = _probes(d, probes, self.seed).to(about)
            halves = (m * weights).to(about)[:, None] * (about @ directions)
            scatter = forget * scatter + (about.mT @ halves).double()
        self._shadows[scope.name] = _Shadow(
            mean=(1 - gain) * shadow.mean + gain * (weights.to(rows) @ rows).double() if gain else shadow.mean,
            scatter=scatter,
            own=shadow.own if tracked is not None else point + gain * rows.mean(dim=0, dtype=torch.float64),
            rows=shadow.rows + m,
        )
        return values

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The shadows and own means, by scope."""
        tensors: dict[str, Tensor] = {}
        for scope, shadow in self._shadows.items():
            tensors |= {f"{scope}/mean": shadow.mean, f"{scope}/scatter": shadow.scatter, f"{scope}/own": shadow.own}
        return tensors, {"rows": {scope: shadow.rows for scope, shadow in self._shadows.items()}}

    def load_state_dict(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._shadows = {}
        for scope, rows in meta["rows"].items():
            mean, scatter, own = (tensors[f"{scope}/{part}"].clone() for part in ("mean", "scatter", "own"))
            self._shadows[scope] = _Shadow(mean, scatter, own, rows)


def _values(units: Units, shadow: _Shadow, before: float) -> dict[str, float | int | None]:
    """The columns of one scope; the shadows are those of the time before the step."""
    values: dict[str, float | int | None] = {**dict.fromkeys(_REAL), "edits": units.n}
    if units.n < 2:
        return values
    gram = units.centred @ units.centred.mT
    trace, square, noise = float(units.trace), float(trace_of_square(gram)), float(units.noise)
    values |= {
        "prior_error_null": number(noise),
        "trace": number(trace),
        "trace_squared": number(square),
        "effective_rank": number(trace * trace / square) if square > 0 else None,
    }
    if square > 0 and math.isfinite(trace + square):
        values["trace_ratio"] = number(trace / float(largest_eigenvalue(gram)))
    if before > 0:
        error, spread = float(units.offset.square().sum()) - noise, float(shadow.mean.square().sum())
        values |= {"prior_error": number(error), "shadow_mean": number(spread), "lag_squared": number(error - spread)}
    k, free = shadow.scatter.shape[1], before - shadow.mean.shape[0] - 1
    if k and free > 0:
        values["shadow_cov"] = number(float(shadow.scatter.square().sum()) / k / free**2)
    return values


def _contrast(groups: Groups, *, seed: tuple[int, int]) -> Tensor:
    """Weights [m] with which the rows give half the difference between the means of two random halves of the edits.

    An odd number leaves unequal halves; the scale is that at which the variance is the one of the mean of all edits. NaN
    with a single edit: it has no halves.
    """
    n, edits = groups.n, groups.edits
    if n < 2:
        return torch.full(edits.shape, torch.nan, dtype=torch.float64, device=edits.device)
    first = np.zeros(n, dtype=bool)
    first[np.random.default_rng(seed).permutation(n)[: n // 2]] = True
    mine = torch.from_numpy(first).to(edits.device)[groups.unit]
    count = mine.sum()
    scale = float(np.sqrt((n // 2) * (n - n // 2))) / n
    return torch.where(mine, scale / count, -scale / (len(edits) - count)).double()


def _probes(d: int, k: int, seed: int) -> Tensor:
    return torch.randn(d, k, generator=torch.Generator().manual_seed(seed))
