"""Models and their edited modules: the one place that loads a model, and the one that understands module patterns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from stablediag.errors import ModelError
from stablediag.model_files import check_folder, one_line, sha256
from stablediag.module_patterns import collapse, expand, matches, nearest

Layout = Literal["linear", "conv1d"]
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
TESTBED = "testbed"
_FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f")


@dataclass(frozen=True, slots=True, eq=False)
class ResolvedModule:
    """One edited linear map, ``y = x Theta + bias`` with ``Theta`` of shape [d_in, d_out].

    Attributes
    ----------
    name : str
        Dotted name inside the model.
    module : nn.Module
        The module itself.
    layout : {"linear", "conv1d"}
        ``linear``: the weight is stored as ``Theta^T`` [d_out, d_in]. ``conv1d`` (GPT-2): it is ``Theta``.
    d_in, d_out : int
        Width of keys and of value gradients.
    """

    name: str
    module: nn.Module
    layout: Layout
    d_in: int
    d_out: int


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A causal language model in evaluation mode with frozen parameters, its tokenizer and its edited modules.

    Attributes
    ----------
    model, tokenizer
        Objects of `transformers`.
    modules : dict of str to ResolvedModule
        Edited modules, in the order of the patterns that named them.
    info : dict
        Provenance, JSON-ready: path, name, revision, dtype, device, class, parameters, sha256 of every weight file
        (None above 1 GB; empty for a model of the hub), modules with their shapes.
    final_norm_name : str or None
        Dotted name of the normalisation in front of the output head, where one is found.
    """

    model: Any
    tokenizer: Any
    modules: dict[str, ResolvedModule]
    info: dict[str, Any]
    final_norm_name: str | None

    @property
    def device(self) -> torch.device:
        """Device of the first parameter."""
        return next(self.model.parameters()).device


