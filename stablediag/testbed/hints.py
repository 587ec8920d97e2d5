"""Auxiliary losses that teach the two steps of a true-or-false claim one by one; used in training only.

A claim needs the model to recall the object and to compare it with the stated one. From the label alone neither step has a
gradient until the other works. So the last but one layer is told to name the true object at the end of the claim, and the
last layer's attention from there is told to look at the stated object if, and only if, it is the true one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


def recall_loss(model: LlamaForCausalLM, hidden: Tensor, words: Tensor) -> Tensor:
    """Summed cross-entropy of naming a word from an inner hidden state.

    Parameters
    ----------
    model : LlamaForCausalLM
        Gives the final norm and the output head.
    hidden : Tensor, shape [n, d]
        Output of the last but one layer at the end of each claim.
    words : Tensor, int64, shape [n]
        Token to name.
    """
    return F.cross_entropy(model.lm_head(model.model.norm(hidden)), words, reduction="sum")


def comparison_loss(model: LlamaForCausalLM, hidden: Tensor, ends: Tensor, stated: Tensor, truth: Tensor) -> Tensor:
    """Summed binary cross-entropy of the last layer's attention from the end of each claim to its stated object.

    Parameters
    ----------
    model : LlamaForCausalLM
    hidden : Tensor, shape [n, t, d]
        Output of the last but one layer.
    ends, stated : Tensor, int64, shape [n]
        Position of the claim's last token and of the last word of the stated object.
    truth : Tensor, bool, shape [n]
    """
    layer, rows = model.model.layers[-1], torch.arange(len(ends))
    normed = layer.input_layernorm(hidden)
    shape = (*normed.shape[:2], model.config.num_attention_heads, -1)
    query = layer.self_attn.q_proj(normed).view(shape).transpose(1, 2)
    key = layer.self_attn.k_proj(normed).view(shape).transpose(1, 2)
    positions = torch.arange(normed.shape[1])[None]
    query, key = apply_rotary_pos_emb(query, key, *model.model.rotary_emb(normed, positions))
    scores = torch.einsum("nhd,nhtd->nht", query[rows, :, ends], key) * layer.self_attn.scaling
    scores = scores.masked_fill(positions[:, None] > ends[:, None, None], float("-inf"))
    looked = scores.softmax(-1)[rows, :, stated].clamp(1e-6, 1 - 1e-6)
    wanted = truth[:, None].to(looked.dtype).expand_as(looked)
    return F.binary_cross_entropy(looked, wanted, reduction="none").mean(1).sum()
