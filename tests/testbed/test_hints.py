"""The auxiliary losses against the model's own attention and output."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from stablediag.testbed.hints import comparison_loss, recall_loss


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


def test_comparison_loss_is_the_cross_entropy_of_the_models_own_attention(model):
    ids = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(1))
    ends, stated = torch.tensor([8, 6, 4]), torch.tensor([2, 3, 1])
    truth = torch.tensor([True, False, True])
    with torch.no_grad():
        output = model.model(input_ids=ids, output_hidden_states=True, output_attentions=True, use_cache=False)
        looked = output.attentions[-1][torch.arange(3), :, ends, stated]
        wanted = truth[:, None].float().expand_as(looked)
        expected = F.binary_cross_entropy(looked, wanted, reduction="none").mean(1).sum()
        loss = comparison_loss(model, output.hidden_states[-2], ends, stated, truth)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_recall_loss_reads_the_output_head(model):
    hidden, words = torch.randn(4, 16), torch.tensor([1, 2, 3, 4])
    logits = model.lm_head(model.model.norm(hidden))
    expected = -logits.log_softmax(-1)[torch.arange(4), words].sum()
    assert float(recall_loss(model, hidden, words).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_hints_reach_the_layer_that_compares(model):
    hidden = torch.randn(2, 5, 16)
    comparison_loss(model, hidden, torch.tensor([4, 4]), torch.tensor([1, 2]), torch.tensor([True, False])).backward()
    attention = model.model.layers[-1].self_attn
    assert float(attention.q_proj.weight.grad.norm()) > 0
    assert float(attention.k_proj.weight.grad.norm()) > 0
    model.zero_grad()