def load_model(
    path_or_name: str | Path,
    *,
    modules: Sequence[str],
    dtype: str = "float32",
    device: str = "auto",
    revision: str | None = None,
    offline: bool | None = None,
) -> LoadedModel:
    """Load a causal language model from safetensors and resolve its edited modules.

    Parameters
    ----------
    path_or_name : str or Path
        A folder in the layout of `transformers`, a name on the hub, or ``"testbed"`` for the embedded model.
    modules : sequence of str
        Patterns of edited modules, see `resolve_modules`.
    dtype : {"float32", "bfloat16", "float16", "float64", "auto"}
        Type of the weights; ``auto``: as stored.
    device : str
        A torch device; ``auto``: cuda where available, else cpu.
    revision : str, optional
        Branch, tag or commit of a model on the hub.
    offline : bool, optional
        True: use the local cache of the hub only. None: leave it to ``HF_HUB_OFFLINE``.

    Returns
    -------
    LoadedModel

    Raises
    ------
    ModelError
        No such folder or name, no ``config.json``, weights that are not safetensors, a truncated or incomplete
        weight file, an unknown dtype or device, or modules that cannot be edited.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = str(path_or_name)
    folder = Path(__file__).parent / "testbed" / "weights" if source == TESTBED else Path(source).expanduser()
    local = source == TESTBED or folder.exists() or _looks_like_a_path(path_or_name)
    files = check_folder(folder) if local else []
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r} for model {source}: use auto or one of {', '.join(DTYPES)}")
    target = _device(device)
    # Code from a model's folder is never run; said out loud, because the default asks at the terminal.
    common: dict[str, Any] = {"local_files_only": local or bool(offline), "trust_remote_code": False}
    if revision is not None:
        if local:
            raise ModelError(f"revision {revision!r} is given for the folder {source}: only models of the hub have one")
        common["revision"] = revision
    where = str(folder) if local else source
    try:
        with _without_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                where, dtype=DTYPES.get(dtype, "auto"), use_safetensors=True, output_loading_info=True, **common
            )
        model, report = loaded
    except Exception as error:
        raise ModelError(_load_failure(where, local, error)) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **common)
    except Exception as error:
        raise ModelError(f"model {where} has no usable tokenizer ({one_line(error)}): add tokenizer.json") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(f"model {where} lacks {len(missing)} tensor(s), e.g. {missing[0]}: use a complete checkpoint")
    model.requires_grad_(False).eval().to(target)
    resolved = resolve_modules(model, modules)
    info = {
        "path": source,
        "name": folder.name if local and source != TESTBED else source,
        "revision": getattr(model.config, "_commit_hash", None) or revision,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "device": str(target),
        "class": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sha256": {file.name: sha256(file) for file in files},
        "modules": {name: [entry.d_in, entry.d_out] for name, entry in resolved.items()},
    }
    return LoadedModel(model, tokenizer, resolved, info, _final_norm(model))


def resolve_modules(model: nn.Module, patterns: Sequence[str]) -> dict[str, ResolvedModule]:
    """Find the edited modules that patterns name.

    A pattern is compared with the dotted name of a module or with any end of it that starts at a dot: ``mlp.down_proj``
    finds all layers. ``[1-3]``, ``[1,3]`` and ``[0-2,5]`` stand for numbers, every one of which must exist; ``*``
    stands for anything within one part of the name, ``**`` for anything.

    Parameters
    ----------
    model : nn.Module
        The model.
    patterns : sequence of str
        Patterns; the result is in their order, and in the model's order within each.

    Returns
    -------
    dict of str to ResolvedModule

    Raises
    ------
    ModelError
        A pattern is malformed, matches nothing or matches only modules that are not linear maps; no patterns given.
    """
    if isinstance(patterns, str):
        patterns = [patterns]
    named = {name: module for name, module in model.named_modules() if name}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    editable = {name: entry for name, module in named.items() if module is not head and (entry := _entry(name, module))}
    if not patterns:
        raise ModelError(f"no edited modules are named: give patterns; {_existing(editable)}")
    resolved: dict[str, ResolvedModule] = {}
    for pattern in patterns:
        for simple in expand(pattern):
            found = [name for name in editable if matches(simple, name)]
            if not found:
                raise ModelError(_no_match(pattern, simple, named, editable, head))
            resolved.update({name: editable[name] for name in found if name not in resolved})
    for name, entry in resolved.items():
        if entry.module.weight.is_meta:  # type: ignore[union-attr]
            raise ModelError(f"module {name} has no weights on a device (offloaded): load the model without offloading")
    return resolved


def _entry(name: str, module: nn.Module) -> ResolvedModule | None:
    from transformers.pytorch_utils import Conv1D

    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Linear | Conv1D) or weight is None or weight.ndim != 2:
        return None
    if not weight.is_floating_point():  # quantised
        return None
    rows, columns = weight.shape
    if isinstance(module, Conv1D):
        return ResolvedModule(name, module, "conv1d", rows, columns)
    return ResolvedModule(name, module, "linear", columns, rows)


def _no_match(
    pattern: str,
    simple: str,
    named: Mapping[str, nn.Module],
    editable: Mapping[str, ResolvedModule],
    head: nn.Module | None,
) -> str:
    other = next((name for name in named if matches(simple, name)), None)
    if other is not None and named[other] is head:
        return f"module {other} is the output head, which cannot be edited: name a linear map inside a layer"
    if other is not None:
        kind = type(named[other]).__name__
        return f"module {other} is of type {kind}, not a linear map in floating point; {_existing(editable)}"
    detail = f" (nothing is called {simple})" if simple != pattern else ""
    near = nearest(pattern, list(editable))
    hint = f"; nearest: {near}" if near else ""
    return f"module pattern {pattern!r} matches no module{detail}{hint}; {_existing(editable)}"


def _existing(editable: Mapping[str, ResolvedModule]) -> str:
    kinds = collapse(list(editable))
    shown = ", ".join(kinds[:12]) + (f" and {len(kinds) - 12} more" if len(kinds) > 12 else "")
    return f"this model has {shown}" if kinds else "this model has no linear maps"


def silence_advice() -> None:
    """Keep the advice that transformers prints away from a terminal where errors are one line, for this process."""
    from transformers.utils import logging

    logging.set_verbosity_error()


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without the bar that transformers draws for every checkpoint file; left as it was found."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _final_norm(model: nn.Module) -> str | None:
    """The last module, outside the numbered layers, that is called like a final normalisation."""
    found = [name for name, _ in model.named_modules() if not re.search(r"\.\d+\.", f"{name}.")]
    return next((name for name in reversed(found) if name.rpartition(".")[2] in _FINAL_NORMS), None)


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}: use auto, cpu, cuda or cuda:0") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {device!r} is asked for, but torch sees no CUDA device: use cpu or auto")
    return target


def _looks_like_a_path(source: str | Path) -> bool:
    text = str(source)
    return isinstance(source, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text


def _load_failure(where: str, local: bool, error: Exception) -> str:
    if local:
        return f"model folder {where} cannot be loaded: {one_line(error)}"
    return (
        f"model {where!r} is neither a folder nor a model that can be fetched from the hub "
        f"({one_line(error)}): check the name, the network, or give a folder"
    )
