"""Training of the embedded language model from scratch, on CPU, in minutes.

Muon on the hidden matrices, AdamW on embeddings and norms, a curriculum in which facts enter a few at a time, and a
loss on answer tokens plus a small sample of prompt tokens. Uniform sampling of all facts from the start learns nothing
in the same time. Computes in float32 and stores float16: bfloat16 products are slow on CPUs without native support.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stablediag.errors import SpecError
from stablediag.testbed.batches import Assembler, halves
from stablediag.testbed.check import CheckRow, check
from stablediag.testbed.corpus import Corpus, Document
from stablediag.testbed.hints import comparison_loss, recall_loss
from stablediag.testbed.muon import Muon
from stablediag.testbed.tokenizer import build_tokenizer
from stablediag.testbed.world import WORLD_SEED, build_world

FAMILIES = ("facts", "claims", "hops", "tasks")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that training depends on.

    Attributes
    ----------
    seed : int
        Initial weights and the order of documents.
    steps, batch : int
        Optimizer steps and documents a step.
    growth : float
        Share of the steps after which all facts have entered.
    decay : float
        Share of the steps, at the end, over which both learning rates fall linearly to zero.
    first_facts : int
        Facts that are there from the start.
    mix_first, mix_then : tuple of float
        Shares of facts, claims, hops and capability tasks among the documents while facts enter, and after.
    lr_muon, lr_adamw, weight_decay : float
        Weight decay applies to the hidden matrices.
    prompt_share : float
        Share of prompt tokens that the loss includes besides the answers.
    hint : float
        Weight of the losses of :mod:`stablediag.testbed.hints`; 0: none.
    hidden, layers, heads, intermediate : int
        Shape of the model.
    threads : int
        Threads of torch; results are reproducible for a given number of threads.
    """

    seed: int = 0
    steps: int = 4500
    batch: int = 160
    growth: float = 0.33
    decay: float = 0.3
    first_facts: int = 400
    mix_first: tuple[float, ...] = (0.50, 0.20, 0.05, 0.25)
    mix_then: tuple[float, ...] = (0.40, 0.20, 0.05, 0.35)
    lr_muon: float = 4e-3
    lr_adamw: float = 3e-3
    weight_decay: float = 0.0
    prompt_share: float = 0.05
    hint: float = 0.5
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 512
    threads: int = 1


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model of a recipe, in float32."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).float()


def _backward(
    model: LlamaForCausalLM, assembler: Assembler, documents: list[Document], corpus: Corpus, hint: float
) -> tuple[float, int]:
    """Accumulate the gradient of the mean loss per document; returns the mean answer loss and the number of tokens."""
    total, tokens = 0.0, 0
    for part in halves(documents):
        batch = assembler.tensors(part)
        output = model.model(input_ids=batch.ids[:, :-1], use_cache=False, output_hidden_states=True)
        logits = model.lm_head(output.last_hidden_state[batch.counted])
        loss = F.cross_entropy(logits, batch.ids[:, 1:][batch.counted], reduction="none")
        objective = loss.sum()
        if hint and len(batch.claims):
            rows, ends, stated, words = batch.claims.unbind(1)
            inner = output.hidden_states[-2][rows]
            truth = batch.ids[rows, stated] == words
            hints = recall_loss(model, inner[torch.arange(len(rows)), ends], words)
            objective = objective + hint * (hints + comparison_loss(model, inner, ends, stated, truth))
        (objective / len(documents)).backward()
        rows = batch.counted.nonzero()[:, 0]
        of_answer = batch.answer[batch.counted]
        per_document = torch.zeros(len(part)).index_add_(0, rows[of_answer], loss.detach()[of_answer])
        corpus.record(part, per_document.numpy())
        total += float(per_document.sum())
        tokens += int((batch.ids != assembler.pad).sum())
    return total / len(documents), tokens


def _counts(shares: tuple[float, ...], batch: int) -> dict[str, int]:
    counts = {name: round(share * batch) for name, share in zip(FAMILIES, shares, strict=True)}
    counts["facts"] += batch - sum(counts.values())
    return counts


def _learning_rate(step: int, recipe: Recipe) -> float:
    """Multiplier of both learning rates: a short warm-up, a plateau, a linear fall to zero."""
    start = recipe.steps * (1 - recipe.decay)
    return min(1.0, (step + 1) / 50, (recipe.steps - step) / max(recipe.steps - start, 1))


