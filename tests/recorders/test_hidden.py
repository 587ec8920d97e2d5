from __future__ import annotations

import numpy as np
import pytest

from stablediag.errors import DataError
from stablediag.evaluation.metrics import hidden_states
from stablediag.recorders.base import RunView, SnapshotView
from stablediag.recorders.conformance import check_recorder
from stablediag.recorders.hidden import HiddenStates

PROMPTS = ("w1 w2 w3", "w4", "w5 w6 w7 w8")


def test_conformance(loaded):
    items = check_recorder(HiddenStates(prompts=PROMPTS), loaded=loaded)
    assert [(item.name, item.step) for item in items] == [("hidden", -1), ("hidden", 2), ("hidden", 5)]


def test_the_arrays_are_the_hidden_states(loaded, view):
    recorder = HiddenStates(prompts=PROMPTS, token_budget=5)
    (array,) = recorder.on_run_start(RunView(-1, 10, view, []))
    assert (array.name, array.step, array.data.dtype) == ("hidden", -1, np.float32)
    np.testing.assert_allclose(array.data, hidden_states(loaded.model, loaded.tokenizer, PROMPTS), atol=1e-5)
    for snapshot, step, expected in ((True, 4, 1), (False, 4, 0), (True, -1, 0)):
        moment = SnapshotView(step, 10, True, snapshot, (), (), view)
        assert len(list(recorder.on_snapshot(moment))) == expected


def test_without_prompts_it_says_so(view):
    with pytest.raises(DataError, match="at least one prompt"):
        list(HiddenStates().on_run_start(RunView(-1, 10, view, [])))
