"""What a run is said to cost before it starts, against what it then does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stablediag.editors.base import resolve_params
from stablediag.engine.estimate import assumed, counted, estimate, h200_rates, measured_rates
from stablediag.engine.estimate_parts import Body, Part, bill, layer_number
from stablediag.engine.plan import plan_steps
from stablediag.engine.prepare import Prepared
from stablediag.engine.session import Session
from stablediag.model_outline import KNOWN, outline
from stablediag.spec import Spec
from tests.engine.streams import write_stream


@pytest.fixture
def make_spec(llama_dir, tmp_path):
    def build(**changes):
        stream = write_stream(tmp_path / "edits.jsonl", 80)
        base = {
            "model": {"path": str(llama_dir), "modules": ["layers.[1-2].mlp.down_proj"], "device": "cpu"},
            "data": {"source": str(stream), "size": 45},
            "warmup": {"size": 20},
            "edits_per_step": 20,
            "editor": {"params": {"lr": 1e-4}},
            "evaluation": {"schedule": "never"},
            "recorders": "none",
            "threads": 1,
        }
        return Spec.from_mapping({**base, **changes})

    return build


def cost_of(prepared, **changes):
    spec = prepared.spec
    params = resolve_params("ln", "paper", {"lr": 1e-4, **changes})
    work = counted(prepared.plan, prepared.loaded.tokenizer)
    modules = list(prepared.loaded.modules.values())
    return estimate(spec, params, prepared.loaded.model, modules, work=work, dtype="float32")


@pytest.mark.parametrize("tokens", ["answer", "all", "last_prompt"])
def test_counts_are_those_of_the_run(tokens, make_spec, tmp_path):
    spec = make_spec(editor={"params": {"lr": 1e-4, "tokens": tokens}})
    prepared = Prepared(spec, run_dir=tmp_path / "run")
    work = counted(prepared.plan, prepared.loaded.tokenizer, rows=tokens)
    steps = Session.create(spec, tmp_path / "run", progress=False).run().table("steps")
    assert work.steps == len(steps) == 4
    assert work.target_steps == 3
    assert work.edits == steps["edits"].sum() == 65
    assert work.target_edits == 45
    assert work.rows == steps["rows"].sum()
    if tokens == "all":
        assert work.tokens == work.rows
    guess = assumed(spec, rows=tokens)
    assert (guess.steps, guess.target_steps, guess.edits) == (work.steps, work.target_steps, work.edits)
    assert not guess.counted


def test_memory_and_arithmetic(make_spec, tmp_path):
    prepared = Prepared(make_spec(), run_dir=tmp_path / "run")
    full, diagonal = cost_of(prepared), cost_of(prepared, normaliser="diagonal")
    # Two scopes in float64 (d_in 40, d_out 24): at least a scatter each, at most a few copies.
    assert 2 * 8 * 24**2 <= full.memory_bytes - diagonal.memory_bytes <= 4 * 2 * 8 * 24**2
    assert diagonal.memory_bytes >= 4 * 40 * 24
    assert full.memory_bytes < 2**20
    assert 0 < diagonal.flops < full.flops
    shared = cost_of(prepared, stats_scope="shape")
    assert shared.memory_bytes < full.memory_bytes
    weights = sum(p.numel() for p in prepared.loaded.model.parameters())
    assert full.memory["model"] == 4 * weights
    # The state that a checkpoint holds: edited weights and the statistics.
    (checkpoints,) = [size for name, size in full.disk.items() if name.startswith("checkpoints")]
    assert checkpoints >= 2 * (4 * 2 * 40 * 24 + 2 * 8 * 24**2)


def test_the_passes_are_those_of_a_naive_count(make_spec, tmp_path):
    prepared = Prepared(make_spec(), run_dir=tmp_path / "run")
    model = prepared.loaded.model
    passes = next(part for part in cost_of(prepared).parts if part.kind == "model").flops
    named = dict(model.named_parameters())
    layers = [(int(name.split(".")[2]), p.numel()) for name, p in named.items() if ".layers." in name]
    work = counted(prepared.plan, prepared.loaded.tokenizer)
    forward = 2 * work.tokens * sum(size for _, size in layers)
    backward = 2 * work.tokens * sum(size for number, size in layers if number >= 1)
    head = 4 * work.rows * model.get_output_embeddings().weight.numel()
    assert passes == pytest.approx(forward + backward + head)


def test_an_empty_plan_costs_nothing(make_spec, tmp_path):
    prepared = Prepared(make_spec(), run_dir=tmp_path / "run")
    prepared.plan = plan_steps([], [], edits_per_step=20, placement="none")
    cost = cost_of(prepared)
    work = cost.work
    assert (work.steps, work.edits, work.tokens, work.rows, cost.flops) == (0, 0, 0, 0, 0)


def test_a_long_stream_is_extrapolated_from_steps_spread_over_it(make_spec, tmp_path, monkeypatch):
    prepared = Prepared(make_spec(edits_per_step=5), run_dir=tmp_path / "run")
    exact = counted(prepared.plan, prepared.loaded.tokenizer)
    monkeypatch.setattr("stablediag.engine.estimate.COUNTED", 20)
    some = counted(prepared.plan, prepared.loaded.tokenizer)
    assert (some.steps, some.edits) == (exact.steps, exact.edits) == (13, 65)
    assert some.tokens == pytest.approx(exact.tokens, rel=0.2)
    assert some.rows == pytest.approx(exact.rows, rel=0.2)


def test_evaluations_cost_by_schedule_subsample_and_probes(make_spec, tmp_path):
    def flops(**evaluation):
        spec = make_spec(evaluation=evaluation, warmup={"size": 0})
        prepared = Prepared(spec, run_dir=tmp_path / "run")
        return cost_of(prepared).evaluation[0].flops

    assert flops(schedule="never") == 0
    once = flops(schedule="end", probes=["efficacy"])
    assert flops(schedule="end", probes=["efficacy", "generalization"]) == pytest.approx(2 * once)
    assert flops(schedule="end", probes=["efficacy"], subsample=9) == pytest.approx(once / 5)
    # 45 edits in steps of 15 (three steps): a third, two thirds and all of them.
    assert flops(schedule={"every": 1}, probes=["efficacy"]) == pytest.approx(2 * once)


@pytest.mark.parametrize(
    ("editor", "options", "has", "lacks"),
    [
        ("ln", {"lr": 1e-6}, {"covariance", "eigendecompositions"}, {"training", "network"}),
        ("ln", {"lr": 1e-6, "normaliser": "diagonal"}, {"ridge solves and writing"}, {"covariance"}),
        ("rledit", {"network": "untrained"}, {"network"}, {"covariance", "eigendecompositions"}),
        ("ft", {}, {"training"}, {"covariance", "eigendecompositions", "forward and backward"}),
        ("memit", {"moments": "m"}, {"optimising the targets", "factors, once"}, {"covariance", "null spaces, once"}),
        ("alphaedit", {"moments": "m"}, {"null spaces, once"}, {"covariance", "factors, once"}),
        ("rome", {}, {"optimising the targets"}, {"covariance", "forward and backward"}),
    ],
)
def test_no_editor_is_charged_for_what_it_does_not_have(editor, options, has, lacks):
    found = outline("EleutherAI/gpt-j-6b", modules=["h.[3-8].mlp.fc_out"])
    work = assumed(Spec.from_mapping({"data": {"source": "x", "size": 2000}}))
    made = bill(resolve_params(editor, None, options), list(found.modules.values()), Body.of(found.model), work)
    names = {part.name for part in made.parts}
    assert has <= names
    assert not lacks & names
    assert ("statistics (float64)" in made.memory) == (editor in ("ln", "rledit"))
    assert all(part.flops > 0 for part in made.parts)


def test_the_targets_of_memit_take_most_of_its_time_and_grow_with_evaluations():
    found = outline("EleutherAI/gpt-j-6b", modules=["h.[3-8].mlp.fc_out"])
    work = assumed(Spec.from_mapping({"data": {"source": "x", "size": 2000}}))
    modules, body = list(found.modules.values()), Body.of(found.model)

    def targets(steps):
        made = bill(resolve_params("memit", None, {"targets": {"steps": steps}}), modules, body, work)
        by_name = {part.name: part.flops for part in made.parts}
        assert by_name["optimising the targets"] > sum(by_name.values()) / 2
        return by_name["optimising the targets"]

    one, two, three = (targets(steps) for steps in (10, 20, 30))
    assert three - two == pytest.approx(two - one)
    assert two < 2 * one  # the first evaluation also runs the layers below


def test_a_wrapped_editor_costs_what_it_costs_alone_and_an_unknown_one_says_so():
    found = outline("EleutherAI/gpt-j-6b", modules=["h.[3-8].mlp.fc_out"])
    work = assumed(Spec.from_mapping({"data": {"source": "x", "size": 2000}}))
    modules, body = list(found.modules.values()), Body.of(found.model)
    inner = {"name": "memit", "params": {"moments": "m"}}
    wrapped = bill(resolve_params("simie", None, {"editor": inner}), modules, body, work)
    alone = bill(resolve_params("memit", None, {"moments": "m"}), modules, body, work)
    assert wrapped.parts == alone.parts
    unknown = bill(object(), modules, body, work)
    assert [part.name for part in unknown.parts] == ["forward and backward"]
    assert "not modelled" in unknown.assumed[0]


def test_the_published_size_of_a_step():
    """A step of 100 edits, 3,000 tokens and 400 rows, of StableEdit on Llama-3-8B (lowest edited layer 11): 70.2 TFLOP
    in passes, by a count made apart from this one."""
    found = outline(
        "meta-llama/Meta-Llama-3-8B-Instruct",
        modules=["layers.[11-12,22-23,28-30].mlp.down_proj"],
        dtype="bfloat16",
    )
    work = assumed(Spec.from_mapping({"data": {"source": "x", "size": 100}}))
    made = bill(resolve_params("ln", "paper", {}), list(found.modules.values()), Body.of(found.model), work)
    by_name = {part.name: part.flops for part in made.parts}
    assert by_name["forward and backward"] == pytest.approx(70.2e12, rel=0.02)
    assert by_name["ridge solves and writing"] == pytest.approx(0.37e12, rel=0.02)
    assert by_name["eigendecompositions"] == pytest.approx(9 * 4096**3 * 7)


#: parameters on the pages of the checkpoints
PARAMETERS = {
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "EleutherAI/gpt-j-6b": 6_050_882_784,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "openai-community/gpt2-xl": 1_557_611_200,
}


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_known_shapes_have_the_published_number_of_parameters(name):
    found = outline(name, modules=["**.mlp.*"])
    assert sum(parameter.numel() for parameter in found.model.parameters()) == PARAMETERS[name]
    assert all(
        parameter.numel() < 10**6 or parameter.is_meta or 0 in parameter.stride()
        for parameter in found.model.parameters()
    )


def test_an_outline_has_the_modules_of_the_model(make_spec, llama_dir, tmp_path):
    prepared = Prepared(make_spec(), run_dir=tmp_path / "run")
    assert outline(llama_dir, modules=["layers.[1-2].mlp.down_proj"]) is None  # its weights are there
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((llama_dir / "config.json").read_bytes())
    found = outline(bare, modules=["layers.[1-2].mlp.down_proj"])
    assert {name: (m.layout, m.d_in, m.d_out) for name, m in found.modules.items()} == {
        name: (m.layout, m.d_in, m.d_out) for name, m in prepared.loaded.modules.items()
    }
    assert Body.of(found.model) == Body.of(prepared.loaded.model)


def test_rates_give_seconds():
    rates = replace(h200_rates("bfloat16"), model=2.0, dense=4.0, eigen=8.0)
    parts = [Part("a", "model", 4.0), Part("b", "dense", 4.0), Part("c", "eigen", 4.0)]
    assert rates.seconds(parts) == 2.0 + 1.0 + 0.5
    assert h200_rates("float32").model < h200_rates("bfloat16").model / 10
    here = measured_rates("float32", "cpu", size=64)
    assert here.measured
    assert min(here.model, here.dense, here.eigen) > 0


def test_layers_are_numbered_by_the_first_number():
    assert layer_number("model.layers.11.mlp.down_proj") == 11
    assert layer_number("transformer.h.3.mlp.fc_out.weight") == 3
    assert layer_number("lm_head.weight") is None
