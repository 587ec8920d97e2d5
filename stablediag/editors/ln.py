"""Editors with Lifelong Normalization (LN): StableEdit, ULTRAEDIT, and their ablations and controls.

One class, every switch a named option; the presets are points in that space. The update of a module is

    Delta = -lr * sum_i c_i v~_i phi_i,   phi_i = h_i' (H'H + ridge I)^{-1},   c_i = ||h~_i||^2,

with keys h_i, value gradients v_i, standardised keys h~_i and normalised value gradients v~_i (StableEdit,
arXiv:2605.11836, Algorithm 1 and Theorem 3.2; ULTRAEDIT, arXiv:2505.14679).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from stablediag.editors.base import Applied, Proposal, Tracked, stack_rows
from stablediag.editors.ln_controls import permutation, shuffled, uncentred
from stablediag.editors.ln_params import PRESETS, LNParams, Match
from stablediag.engine.capture import CaptureNeeds
from stablediag.errors import NumericalError, SpecError
from stablediag.maths.ln import key_coefficient, ln_update
from stablediag.maths.niw import NIW, DiagNIW
from stablediag.maths.whiten import Floor, Whitener, diagonal_whitener, gradient_whitener
from stablediag.models import ResolvedModule
from stablediag.store.state import part
from stablediag.types import Capture, EditBatch

if TYPE_CHECKING:
    from stablediag.engine.view import ModelView


@dataclass(frozen=True)
class Stats:
    """What one scope has learnt: moments of its keys and of its value gradients."""

    keys: DiagNIW
    grads: DiagNIW
    niw: NIW | None


@dataclass(frozen=True)
class Pending:
    """State prepared by `step`, taken over by `commit`."""

    stats: Mapping[str, Stats]
    match_scale: Mapping[str, float]
    warmed: bool
    frozen: Mapping[str, Stats] | None


class LNEditor:
    """Lifelong Normalization with every switch explicit; see `LNParams`.

    No matrix of size d_in x d_in is ever formed: the ridge is solved in its dual form.
    """

    Params = LNParams
    presets = PRESETS
    preset_needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"no_ln_matched": ("match",)}

    def __init__(self, params: LNParams, modules: Mapping[str, ResolvedModule]) -> None:
        if not modules:
            raise NumericalError("an LN editor needs at least one edited module: name some under model.modules")
        self.params = params
        self.modules: tuple[str, ...] = tuple(modules)
        self.needs: CaptureNeeds | None = CaptureNeeds(loss=params.loss, tokens=params.tokens)
        self.minibatch = params.minibatch
        self.master = params.master
        self.extra_columns: Mapping[str, str] = {"match_scale": "REAL"} if params.match else {}
        self.lr: float | None = None if params.lr == "calibrate" else float(params.lr)
        self.reference: Mapping[tuple[int, str], float] = {}
        self.match_scale: dict[str, float] = {}
        self.calibrated: tuple[str, ...] = ()
        self._scope = {name: self._scope_name(module) for name, module in modules.items()}
        self.scopes: tuple[str, ...] = tuple(dict.fromkeys(self._scope.values()))
        self._stats = {scope: self._empty(modules[self._members(scope)[0]]) for scope in self.scopes}
        #: whether a warm-up step was taken, and the statistics as they were after the last one (kept for `frozen` alone)
        self._warmed = False
        self._frozen: Mapping[str, Stats] | None = None
        self._pending: Pending | None = None

    def _scope_name(self, module: ResolvedModule) -> str:
        return module.name if self.params.stats_scope == "layer" else f"shape:{module.d_in}x{module.d_out}"

    def _empty(self, module: ResolvedModule) -> Stats:
        device = module.module.get_parameter("weight").device
        covariance = self.params.normaliser == "full" or self.params.track_covariance
        prior = self.params.prior if self.params.prior_kind == "absolute" else 0.0
        return Stats(
            keys=DiagNIW.empty(module.d_in, device=device),
            grads=DiagNIW.empty(module.d_out, device=device),
            niw=NIW.empty(module.d_out, prior=prior, device=device) if covariance else None,
        )

    @property
    def keeps_covariance(self) -> bool:
        """Whether a d_out x d_out scatter is kept."""
        return any(stats.niw is not None for stats in self._stats.values())

    def writes(self, phase: str) -> bool:
        """Warm-up updates unless the warm-up is for statistics only, target updates unless nothing is to be edited."""
        return self.params.target_apply if phase == "target" else self.params.warmup_apply

    def _members(self, scope: str) -> list[str]:
        return [name for name in self.modules if self._scope[name] == scope]

    def _updated(self, scope: str, captures: Mapping[str, Capture], older: Stats | None) -> tuple[Stats, Tracked]:
        """The scope's statistics with the step's rows in them, and how they moved; `older` ones may normalise instead."""
        p, old, names = self.params, self._stats[scope], self._members(scope)
        keys, grads = stack_rows(captures, names, "keys"), stack_rows(captures, names, "grads")
        blocks = None
        if p.block_var == "sample":
            own = [captures[name].block_ids * len(names) + i for i, name in enumerate(names)]
            blocks = torch.cat([ids.to(grads.device) for ids in own])
        options: dict[str, Any] = {"forget": p.forget, "block_ids": blocks, "block_var": p.block_var}
        new_grads = old.grads.update(grads, **options)
        new_keys = old.keys.update(keys, **options) if p.coefficient == "standardised" else old.keys
        niw, factor = old.niw, None
        if niw is not None:
            first = float(niw.nu) == 0
            factor = niw.factor(grads) if p.forget == 1 and p.block_var == "population" else None
            niw = niw.update(grads, **options)
            if first and p.prior_kind == "relative":
                eps0 = p.prior * float(niw.scale.diagonal(dim1=-2, dim2=-1).mean())
                niw, factor = niw.with_prior(eps0), None
        tracked = Tracked(
            after=niw if niw is not None else new_grads,
            before_nu=float(old.grads.nu),
            before_mean=old.grads.mean,
            factor=factor,
            whitener_nu=float((older.grads if older is not None else new_grads).nu),
            # What holds of rows inside their own statistics does not hold about another centre or in other places.
            in_sample=p.forget == 1 and older is None and p.center and p.statistics != "shuffled",
        )
        return Stats(new_keys, new_grads, niw), tracked

    def _older(self, scope: str, phase: str) -> Stats | None:
        """The statistics without the step's rows that normalise it; None: those with them, as at the very first step."""
        old, frozen = self._stats[scope], self._frozen_at(phase)
        if frozen is not None and phase == "target":
            return frozen[scope]
        return old if self.params.stats_order == "before" and float(old.grads.nu) > 1 else None

    def _frozen_at(self, phase: str) -> Mapping[str, Stats] | None:
        """What is kept of the warm-up: its statistics, from the first target step behind it on."""
        if self._frozen is None and phase == "target" and self._warmed and self.params.statistics == "frozen":
            return self._stats
        return self._frozen

    def _whiteners(self, scope: str, stats: Stats, phase: str) -> tuple[Whitener, Whitener | None]:
        p = self.params
        kind: Any = (
            "diagonal" if phase == "warmup" and p.warmup_norm == "diagonal" and p.normaliser == "full" else p.normaliser
        )
        grads = gradient_whitener(
            stats.niw if kind == "full" else None,
            stats.grads,
            kind=kind,
            floor=Floor(p.floor_kind, p.floor),
            shrinkage=p.shrinkage,
            pre_threshold=p.pre_threshold,
            eps=p.eps,
        )
        keys = diagonal_whitener(stats.keys, eps=p.eps) if p.coefficient == "standardised" else None
        if p.statistics == "shuffled":
            grads = shuffled(grads, permutation(stats.grads.d, seed=p.statistics_seed, name=f"{scope}/grads"))
            if keys is not None:
                keys = shuffled(keys, permutation(stats.keys.d, seed=p.statistics_seed, name=f"{scope}/keys"))
        return grads if p.center else uncentred(grads), keys

    def step(self, view: ModelView, batch: EditBatch, captures: Mapping[str, Capture]) -> Iterator[Proposal]:
        """Yield one low-rank update per module; all of them belong to the weights before the step."""
        warmed = self._warmed or batch.phase == "warmup"
        pending = Pending(self._stats, self.match_scale, warmed, self._frozen_at(batch.phase))
        if not any(capture.rows for capture in captures.values()):
            self._pending = pending
            return
        if self.lr is None and self.writes(batch.phase):
            raise NumericalError(
                "the learning rate was not calibrated: run through a session, or give params.lr a number"
            )
        # An update that is not going to be written needs no rate yet.
        lr = 1.0 if self.lr is None else self.lr
        older = {scope: self._older(scope, batch.phase) for scope in self.scopes}
        updated = {scope: self._updated(scope, captures, older[scope]) for scope in self.scopes}
        scale = dict(self.match_scale)
        whiteners: dict[str, tuple[Whitener, Whitener | None]] = {}
        for scope, (new, _) in updated.items():
            whiteners[scope] = self._whiteners(scope, older[scope] or new, batch.phase)
        seen: set[str] = set()
        for name in self.modules:
            scope = self._scope[name]
            whitener, key_whitener = whiteners[scope]
            capture = captures[name]
            here, key_here = (_on(one, capture.keys.device) for one in (whitener, key_whitener))
            dtype = getattr(torch, self.params.solve_dtype) if self.params.solve_dtype else None
            update = ln_update(
                capture.keys,
                capture.grads,
                whitener=here,
                coefficient=key_coefficient(capture.keys, key_here, kind=self.params.coefficient),
                lr=lr,
                ridge=self.params.ridge,
                dtype=dtype,
            )
            extra = {}
            if self.params.match is not None:
                extra["match_scale"] = scale[name] = self._match_factor(name, batch, float(update.norm()))
                update = update.scaled(scale[name])
            yield Proposal(
                module=name,
                update=update,
                tracked={} if scope in seen else {scope: updated[scope][1]},
                whitener=whitener,
                extra=extra,
            )
            seen.add(scope)
        kept = scale if batch.phase == "target" and self._fixes_scale() else self.match_scale
        stats = {scope: new for scope, (new, _) in updated.items()}
        self._pending = replace(pending, stats=stats, match_scale=kept)

    def _fixes_scale(self) -> bool:
        return self.params.match is not None and self.params.match.mode != "every"

    def _match_factor(self, name: str, batch: EditBatch, norm: float) -> float:
        """Factor that gives the module's update the norm that the reference run recorded; 1 where nothing is written."""
        if not self.writes(batch.phase):
            return 1.0
        if batch.phase == "target" and self._fixes_scale() and name in self.match_scale:
            return self.match_scale[name]
        return Match.factor(self.reference, step=batch.index, module=name, norm=norm)

    def commit(self, view: ModelView, applied: Sequence[Applied]) -> None:
        """Take over the statistics that the last step prepared."""
        if self._pending is None:
            raise NumericalError("commit without a step: exhaust editor.step(...) first")
        self._stats = dict(self._pending.stats)
        self.match_scale = dict(self._pending.match_scale)
        self._warmed, self._frozen = self._pending.warmed, self._pending.frozen
        self._pending = None

    def finish(self, view: ModelView) -> Iterator[Proposal]:
        """Nothing is due at the end of an LN stream."""
        return iter(())

    def scope_of(self, module: str) -> str:
        """Name of the scope whose statistics normalise this module."""
        return self._scope[module]

    def statistics(self, scope: str) -> Stats:
        """The statistics of a scope (a module name, or ``shape:<d_in>x<d_out>``)."""
        return self._stats[scope]

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Statistics as tensors; learning rate and match factors as values."""
        tensors = _stored(self._stats)
        meta: dict[str, Any] = {"lr": self.lr, "match_scale": self.match_scale, "calibrated": list(self.calibrated)}
        if self.params.statistics == "frozen":
            meta["warmed"] = self._warmed
            tensors |= {f"frozen:{key}": tensor for key, tensor in _stored(self._frozen or {}).items()}
        return tensors, meta

    def load_state_dict(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore statistics, learning rate and match factors."""
        frozen = part(tensors, "frozen:")
        self._frozen = _restored(self._stats, frozen) if frozen else None
        self._stats = _restored(self._stats, tensors)
        self._warmed = bool(meta.get("warmed", False))
        self.lr = meta["lr"]
        self.match_scale = dict(meta["match_scale"])
        self.calibrated = tuple(meta["calibrated"])
        self._pending = None

    def take_statistics(self, tensors: Mapping[str, Tensor], params: Mapping[str, Any]) -> dict[str, Tensor]:
        """Start with the running statistics of another run's editor; neither its learning rate nor its match factors.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            The other editor's state.
        params : mapping
            The other editor's parameters.

        Returns
        -------
        dict of str to Tensor
            What was taken.

        Raises
        ------
        SpecError
            Statistics of gradients of another loss, of other scopes or widths, with another prior inside their covariance, or
            without what this editor needs.
        """
        own = LNParams.model_validate(params)
        for name in ("loss", "minibatch", "tokens"):
            if (there := getattr(own, name)) != (here := getattr(self.params, name)):
                raise SpecError(
                    f"its statistics are of gradients with {name} {there}, this run's have {here}: take the same"
                )
        # The scatter holds its prior from the first step on: this editor could not put its own in its place.
        if self.keeps_covariance and (there := _prior(own)) != (here := _prior(self.params)):
            raise SpecError(f"its covariance began with the prior {there}, this run's is {here}: take the same")
        taken: dict[str, Tensor] = {}
        for key, mine in _stored(self._stats).items():
            found = tensors.get(key)
            scope, kind, _ = key.rsplit("/", 2)
            if found is None:
                raise SpecError(f"it has no {_KEPT[kind]} of {scope}: {_ADVICE[kind]}")
            if found.shape != mine.shape:
                raise SpecError(f"its {key} is {list(found.shape)}, here {list(mine.shape)}: edit the same modules")
            taken[key] = found
        stats = _restored(self._stats, taken)
        for scope, one in stats.items():
            if not float(one.grads.nu) or (self.params.coefficient == "standardised" and not float(one.keys.nu)):
                raise SpecError(f"it has seen no rows of {scope} that this run needs: {_ADVICE['keys']}")
        self._stats = stats
        return taken


