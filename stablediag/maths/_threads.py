"""One thread for LAPACK on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def single_thread(device: torch.device) -> Iterator[None]:
    """Run CPU factorisations on one thread, and restore the thread count afterwards.

    A symmetric eigendecomposition gains nothing from more threads at the sizes met here and its last digits
    depend on their number, so one thread is both as fast and reproducible. On other devices nothing happens.

    Parameters
    ----------
    device : torch.device
        Where the factorisation runs.
    """
    before = torch.get_num_threads()
    if device.type != "cpu" or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
