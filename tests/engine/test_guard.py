import pytest
import torch

from stablediag.engine.guard import guard
from stablediag.errors import NumericalError
from stablediag.types import Capture, Edit, EditBatch

BATCH = EditBatch(7, "target", tuple(Edit(f"e{i}", "p", "t") for i in range(3)))


def captures(bad=()):
    made = {}
    for name in ("a", "b"):
        grads = torch.ones(6, 2)
        for module, row, value in bad:
            if module == name:
                grads[row, 1] = value
        made[name] = Capture(
            name, torch.arange(12.0).reshape(6, 2), grads, torch.arange(6) // 2, torch.zeros(6, dtype=torch.int64),
            torch.zeros(6, dtype=torch.int64), torch.ones(6), torch.ones(6, 2), 1.0,
        )  # fmt: skip
    return made


@pytest.mark.parametrize("policy", ["raise", "drop", "skip"])
def test_finite_rows_pass_untouched(policy):
    given = captures()
    got = guard(given, BATCH, policy=policy)
    assert got.skipped is None
    assert all(got.captures[name] is given[name] for name in given)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_raise_names_step_module_and_edit(value):
    with pytest.raises(NumericalError, match="step 7, module b, edit 'e1'"):
        guard(captures([("b", 3, value)]), BATCH, policy="raise")


def test_drop_takes_the_row_out_of_every_module():
    got = guard(captures([("b", 3, float("nan")), ("a", 0, float("inf"))]), BATCH, policy="drop")
    assert got.dropped_rows == 2
    for capture in got.captures.values():
        assert capture.keys[:, 0].tolist() == [2, 4, 8, 10]
        assert capture.edit_ids.tolist() == [0, 1, 2, 2]
        assert capture.outputs.shape == (4, 2)
        assert torch.isfinite(capture.grads).all()


def test_skip_and_a_step_without_finite_rows():
    assert "edit 'e1'" in guard(captures([("b", 3, float("nan"))]), BATCH, policy="skip").skipped
    every = captures([("a", row, float("nan")) for row in range(6)])
    assert guard(every, BATCH, policy="drop").skipped == "every row non-finite at step 7"