#: what the parts of a scope's statistics are, and where they come from
_KEPT = {"keys": "moments of the keys", "grads": "moments of the value gradients", "niw": "covariance"}
_ADVICE = {
    "keys": "use the same editor.params.stats_scope, and coefficient standardised there",
    "grads": "use the same model.modules and editor.params.stats_scope",
    "niw": "give that run editor.params.track_covariance true, or use normaliser diagonal here",
}


def _prior(params: LNParams) -> str:
    return "none" if params.prior_kind == "none" else f"{params.prior:g} {params.prior_kind}"


def _stored(stats: Mapping[str, Stats]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for scope, one in stats.items():
        for kind in ("keys", "grads", "niw"):
            state = getattr(one, kind)
            if state is not None:
                tensors |= {f"{scope}/{kind}/{key}": value for key, value in state.state_dict().items()}
    return tensors


def _restored(like: Mapping[str, Stats], tensors: Mapping[str, Tensor]) -> dict[str, Stats]:
    """Stored statistics of the same parts, on the same devices."""
    found = {}
    for scope, old in like.items():
        parts: dict[str, Any] = {}
        for kind in ("keys", "grads", "niw"):
            one = getattr(old, kind)
            if one is not None:
                state = {k: v.to(one.mean.device) for k, v in part(tensors, f"{scope}/{kind}/").items()}
                parts[kind] = type(one).from_state(state)
        found[scope] = replace(old, **parts)
    return found


def _on(whitener: Whitener | None, device: torch.device) -> Whitener | None:
    """The whitener on a module's own device: the scope it belongs to may live on another one."""
    if whitener is None or whitener.mean.device == device:
        return whitener
    moved: dict[str, Any] = {
        field.name: part.to(device)
        for field in fields(whitener)
        if isinstance(part := getattr(whitener, field.name), Tensor)
    }
    return replace(whitener, **moved)
