"""Shared fixtures: tiny random models saved to disk, the golden runs, and the devices to test on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

WORDS = 300
# Tiny matrices on several threads are many times slower than on one, and the suite runs in several processes.
torch.set_num_threads(1)


def save_word_tokenizer(folder: Path, *, bos: bool = True) -> None:
    """Save a word-level tokenizer of the words ``w0 w1 ...``; with ``bos`` a prompt starts with ``<bos>``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    words = {word: index for index, word in enumerate([*special, "?", *[f"w{i}" for i in range(WORDS - 5)]])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    # No padding token on purpose: the project must not need one.
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    wrapped.save_pretrained(folder)


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama (hidden 24, 4 layers) with a word-level tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    save_word_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def gpt2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random GPT-2 (hidden 24, 3 layers, Conv1D, tied head) with a tokenizer that adds no bos."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(
        vocab_size=WORDS, n_positions=128, n_embd=24, n_layer=3, n_head=4, initializer_range=0.2, bos_token_id=1
    )
    torch.manual_seed(1)
    GPT2LMHeadModel(config).save_pretrained(folder)
    save_word_tokenizer(folder, bos=False)
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of the golden runs; its README says where they come from."""
    return Path(__file__).parent / "golden" / "data"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Devices that this machine has."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)
