"""The state of testbed runs on disk, and making those that are missing, unfinished or out of date."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from figures import editors_inputs
from figures.needs import Need
from stablediag.data.load import dataset_info, load_stream
from stablediag.engine.prepare import named_files
from stablediag.engine.provenance import ENGINE_VERSION
from stablediag.errors import StoreError
from stablediag.model_files import check_folder, sha256
from stablediag.recorders.registry import build_recorders
from stablediag.spec import DataSpec, Spec
from stablediag.store.run import Run
from stablediag.testbed import WEIGHTS

State = Literal["ok", "missing", "unfinished", "stale", "broken", "live"]


@dataclass(frozen=True)
class Status:
    """What is on disk where a run should be, and why it cannot be used as it is."""

    state: State
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of one run that had to be made."""

    need: Need
    seconds: float
    error: str | None


def status(need: Need, root: Path) -> Status:
    """Compare a run directory with what its spec, the code, the model and the data would give now."""
    path = root / need.directory
    if not path.exists() or not any(path.iterdir()):
        return Status("missing")
    try:
        run = Run.open(path)
        state, live = run.state, run.live
    except StoreError as error:
        return Status("broken", str(error))
    if live:
        return Status("live", f"{path} is being written by another process")
    difference = _difference(run, need)
    if difference:
        return Status("stale", difference)
    if state != "complete":
        return Status("broken" if state == "broken" else "unfinished")
    return Status("ok")


def _difference(run: Run, need: Need) -> str:
    """The first thing in which a run's provenance is not today's; empty when there is none."""
    versions = run.info.versions
    if run.info.digest != need.digest:
        return "spec digest"
    if versions.get("engine") != str(ENGINE_VERSION):
        return f"engine version {versions.get('engine')}, now {ENGINE_VERSION}"
    for recorder in build_recorders(need.spec, ()):
        if versions.get(f"recorder:{recorder.name}") != str(recorder.version):
            return (
                f"recorder {recorder.name}, version {versions.get(f'recorder:{recorder.name}')}, now {recorder.version}"
            )
    weights = _weights(need.spec.model.path)
    if weights is not None and run.info.model.get("sha256") != weights:
        return "model weights"
    for split, data in _streams(need.spec).items():
        if run.info.dataset.get(split, {}).get("sha256") != _stream_hash(data.model_dump_json(), split):
            return f"{split} stream"
    for kind in ("moments", "network"):
        held = run.info.dataset.get(kind)
        if held is not None and _digests(kind, held["path"]) not in (None, held["sha256"]):
            return f"{kind} file {held['path']}"
    return ""


def _digests(kind: str, path: str) -> dict[str, str] | None:
    """Digests of a named file or folder as it is now; None where it is gone, since what it was may still be made again."""
    found = named_files(SimpleNamespace(**{kind: path}), False).get(kind)
    return None if found is None else found["sha256"]


def _streams(spec: Spec) -> dict[Literal["target", "warmup"], DataSpec]:
    found: dict[Literal["target", "warmup"], DataSpec] = {"target": spec.data}
    if spec.warmup_data is not None:
        found["warmup"] = spec.warmup_data
    return found


@cache
def _stream_hash(data: str, split: Literal["target", "warmup"]) -> str:
    parsed = DataSpec.model_validate_json(data)
    return str(dataset_info(parsed, load_stream(parsed, split=split))["sha256"])


@cache
def _weights(path: str) -> dict[str, str | None] | None:
    folder = WEIGHTS if path == "testbed" else Path(path)
    return {file.name: sha256(file) for file in check_folder(folder)} if folder.is_dir() else None


