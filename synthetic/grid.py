"""Monte-Carlo grids: independent cells, spread over processes by joblib, cached by the digest of the cell.

A cell is a function by name, its JSON parameters and its seed. Its digest also covers the code that computes it (the
function's file and all that it imports from here) and the versions of the numerical packages: a cached number is never
older than the code. Cache files are npz without pickles, moved into place when complete.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import os
import time
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from tqdm import tqdm

from stablediag.errors import StoreError

_SECONDS = "__seconds__"
_PACKAGES = {"stablediag", "synthetic", "figures"}


@dataclass(frozen=True)
class Cell:
    """One independent piece of work.

    Attributes
    ----------
    function : str
        ``package.module:function``; called as ``function(seed=seed, **params)``, it returns numbers and arrays by name.
    params : mapping
        JSON values.
    seed : int
        From `derive_seed`, so that no two cells share their random numbers.
    cost : float
        Rough seconds, only to start long cells first.
    """

    function: str
    params: Mapping[str, Any]
    seed: int
    cost: float = field(default=1.0, compare=False)

    def digest(self) -> str:
        """SHA-256 of function, parameters, seed, code and package versions."""
        plain = json.dumps([self.function, self.params, self.seed], sort_keys=True, allow_nan=False)
        return hashlib.sha256((plain + _code(self.function.partition(":")[0])).encode()).hexdigest()


@dataclass(frozen=True)
class Result:
    """What a cell returned, by name, and the seconds it took when it was computed."""

    values: Mapping[str, NDArray[Any]]
    seconds: float

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.values[name]

    def number(self, name: str) -> float:
        """A scalar by name."""
        return float(self.values[name])


def derive_seed(base: int, *labels: object) -> int:
    """An independent 63-bit seed for every list of labels."""
    text = json.dumps([base, *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def run_cells(
    cells: Sequence[Cell], *, jobs: int = 1, cache_dir: Path | None = None, progress: bool = False
) -> list[Result]:
    """Compute cells, or read them from the cache.

    Parameters
    ----------
    cells : sequence of Cell
    jobs : int, optional
        Processes; one computes here. Each works on one thread, so the numbers do not depend on `jobs`.
    cache_dir : Path, optional
        Folder of the cached results; None keeps nothing. A finished cell is stored at once, so an interrupted grid
        continues where it stopped.
    progress : bool, optional
        A progress bar on stderr.

    Returns
    -------
    list of Result
        In the order of `cells`.

    Raises
    ------
    StoreError
        The folder cannot be made.
    """
    if cache_dir is not None:
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cache: no folder {cache_dir} ({error.strerror}); name another one") from error
    unique: dict[str, int] = {}
    keys = [cell.digest() for cell in cells]
    results: list[Result | None] = [None] * len(cells)
    for i, key in enumerate(keys):
        results[i] = _load(cache_dir, key)
        if results[i] is None:
            unique.setdefault(key, i)
    todo = sorted(unique.values(), key=lambda i: -cells[i].cost)
    bar = tqdm(total=len(cells), initial=len(cells) - len(todo), disable=not progress, unit="cell")
    with bar:
        for i, result in zip(todo, _compute([cells[i] for i in todo], jobs, cache_dir), strict=True):
            results[i] = result
            bar.update()
    return [one if one is not None else _of(results, unique[key]) for one, key in zip(results, keys, strict=True)]


def _of(results: Sequence[Result | None], index: int) -> Result:
    """The result of a twin of this cell."""
    result = results[index]
    assert result is not None  # every unique cell has been computed
    return result


def _compute(cells: Sequence[Cell], jobs: int, cache_dir: Path | None) -> Iterator[Result]:
    if jobs == 1 or len(cells) < 2:
        threads = torch.get_num_threads()
        try:
            for cell in cells:
                yield _one(cell, cache_dir)
        finally:
            torch.set_num_threads(threads)
        return
    with warnings.catch_warnings():
        # A worker whose memory has grown is replaced, and nothing is lost: no news for the user.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given to the executor")
        yield from Parallel(n_jobs=jobs, return_as="generator")(delayed(_one)(cell, cache_dir) for cell in cells)


def _one(cell: Cell, cache_dir: Path | None) -> Result:
    """Compute a cell on one thread and store it."""
    torch.set_num_threads(1)
    module, _, name = cell.function.partition(":")
    began = time.perf_counter()
    values = getattr(importlib.import_module(module), name)(seed=cell.seed, **cell.params)
    result = Result({key: np.asarray(value) for key, value in values.items()}, time.perf_counter() - began)
    if cache_dir is not None:
        _store(cache_dir, cell.digest(), result)
    return result


def _load(cache_dir: Path | None, key: str) -> Result | None:
    """A cached result; None when there is none that can be read."""
    if cache_dir is None:
        return None
    try:
        with np.load(cache_dir / f"{key}.npz", allow_pickle=False) as stored:
            values = dict(stored)
        return Result(values, float(values.pop(_SECONDS)))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _store(cache_dir: Path, key: str, result: Result) -> None:
    temporary = cache_dir / f".{key}.{os.getpid()}.tmp"
    with temporary.open("wb") as file:
        arrays: dict[str, Any] = {_SECONDS: np.float64(result.seconds), **result.values}
        np.savez(file, allow_pickle=False, **arrays)
    temporary.replace(cache_dir / f"{key}.npz")


@cache
def _code(module: str) -> str:
    """Digest of what a cell's number depends on besides its parameters."""
    digest = hashlib.sha256()
    for name, file in sorted(_sources(module).items()):
        digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    digest.update(" ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "torch")).encode())
    return digest.hexdigest()


def _sources(module: str) -> dict[str, Path]:
    """Files of a module and of every module of these packages that it imports, directly or not."""
    found: dict[str, Path] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        if name in found or name.partition(".")[0] not in _PACKAGES | {module.partition(".")[0]}:
            continue
        try:
            spec = find_spec(name)
        except ModuleNotFoundError:  # a name inside a module, not a module
            continue
        if spec is None or spec.origin is None:
            continue
        found[name] = Path(spec.origin)
        for node in ast.walk(ast.parse(found[name].read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                queue += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                queue += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found
