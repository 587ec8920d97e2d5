"""Do the updates of a run add up? All pairs at once, and neighbours with an error bar."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stablediag.maths.update import Dense, UpdateT
from stablediag.recorders.base import BaseRecorder, Item, Row, RunView, Schedule, SqlType, StepView, every
from stablediag.recorders.features import Features, PairNull, features_of, pair_null
from stablediag.recorders.tracking import tracked_scopes
from stablediag.recorders.updates import StepUpdates, number

#: rows of a block that is compared in float64
_BLOCK_ENTRIES = 1 << 21
_Z = 1.959963984540054


@dataclass
class Coherence(BaseRecorder):
    r"""Cumulative coherence of a module's updates, and the null law of the adjacent cosine.

    Columns of ``updates``, at the steps that are reported:

    * ``coherence`` :math:`\Gamma_t = \|W_t - W_0\|_F^2 / \sum_{s \le t} \|\Delta_s\|_F^2` over all updates that were written: 1
      when they are orthogonal on average over *all* pairs, t when they all point one way, below 1 when they undo each
      other. ``coherence_low``, ``coherence_high``: where it lies 95 times in 100 without any coherence,
      :math:`1 \pm 1.96 \sqrt{2 (1 - 1/T)}\,\sigma` with :math:`\sigma^2` the mean of ``cosine_sd``:math:`^2` so far and T the
      effective number of updates (null until there are two).
    * ``cosine_sd``: standard deviation that the adjacent cosine has when two steps have nothing to do with each other;
      ``cosine_z``: the cosine in these units; ``key_overlap`` :math:`\kappa_\Phi`. A narrow band of cosines is no merit by
      itself: it is :math:`\kappa_\Phi / \sqrt{d_{eff}}` for independent rows, and smaller in a higher dimension.
    * ``bias_share`` :math:`= \|\sum_i\varphi_i\|^2 / (\nu \sum_i \|\varphi_i\|^2)`: share of the update's energy that the error
      of the tracked mean explains under full whitening, at most rows of the step over :math:`\nu`.

    The last four, and with them the interval, need value gradients and an update that is a ridge solve for them (the LN
    family, see `stablediag.recorders.features`); elsewhere they are null. Adjacent means: of target steps with nothing
    between.

    Parameters
    ----------
    report : Schedule
        Steps that get a row; the norms of all updates are needed, so that the recorder itself sees every step.

    Notes
    -----
    StableEdit (arXiv:2605.11836), Theorem 3.8(c), asks whether inner products vanish; :math:`\Gamma` is
    :math:`\sqrt t` times more powerful than the adjacent cosine against a coherence that lasts. One matrix a module is kept
    (and stored at checkpoints): of weights of at least float32 the first weight, so that the distance is that of the
    stored weights; of narrower ones the sum of the updates in float32, so that rounding, which `RealisedUpdate` measures,
    is not taken for movement. Numerator and denominator then are both of the updates as proposed.
    """

    report: Schedule = field(default_factory=lambda: every(10))
    name = "coherence"
    columns: Mapping[str, Mapping[str, SqlType]] = field(
        default_factory=lambda: {
            "updates": dict.fromkeys(
                (
                    *("coherence", "coherence_low", "coherence_high"),
                    *("cosine_sd", "cosine_z", "key_overlap", "bias_share"),
                ),
                "REAL",
            )
        },
        init=False,
    )
    updates: StepUpdates = field(default_factory=StepUpdates, init=False, repr=False)
    _kept: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    #: module -> sum of the energies, sum of their squares, sum of the null variances, number of these
    _sums: dict[str, list[float]] = field(default_factory=dict, init=False, repr=False)
    _previous: dict[str, Features] = field(default_factory=dict, init=False, repr=False)
    _place: int | None = field(default=None, init=False, repr=False)

    def on_run_start(self, run: RunView) -> Iterable[Item]:
        """Keep the first weights."""
        for name in run.view.modules:
            weight = run.view.weight(name)
            self._kept[name] = weight.clone() if _wide(weight) else torch.zeros_like(weight, dtype=torch.float32)
            self._sums[name] = [0.0] * 4
        return ()

    def on_step(self, step: StepView) -> Iterable[Item]:
        """One row per module that was written, of a due step."""
        due = self.report(step.step, step.total)
        updates = self.updates.of(step)
        for module, sized in updates.items():
            energy = sized.norm**2
            sums = self._sums[module]
            sums[0], sums[1] = sums[0] + energy, sums[1] + energy**2
            kept = self._kept[module]
            if not _wide(step.view.weight(module)):
                self._kept[module] = _added(kept, sized.update)
        pairs, shares = self._pairs(step, due) if step.phase == "target" else ({}, {})
        for module in updates if due else ():
            values = dict.fromkeys(self.columns["updates"], None) | self._coherence(step, module)
            pair = pairs.get(module)
            if pair is not None:
                z = pair.cosine / pair.sd if pair.sd > 0 else math.nan
                values |= {"cosine_sd": number(pair.sd), "cosine_z": number(z), "key_overlap": number(pair.overlap)}
            values["bias_share"] = shares.get(module)
            yield Row("updates", {"step": step.step, "module": module}, values)

    def _pairs(self, step: StepView, due: bool) -> tuple[dict[str, PairNull], dict[str, float]]:
        """Null laws against the step before, where it was kept, and bias shares; keeps what the next one will ask for."""
        before = self._previous if self._place is not None and step.step == self._place + 1 else {}
        wanted = step.step + 1 < step.total and self.report(step.step + 1, step.total)
        self._previous, self._place = {}, step.step
        pairs: dict[str, PairNull] = {}
        shares: dict[str, float] = {}
        if not (due or wanted) or not step.written:
            return pairs, shares
        counts = {m: float(t.after.nu) for _, t, _, modules in tracked_scopes(step) for m in modules}
        names = [applied.proposal.module for applied in step.applied]
        for applied in step.applied:
            module = applied.proposal.module
            found = features_of(applied.proposal, step.captures.get(module)) if names.count(module) == 1 else None
            if found is None:
                continue
            if module in before:
                pair = pair_null(before[module].to(found.keys.device), found)
                if pair is not None:
                    pairs[module] = pair
                    self._sums[module][2] += pair.sd**2
                    self._sums[module][3] += 1
            if counts.get(module, 0.0) > 0 and found.row_energy > 0:
                shares[module] = found.sum_energy / (counts[module] * found.row_energy)
            if wanted:
                self._previous[module] = found
        return pairs, shares

    def _coherence(self, step: StepView, module: str) -> dict[str, float | None]:
        total, squares, variance, pairs = self._sums[module]
        if not total > 0:
            return {}
        weight = step.view.weight(module)
        distance = _distance(weight, self._kept[module]) if _wide(weight) else _energy(self._kept[module])
        values = {"coherence": number(distance / total)}
        apart = 1 - squares / total**2
        if pairs and apart > 0:
            reach = _Z * math.sqrt(2 * apart * variance / pairs)
            values |= {"coherence_low": number(1 - reach), "coherence_high": number(1 + reach)}
        return values

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """First weights or sums, energies, and the previous update where the next step asks for it."""
        tensors = {f"kept/{module}": tensor.contiguous() for module, tensor in self._kept.items()}
        for module, features in self._previous.items():
            tensors |= {f"previous/{module}/{name}": tensor for name, tensor in features.tensors().items()}
        tensors |= {f"sums/{m}": torch.tensor(values, dtype=torch.float64) for m, values in self._sums.items()}
        return tensors, {"modules": list(self._kept), "previous": list(self._previous), "place": self._place}

    def load_state_dict(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._kept = {module: tensors[f"kept/{module}"].clone() for module in meta["modules"]}
        self._sums = {module: tensors[f"sums/{module}"].tolist() for module in meta["modules"]}
        self._place = meta["place"]
        self._previous = {}
        for module in meta["previous"]:
            prefix = f"previous/{module}/"
            parts = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
            self._previous[module] = Features.from_tensors(parts)


def _wide(weight: Tensor) -> bool:
    return torch.finfo(weight.dtype).bits >= 32


def _added(kept: Tensor, update: UpdateT) -> Tensor:
    """The sum with this update, in place where it lies on the right device."""
    if isinstance(update, Dense):
        return kept.to(update.matrix.device).add_(update.matrix)
    right = update.right.to(kept.dtype)
    return kept.to(right.device).addmm_(update.left.to(kept.dtype), right)


def _distance(weight: Tensor, first: Tensor) -> float:
    """Squared Frobenius distance, float64, in row blocks of the layout in which the first one is kept."""
    first = first.to(weight.device)
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    rows = max(1, _BLOCK_ENTRIES // max(1, weight.shape[1]))
    for start in range(0, len(weight), rows):
        block = weight[start : start + rows].double() - first[start : start + rows].double()
        total += block.square().sum()
    return float(total)


def _energy(matrix: Tensor) -> float:
    return float(Dense(matrix).norm()) ** 2
