"""RLEdit, MALMEN and MEND as editors: standardise, ask the network, solve.

With keys h_i, value gradients g_i and the network's pseudo-keys h^_i and pseudo-gradients g^_i, RLEdit (arXiv:2502.05759)
and MALMEN (arXiv:2311.04661) write the ridge regression of ``-eta_m (h_i . h^_i) g^_i`` on the raw keys; MEND
(arXiv:2110.11309), as these papers run it, writes ``-eta_m sum_i h^_i' g^_i``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from stablediag.editors.base import Applied, Proposal, Tracked, stack_rows
from stablediag.editors.hypernet.checkpoint import described, load_trained
from stablediag.editors.hypernet.network import Hypernetwork
from stablediag.editors.hypernet.params import PRESETS, HypernetParams, MendParams, RLEditParams
from stablediag.editors.hypernet.statistics import Moments
from stablediag.editors.hypernet.transfer import transfer
from stablediag.editors.ln_params import Match
from stablediag.engine.capture import CaptureNeeds
from stablediag.errors import ModelError, NumericalError, SpecError
from stablediag.maths.ridge import dual_ridge
from stablediag.maths.update import LowRank
from stablediag.maths.whiten import diagonal_whitener
from stablediag.models import ResolvedModule
from stablediag.store.state import part
from stablediag.types import Capture, EditBatch

if TYPE_CHECKING:
    from stablediag.engine.view import ModelView

UNTRAINED = "untrained"


@dataclass(frozen=True)
class Made:
    """An update and what it was made of: enough to take a gradient through it.

    Attributes
    ----------
    keys : Tensor, shape [n, d_in]
        Raw keys.
    rows : Tensor, float32, shape [n, d_in + d_out]
        What the network was given.
    update : LowRank
        The module's update.
    extra : mapping
        The step size, the ridge (NaN without one), and how far the network moved its rows, relative to their norm.
    """

    module: str
    keys: Tensor
    rows: Tensor
    update: LowRank
    extra: Mapping[str, float]


class HypernetEditor:
    """A hypernetwork editor; the subclasses differ in their closed form and their defaults."""

    Params: ClassVar[type[HypernetParams]] = HypernetParams
    presets = PRESETS
    preset_needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"no_ln_matched": ("match",)}
    rule: ClassVar[Literal["ridge", "outer", "original"]] = "ridge"

    def __init__(self, params: HypernetParams, modules: Mapping[str, ResolvedModule]) -> None:
        if not modules:
            raise NumericalError(
                "a hypernetwork editor needs at least one edited module: name some under model.modules"
            )
        if params.network is None:
            raise SpecError(
                "editor.params.network is not given: train one with `stablediag train SPEC --out FOLDER` and name "
                f"FOLDER, or give {UNTRAINED} (a control)"
            )
        if params.network == UNTRAINED and params.statistics == "frozen":
            raise SpecError(
                "editor.params.statistics: frozen needs the statistics of a trained network: name its folder"
            )
        self.params = params
        self.modules: tuple[str, ...] = tuple(modules)
        self.needs: CaptureNeeds | None = CaptureNeeds(loss=params.loss, tokens=params.tokens)
        self.minibatch = params.minibatch
        self.master: Any = params.master
        columns = {"net_lr": "REAL", "net_ridge": "REAL", "net_moved": "REAL"}
        self.extra_columns: Mapping[str, str] = columns | ({"match_scale": "REAL"} if params.match else {})
        self.reference: Mapping[tuple[int, str], float] = {}
        self.match_scale: dict[str, float] = {}
        self._shape = {name: f"{entry.d_in}x{entry.d_out}" for name, entry in modules.items()}
        layered = params.stats_scope == "layer"
        self._scope = {name: name if layered else f"shape:{shape}" for name, shape in self._shape.items()}
        self.scopes: tuple[str, ...] = tuple(dict.fromkeys(self._scope.values()))
        self._networks = {shape: self._network(shape, modules) for shape in dict.fromkeys(self._shape.values())}
        self._moments = {scope: Moments.empty(modules[self._members(scope)[0]]) for scope in self.scopes}
        self._identity = described(modules, {name: getattr(params, name) for name in params.shared}, self.rule)
        if params.network != UNTRAINED:
            self._load(Path(params.network), modules)
        self._learns = params.network == UNTRAINED or params.statistics != "frozen"
        self._pending: tuple[dict[str, Moments], dict[str, float]] | None = None

    def _network(self, shape: str, modules: Mapping[str, ResolvedModule]) -> Hypernetwork:
        p = self.params
        members = [name for name in self.modules if self._shape[name] == shape]
        entry = modules[members[0]]
        network = Hypernetwork(
            entry.d_in, entry.d_out, members=members, rank=p.rank, blocks=p.blocks, lr=p.lr, seed=p.seed
        )
        return network.to(entry.module.get_parameter("weight").device)

    def _load(self, folder: Path, modules: Mapping[str, ResolvedModule]) -> None:
        trained = load_trained(folder, modules, self._identity["params"], self.rule)
        self.load_trained_state(trained.tensors, statistics=self.params.statistics != "fresh")

    @property
    def networks(self) -> Mapping[str, Hypernetwork]:
        """The networks by shape, ``"<d_in>x<d_out>"``: what training trains."""
        return self._networks

    @property
    def identity(self) -> Mapping[str, Any]:
        """Modules, shapes, weights and parameters that a trained network belongs to."""
        return self._identity

    @property
    def keeps_covariance(self) -> bool:
        """No d_out x d_out scatter is kept."""
        return False

    def writes(self, phase: str) -> bool:
        """Every update is written."""
        return True

    def scope_of(self, module: str) -> str:
        """Name of the scope whose statistics standardise this module."""
        return self._scope[module]

    def statistics(self, scope: str) -> Moments:
        """The statistics of a scope (a module name, or ``shape:<d_in>x<d_out>``)."""
        return self._moments[scope]

    def _members(self, scope: str) -> list[str]:
        return [name for name in self.modules if self._scope[name] == scope]

    def updated(self, captures: Mapping[str, Capture]) -> dict[str, Moments]:
        """The statistics with the step's rows in them; those there are where they are frozen or not used."""
        if not self._learns or self.params.normaliser == "none":
            return dict(self._moments)
        new = {}
        for scope in self.scopes:
            names, old = self._members(scope), self._moments[scope]
            keys, grads = (stack_rows(captures, names, kind) for kind in ("keys", "grads"))
            own = [captures[name].block_ids * len(names) + i for i, name in enumerate(names)]
            blocks = torch.cat([ids.to(grads.device) for ids in own])
            new[scope] = old.update(keys, grads, block_ids=blocks, block_var=self.params.block_var)
        return new

    def take(self, moments: Mapping[str, Moments]) -> None:
        """Make these the editor's statistics."""
        self._moments = dict(moments)

    def made(self, captures: Mapping[str, Capture], moments: Mapping[str, Moments]) -> Iterator[Made]:
        """The update of every module under these statistics, with what it was made of."""
        for name in self.modules:
            capture, own = captures[name], moments[self._scope[name]]
            network = self._networks[self._shape[name]]
            keys, grads = capture.keys, capture.grads
            if self.params.normaliser == "diagonal":
                keys, grads = own.standardise(keys, grads, eps=self.params.eps)
            rows = torch.cat([keys, grads], dim=1).to(device=network.lr.device, dtype=network.lr.dtype)
            with torch.no_grad():
                out = torch.cat([network(part, name) for part in rows.split(self.params.chunk)])
                update = self._closed_form(network, name, capture.keys, out)
            ridge = network.ridge(name).item() if self.rule == "ridge" else float("nan")
            norm = float(rows.double().norm())
            moved = float((out - rows).double().norm()) / norm if norm else 0.0
            extra = {"net_lr": network.step_size(name).item(), "net_ridge": ridge, "net_moved": moved}
            yield Made(name, capture.keys, rows, update, extra)

    def _closed_form(self, network: Hypernetwork, name: str, keys: Tensor, out: Tensor) -> LowRank:
        lr, pseudo, values = network.step_size(name), out[:, : network.d_in], out[:, network.d_in :]
        if self.rule == "outer":
            return LowRank((-lr * pseudo).mT.to(keys), values.to(keys))
        targets = _targets(keys.to(out), pseudo, values, lr)
        dual = dual_ridge(keys, targets.to(keys), network.ridge(name).item(), dtype=self._solve_dtype)
        return LowRank(keys.mT, dual)

    @property
    def _solve_dtype(self) -> torch.dtype | None:
        return getattr(torch, self.params.solve_dtype) if self.params.solve_dtype else None

    def backward(self, made: Made, gradient: Tensor) -> None:
        """Add to the networks' ``.grad`` what ``dL/dDelta`` of one module comes to; rows go through in chunks.

        Parameters
        ----------
        made : Made
            The update, under the networks' present parameters.
        gradient : Tensor, shape [d_in, d_out]
            ``dL/dDelta``.
        """
        network, name = self._networks[self._shape[made.module]], made.module
        lr, wanted = network.step_size, None
        if self.rule == "ridge":
            ridge = network.ridge(name).item()
            wanted = transfer(made.keys, made.update.right, gradient, ridge, dtype=self._solve_dtype)
            (wanted.log_ridge.to(network.log_ridge) * network.log_ridge[network.members.index(name)]).backward()
        weight = gradient.to(made.rows)
        for start in range(0, len(made.rows), self.params.chunk):
            part = slice(start, start + self.params.chunk)
            out = network(made.rows[part], name)
            pseudo, values = out[:, : network.d_in], out[:, network.d_in :]
            if wanted is None:
                surrogate = -lr(name) * ((pseudo @ weight) * values).sum()
            else:
                targets = _targets(made.keys[part].to(out), pseudo, values, lr(name))
                surrogate = (wanted.targets[part].to(out) * targets).sum()
            surrogate.backward()

    def step(self, view: ModelView, batch: EditBatch, captures: Mapping[str, Capture]) -> Iterator[Proposal]:
        """Yield one low-rank update per module; all of them belong to the weights before the step."""
        if not any(capture.rows for capture in captures.values()):
            self._pending = (dict(self._moments), self.match_scale)
            return
        moments, scale = self.updated(captures), dict(self.match_scale)
        seen: set[str] = set()
        for made in self.made(captures, moments):
            name, update, extra = made.module, made.update, dict(made.extra)
            scope = self._scope[name]
            if self.params.match is not None:
                extra["match_scale"] = scale[name] = self._match_factor(name, batch, float(update.norm()))
                update = update.scaled(scale[name])
            tracked, whitener = {}, None
            if self.params.normaliser == "diagonal":
                whitener = diagonal_whitener(moments[scope].grads, eps=self.params.eps)
                if scope not in seen:
                    tracked = {scope: self._tracked(scope, moments[scope])}
                seen.add(scope)
            yield Proposal(made.module, update, tracked=tracked, whitener=whitener, extra=extra)
        fixed = self.params.match is not None and self.params.match.mode != "every" and batch.phase == "target"
        self._pending = (moments, scale if fixed else self.match_scale)

    def _tracked(self, scope: str, after: Moments) -> Tracked:
        before = self._moments[scope].grads
        return Tracked(
            after=after.grads,
            before_nu=float(before.nu),
            before_mean=before.mean,
            factor=None,
            whitener_nu=float(after.grads.nu),
            in_sample=self._learns,
        )

    def _match_factor(self, name: str, batch: EditBatch, norm: float) -> float:
        """Factor that gives the module's update the norm that the reference run recorded."""
        assert self.params.match is not None
        if batch.phase == "target" and self.params.match.mode != "every" and name in self.match_scale:
            return self.match_scale[name]
        return Match.factor(self.reference, step=batch.index, module=name, norm=norm)

    def commit(self, view: ModelView, applied: Sequence[Applied]) -> None:
        """Take over the statistics that the last step prepared."""
        if self._pending is None:
            raise NumericalError("commit without a step: exhaust editor.step(...) first")
        moments, self.match_scale = self._pending
        self.take(moments)
        self._pending = None

    def finish(self, view: ModelView) -> Iterator[Proposal]:
        """Nothing is due at the end."""
        return iter(())

    def trained_state(self) -> dict[str, Tensor]:
        """The networks as ``net/<shape>/...`` and the statistics as ``stats/<scope>/...``."""
        state = {f"stats/{key}": value for key, value in self._moment_tensors().items()}
        for shape, network in self._networks.items():
            state |= {f"net/{shape}/{key}": value.detach() for key, value in network.state_dict().items()}
        return state

    def load_trained_state(self, tensors: Mapping[str, Tensor], *, statistics: bool = True) -> None:
        """Take over what `trained_state` returned, with or without its statistics."""
        for shape, network in self._networks.items():
            network.load_state_dict(part(tensors, f"net/{shape}/"))
        if statistics:
            self._load_moments(part(tensors, "stats/"))

    def _moment_tensors(self) -> dict[str, Tensor]:
        return {
            f"{scope}/{key}": value
            for scope, moments in self._moments.items()
            for key, value in moments.state_dict().items()
        }

    def _load_moments(self, tensors: Mapping[str, Tensor]) -> None:
        self._moments = {scope: own.restored(part(tensors, f"{scope}/")) for scope, own in self._moments.items()}

    def _digest(self) -> str:
        """What the networks are, so that a run is not resumed with others."""
        digest = hashlib.blake2b(digest_size=16)
        for network in self._networks.values():
            for value in network.state_dict().values():
                digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Statistics as tensors; match factors and what the networks are as values."""
        return self._moment_tensors(), {"match_scale": dict(self.match_scale), "network": self._digest()}

    def load_state_dict(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore statistics and match factors.

        Raises
        ------
        ModelError
            The state belongs to another network.
        """
        if meta["network"] != self._digest():
            raise ModelError(
                f"editor.params.network: {self.params.network} is not the network of this run: restore it, or start anew"
            )
        self._load_moments(tensors)
        self.match_scale = dict(meta["match_scale"])
        self._pending = None


class RLEdit(HypernetEditor):
    """RLEdit (arXiv:2502.05759): MALMEN's network, trained along a trajectory of kept edits."""

    Params = RLEditParams


class Malmen(HypernetEditor):
    """MALMEN (arXiv:2311.04661): trained on single steps from the original model."""


class Mend(HypernetEditor):
    """MEND (arXiv:2110.11309) as RLEdit, ULTRAEDIT and StableEdit run it: MALMEN's network, outer products, no solve."""

    Params = MendParams
    rule = "outer"


def _targets(keys: Tensor, pseudo: Tensor, values: Tensor, lr: Tensor) -> Tensor:
    """``-eta (h . h^) g^`` of every row."""
    return -lr * (keys * pseudo).sum(dim=1, keepdim=True) * values
