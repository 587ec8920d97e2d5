from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from stablediag.engine.capture import CaptureNeeds, capture
from stablediag.errors import DataError, ModelError, SpecError
from stablediag.models import ResolvedModule, load_model, resolve_modules
from stablediag.tokens import TokenBatch, encode
from stablediag.types import Edit

LLAMA = ["layers.[1,2].mlp.down_proj", "layers.2.mlp.up_proj"]
GPT2 = ["h.1.mlp.c_fc", "h.[0-2].mlp.c_proj"]


def stream(count, seed=0):
    """Edits of unequal lengths: 2 to 10 prompt words, 1 to 5 answer words."""
    generator = torch.Generator().manual_seed(seed)

    def words(low, high):
        count = int(torch.randint(low, high, (1,), generator=generator))
        return " ".join(f"w{int(i)}" for i in torch.randint(0, 290, (count,), generator=generator))

    return [Edit(id=f"e{i}", prompt=words(2, 11), target=words(1, 6)) for i in range(count)]


def plain(model, modules, tokens, weights, kind="answer"):
    """The slow, obvious twin: one unpadded sequence at a time, full logits, gradient of the whole weighted loss."""
    keys = {name: [] for name in modules}
    grads = {name: [] for name in modules}
    total = 0.0
    for ids, labels, weight in zip(tokens.input_ids, tokens.labels, weights, strict=True):
        seen = {}

        def keep(module, args, output, seen=seen):
            output.requires_grad_()
            seen[module] = (args[0].detach(), output)

        handles = [entry.module.register_forward_hook(keep) for entry in modules.values()]
        logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0]
        for handle in handles:
            handle.remove()
        target = torch.tensor(labels, device=model.device)
        loss = weight * F.cross_entropy(logits, target, ignore_index=-100, reduction="sum")
        total += float(loss.detach())
        found = torch.autograd.grad(loss, [seen[entry.module][1] for entry in modules.values()])
        valid = [j for j, label in enumerate(labels) if label != -100]
        rows = {"answer": valid, "all": list(range(len(ids))), "last_prompt": valid[:1]}[kind]
        for (name, entry), gradient in zip(modules.items(), found, strict=True):
            keys[name].append(seen[entry.module][0][0][rows])
            grads[name].append(gradient[0][rows])
    return {n: torch.cat(k) for n, k in keys.items()}, {n: torch.cat(g) for n, g in grads.items()}, total


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def released_weights(tokens):
    totals = {}
    for block, length in zip(tokens.block_ids, tokens.answer_lengths, strict=True):
        totals[block] = totals.get(block, 0) + length
    return [1 / totals[block] for block in tokens.block_ids]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def loaded(request, llama_dir, gpt2_dir):
    folder, patterns = {"llama": (llama_dir, LLAMA), "gpt2": (gpt2_dir, GPT2)}[request.param]
    return load_model(folder, modules=patterns, dtype="float64", device="cpu")


@pytest.mark.parametrize("kind", ["answer", "all", "last_prompt"])
@pytest.mark.parametrize("loss", ["paper", "released"])
def test_equals_plain_autograd(loaded, loss, kind):
    tokens = encode(stream(23), loaded.tokenizer, minibatch=5, sort=True)
    weights = [1.0] * len(tokens) if loss == "paper" else released_weights(tokens)
    keys, grads, total = plain(loaded.model, loaded.modules, tokens, weights, kind)
    got = capture(loaded.model, loaded.modules, tokens, CaptureNeeds(loss=loss, tokens=kind), token_budget=60)
    for name in loaded.modules:
        assert got[name].keys.dtype == torch.float64
        assert relative(got[name].keys, keys[name]) < 1e-12
        assert relative(got[name].grads, grads[name]) < 1e-12
        assert math.isclose(got[name].loss, total, rel_tol=1e-12)