def fingerprint(need: Need, root: Path) -> str:
    """SHA-256 of a complete run's tables and arrays (the database holds the arrays' digests)."""
    with open(root / need.directory / "run.sqlite", "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def make(needs: Sequence[Need], root: Path, *, jobs: int, report: Callable[[str], None] = print) -> dict[str, Outcome]:
    """Make or finish runs, those first that others build on, the longest first among equals.

    Parameters
    ----------
    needs : sequence of Need
        Runs whose state is not "ok".
    root : Path
        Folder of the run directories.
    jobs : int
        Processes at a time; every run computes on the threads that its spec names.
    report : callable
        Receives one line per finished run.

    Returns
    -------
    dict of str to Outcome
        By directory name. A run that fails fails alone, and those that build on it after it. A run whose inputs cannot be
        made fails with their error.
    """
    done: dict[str, Outcome] = {}
    lacking = editors_inputs.prepare(needs, report)
    for level in _levels(needs):
        able = [need for need in level if need.directory not in lacking]
        refused = [Outcome(n, 0.0, one_line(lacking[n.directory])) for n in level if n.directory in lacking]
        for outcome in chain(refused, _shared(able, root, jobs), _alone(able, root, jobs)):
            done[outcome.need.directory] = outcome
            end = f"{outcome.seconds:.1f} s" if outcome.error is None else f"failed: {outcome.error}"
            report(f"[{len(done)}/{len(needs)}] {outcome.need.label}: {end}")
    return done


def _levels(needs: Sequence[Need]) -> Iterator[list[Need]]:
    """Runs that build on none of the rest, then those that build on these, and so on."""
    waiting = {need.directory: need for need in needs}
    while waiting:
        ready = [need for need in waiting.values() if not any(directory in waiting for directory in need.after)]
        for need in ready:
            del waiting[need.directory]
        yield sorted(ready, key=_edits, reverse=True)


def _edits(need: Need) -> int:
    return need.spec.data.size + need.spec.warmup.size


def _shared(every: Sequence[Need], root: Path, jobs: int) -> Iterator[Outcome]:
    """Runs that may follow each other in one process."""
    needs = [need for need in every if not need.alone]
    if jobs == 1 or len(needs) <= 1:
        yield from (_make_one(need, root) for need in needs)
        return
    from joblib import Parallel, delayed

    _quiet_threads()
    parallel = Parallel(
        n_jobs=min(jobs, len(needs)), backend="loky", return_as="generator_unordered", pre_dispatch="all", batch_size=1
    )
    yield from parallel(delayed(_make_one)(need, root) for need in needs)


def _alone(every: Sequence[Need], root: Path, jobs: int) -> Iterator[Outcome]:
    """Runs that need a fresh process each.

    A process that is killed takes its pool with it, and all runs that wait there. These are made again, or resumed, one at a
    time in a pool of its own each, so that only a run that breaks its own process fails.
    """
    needs = [need for need in every if need.alone]
    if not needs:
        return
    _quiet_threads()
    again = []
    for need, outcome in _in_a_pool(needs, root, jobs):
        if outcome is None:
            again.append(need)
        else:
            yield outcome
    for need in again:
        for _, outcome in _in_a_pool([need], root, 1):
            yield outcome or Outcome(need, 0.0, "BrokenProcessPool: the process of this run was killed, twice")


def _in_a_pool(needs: Sequence[Need], root: Path, jobs: int) -> Iterator[tuple[Need, Outcome | None]]:
    """Outcomes of runs in a pool of their own; None for those that are not done because a process of it was killed."""
    with ProcessPoolExecutor(
        max_workers=min(jobs, len(needs)), mp_context=get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        waiting = {pool.submit(_make_one, need, root): need for need in needs}
        for future in as_completed(waiting):
            error = future.exception()
            if error is None:
                yield waiting[future], future.result()
            elif isinstance(error, BrokenProcessPool):
                yield waiting[future], None
            else:
                yield waiting[future], Outcome(waiting[future], 0.0, one_line(error))


def _quiet_threads() -> None:
    """Workers inherit the environment: one thread of linear algebra each, and threads that sleep while they wait."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _make_one(need: Need, root: Path) -> Outcome:
    """Resume an unfinished run; put anything else that is there aside, and run afresh."""
    from stablediag.engine.session import resume, run

    began = time.perf_counter()
    path = root / need.directory
    try:
        found = status(need, root)
        if found.state == "live":
            raise StoreError(f"{found.reason}: wait for it, or stop it")
        if found.state == "unfinished":
            try:
                resume(path, progress=False)
                return Outcome(need, time.perf_counter() - began, None)
            except Exception:
                _put_aside(path)
        elif found.state != "missing":
            _put_aside(path)
        run(need.spec, path, progress=False)
    except Exception as error:
        return Outcome(need, time.perf_counter() - began, one_line(error))
    return Outcome(need, time.perf_counter() - began, None)


def _put_aside(path: Path) -> None:
    """Keep the last run that could not be used, under a name that no digest has."""
    aside = path.with_name(f"{path.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def one_line(error: BaseException) -> str:
    """Kind, text and place of an exception on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    where = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(where[-1].filename).name}:{where[-1].lineno})" if where else ""
    return f"{type(error).__name__}: {text}{place}"


def describe(need: Need) -> Mapping[str, Any]:
    """A need as JSON values, for sidecars and listings."""
    return {"arm": need.arm, "setting": need.setting, "seed": need.seed, "digest": need.digest, "run": need.directory}


def canonical(values: Any) -> str:
    """JSON with sorted keys: equal values, equal text."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"))
