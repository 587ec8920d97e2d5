"""What is timed: a random Llama, 100 edits of varying length, and the two editors' settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from stablediag.models import ResolvedModule, resolve_modules
from stablediag.tokens import IGNORE, TokenBatch

#: what the released code adds to every divisor
RELEASED_EPS = float(torch.finfo(torch.float32).eps)
#: edits in a mini-batch of the released loss
MINIBATCH = 10


@dataclass(frozen=True)
class Size:
    """A model and a load.

    Attributes
    ----------
    layers_edited : tuple of int
        Layers whose ``mlp.down_proj`` is edited.
    edits, length : int
        Edits in a step, and their mean number of tokens.
    ridge : tuple of int
        d_in, d_out and rows of the single layer on which the ridge is timed.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    layers_edited: tuple[int, ...]
    edits: int
    length: int
    ridge: tuple[int, int, int]


SIZES: Mapping[str, Size] = {
    "tiny": Size(64, 160, 4, 4, 2, 512, (1, 2), 40, 14, (512, 64, 48)),
    "100m": Size(1024, 4096, 8, 16, 4, 32000, (3, 5, 7), 100, 29, (14336, 4096, 400)),
    "8b": Size(4096, 14336, 32, 32, 8, 128256, (11, 12, 22, 23, 28, 29, 30), 100, 29, (14336, 4096, 400)),
}


@dataclass(frozen=True)
class Recipe:
    """Settings that both arms share: pooled statistics and mini-batch loss of the released code.

    Attributes
    ----------
    kind : {"diagonal", "full"}
        Normaliser of the value gradients.
    block_var : {"population", "sample"}
        Variance inside a mini-batch.
    ridge, lr, floor : float
        Ridge strength, learning rate, absolute eigenvalue floor. The released floor, 1e-6, would lift nine tenths of
        the directions of a random model's gradients, and the arms would then agree on little more than a multiple of
        the identity; it costs the same at any value.
    """

    name: str
    kind: Literal["diagonal", "full"]
    block_var: Literal["population", "sample"]
    ridge: float
    lr: float = 1e-6
    floor: float = 1e-9


#: ULTRAEDIT as released, and StableEdit as released, past the threshold at which whitening starts
DIAGONAL = Recipe("diagonal", "diagonal", "sample", 1.0)
WHITENED = Recipe("whitened", "full", "population", 10.0)


@dataclass(frozen=True, eq=False)
class Workload:
    """Model, edited modules and the step's tokens."""

    model: Any
    modules: dict[str, ResolvedModule]
    tokens: TokenBatch
    token_budget: int
    device: torch.device


def build(size: Size, device: torch.device, *, dtype: torch.dtype, token_budget: int) -> Workload:
    """A random model in evaluation mode, frozen, made on its device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        vocab_size=size.vocabulary,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    layers = ",".join(str(layer) for layer in size.layers_edited)
    modules = resolve_modules(model, [f"layers.[{layers}].mlp.down_proj"])
    return Workload(model, modules, make_tokens(size), token_budget, device)


def make_tokens(size: Size, *, seed: int = 0) -> TokenBatch:
    """Random edits, longest first, cut into mini-batches as the released code does."""
    generator = torch.Generator().manual_seed(seed)
    answers = 1 + (torch.rand(size.edits, 8, generator=generator) < 0.3625).sum(dim=1)
    lengths = (size.length + size.length / 4 * torch.randn(size.edits, generator=generator)).round().long()
    lengths = torch.maximum(lengths.clamp(max=round(1.5 * size.length)), answers + 2)
    order = sorted(range(size.edits), key=lambda i: -int(lengths[i]))
    inputs, labels = [], []
    for i in order:
        n, a = int(lengths[i]), int(answers[i])
        ids = torch.randint(1, size.vocabulary, (n + 1,), generator=generator).tolist()
        inputs.append(tuple(ids[:-1]))
        labels.append((*[IGNORE] * (n - a), *ids[1:][n - a :]))
    blocks = tuple(place // MINIBATCH for place in range(size.edits))
    return TokenBatch(tuple(inputs), tuple(labels), tuple(order), blocks)


def part_of(tokens: TokenBatch, count: int) -> TokenBatch:
    """The first `count` sequences."""
    return TokenBatch(
        tokens.input_ids[:count], tokens.labels[:count], tokens.edit_ids[:count], tokens.block_ids[:count]
    )


def relative_difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """Largest ``||a - b||_F / ||b||_F`` over the modules, in float64."""
    worst = 0.0
    for name, expected in b.items():
        wanted = expected.double()
        apart = torch.linalg.vector_norm(a[name].double() - wanted)
        worst = max(worst, float(apart / torch.linalg.vector_norm(wanted)))
    return worst
