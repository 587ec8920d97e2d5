"""Early warning: an alarm at a stated level, from what every step leaves behind anyway."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from stablediag.errors import SpecError
from stablediag.recorders._rows import Batch, StepRows
from stablediag.recorders.base import BaseRecorder, Item, Row, Schedule, SqlType, StepView, every
from stablediag.recorders.innovation import Recent, innovation
from stablediag.recorders.updates import AdjacentCosine
from stablediag.stats.sequential import Recursive, SignBet
from stablediag.stats.sequential_alarm import VERDICTS, ScopeWatch, Verdict, decide, evidence, limits
from stablediag.store.state import part

#: largest logarithm of a wealth that is stored as the wealth
_LARGEST = 690.0


@dataclass(frozen=True, eq=False)
class _Scope:
    """State of one statistic: the tests, what they need to know, and an own mean where none is tracked."""

    watch: ScopeWatch
    recent: Recent
    mean: Tensor
    rows: float

    @classmethod
    def empty(cls, d: int, device: torch.device) -> _Scope:
        """Before the first batch."""
        blank = torch.zeros(d, dtype=torch.float64, device=device)
        return cls(ScopeWatch.empty(), Recent.empty(d, device=device), blank, 0.0)

    def step(self, batch: Batch) -> _Scope:
        """Take the rows of one batch, against the tracked mean before it, or against the own one."""
        grads, tracked = batch.grads, batch.scope.tracked
        count = self.rows if tracked is None else float(tracked.before_nu)
        rows = self.rows + len(grads)
        own = self.mean
        if tracked is None:
            own = own + (grads.double().mean(dim=0) - own) * (len(grads) / rows)
        kept = replace(self, mean=own, rows=rows)
        units = batch.sums if tracked is not None else batch.groups.sums(grads - self.mean.to(grads))
        if len(units) < 2 or not bool(torch.isfinite(units).all()):
            return kept
        found = innovation(units, inflation=len(grads) / count if count > 0 else 0.0)
        if not float(found.trace) > 0:
            return kept
        recent, projection, excess = self.recent.step(found, judged=count > 0)
        variance = np.log(float(found.trace)) + 2 * np.log(len(units) / len(grads))
        watch = self.watch.step(projection=projection, excess=excess, log_variance=variance)
        return replace(kept, watch=watch, recent=recent)

    def on(self, device: torch.device) -> _Scope:
        """The same on another device: a checkpoint is loaded on the CPU."""
        return replace(self, recent=replace(self.recent, aim=self.recent.aim.to(device)), mean=self.mean.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """The state, for a checkpoint."""
        watch = self.watch
        tests = torch.tensor(
            [float(value) for value in (watch.tracking, watch.growth, watch.shrinkage)]
            + [float(getattr(watch.scale, part.name)) for part in fields(Recursive)]
            + [self.rows, float(self.recent.inverse_d), float(self.recent.batches)],
            dtype=torch.float64,
        )
        return {"tests": tests, "innovations": _packed(watch.innovations), "aim": self.recent.aim, "mean": self.mean}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> _Scope:
        """Restore what `tensors` returned."""
        tracking, growth, shrinkage, *law, rows, inverse_d, batches = tensors["tests"].tolist()
        scale = Recursive(*(np.asarray(value) for value in law))
        sums = [np.asarray(value) for value in (tracking, growth, shrinkage)]
        watch = ScopeWatch(_unpacked(tensors["innovations"]), sums[0], scale, sums[1], sums[2])
        recent = Recent(tensors["aim"].clone(), np.asarray(inverse_d), int(batches))
        return cls(watch, recent, tensors["mean"].clone(), rows)


def _packed(bettor: SignBet) -> Tensor:
    return torch.from_numpy(np.concatenate([bettor.log_started, [bettor.square, bettor.count]]))


def _unpacked(values: Tensor) -> SignBet:
    plain = values.cpu().numpy().copy()
    return SignBet(plain[:-2], plain[-2], plain[-1])


@dataclass
class Alarm(BaseRecorder):
    r"""Five sequential tests a step, and one alarm at a stated level for the whole run.

    Target steps alone count. Table ``alarms``, one row a step:

    * ``e_innovation``: wealth of the bets that innovations :math:`\bar v_t - m_{t-1}` point where the recent ones pointed;
      ``e_update``: the same of adjacent updates. Without a cause they exceed ``e_limit`` with probability at most
      a quarter of the level, ever;
    * ``cusum``: cumulative sum of the excess of :math:`\|\bar v_t - m_{t-1}\|^2` over what noise explains; ``growth`` and
      ``shrinkage``: of the logarithm of the gradient variance within a step against its own past. Limits ``cusum_limit``
      and ``scale_limit``;
    * ``index``: gradient variance of the step over the geometric mean of the earlier ones, 1 when nothing moves;
    * ``state``: 0 quiet, 1 warning, 2 alarm, and ``which`` detectors say so, the strongest first. An alarm stays: it is the
      decision of the test. A warning goes when its cause does.

    Statistics that are tracked are judged against the tracked mean, shared ones with the rows of all their modules; where
    none are, against a running mean of the target steps' own gradients. Rows of an edit count as one unit. What is not there
    (no captures, no second update) is null; a test without a value (the gradients of one edit a step) waits.

    Parameters
    ----------
    level : float
        Probability of a false alarm in the whole run.
    warning_level : float
        The same of a warning.
    tolerance : float, optional
        Adjacent cosine that is forgiven. By default one over the steps of the run: if all pairs of updates had that cosine,
        the total would have twice the energy of the sum.
    report : Schedule
        Steps that get a row; the tests see every step.

    Raises
    ------
    SpecError
        Levels that are not ``0 < level <= warning_level < 1``.

    See Also
    --------
    stablediag.stats.sequential_alarm : how the level is shared, and what "without a cause" assumes.
    """

    level: float = 0.05
    warning_level: float = 0.2
    tolerance: float | None = None
    report: Schedule = field(default_factory=lambda: every(1))
    name = "alarm"
    keys: ClassVar[Mapping[str, Mapping[str, SqlType]]] = {"alarms": {"step": "INTEGER"}}
    columns: Mapping[str, Mapping[str, SqlType]] = field(
        default_factory=lambda: {
            "alarms": {
                **dict.fromkeys(("e_innovation", "e_update", "e_limit", "cusum", "cusum_limit"), "REAL"),
                **dict.fromkeys(("growth", "shrinkage", "scale_limit", "index"), "REAL"),
                "state": "INTEGER",
                "which": "TEXT",
            }
        },
        init=False,
    )
    _scopes: dict[str, _Scope] = field(default_factory=dict, init=False, repr=False)
    _updates: dict[str, SignBet] = field(default_factory=dict, init=False, repr=False)
    rows: StepRows = field(default_factory=StepRows, init=False, repr=False)
    #: who compares adjacent updates: an own recorder, or that of the run
    cosine: AdjacentCosine = field(default_factory=AdjacentCosine, init=False, repr=False)
    _limits: tuple[tuple[int, int], tuple[dict[str, float], dict[str, float]]] | None = field(
        default=None, init=False, repr=False
    )
    _verdict: Verdict = field(default="quiet", init=False, repr=False)
    _which: tuple[str, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.level <= self.warning_level < 1:
            raise SpecError(
                f"recorders.alarm: level and warning_level must satisfy 0 < level <= warning_level < 1, "
                f"not {self.level!r} and {self.warning_level!r}"
            )

    @property
    def verdict(self) -> Verdict:
        """What the steps so far say."""
        return self._verdict

    @property
    def which(self) -> tuple[str, ...]:
        """The detectors behind the verdict, the strongest first."""
        return self._which

    def on_step(self, step: StepView) -> Iterable[Item]:
        """One row, of a due target step."""
        if step.phase == "warmup":
            return
        self._bet(step)
        ratios = [self._observe(batch) for batch in self.rows.of(step)]
        known = [ratio for ratio in ratios if ratio is not None]
        scopes = [scope.watch for scope in self._scopes.values()]
        updates = list(self._updates.values()) if any(float(bet.count) for bet in self._updates.values()) else []
        values = evidence(scopes, updates)
        bounds = self._bounds(step.total, max(1, len(scopes)))
        if self._verdict != "alarm":
            decision = decide(values, alarm=bounds[0], warning=bounds[1])
            self._verdict, self._which = decision.verdict, decision.which
        if self.report(step.step, step.total):
            plain = {name: float(value) for name, value in values.items()}
            row = {
                "e_innovation": _wealth(plain.get("innovations")),
                "e_update": _wealth(plain.get("updates")),
                "e_limit": _wealth(bounds[0]["updates"]),
                "cusum": plain.get("tracking"),
                "cusum_limit": bounds[0]["tracking"],
                "growth": plain.get("growth"),
                "shrinkage": plain.get("shrinkage"),
                "scale_limit": bounds[0]["growth"],
                "index": float(np.exp(np.mean(known))) if known else None,
                "state": VERDICTS.index(self._verdict),
                "which": " ".join(self._which) or None,
            }
            yield Row("alarms", {"step": step.step}, row)

    def _bet(self, step: StepView) -> None:
        """One bet a module on the sign of its adjacent cosine; a module without one waits."""
        found, modules = self.cosine.compare(step), list(step.view.modules)
        cosines = [found.get(module, {}).get("cosine") for module in modules]
        tolerance = 1 / step.total if self.tolerance is None else self.tolerance
        values = np.array([np.nan if cosine is None else cosine - tolerance for cosine in cosines])
        bettors = [self._updates.get(module, SignBet.empty()) for module in modules]
        parts = zip(*((bet.log_started, bet.square, bet.count) for bet in bettors), strict=True)
        together = SignBet(*(np.stack(values) for values in parts)).step(values)
        for i, module in enumerate(modules):
            self._updates[module] = SignBet(together.log_started[i], together.square[i], together.count[i])

    def _bounds(self, total: int, streams: int) -> tuple[dict[str, float], dict[str, float]]:
        """Limits of the alarm and of the warning; they change with the number of streams alone."""
        if self._limits is None or self._limits[0] != (total, streams):
            alarm, warning = (
                limits(level, horizon=total, streams=streams) for level in (self.level, self.warning_level)
            )
            self._limits = ((total, streams), (alarm, warning))
        return self._limits[1]

    def _observe(self, batch: Batch) -> float | None:
        """Take one statistic's batch; logarithm of its variance over the earlier ones, where there are any."""
        name, grads = batch.scope.name, batch.grads
        before = self._scopes.get(name) or _Scope.empty(grads.shape[-1], grads.device)
        self._scopes[name] = after = before.on(grads.device).step(batch)
        old, new = before.watch.scale, after.watch.scale
        # The mean moves by one part in the count of what the value was off by.
        return float(new.count * (new.mean - old.mean)) if new.count > old.count > 0 else None

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tests, the recent directions and the previous updates."""
        tensors, meta = self.cosine.state_dict()
        kept = {f"cosine/{key}": tensor for key, tensor in tensors.items()}
        for name, scope in self._scopes.items():
            kept |= {f"scope/{name}/{key}": tensor for key, tensor in scope.tensors().items()}
        kept |= {f"update/{name}": _packed(bettor) for name, bettor in self._updates.items()}
        return kept, {
            "cosine": meta,
            "scopes": list(self._scopes),
            "updates": list(self._updates),
            "verdict": self._verdict,
            "which": list(self._which),
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.cosine.load_state_dict(part(tensors, "cosine/"), meta["cosine"])
        self._scopes = {name: _Scope.from_tensors(part(tensors, f"scope/{name}/")) for name in meta["scopes"]}
        self._updates = {name: _unpacked(tensors[f"update/{name}"]) for name in meta["updates"]}
        self._verdict, self._which = meta["verdict"], tuple(meta["which"])


def _wealth(log_e: float | None) -> float | None:
    return None if log_e is None else float(np.exp(min(log_e, _LARGEST)))
