"""The thread count inside and after a factorisation."""

from __future__ import annotations

import pytest
import torch

from stablediag.maths._threads import single_thread


def test_single_thread_restores_the_count():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with single_thread(torch.device("cpu")):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(KeyError), single_thread(torch.device("cpu")):
            raise KeyError
        assert torch.get_num_threads() == 2
        with single_thread(torch.device("cuda")):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
