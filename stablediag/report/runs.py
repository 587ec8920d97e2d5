"""What a report takes from a run: every table read once, the doctor's answer, and what is missing, in one line each."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from stablediag.errors import SpecError, StoreError
from stablediag.stats.doctor import diagnose
from stablediag.store.run import Run
from stablediag.types import RunInfo

#: runs that can be told apart in one figure
MOST_RUNS = 12


class Tables:
    """Tables of one run, each read once with every column that the report will want of it.

    Parameters
    ----------
    run : Run
    columns : mapping of str to sequence of str
        By table, what is read beside the columns that somebody asks for.

    Attributes
    ----------
    info : RunInfo
    damaged : list of str
        Tables that are there and cannot be read, one line each.
    """

    def __init__(self, run: Run, columns: Mapping[str, Sequence[str]]) -> None:
        self.info: RunInfo = run.info
        self.names: list[str] = run.tables()
        self.damaged: list[str] = []
        self._run = run
        self._columns = columns
        self._read: dict[str, pd.DataFrame] = {}
        self._asked: dict[str, set[str]] = {}

    def select(self, name: str, columns: Sequence[str]) -> pd.DataFrame:
        """Some columns of a table, those that it lacks left out; TEXT as categories.

        Raises
        ------
        StoreError
            There is no such table, or it cannot be read.
        """
        asked = self._asked.setdefault(name, set(self._columns.get(name, ())))
        if name not in self._read or not asked.issuperset(columns):
            asked.update(columns)
            if name not in self.names or any(line.startswith(f"table {name}:") for line in self.damaged):
                raise StoreError(f'{self._run.path}: no table "{name}"')
            try:
                self._read[name] = self._run.select(name, sorted(asked))
            except StoreError as error:
                self.damaged.append(f"table {name}: cannot be read, and is left out ({error})")
                raise
        frame = self._read[name]
        return frame[[column for column in dict.fromkeys(columns) if column in frame]]

    def table(self, name: str) -> pd.DataFrame:
        """The columns of a table that the report wants."""
        return self.select(name, tuple(self._columns.get(name, ())))

    def found(self, name: str) -> pd.DataFrame:
        """The same, empty where there is none."""
        try:
            return self.table(name)
        except StoreError:
            return pd.DataFrame()


@dataclass(frozen=True)
class Read:
    """A run as the report shows it.

    Attributes
    ----------
    letter : str
        "A", "B", ... in a report on several runs, else empty.
    name : str
        The name that its spec gives it.
    run : Run
    tables : Tables
    state : str
        complete, running, broken.
    diagnosis : DataFrame
        From `stablediag.stats.doctor.diagnose`; empty where the doctor could not read the run.
    notes : tuple of str
        What is missing or must be known about it, one line each.
    """

    letter: str
    name: str
    run: Run
    tables: Tables = field(repr=False)
    state: str
    diagnosis: pd.DataFrame = field(repr=False)
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        """Letter and name."""
        return f"{self.letter}: {self.name}" if self.letter else self.name

    def edits_at(self) -> pd.Series | None:
        """Edits written up to a step, warm-up included, by step (step -1: none); None where steps do not say."""
        steps = self.tables.found("steps")
        if not {"step", "edits"} <= set(steps) or not len(steps):
            return None
        told = steps.set_index("step")["edits"].fillna(0).cumsum()
        return pd.concat([pd.Series({-1: 0}), told])

    def warmup_edits(self) -> float | None:
        """Edits of a warm-up at the start of the run; None without one."""
        steps, edits = self.tables.found("steps"), self.edits_at()
        if edits is None or "phase" not in steps:
            return None
        later = steps.loc[steps["phase"] != "warmup", "step"]
        first = int(later.min()) if len(later) else int(steps["step"].max()) + 1
        end = float(edits[edits.index < first].max())
        return end if end > 0 else None


def read_runs(paths: Sequence[str | Path | Run], *, columns: Mapping[str, Sequence[str]]) -> list[Read]:
    """Read the runs of a report.

    Parameters
    ----------
    paths : sequence of path or Run
    columns : mapping of str to sequence of str
        Columns that the report wants, by table.

    Raises
    ------
    SpecError
        No run, one run twice, or more than `MOST_RUNS`.
    StoreError
        Not a run, or one whose database cannot be read.
    """
    runs = [one if isinstance(one, Run) else Run.open(one) for one in paths]
    if not runs:
        raise SpecError("report: no run; give one run directory or several")
    if len(runs) > MOST_RUNS:
        raise SpecError(f"report: {len(runs)} runs cannot be told apart in one figure; give at most {MOST_RUNS}")
    places = [run.path.resolve() for run in runs]
    for place, run in zip(places, runs, strict=True):
        if places.count(place) > 1:
            raise SpecError(f"report: {run.path} is given twice; give every run once")
    letters = [chr(ord("A") + i) for i in range(len(runs))] if len(runs) > 1 else [""]
    current = _current_versions()
    return [_read(run, letter, columns, current) for run, letter in zip(runs, letters, strict=True)]


def _read(run: Run, letter: str, columns: Mapping[str, Sequence[str]], current: Mapping[str, str]) -> Read:
    tables = Tables(run, columns)
    state, notes = run.state, []
    try:
        diagnosis = diagnose(tables)
    except StoreError as error:
        diagnosis = pd.DataFrame()
        notes.append(f"the doctor could not read the run: {error}")
    notes = [*_unfinished(run, state, tables), *notes, *_versions(run.info.versions, current), *tables.damaged]
    return Read(letter, str(run.spec.get("name") or run.path.name), run, tables, state, diagnosis, tuple(notes))


def _unfinished(run: Run, state: str, tables: Tables) -> list[str]:
    """Why a run is not complete, and how to go on."""
    if state == "complete":
        return []
    steps = len(tables.found("steps"))
    so_far = f"{steps} step{'' if steps == 1 else 's'} recorded"
    if state == "broken":
        journal = tables.found("journal")
        last = str(journal["text"].iloc[-1]).strip() if len(journal) and "text" in journal else ""
        return [f"given up (broken), {so_far}" + (f"; the journal's last entry: {last}" if last else "")]
    if run.live:
        return [f"being written, {so_far} when this report was made"]
    return [f"not finished, {so_far}: killed or interrupted; go on with `stablediag resume {run.path}`"]


def _versions(stored: Mapping[str, Any], current: Mapping[str, str]) -> list[str]:
    """Recorders and engine of another version than now: their numbers may mean something else."""
    other = [
        f"{name.removeprefix('recorder:')} {stored[name]} (now {now})"
        for name, now in current.items()
        if name in stored and str(stored[name]) != now
    ]
    if not other:
        return []
    return [f"recorded by other versions: {', '.join(other)}; a run made now may have other numbers"]


def _current_versions() -> dict[str, str]:
    """Versions of the engine and the recorders that are installed; without torch they cannot be asked."""
    if importlib.util.find_spec("torch") is None:
        return {}
    from stablediag.engine.provenance import ENGINE_VERSION
    from stablediag.recorders.registry import RECORDERS

    known = {f"recorder:{name}": str(cls.version) for name, cls in RECORDERS.items()}
    return {"engine": str(ENGINE_VERSION), **known}
