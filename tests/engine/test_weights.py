from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from stablediag.engine import weights as weights_module
from stablediag.engine.weights import Realised, WeightWriter
from stablediag.errors import ModelError, SpecError
from stablediag.maths.update import Dense, LowRank
from stablediag.models import ResolvedModule

P, D = 37, 23  # d_in, d_out: unequal, so that a forgotten transpose cannot pass


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several uneven row blocks per weight."""
    monkeypatch.setattr(weights_module, "_BLOCK_ENTRIES", 5 * P)


def make(layout, dtype=torch.float32, device="cpu", seed=0):
    torch.manual_seed(seed)
    module = nn.Linear(P, D) if layout == "linear" else Conv1D(D, P)
    module = module.to(device=device, dtype=dtype).requires_grad_(False)
    return ResolvedModule("m", module, layout, P, D)


def low_rank(rank=4, scale=1.0, dtype=torch.float32, device="cpu", seed=1):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(P, rank, generator=generator, dtype=torch.float64) * scale
    right = torch.randn(rank, D, generator=generator, dtype=torch.float64)
    return LowRank(left.to(device=device, dtype=dtype), right.to(device=device, dtype=dtype))


def theta(entry):
    """The weight in canonical orientation [d_in, d_out]."""
    weight = entry.module.weight.detach()
    return weight.T if entry.layout == "linear" else weight


LAYOUTS = pytest.mark.parametrize("layout", ["linear", "conv1d"])


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factors", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["lowrank", "dense"])
def test_apply_is_theta_plus_delta(layout, dtype, factors, kind, device):
    entry = make(layout, dtype, device)
    update = low_rank(dtype=factors, device=device)
    update = update if kind == "lowrank" else Dense(update.dense())
    expected = theta(entry).double() + update.dense().double()
    rows = torch.randn(6, P, dtype=dtype, device=device)
    wanted = entry.module(rows).double() + rows.double() @ update.dense().double()
    assert WeightWriter({"m": entry}).apply("m", update) is None
    exact = dtype == factors == torch.float64
    torch.testing.assert_close(theta(entry).double(), expected, rtol=0, atol=1e-13 if exact else 1e-5)
    torch.testing.assert_close(entry.module(rows).double(), wanted, rtol=0, atol=1e-12 if exact else 1e-4)


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_multiplied_out_is_kept_where_it_is_asked_for(layout, dtype):
    plain, keeping = make(layout, dtype), make(layout, dtype)
    update = low_rank()
    assert WeightWriter({"m": plain}).write("m", update) == (None, None)
    writer = WeightWriter({"m": keeping}, keeps=lambda told: isinstance(told, LowRank))
    realised, change = writer.write("m", update, measure=True)
    assert realised is not None
    assert change.shape == (P, D)
    assert change.dtype == torch.float32
    torch.testing.assert_close(change, update.dense(), rtol=0, atol=1e-5)
    # In the layout of the weight, and nobody else's memory.
    assert (change.mT if layout == "linear" else change).is_contiguous()
    before = change.clone()
    writer.apply("m", low_rank(seed=9))
    assert torch.equal(change, before)
    WeightWriter({"m": plain}).apply("m", low_rank(seed=9))
    if dtype == torch.float32:
        assert torch.equal(theta(plain), theta(keeping))
    assert writer.write("m", Dense(update.dense()))[1] is None


@LAYOUTS
def test_float32_master_keeps_what_bfloat16_loses(layout):
    entry = make(layout, torch.bfloat16)
    start = theta(entry).float()
    writer = WeightWriter({"m": entry}, master="fp32")
    for step in range(50):
        writer.apply("m", low_rank(scale=1e-6, seed=step))
    total = sum(low_rank(scale=1e-6, seed=step).dense() for step in range(50))
    torch.testing.assert_close(
        writer.state_dict()["m.master"].T if layout == "linear" else writer.state_dict()["m.master"],
        start + total,
        rtol=0,
        atol=1e-7,
    )
    assert torch.equal(theta(entry), (start + total).to(torch.bfloat16))


@LAYOUTS
def test_master_model_rounds_the_update_as_the_releases_do(layout):
    entry = make(layout, torch.bfloat16)
    update = low_rank(scale=1e-2)
    expected = theta(entry) + update.dense().to(torch.bfloat16)
    writer = WeightWriter({"m": entry}, master="model")
    assert set(writer.state_dict()) == {"m.weight"}
    writer.apply("m", update)
    # A product of float32 blocks may differ in its last bit and then round to the neighbouring bfloat16.
    differing = (theta(entry) != expected).double().mean()
    assert differing < 0.01
    dense = make(layout, torch.bfloat16)
    WeightWriter({"m": dense}, master="model").apply("m", Dense(update.dense()))
    assert torch.equal(theta(dense), expected)


def test_master_exists_only_for_narrow_weights():
    wide = WeightWriter({"m": make("linear", torch.float32)}, master="fp32")
    assert set(wide.state_dict()) == {"m.weight"}
    narrow = WeightWriter({"m": make("linear", torch.float16)}, master="fp32")
    assert narrow.state_dict()["m.master"].dtype == torch.float32


@LAYOUTS
@pytest.mark.parametrize("master", ["fp32", "model"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lowrank", "dense"])
def test_realised_against_the_dense_twin(layout, master, dtype, kind):
    entry = make(layout, dtype)
    update = low_rank(scale=2e-4)
    update = update if kind == "lowrank" else Dense(update.dense())
    before = theta(entry).double().clone()
    got = WeightWriter({"m": entry}, master=master).apply("m", update, measure=True)
    intended, realised = update.dense().double(), theta(entry).double() - before
    assert math.isclose(got.norm_ratio, float(realised.norm() / intended.norm()), rel_tol=1e-6)
    assert math.isclose(
        got.cosine, float((realised * intended).sum() / realised.norm() / intended.norm()), rel_tol=1e-6
    )
    unchanged = ((realised == 0) & (intended != 0)).double().sum() / (intended != 0).double().sum()
    assert math.isclose(got.unchanged_fraction, float(unchanged), rel_tol=1e-12)
    if dtype == torch.float32:
        assert got.cosine > 1 - 1e-6
        assert got.norm_ratio == pytest.approx(1, abs=1e-3)
    else:
        assert got.unchanged_fraction > 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("master", ["fp32", "model"])
def test_measuring_does_not_change_the_weights(dtype, master):
    entries = [make("linear", dtype) for _ in range(2)]
    for entry, measure in zip(entries, (False, True), strict=True):
        WeightWriter({"m": entry}, master=master).apply("m", low_rank(scale=0.1), measure=measure)
    assert torch.equal(entries[0].module.weight, entries[1].module.weight)


def test_realised_of_zero_and_of_lost_updates():
    entry = make("linear", torch.bfloat16)
    writer = WeightWriter({"m": entry}, master="model")
    zero = writer.apply("m", low_rank(scale=0.0), measure=True)
    assert math.isnan(zero.norm_ratio)
    assert math.isnan(zero.cosine)
    assert zero.unchanged_fraction == 0.0
    entry.module.weight.fill_(1.0)
    lost = writer.apply("m", Dense(torch.full((P, D), 1e-5)), measure=True)
    assert (lost.norm_ratio, lost.unchanged_fraction) == (0.0, 1.0)
    assert math.isnan(lost.cosine)


def test_unchanged_counts_only_entries_with_an_intended_change():
    entry = make("linear", torch.bfloat16)
    entry.module.weight.fill_(1.0)
    change = torch.zeros(P, D)
    change[0] = 1.0
    change[1, :5] = 1e-5
    got = WeightWriter({"m": entry}, master="model").apply("m", Dense(change), measure=True)
    assert isinstance(got, Realised)
    assert got.unchanged_fraction == pytest.approx(5 / (D + 5))


@LAYOUTS
def test_norm_is_exact(layout):
    entry = make(layout)
    writer = WeightWriter({"m": entry})
    assert math.isclose(writer.norm("m"), float(entry.module.weight.double().norm()), rel_tol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_snapshot_and_restore_are_bit_exact_and_independent(dtype):
    entry = make("linear", dtype)
    writer = WeightWriter({"m": entry})
    writer.apply("m", low_rank(scale=1e-3))
    snapshot = writer.snapshot()
    kept = {key: tensor.clone() for key, tensor in snapshot.items()}
    writer.apply("m", low_rank(seed=5))
    assert all(torch.equal(snapshot[key], kept[key]) for key in kept)
    writer.restore(snapshot)
    assert all(torch.equal(tensor, kept[key]) for key, tensor in writer.state_dict().items())
    # The next update continues from the master, not from the rounded weight.
    writer.apply("m", low_rank(scale=1e-5, seed=6))
    again = make("linear", dtype)
    twin = WeightWriter({"m": again})
    twin.load_state_dict(kept)
    twin.apply("m", low_rank(scale=1e-5, seed=6))
    assert all(torch.equal(tensor, twin.state_dict()[key]) for key, tensor in writer.state_dict().items())


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fail", [False, True])
def test_temporarily_restores_bit_for_bit(layout, dtype, fail):
    entry, other = make(layout, dtype), make(layout, dtype, seed=9)
    writer = WeightWriter({"m": entry, "other": other})
    before = writer.snapshot()

    def inside():
        with writer.temporarily({"m": low_rank(scale=0.1)}):
            assert not torch.equal(entry.module.weight, before["m.weight"])
            assert torch.equal(other.module.weight, before["other.weight"])
            if fail:
                raise RuntimeError("stop")

    if fail:
        with pytest.raises(RuntimeError, match="stop"):
            inside()
    else:
        inside()
    assert all(torch.equal(tensor, before[key]) for key, tensor in writer.state_dict().items())


def test_the_parameter_stays_the_same_leaf():
    entry = make("linear")
    entry.module.weight.requires_grad_(True)
    parameter, pointer = entry.module.weight, entry.module.weight.data_ptr()
    WeightWriter({"m": entry}).apply("m", low_rank())
    assert entry.module.weight is parameter
    assert parameter.data_ptr() == pointer
    assert parameter.is_leaf
    assert parameter.requires_grad
    assert parameter.grad is None


def test_errors():
    writer = WeightWriter({"m": make("linear")})
    with pytest.raises(SpecError, match="fp32 or model"):
        WeightWriter({}, master="bf16")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="module x is not an edited module: the run edits m"):
        writer.apply("x", low_rank())
    with pytest.raises(ModelError, match="module x is not"), writer.temporarily({"x": low_rank()}):
        pass
    with pytest.raises(ModelError, match=r"module m has shape \[23, 37\], the module is \[37, 23\]"):
        writer.apply("m", Dense(torch.zeros(D, P)))
    with pytest.raises(ModelError, match=r"do not fit this model at m\.master"):
        writer.load_state_dict(WeightWriter({"m": make("linear", torch.bfloat16)}).state_dict())
    state = {"m.weight": torch.zeros(D, P, dtype=torch.float64)}
    before = writer.snapshot()
    with pytest.raises(ModelError, match="float64"):
        writer.load_state_dict(state)
    assert torch.equal(writer.state_dict()["m.weight"], before["m.weight"])
