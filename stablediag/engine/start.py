"""Where a run starts from: the unedited model and empty statistics, or what other runs have left.

What stays the reference. The model as loaded, before any run edited it, is what quality is compared with: the divergence, the
agreement of specificity, hidden states, value norms and the norm ratio of the weights begin there, so that a run that
starts from edited weights reports what all edits together have done. Recorders of a run's own movement (`OWN_START`:
cumulative coherence, paired probes) begin at the weights from which the run starts.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stablediag.editors.base import Editor
from stablediag.engine.weights import WeightWriter
from stablediag.errors import SpecError, StoreError
from stablediag.models import LoadedModel
from stablediag.recorders.base import Recorder
from stablediag.spec import Spec
from stablediag.store.run import Run
from stablediag.store.state import load_state, part

#: recorders whose zero is the start of the run, not the unedited model
OWN_START = ("coherence", "paired_probes")
#: what two runs on one model have in common
_SAME_MODEL = ("class", "parameters", "revision", "sha256", "modules")
#: relative difference of a Frobenius norm in float64 that summing on another device explains
_NORM_TOLERANCE = 1e-11


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes
    ----------
    weights : mapping of str to Tensor or None
        State of a `WeightWriter`, on the CPU; None: the model as loaded.
    origin : mapping
        What identifies the runs whose weights and statistics these are: directory, digest, step, SHA-256 of the tensors.
    """

    weights: Mapping[str, Tensor] | None = None
    origin: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def told(self) -> tuple[str, ...]:
        """What is carried over, for the events of the run."""
        return tuple(f"{what} of {one['run']} at step {one['step']}" for what, one in self.origin.items())

    def begin(self, writer: WeightWriter, recorders: Sequence[Recorder]) -> Iterator[Recorder]:
        """The recorders in the order in which they begin; the weights are carried over before those of `OWN_START`."""
        if self.weights is None:
            yield from recorders
            return
        yield from (one for one in recorders if one.name not in OWN_START)
        writer.load_state_dict(self.weights)
        yield from (one for one in recorders if one.name in OWN_START)


def start_of(spec: Spec, *, run_dir: Path, loaded: LoadedModel, editor: Editor) -> Start:
    """Load what `spec.init` names: weights are kept for the session, statistics go to the editor.

    Only what was learnt is carried over: neither a calibrated learning rate nor factors that match norms. The streams may
    overlap, and a warm-up comes on top.

    Parameters
    ----------
    spec : Spec
        The run that is going to start.
    run_dir : path
        Its directory; the runs that it names are looked for beside it first.
    loaded : LoadedModel
        The unedited model.
    editor : Editor
        Fresh; it takes over the statistics.

    Raises
    ------
    SpecError
        No such run, not complete, of another model, other modules, dtypes or steps, or of an editor whose state cannot be
        carried over.
    """
    init = spec.init
    if init is None:
        return Start()
    weights, origin = None, {}
    if init.weights_from is not None:
        source = _Source.of(init.weights_from, run_dir, "init.weights_from", loaded)
        weights = source.weights(loaded, editor)
        origin["weights"] = source.origin(weights)
    if init.stats_from is not None:
        source = _Source.of(init.stats_from, run_dir, "init.stats_from", loaded)
        origin["statistics"] = source.origin(source.give_statistics(spec.editor.name, editor))
    return Start(weights, origin)


def named_run(named: str, run_dir: Path, where: str) -> Run:
    """The complete run of a directory, or of a sibling of `run_dir`, that a spec names at `where`.

    Raises
    ------
    SpecError
        There is no such run, it cannot be read, or it is not complete.
    """
    path = _directory(named, run_dir)
    if path is None:
        raise SpecError(f"{where}: no run at {run_dir.parent / named} or {named}: run it first")
    try:
        run = Run.open(path)
    except StoreError as error:
        raise SpecError(f"{where}: {error}") from None
    if run.state != "complete":
        raise SpecError(f"{where}: {path} is not complete: finish it with `stablediag resume {path}`")
    return run


def _directory(named: str, run_dir: Path) -> Path | None:
    return next((path for path in (run_dir.parent / named, Path(named)) if path.is_dir()), None)


