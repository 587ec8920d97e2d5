"""The editor protocol: what an editor is given, what it proposes, and when it may change its own state."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch
from pydantic import BaseModel
from torch import Tensor

from stablediag.engine.capture import CaptureNeeds
from stablediag.engine.weights import Realised
from stablediag.errors import SpecError
from stablediag.maths.niw import NIW, DiagNIW
from stablediag.maths.update import UpdateT
from stablediag.maths.whiten import Whitener
from stablediag.models import LoadedModel, ResolvedModule
from stablediag.types import Capture, Edit, EditBatch

if TYPE_CHECKING:
    from stablediag.engine.view import ModelView


@dataclass(frozen=True)
class Tracked:
    """How one statistic moved in one step, without a second copy of it.

    Attributes
    ----------
    after : NIW or DiagNIW
        The statistic with the step's rows in it.
    before_nu, before_mean : float, Tensor of shape [d]
        Count and mean before the step.
    factor : Tensor of shape [r, d] or None
        ``Psi_after = Psi_before + factor.T @ factor``; None where the scatter was discounted, inflated by sample
        variances, given its prior in this step, or is diagonal only.
    whitener_nu : float
        Count behind the whitener: after the step, or before it where the editor normalises with older statistics.
    in_sample : bool
        Whether the step's rows are in the whitener's statistics with the weight of all others.
    """

    after: NIW | DiagNIW
    before_nu: float
    before_mean: Tensor
    factor: Tensor | None
    whitener_nu: float
    in_sample: bool = True


@dataclass(frozen=True)
class Proposal:
    """One update that an editor asks for.

    Attributes
    ----------
    module : str
        The module to be updated.
    update : LowRank or Dense
        The update in canonical orientation, shape [d_in, d_out].
    tracked : mapping of str to Tracked
        The statistics behind the update by scope name; a scope shared by several modules appears once a step.
    whitener : Whitener or None
        What normalised the value gradients.
    extra : mapping of str to float
        Further numbers for the table `updates` (the editor declares the columns in `extra_columns`).
    notes : tuple of (str, str)
        Kind and text of what the run should remember, such as edits that were left out; they go to the table `events`.
    """

    module: str
    update: UpdateT
    tracked: Mapping[str, Tracked] = field(default_factory=dict)
    whitener: Whitener | None = None
    extra: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[tuple[str, str], ...] = ()

    def scaled(self, factor: float) -> Proposal:
        """The same proposal with its update multiplied by `factor`."""
        return replace(self, update=self.update.scaled(factor))


@dataclass(frozen=True)
class Applied:
    """A proposal that was written.

    Attributes
    ----------
    proposal : Proposal
    realised : Realised or None
        What the weight's dtype kept of it, when it was measured.
    change : Tensor or None
        Its update multiplied out, shape [d_in, d_out], where the writer was asked to keep it: for those who compare.
    """

    proposal: Proposal
    realised: Realised | None
    change: Tensor | None = None


@runtime_checkable
class Editor(Protocol):
    """What the session drives.

    `step` yields proposals and writes neither weights nor the editor's own state: the session applies each
    proposal before it asks for the next one, so an editor may look at the model in between. `commit` is the
    only place where the state may change. A proposal that the session does not apply (a calibration, a
    statistics-only warm-up) leaves no trace.
    """

    modules: Sequence[str]
    needs: CaptureNeeds | None
    minibatch: int | None
    master: str
    extra_columns: Mapping[str, str]

    def step(self, view: ModelView, batch: EditBatch, captures: Mapping[str, Capture]) -> Iterator[Proposal]:
        """Yield the proposals of one step, in the order in which they are to be applied."""
        ...

    def commit(self, view: ModelView, applied: Sequence[Applied]) -> None:
        """Take over the state that the last `step` prepared."""
        ...

    def finish(self, view: ModelView) -> Iterator[Proposal]:
        """Yield what is due after the last step (nothing for most editors)."""
        ...

    def writes(self, phase: str) -> bool:
        """Whether proposals of this phase are written into the weights."""
        ...

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able values that, loaded again, continue the run bit for bit."""
        ...

    def load_state_dict(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


class BaseEditor:
    """An editor without state that edits all modules it is given; override what differs, `step` at least.

    Parameters
    ----------
    params : Any
        Validated parameters.
    modules : mapping of str to ResolvedModule
        The edited modules.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    #: whether `finish` proposes something: the last evaluation then waits for it
    finishes = False

    def __init__(self, params: Any, modules: Mapping[str, ResolvedModule]) -> None:
        self.params = params
        self.modules: Sequence[str] = tuple(modules)
        self.needs: CaptureNeeds | None = CaptureNeeds()
        self.minibatch: int | None = None
        self.master = "fp32"
        self.extra_columns: Mapping[str, str] = {}

    def step(self, view: ModelView, batch: EditBatch, captures: Mapping[str, Capture]) -> Iterator[Proposal]:
        """Yield the proposals of one step."""
        raise NotImplementedError(f"{type(self).__name__} has no step: write one")

    def commit(self, view: ModelView, applied: Sequence[Applied]) -> None:
        """There is no state to take over."""

    def finish(self, view: ModelView) -> Iterator[Proposal]:
        """Nothing is due after the last step."""
        return iter(())

    def ready(self, loaded: LoadedModel, edits: Sequence[Edit]) -> None:
        """Refuse, before a run directory exists, a model or a stream that it cannot edit; nothing by default."""

    def writes(self, phase: str) -> bool:
        """Proposals of every phase are written."""
        return True

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """No state."""
        return {}, {}

    def load_state_dict(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """There is no state to restore."""


class EditorFamily(Protocol):
    """What a registered editor name stands for: its parameters, its presets, and how it is built.

    It may also have `preset_needs`: preset -> names of parameters that a spec must give with it.
    """

    Params: type[BaseModel]
    presets: Mapping[str, Mapping[str, Any]]

    def __call__(self, params: Any, modules: Mapping[str, ResolvedModule]) -> Editor: ...


#: name -> "module:attribute" of a class with `Params`, `presets` and a constructor (params, modules)
REGISTRY: dict[str, str] = {
    "ln": "stablediag.editors.ln:LNEditor",
    "rledit": "stablediag.editors.hypernet.editing:RLEdit",
    "malmen": "stablediag.editors.hypernet.editing:Malmen",
    "mend": "stablediag.editors.hypernet.editing:Mend",
    "mend_original": "stablediag.editors.mend_original:MendOriginal",
    "ft": "stablediag.editors.ft:FTEditor",
    "rome": "stablediag.editors.rome:RomeEditor",
    "memit": "stablediag.editors.memit:MemitEditor",
    "alphaedit": "stablediag.editors.alphaedit:AlphaEditEditor",
    "memit_seq": "stablediag.editors.memit:MemitSeqEditor",
    "encore": "stablediag.editors.encore:EncoreEditor",
    "lyaplock": "stablediag.editors.lyaplock:LyapLockEditor",
    "nse": "stablediag.editors.nse:NseEditor",
    "rect": "stablediag.editors.rect:RectEditor",
    "prune": "stablediag.editors.prune:PruneEditor",
    "simie": "stablediag.editors.simie:SimIEEditor",
    "memoir": "stablediag.editors.memoir:MemoirEditor",
}


def editor_class(name: str) -> Any:
    """The class behind an editor name, or behind ``package.module:Class`` of a third party.

    Raises
    ------
    SpecError
        If the name is unknown or the class cannot be imported.
    """
    target = REGISTRY.get(name, name)
    if ":" not in target:
        raise SpecError(f"unknown editor {name!r}: use one of {', '.join(sorted(REGISTRY))} or package.module:Class")
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SpecError(f"editor {name!r} cannot be imported ({error}): check the path and the installation") from None


def resolve_params(name: str, preset: str | None, params: Mapping[str, Any]) -> Any:
    """The editor's validated parameters: its defaults, then the preset, then the spec's own values.

    Nested options are merged one by one: ``targets: {steps: 30}`` leaves what else the preset says of `targets`.

    Raises
    ------
    SpecError
        If the preset or a parameter is unknown, a value has the wrong type, or the preset needs a parameter more.
    """
    cls = editor_class(name)
    if preset is not None and preset not in cls.presets:
        raise SpecError(f"unknown preset {preset!r} of editor {name!r}: use one of {', '.join(cls.presets)}")
    base = cls.presets[preset] if preset is not None else {}
    resolved = validate_layers(cls.Params, (base, params), f"editor.params ({name})")
    for needed in getattr(cls, "preset_needs", {}).get(preset, ()):
        if getattr(resolved, needed) is None:
            raise SpecError(f"preset {preset!r} of editor {name!r} needs editor.params.{needed}: give it")
    return resolved


def validate_layers(schema: type[BaseModel], layers: Sequence[Mapping[str, Any]], where: str) -> Any:
    """Parameters from several mappings, the later winning, mappings inside them merged; `where` begins an error.

    Raises
    ------
    SpecError
        An unknown key or a value of the wrong type.
    """
    from stablediag.spec import validate_params

    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merged(merged, layer)
    for key, value in merged.items():
        field = schema.model_fields.get(key)
        default = None if field is None else field.get_default(call_default_factory=True)
        # A default may itself differ from those of its class: ROME's targets are not MEMIT's.
        if isinstance(default, BaseModel) and isinstance(value, Mapping):
            merged[key] = _merged(default.model_dump(exclude_unset=True), value)
    return validate_params(schema, merged, where)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        own = merged.get(key)
        merged[key] = _merged(own, value) if isinstance(own, Mapping) and isinstance(value, Mapping) else value
    return merged


def stack_rows(captures: Mapping[str, Capture], names: Sequence[str], attribute: str) -> Tensor:
    """Rows of several modules stacked in the order of `names`: what a statistic shared by them sees.

    The result is on the device of the first of them, which is where the shared statistic lives.
    """
    parts = [getattr(captures[name], attribute) for name in names]
    return torch.cat([part.to(parts[0].device) for part in parts])