@pytest.mark.parametrize("loss", ["paper", "released"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_the_chunk_changes_nothing(llama_dir, device, dtype, tolerance, loss):
    loaded = load_model(llama_dir, modules=LLAMA, dtype=dtype, device=device)
    tokens = encode(stream(100), loaded.tokenizer, minibatch=10, sort=True)
    longest = max(tokens.lengths)
    needs = CaptureNeeds(loss=loss, outputs=True)
    # Budgets for chunks of (at least) 1, 3, 10 and all 100 edits.
    results = [
        capture(loaded.model, loaded.modules, tokens, needs, token_budget=budget)
        for budget in (1, 3 * longest, 10 * longest, 100 * longest)
    ]
    for other in results[1:]:
        for name in loaded.modules:
            for field in ("keys", "grads", "outputs"):
                assert relative(getattr(other[name], field), getattr(results[0][name], field)) < tolerance
            assert math.isclose(other[name].loss, results[0][name].loss, rel_tol=tolerance)
            for field in ("edit_ids", "block_ids", "positions", "weights"):
                assert torch.equal(getattr(other[name], field), getattr(results[0][name], field))


def test_released_depends_on_the_minibatch_and_paper_does_not(loaded):
    given = stream(20)
    name = next(iter(loaded.modules))

    def grads(loss, minibatch):
        tokens = encode(given, loaded.tokenizer, minibatch=minibatch)
        return capture(loaded.model, loaded.modules, tokens, CaptureNeeds(loss=loss))[name].grads

    assert relative(grads("released", 10), grads("released", 1)) > 0.5
    assert relative(grads("paper", 10), grads("paper", 1)) < 1e-12


def test_paper_gradients_do_not_depend_on_the_company(loaded):
    given = stream(12)
    name = next(iter(loaded.modules))
    together = capture(loaded.model, loaded.modules, encode(given, loaded.tokenizer), CaptureNeeds())[name]
    alone = capture(loaded.model, loaded.modules, encode(given[7:8], loaded.tokenizer), CaptureNeeds())[name]
    assert relative(together.grads[together.edit_ids == 7], alone.grads) < 1e-12


def test_row_bookkeeping(loaded):
    tokens = encode(stream(15), loaded.tokenizer, minibatch=4, sort=True)
    for kind in ("answer", "all", "last_prompt"):
        needs = CaptureNeeds(loss="released", tokens=kind, outputs=True)
        got = next(iter(capture(loaded.model, loaded.modules, tokens, needs, token_budget=30).values()))
        expected = []
        for place, labels in enumerate(tokens.labels):
            valid = [j for j, label in enumerate(labels) if label != -100]
            chosen = {"answer": valid, "all": range(len(labels)), "last_prompt": valid[:1]}[kind]
            weight = released_weights(tokens)[place]
            expected += [
                (tokens.edit_ids[place], tokens.block_ids[place], j, weight if j in valid else 0.0) for j in chosen
            ]
        fields = (got.edit_ids, got.block_ids, got.positions, got.weights)
        assert list(zip(*[field.tolist() for field in fields], strict=True)) == expected
        assert got.rows == len(expected) == got.grads.shape[0] == got.outputs.shape[0]
        assert got.edit_ids.dtype == got.block_ids.dtype == got.positions.dtype == torch.int64
        assert not got.keys.requires_grad
        assert not got.outputs.requires_grad


def test_outputs_are_the_module_of_the_keys(loaded):
    tokens = encode(stream(6), loaded.tokenizer)
    for name, got in capture(loaded.model, loaded.modules, tokens, CaptureNeeds(outputs=True)).items():
        assert relative(got.outputs, loaded.modules[name].module(got.keys)) < 1e-12


def test_the_model_is_left_as_it_was(llama_dir):
    loaded = load_model(llama_dir, modules=LLAMA, device="cpu")
    model, tokens = loaded.model, encode(stream(6), loaded.tokenizer)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" in name)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    with torch.no_grad():
        got = capture(model, loaded.modules, tokens, CaptureNeeds())
    assert all(torch.isfinite(entry.grads).all() for entry in got.values())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_hooks_and_flags_survive_an_exception(llama_dir, monkeypatch):
    loaded = load_model(llama_dir, modules=LLAMA, device="cpu")
    loaded.model.requires_grad_(True)

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(loaded.model.model.layers[3], "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        capture(loaded.model, loaded.modules, encode(stream(3), loaded.tokenizer), CaptureNeeds())
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in loaded.model.modules())


def test_layers_below_run_without_a_graph_and_the_head_sees_only_answers(llama_dir):
    loaded = load_model(llama_dir, modules=["layers.2.mlp.down_proj"], device="cpu")
    tokens = encode(stream(9), loaded.tokenizer)
    seen: dict = {"head": 0}
    layers = loaded.model.model.layers
    handles = [
        layers[1].register_forward_hook(lambda m, a, out: seen.update(below=out)),
        layers[3].register_forward_hook(lambda m, a, out: seen.update(above=out)),
        loaded.model.lm_head.register_forward_hook(
            lambda m, a, out: seen.update(head=seen["head"] + out.shape[:2].numel())
        ),
    ]
    capture(loaded.model, loaded.modules, tokens, CaptureNeeds())
    for handle in handles:
        handle.remove()
    assert not seen["below"].requires_grad
    assert seen["above"].requires_grad
    assert seen["head"] == sum(tokens.answer_lengths)


@pytest.mark.parametrize("kind", ["Gemma2", "Granite", "Cohere"])
def test_scaled_and_capped_logits(kind, llama_dir):
    import transformers

    torch.manual_seed(3)
    options = {
        "vocab_size": 300,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    }
    extra = {
        "Gemma2": {"head_dim": 6, "final_logit_softcapping": 2.0},
        "Granite": {"logits_scaling": 3.0},
        "Cohere": {"logit_scale": 0.25},
    }[kind]
    config = getattr(transformers, f"{kind}Config")(**options, **extra)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).double().eval().requires_grad_(False)
    modules = resolve_modules(model, ["layers.0.mlp.down_proj"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama_dir)
    tokens = encode(stream(8), tokenizer)
    _, grads, total = plain(model, modules, tokens, [1.0] * len(tokens))
    got = capture(model, modules, tokens, CaptureNeeds(), token_budget=40)["model.layers.0.mlp.down_proj"]
    assert relative(got.grads, grads[got.module]) < 1e-10
    assert math.isclose(got.loss, total, rel_tol=1e-10)


def test_a_model_without_a_separable_head_gives_the_same_numbers(loaded, monkeypatch):
    tokens = encode(stream(8), loaded.tokenizer)
    expected = capture(loaded.model, loaded.modules, tokens, CaptureNeeds(), token_budget=30)
    monkeypatch.setattr(loaded.model, "get_output_embeddings", lambda: None)
    got = capture(loaded.model, loaded.modules, tokens, CaptureNeeds(), token_budget=30)
    for name in loaded.modules:
        assert relative(got[name].grads, expected[name].grads) < 1e-12


def test_bfloat16_model_yields_float32_rows(llama_dir):
    loaded = load_model(llama_dir, modules=LLAMA, dtype="bfloat16", device="cpu")
    got = capture(loaded.model, loaded.modules, encode(stream(4), loaded.tokenizer), CaptureNeeds(outputs=True))
    for entry in got.values():
        assert {entry.keys.dtype, entry.grads.dtype, entry.outputs.dtype, entry.weights.dtype} == {torch.float32}


def test_non_finite_rows_are_passed_on(llama_dir):
    loaded = load_model(llama_dir, modules=LLAMA, device="cpu")
    loaded.model.model.embed_tokens.weight[7] = math.nan
    tokens = encode([Edit("a", "w0 w1", "w5"), Edit("b", "w2 w3", "w5")], loaded.tokenizer)
    got = next(iter(capture(loaded.model, loaded.modules, tokens, CaptureNeeds()).values()))
    assert torch.isfinite(got.grads).all(dim=1).tolist() == [True, False]


def test_errors(llama_dir):
    loaded = load_model(llama_dir, modules=LLAMA, device="cpu")
    tokens = encode(stream(2), loaded.tokenizer)
    with pytest.raises(DataError, match="no edits"):
        capture(loaded.model, loaded.modules, TokenBatch((), (), (), ()), CaptureNeeds())
    with pytest.raises(SpecError, match="paper or released"):
        capture(loaded.model, loaded.modules, tokens, CaptureNeeds(loss="mean"))  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="answer, all or last_prompt"):
        capture(loaded.model, loaded.modules, tokens, CaptureNeeds(tokens="first"))  # type: ignore[arg-type]
    stray = ResolvedModule("stray", torch.nn.Linear(3, 3), "linear", 3, 3)
    with pytest.raises(ModelError, match="stray did not run"):
        capture(loaded.model, {"stray": stray}, tokens, CaptureNeeds())
    layers = loaded.model.model.layers
    layers[1].mlp = layers[2].mlp
    with pytest.raises(ModelError, match="ran twice"):
        capture(loaded.model, loaded.modules, tokens, CaptureNeeds())