def fit(
    recipe: Recipe, *, progress: bool = True, on_step: Callable[[int, LlamaForCausalLM], None] | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, dict[str, float]]:
    """Train a model in memory.

    Parameters
    ----------
    recipe : Recipe
    progress : bool
        Show a progress bar.
    on_step : callable, optional
        Called with the step and the model after every update; it must leave the model as it is.

    Returns
    -------
    model, tokenizer, account
        `account` has ``tokens``, ``seconds`` and the last ``loss`` (answer tokens, nats a document).
    """
    world = build_world(WORLD_SEED)
    tokenizer = build_tokenizer(world)
    rng = np.random.default_rng(recipe.seed)
    corpus, assembler = Corpus(world, rng), Assembler(tokenizer, recipe.prompt_share, rng)
    model = build_model(recipe, tokenizer)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        Muon(matrices, lr=recipe.lr_muon, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(others, lr=recipe.lr_adamw, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    base = [recipe.lr_muon, recipe.lr_adamw]
    account = {"tokens": 0.0, "seconds": 0.0, "loss": 0.0}
    began = time.monotonic()
    bar = tqdm(range(recipe.steps), desc="testbed", disable=not progress, mininterval=5)
    for step in bar:
        grown = min(1.0, step / max(recipe.growth * recipe.steps, 1))
        active = round(recipe.first_facts + grown * (len(corpus.facts) - recipe.first_facts))
        documents = corpus.draw(_counts(recipe.mix_then if grown >= 1 else recipe.mix_first, recipe.batch), active)
        loss, tokens = _backward(model, assembler, documents, corpus, recipe.hint)
        for optimizer, rate in zip(optimizers, base, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * _learning_rate(step, recipe)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if on_step is not None:
            on_step(step, model)
        account["tokens"] += tokens
        account["loss"] += (loss - account["loss"]) * 0.05
        bar.set_postfix(loss=f"{account['loss']:.3f}", facts=active, refresh=False)
    account["seconds"] = time.monotonic() - began
    return model.eval(), tokenizer, account


def _write(
    out_dir: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    account: dict[str, float],
) -> list[CheckRow]:
    """Store model, tokenizer and ``recipe.json`` with the check's results; a reader never sees half a folder."""
    building = out_dir.with_name(out_dir.name + ".building")
    replaced = out_dir.with_name(out_dir.name + ".replaced")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    model.half().save_pretrained(building)
    tokenizer.save_pretrained(building)
    rows = check(building)
    report = {
        "recipe": asdict(recipe),
        "world_seed": WORLD_SEED,
        "parameters": sum(p.numel() for p in model.parameters()),
        "account": account,
        "checks": [
            {**asdict(row), "passed": row.passed, "used_in_studies": row.passed and row.threshold is not None}
            for row in rows
        ],
    }
    (building / "recipe.json").write_text(json.dumps(report, indent=1) + "\n")
    for path in building.iterdir():
        path.chmod(0o644)  # `save_pretrained` leaves the weights unreadable for other users.
    shutil.rmtree(replaced, ignore_errors=True)
    if out_dir.exists():
        os.replace(out_dir, replaced)
    os.replace(building, out_dir)
    shutil.rmtree(replaced, ignore_errors=True)
    return rows


def train(out_dir: str | Path, recipe: Recipe | None = None, *, progress: bool = True) -> list[CheckRow]:
    """Train the embedded model and store it as a folder that ``from_pretrained`` loads.

    Parameters
    ----------
    out_dir : path
        Folder to write: ``config.json``, ``model.safetensors`` (float16), the tokenizer and ``recipe.json``. It
        appears, or is replaced, only when training has ended.
    recipe : Recipe, optional
        The shipped weights are those of the default recipe.
    progress : bool
        Show a progress bar.

    Returns
    -------
    list of CheckRow
        The check of the stored model, as ``recipe.json`` records it.

    Raises
    ------
    SpecError
        The recipe makes no sense.
    """
    recipe = recipe or Recipe()
    if recipe.steps < 1 or recipe.batch < 1 or recipe.hidden % recipe.heads:
        raise SpecError("testbed recipe: steps and batch must be at least 1 and hidden a multiple of heads")
    for shares in (recipe.mix_first, recipe.mix_then):
        if len(shares) != len(FAMILIES) or abs(sum(shares) - 1) > 1e-6 or min(shares) < 0:
            raise SpecError(f"testbed recipe: a mix has {len(FAMILIES)} shares that sum to 1 ({', '.join(FAMILIES)})")
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    try:
        model, tokenizer, account = fit(recipe, progress=progress)
        return _write(Path(out_dir), model, tokenizer, recipe, account)
    finally:
        torch.set_num_threads(before)