@dataclass(frozen=True)
class _Source:
    """Another run's last checkpoint, and where the spec names it."""

    run: Run
    where: str
    step: int
    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]

    @classmethod
    def of(cls, named: str, run_dir: Path, where: str, loaded: LoadedModel) -> _Source:
        """The checkpoint of ``RUN`` or ``RUN@STEP``, made from this model."""
        wanted = None
        at = re.fullmatch(r"(.+)@(\d+)", named)
        if at is not None and _directory(named, run_dir) is None:
            named, wanted = at[1], int(at[2])
        run = named_run(named, run_dir, where)
        pointer = run.checkpoint
        if pointer is None:
            raise SpecError(f"{where}: {run.path} has no checkpoint: run it again")
        step, folder = pointer
        if wanted not in (None, step):
            raise SpecError(
                f"{where}: {run.path} ends with step {step}, not {wanted}: only its last checkpoint can be used"
            )
        try:
            tensors, meta = load_state(folder)
        except StoreError as error:
            raise SpecError(f"{where}: {error}") from None
        source = cls(run, where, step, tensors, meta)
        source._check_model(loaded)
        return source

    def _refuse(self, why: str) -> SpecError:
        return SpecError(f"{self.where}: {self.run.path}: {why}")

    def _check_model(self, loaded: LoadedModel) -> None:
        for what in _SAME_MODEL:
            there, here = self.run.info.model.get(what), loaded.info.get(what)
            if there != here:
                told = "" if isinstance(here, Mapping) else f" ({there} there, {here} here)"
                raise self._refuse(f"it edited another model, its {what} differ{told}: start from a run of this model")
        if self.run.info.model.get("dtype") != loaded.info.get("dtype"):
            return  # the norms below are those of the weights as rounded
        writer = WeightWriter(loaded.modules, master="model")
        for name, norm in self.meta.get("initial_norms", {}).items():
            if not math.isclose(norm, writer.norm(name), rel_tol=_NORM_TOLERANCE):
                raise self._refuse(f"{name} had other weights before its first step: start from a run of this model")

    def weights(self, loaded: LoadedModel, editor: Editor) -> dict[str, Tensor]:
        """The edited weights, with their masters; refused where this run could not continue them bit for bit."""
        if self.meta.get("adapter") or getattr(editor, "adapter", None) is not None:
            whose = "its editor" if self.meta.get("adapter") else "the editor of this run"
            raise self._refuse(
                f"{whose} keeps edits beside the weights: weights can be carried over between other editors"
            )
        stored = part(self.tensors, "weights/")
        master: Any = editor.master
        own = WeightWriter(loaded.modules, master=master).state_dict()
        for key in sorted({*own, *stored}, key=lambda one: (one.endswith(".master"), one)):
            there, here = (_told(state.get(key)) for state in (stored, own))
            if there != here:
                raise self._refuse(
                    f"{key} is {there} there, {here} here: give both the same model.dtype and editor.params.master"
                )
        return stored

    def give_statistics(self, name: str, editor: Any) -> Mapping[str, Tensor]:
        """Hand the editor's state to an editor of the same name; returns what that one took."""
        take = getattr(editor, "take_statistics", None)
        if take is None:
            raise SpecError(
                f"{self.where}: editor {name} has no statistics to start with: leave it out, or use editor ln"
            )
        theirs = self.run.spec["editor"]
        if theirs["name"] != name:
            raise self._refuse(
                f"its editor is {theirs['name']}, this run's is {name}: take the statistics of the same editor"
            )
        try:
            taken: Mapping[str, Tensor] = take(part(self.tensors, "editor/"), theirs["params"])
        except SpecError as error:
            raise self._refuse(str(error)) from None
        return taken

    def origin(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """What identifies what was carried over; a resumed run must find the same."""
        return {
            "run": self.run.path.name,
            "run_digest": self.run.info.digest,
            "step": self.step,
            "sha256": _digest(tensors),
        }


def _told(tensor: Tensor | None) -> str:
    if tensor is None:
        return "missing"
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {_told(tensor)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
