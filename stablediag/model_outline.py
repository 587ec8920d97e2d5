"""A model without its weights: module names and shapes from ``config.json``, or from a table of known checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stablediag.errors import ModelError
from stablediag.model_files import one_line
from stablediag.model_sources import locate
from stablediag.models import DTYPES, ResolvedModule, resolve_modules

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.index.json")


def _llama(**sizes: Any) -> dict[str, Any]:
    return {"model_type": "llama", "tie_word_embeddings": False, **sizes}


_MISTRAL = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}

#: name on the hub -> the shapes in its published ``config.json``
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "meta-llama/Meta-Llama-3-8B-Instruct": _llama(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
    ),
    "mistralai/Mistral-7B-v0.3": {**_MISTRAL, "vocab_size": 32768},
    "mistralai/Mistral-7B-v0.1": {**_MISTRAL, "vocab_size": 32000},
    "EleutherAI/gpt-j-6b": {
        "model_type": "gptj",
        "n_embd": 4096,
        "n_layer": 28,
        "n_head": 16,
        "n_positions": 2048,
        "rotary_dim": 64,
        "vocab_size": 50400,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
    "openai-community/gpt2-xl": {
        "model_type": "gpt2",
        "n_embd": 1600,
        "n_layer": 48,
        "n_head": 25,
        "n_positions": 1024,
        "vocab_size": 50257,
    },
}


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """The shapes of a model that is not there.

    Attributes
    ----------
    model : nn.Module
        Its modules on the meta device; linear maps hold one number, repeated.
    modules : dict of str to ResolvedModule
        Edited modules, as `load_model` would find them.
    dtype : str
        Name of the weights' type once loaded.
    source : str
        Where the shapes come from.
    """

    model: Any
    modules: dict[str, ResolvedModule]
    dtype: str
    source: str


def outline(path_or_name: str | Path, *, modules: Sequence[str], dtype: str = "float32") -> Outline | None:
    """Shapes of a model whose weights are absent.

    Parameters
    ----------
    path_or_name : str or Path
        A folder with ``config.json`` and no weight file, or a name in `KNOWN` that was not fetched from the hub.
    modules : sequence of str
        Patterns of edited modules, see `stablediag.models.resolve_modules`.
    dtype : str
        As for `load_model`; ``auto``: what the configuration says, else float32.

    Returns
    -------
    Outline or None
        None where weights are there, or nothing is known: then `load_model` is the one to ask.

    Raises
    ------
    ModelError
        The configuration cannot be read, is of an architecture that transformers does not have, or the patterns name
        modules that the model does not have.
    """
    found = _configuration(path_or_name)
    if found is None:
        return None
    config, source = found
    model = _skeleton(config, source)
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return Outline(model, resolve_modules(model, modules), stored if dtype == "auto" else dtype, source)


def _configuration(path_or_name: str | Path) -> tuple[dict[str, Any], str] | None:
    source = locate(path_or_name, revision=None, offline=None)
    if not source.local:
        known = KNOWN.get(source.where)
        # Without a revision: any fetched commit counts as present.
        return None if known is None or source.commit() is not None else (dict(known), "a table of known checkpoints")
    folder = Path(source.where)
    file = folder / "config.json"
    if not file.is_file() or any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({one_line(error)}): restore the checkpoint's own") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(f'{file} has no "model_type": use the config.json of a causal language model')
    return config, os.fspath(file)


def _skeleton(config: Mapping[str, Any], source: str) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {key: value for key, value in config.items() if key not in ("model_type", "quantization_config")}
    try:
        # Never code of the model's own: only the classes of transformers are asked.
        made = AutoConfig.for_model(config["model_type"], **options)
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(made, dtype=DTYPES["float32"])
    except Exception as error:
        raise ModelError(f"{source} describes no model that transformers can build: {one_line(error)}") from error
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.ndim == 2 and id(weight) not in embedded:
            # Meta weights count as offloaded, which cannot be edited; a repeated number has a shape and no size.
            module.weight = nn.Parameter(torch.zeros(()).expand(weight.shape), requires_grad=False)
    return model
