"""Runs of a spec and its variations: planned with stable directories, skipped where complete, resumed where not."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stablediag.data.load import load_stream
from stablediag.engine.prepare import resolve
from stablediag.engine.session import Session
from stablediag.errors import SpecError, StablediagError, StoreError
from stablediag.spec import TESTBED, Spec, load_many
from stablediag.spec.variations import (
    Catalogue,
    LeftOut,
    Variation,
    draws,
    value_at,
    with_changes,
    with_seed,
    without_references,
)
from stablediag.store.run import Run

#: seeds where none are asked for and another seed gives another stream
SEEDS = 3
State = Literal["new", "unfinished", "complete"]


@dataclass(frozen=True)
class Planned:
    """One run: a variation at a seed, its spec with editor parameters and directories written out, and its directory."""

    variation: Variation
    seed: int
    spec: Spec
    path: Path

    @property
    def state(self) -> State:
        """Whether the run is there, and complete.

        Raises
        ------
        StoreError
            The directory holds something else.
        """
        if not (self.path / "run.sqlite").exists():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise StoreError(f"{self.path} is not empty, and not a run: choose another --root")
            return "new"
        run = Run.open(self.path)
        if run.info.digest != self.spec.digest():
            raise StoreError(f"{self.path} holds a run of another spec: choose another --root")
        return "complete" if run.state == "complete" else "unfinished"


@dataclass(frozen=True)
class Outcome:
    """What became of a planned run: `error` is its one line, None where it is complete."""

    planned: Planned
    seconds: float
    error: str | None = None


def base_specs(path: Path, overrides: Sequence[str], seeds: int | None) -> list[Spec]:
    """The base at every seed, editor parameters written out.

    Parameters
    ----------
    path : Path
        A spec file or ``preset:ID``; a `vary` may list values of ``data.seed``, which are then the first seeds.
    overrides : sequence of str
        ``"data.size=500"``.
    seeds : int, optional
        Number of seeds. None: as many as `vary` lists, else 3 where another seed gives another stream and 1 where not.

    Raises
    ------
    SpecError
        Not an LN editor, a rate that is calibrated, a `vary` of something else, or more than one seed where nothing is drawn.
    """
    given = load_many(path, overrides)
    first = given[0].model_copy(update={"name": path.stem if len(given) > 1 else given[0].name})
    same = {one.model_copy(update={"data": one.data.model_copy(update={"seed": 0})}).digest() for one in given}
    if len(same) > 1:
        raise SpecError(f"{path}: vary may list data.seed alone here: fix the other varied keys with overrides")
    if seeds is not None and seeds < 1:
        raise SpecError(f"--seeds must be at least 1, not {seeds}")
    count = seeds or (len(given) if len(given) > 1 else SEEDS if draws(first) else 1)
    if count > 1 and not draws(first):
        raise SpecError(
            f"{path}: --seeds {count}, but data.seed draws nothing here: set data.shuffle=true (other records), "
            "data.arrange=permuted (another order), or use --seeds 1"
        )
    varied = [one.model_copy(update={"name": first.name}) for one in given] if len(given) > 1 else []
    # Those that vary does not list follow the largest that it does.
    beyond = max((one.data.seed for one in varied), default=first.data.seed - 1) + 1 - first.data.seed
    specs = varied[:count] + [with_seed(first, beyond + more) for more in range(count - len(varied))]
    return [_checked(resolve(spec)[0], path) for spec in specs]


def _checked(spec: Spec, path: Path) -> Spec:
    if spec.editor.name != "ln":
        raise SpecError(
            f"{path}: these are variations of Lifelong Normalization, and the editor is {spec.editor.name}: use ln"
        )
    if value_at(spec, "editor.params.lr") == "calibrate":
        raise SpecError(
            f"{path}: editor.params.lr is calibrate, which would find another rate for every variation: give a number "
            "(`stablediag run` records the rate that it found as an event, `stablediag show RUN` prints it)"
        )
    return spec


def plan(bases: Sequence[Spec], catalogue: Catalogue, root: Path) -> tuple[list[Planned], list[LeftOut]]:
    """Every variation at every seed, each after those that it builds on.

    Parameters
    ----------
    bases : sequence of Spec
        From `base_specs`.
    catalogue : Catalogue
    root : Path
        Folder of the run directories ``NAME-VARIATION-seedK-DIGEST``.

    Returns
    -------
    list of Planned
        Two variations of equal digests share one directory.
    list of LeftOut
        Variations that turn out to be the base itself.

    Raises
    ------
    SpecError
        A variation's spec is refused.
    """
    found: dict[tuple[str, int], Planned] = {}
    names: dict[str, str] = {}
    dropped: dict[str, LeftOut] = {}

    def made(name: str, place: int) -> Planned:
        if (name, place) not in found:
            variation, base = catalogue[name], bases[place]
            directories = {other: made(other, place).path.name for other in variation.builds_on}
            where = f"variation {name}"
            spec = with_changes(base, without_references(variation.changes, directories), where=where)
            spec = resolve(spec.model_copy(update={"name": f"{base.name}-{name}-seed{base.data.seed}"}))[0]
            digest = spec.digest()
            directory = names.setdefault(digest, f"{spec.name}-{digest[:8]}")
            found[name, place] = Planned(variation, base.data.seed, spec, root / directory)
        return found[name, place]

    for place in range(len(bases)):
        for name in catalogue.names:
            made(name, place)
    unchanged = {one.path for one in found.values() if one.variation.name == "base"}
    for (name, _), one in found.items():
        if name != "base" and one.path in unchanged:
            dropped[name] = LeftOut(name, one.variation.what, "the spec has it already")
    runs = [one for (name, _), one in found.items() if name not in dropped]
    overlap = _overlap(runs)
    return [one for one in runs if one.variation.name not in overlap], [*dropped.values(), *overlap.values()]


def _overlap(runs: Sequence[Planned]) -> dict[str, LeftOut]:
    """Carry-over of halves that share edits: streams of the testbed are drawn, and their length has a part in it."""
    halves = {(one.variation.name, one.seed): one.spec.data for one in runs}
    for (name, seed), data in halves.items():
        late = halves.get(("late", seed))
        if name != "early" or late is None or data.source != TESTBED:
            continue
        if {edit.id for edit in load_stream(data)} & {edit.id for edit in load_stream(late)}:
            reason = "at this length the testbed draws an early half that is not the beginning of the stream: change data.size"
            whats = {one.variation.name: one.variation.what for one in runs}
            return {n: LeftOut(n, whats[n], reason) for n in whats if n == "early" or n.startswith("late")}
    return {}


def carry_out(planned: Sequence[Planned], *, progress: bool = False) -> Iterator[Outcome]:
    """Make, resume or skip the runs, in their order.

    A run that fails fails alone, and those that build on it after it.

    Parameters
    ----------
    planned : sequence of Planned
        From `plan`.
    progress : bool
        Whether to draw each run's progress bar.

    Yields
    ------
    Outcome
        One for each planned run; of a shared directory one each.

    Raises
    ------
    StoreError
        A directory holds something else, before anything is run.
    """
    states = {one.path: one.state for one in planned}
    failed: dict[tuple[str, int], str] = {}
    done: set[Path] = {path for path, state in states.items() if state == "complete"}
    for one in planned:
        began = time.perf_counter()
        lost = next((name for name in one.variation.builds_on if (name, one.seed) in failed), None)
        error = None
        if lost is not None:
            error = f"the run of {lost} failed"
        elif one.path not in done:
            try:
                _make(one, states[one.path], progress)
                done.add(one.path)
            except StablediagError as trouble:
                error = " ".join(str(trouble).split())
        if error is not None:
            failed[one.variation.name, one.seed] = error
        yield Outcome(one, time.perf_counter() - began, error)


def _make(one: Planned, state: State, progress: bool) -> None:
    if state == "unfinished":
        Session.resume(one.path, progress=progress).run()
    else:
        Session.create(one.spec, one.path, progress=progress).run()
