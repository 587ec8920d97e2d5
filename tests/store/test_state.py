"""Checkpoints: bit-exact, whole or absent, and only the two latest."""

import json
import math
import os

import numpy as np
import pytest
import torch

from stablediag.errors import StoreError
from stablediag.store import Run
from stablediag.store.state import load_state, save_state
from stablediag.types import RunInfo

META = {"step": 3, "nan": math.nan, "inf": math.inf, "rng": [1, 2**63], "names": {"a": None}}


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    return {
        "float64": base,
        "float32": base.float(),
        "bfloat16": base.bfloat16(),
        "float16": base.half(),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "uint8": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "special": torch.tensor([math.nan, -math.nan, math.inf, -0.0, 5e-324], dtype=torch.float64),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "row of the same memory": base[1],
        "the same memory": base,
        "transposed": base.t(),
        "strided": base[:, ::2],
        "expanded": torch.ones(1, 1).expand(3, 2),
        "parameter": torch.nn.Parameter(base[2:].clone()),
        "layers.1.mlp/scale": base[0, :0],
    }


def test_everything_comes_back_bit_for_bit(tmp_path):
    saved = tensors()
    folder = save_state(tmp_path / "state" / "000003", saved, meta=META)
    loaded, meta = load_state(folder)
    assert loaded.keys() == saved.keys()
    for name, tensor in saved.items():
        assert loaded[name].dtype == tensor.dtype, name
        assert loaded[name].shape == tensor.shape, name
        assert bits(loaded[name]) == bits(tensor), name
    assert math.isnan(meta.pop("nan"))
    assert meta == {key: value for key, value in META.items() if key != "nan"}
    pointers = [tensor.untyped_storage().data_ptr() for tensor in loaded.values() if tensor.numel()]
    assert len(set(pointers)) == len(pointers)


def test_a_state_without_tensors(tmp_path):
    assert load_state(save_state(tmp_path / "0", {}, meta={"a": [1]})) == ({}, {"a": [1]})


def test_saving_twice_replaces(tmp_path):
    save_state(tmp_path / "s0", {"x": torch.zeros(2)}, meta={"n": 1})
    save_state(tmp_path / "s0", {"x": torch.ones(2)}, meta={"n": 2})
    loaded, meta = load_state(tmp_path / "s0")
    assert (loaded["x"].tolist(), meta) == ([1.0, 1.0], {"n": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["s0"]


def test_only_the_two_latest_of_a_series_are_kept(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "000001").mkdir()
    save_state(tmp_path / "best7", {}, meta={})
    for step in (8, 9, 10, 11):
        save_state(tmp_path / f"{step:06d}", {}, meta={"step": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001", "000010", "000011", "best7", "mine"]
    # Resumed from 10: 11 is of a future that was given up, and 10 must outlive it until the pointer moves.
    save_state(tmp_path / "000010", {}, meta={"step": 10})
    save_state(tmp_path / "000011", {}, meta={"step": 11})
    save_state(tmp_path / "000012", {}, meta={"step": 12})
    assert sorted(path.name for path in tmp_path.glob("00001?")) == ["000011", "000012"]


def test_a_failed_save_leaves_the_old_state_and_nothing_else(tmp_path, monkeypatch):
    save_state(tmp_path / "1", {"x": torch.zeros(1)}, meta={})

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stablediag.store.state.save_file", no_space)
    for name in ("1", "2"):
        with pytest.raises(StoreError, match=r"the state cannot be saved: .*No space left"):
            save_state(tmp_path / name, {"x": torch.ones(1)}, meta={})
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert load_state(tmp_path / "1")[0]["x"].item() == 0.0


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, monkeypatch):
    save_state(tmp_path / "1", {}, meta={"n": 1})
    real = os.rename

    def die_at_the_second(source, target):
        if str(source).endswith(".tmp"):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr("stablediag.store.state.os.rename", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path / "1", {}, meta={"n": 2})
    assert not (tmp_path / "1").exists()
    assert load_state(tmp_path / "1")[1] == {"n": 1}
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path / "1", {}, meta={"n": 3})
    assert load_state(tmp_path / "1")[1] == {"n": 1}
    monkeypatch.undo()
    save_state(tmp_path / "1", {}, meta={"n": 4})
    assert load_state(tmp_path / "1")[1] == {"n": 4}
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_save_that_was_killed_is_swept_up(tmp_path):
    for leftover in (".2.tmp", ".2.old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "tensors.safetensors").write_bytes(b"half")
    save_state(tmp_path / "2", {}, meta={})
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


@pytest.mark.parametrize(
    ("saved", "meta", "message"),
    [
        ({"x": torch.zeros(1)}, {"a": object()}, "meta data cannot be written as JSON"),
        ({"__metadata__": torch.zeros(1)}, {}, '"__metadata__" cannot be stored'),
        ({"x": torch.eye(2).to_sparse()}, {}, '"x" cannot be stored'),
        ({"x": [1.0]}, {}, '"x" cannot be stored'),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path, saved, meta, message):
    with pytest.raises(StoreError, match=message):
        save_state(tmp_path / "1", saved, meta=meta)
    assert not (tmp_path / "1").exists()


def test_damage_is_one_line(tmp_path):
    folder = save_state(tmp_path / "1", {"x": torch.arange(100)}, meta={})
    data, meta = folder / "tensors.safetensors", folder / "state.json"
    whole, described = data.read_bytes(), json.loads(meta.read_text())

    def refused() -> str:
        with pytest.raises(StoreError) as caught:
            load_state(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    for content in (whole[:50], b"", whole[:-1] + b"x"):
        data.write_bytes(content)
        assert "content differs from what was written" in refused()
    data.write_bytes(whole)
    meta.write_text(json.dumps(described | {"format": 2}))
    assert "state format 2 is not 1" in refused()
    for text in ("{", "[]", "{}"):
        meta.write_text(text)
        assert "the state cannot be read" in refused()
    meta.unlink()
    assert "no state here" in refused()
    with pytest.raises(StoreError, match="no state here"):
        load_state(tmp_path / "none")


def test_a_run_verifies_its_checkpoint(tmp_path):
    info = RunInfo({}, "0", {}, {}, "cpu", {}, {}, {}, "2026-01-01")
    with Run.create(tmp_path / "r", info=info, columns={}, keys={"steps": ["step"]}) as writer:
        state = save_state(tmp_path / "r" / "state" / "000001", {"x": torch.zeros(3)}, meta={})
        with writer.transaction(1) as t:
            t.checkpoint(1, state)
            t.array("x", 1, np.zeros(1))
    run = Run.open(tmp_path / "r")
    assert run.checkpoint == (1, state)
    assert run.verify() == []
    (state / "tensors.safetensors").write_bytes(b"x")
    assert "content differs" in run.verify()[0]
