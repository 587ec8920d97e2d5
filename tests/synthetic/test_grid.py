"""Grids: equal numbers for any number of processes, cached by what they depend on, never a broken file."""

from __future__ import annotations

import numpy as np
import pytest

from stablediag.errors import StoreError
from synthetic import grid
from synthetic.claims import Scale
from synthetic.claims.nas import CLAIMS
from synthetic.grid import Cell, derive_seed, run_cells

CALLS: list[int] = []


def square(*, seed: int, x: float) -> dict[str, object]:
    """A cell's function."""
    CALLS.append(seed)
    return {"square": x * x, "noise": np.random.default_rng(seed).standard_normal(3)}


def broken(*, seed: int) -> dict[str, object]:
    """A cell's function that fails."""
    raise RuntimeError(f"cell {seed}")


@pytest.fixture
def cells(monkeypatch) -> list[Cell]:
    import sys

    monkeypatch.setitem(sys.modules, "cells_of_a_test", sys.modules[__name__])
    CALLS.clear()
    return [Cell("cells_of_a_test:square", {"x": float(x)}, derive_seed(0, x), cost=x) for x in range(4)]


def test_results_come_in_the_order_of_the_cells(cells):
    found = run_cells(cells)
    assert [one.number("square") for one in found] == [0, 1, 4, 9]
    assert [cell.seed for cell in reversed(cells)] == CALLS  # the long ones first


def test_cached_cells_are_not_computed_again(cells, tmp_path):
    first = run_cells(cells[:3], cache_dir=tmp_path)
    CALLS.clear()
    second = run_cells(cells, cache_dir=tmp_path)
    assert [cells[3].seed] == CALLS
    for one, other in zip(first, second, strict=False):
        np.testing.assert_array_equal(one["noise"], other["noise"])
        assert one.seconds == other.seconds
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut short"])
def test_a_damaged_cache_file_is_computed_again(cells, tmp_path, damage):
    run_cells(cells[:1], cache_dir=tmp_path)
    next(tmp_path.glob("*.npz")).write_bytes(damage)
    assert run_cells(cells[:1], cache_dir=tmp_path)[0].number("square") == 0
    assert len(CALLS) == 2


def test_a_cache_that_is_no_folder_is_refused_before_any_work(cells, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cache: no folder .*file"):
        run_cells(cells, cache_dir=tmp_path / "file")
    assert CALLS == []


def test_equal_cells_are_computed_once(cells):
    found = run_cells([cells[1], cells[2], cells[1]])
    assert len(CALLS) == 2
    np.testing.assert_array_equal(found[0]["noise"], found[2]["noise"])


def test_the_digest_sees_function_parameters_seed_and_code(cells, monkeypatch):
    cell = cells[0]
    digests = {cell.digest(), Cell(cell.function, {"x": 0.5}, cell.seed).digest()}
    digests |= {
        Cell(cell.function, cell.params, 1).digest(),
        Cell("cells_of_a_test:broken", cell.params, cell.seed).digest(),
    }
    assert Cell(cell.function, cell.params, cell.seed, cost=9.0).digest() in digests
    assert len(digests) == 4
    monkeypatch.setattr(grid, "_code", lambda module: "edited")
    assert cell.digest() not in digests


def test_an_error_in_a_cell_is_not_swallowed(cells):
    with pytest.raises(RuntimeError, match="cell 5"):
        run_cells([Cell("cells_of_a_test:broken", {}, 5)])


def test_processes_change_nothing():
    cells = CLAIMS[0].cells(Scale(quick=True))[:2]
    assert cells
    for one, other in zip(run_cells(cells), run_cells(cells, jobs=2), strict=True):
        for name in one.values:
            np.testing.assert_array_equal(one[name], other[name])


def test_seeds_differ_by_every_label():
    seeds = {derive_seed(base, *labels) for base in (0, 1) for labels in ((), ("a",), ("a", 1), ("a1",), (1, "a"))}
    assert len(seeds) == 10
    assert all(0 <= seed < 2**63 for seed in seeds)
