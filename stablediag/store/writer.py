"""The only writer of a run: one transaction per step, so that what is read is always a whole number of steps."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from safetensors.numpy import save as save_arrays

from stablediag.errors import StoreError
from stablediag.store import _db
from stablediag.store._db import INTERNAL_TABLES
from stablediag.store._files import write_durably
from stablediag.store._schema import INTERNAL, OWN_TABLES, Keys, create_table, declared_tables, sql_value, typed_columns
from stablediag.types import RunInfo

FORMAT = "1"


class Transaction:
    """The rows, arrays, events and checkpoint pointer of one step; they reach the database together, or not at all."""

    def __init__(self, writer: RunWriter, step: int) -> None:
        self.step = step
        self._writer = writer
        self._rows: dict[tuple[str, tuple[Any, ...]], dict[str, Any]] = {}
        self._arrays: dict[tuple[str, int], tuple[str, str]] = {}
        self._events: list[tuple[str, str]] = []
        self._checkpoint: tuple[int, str] | None = None

    def row(self, table: str, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Add values to the row of `table` at `key`; several calls, and several steps, fill one wide row.

        Parameters
        ----------
        table : str
        key : Mapping
            Every key column; `step` may be left out and is then this transaction's.
        values : Mapping
            Column -> number, string or None. NaN is stored as NULL and read back as NaN; -0.0 becomes 0.0 (SQLite).

        Raises
        ------
        StoreError
            Unknown table or column, missing key, wrong type, or a value that contradicts an earlier one of this step.
        """
        columns = self._writer.columns_of(table)
        keys = _db.key_columns(columns)
        if "step" in keys and "step" not in key:
            key = {"step": self.step, **key}
        if set(key) != set(keys):
            raise StoreError(f'table "{table}": key is ({", ".join(keys)}), got ({", ".join(key)})')
        for name in values:
            if name not in columns or name in keys:
                known = ", ".join(column for column in columns if column not in keys)
                raise StoreError(f'table "{table}" has no column "{name}"; declared: {known}')
        place = (table, tuple(sql_value(key[name], columns[name][0], f"{table}.{name}") for name in keys))
        if None in place[1]:
            raise StoreError(f'table "{table}": a key cannot be missing or NaN: {dict(key)}')
        row = self._rows.setdefault(place, {})
        for name, value in values.items():
            stored = sql_value(value, columns[name][0], f"{table}.{name}")
            if name in row and row[name] != stored:
                found = f"given twice at {dict(key)}: {row[name]} and {stored}"
                raise StoreError(f'table "{table}": column "{name}" is {found}')
            row[name] = stored

    def array(self, name: str, step: int, data: np.ndarray) -> None:
        """Write one array to ``arrays/<name>-<step>.safetensors`` now, and register it when the transaction commits."""
        self._writer.refuse_registered(name, step)
        if (name, step) in self._arrays:
            raise StoreError(f'array "{name}" at step {step} is given twice in one transaction')
        self._arrays[name, step] = self._writer.write_array(name, step, data)

    def event(self, kind: str, text: str) -> None:
        """Add a row to the table `events`, numbered in the order of the step."""
        self._events.append((kind, text))

    def checkpoint(self, step: int, folder: str | Path) -> None:
        """Point to a state that has been written completely; relative to the run's folder when inside it."""
        path = Path(folder)
        root = self._writer.path
        if path.is_absolute() or not (root / path).exists():
            path = path.resolve()
            path = path.relative_to(root.resolve()) if path.is_relative_to(root.resolve()) else path
        if not (root / path).is_dir():
            raise StoreError(f"{folder}: no such state folder; save the state before pointing to it")
        self._checkpoint = (step, path.as_posix())


class RunWriter:
    """Writes one run. Made by :meth:`stablediag.store.run.Run.create` and :meth:`~stablediag.store.run.Run.resume`.

    It holds the run's lock until :meth:`finish` or :meth:`close`; it is a context manager that closes.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: _db.Lock) -> None:
        self.path = path
        self._connection = connection
        self._lock = lock
        self._open = True
        self._tables = {name: _db.table_columns(connection, name) for name in _db.table_names(connection)}

    @classmethod
    def create(
        cls, path: str | Path, *, info: RunInfo, columns: Mapping[str, Mapping[str, str]], keys: Keys
    ) -> RunWriter:
        """See :meth:`stablediag.store.run.Run.create`."""
        folder = Path(path)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            advice = "resume it or choose another" if (folder / _db.DATABASE).exists() else "choose another or empty it"
            raise StoreError(f"{folder}: not an empty directory; {advice}")
        names = declared_tables(columns, keys)
        described = asdict(info)
        created = described.pop("created")
        text = _json(described, "info")
        statements = [create_table(name, *typed_columns(name, columns, keys)) for name in names]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _db.Lock(folder)
        except OSError as error:
            raise StoreError(f"{folder}: cannot be created: {error.strerror}") from None
        try:
            (folder / _db.ARRAYS).mkdir()
            connection = _db.connect(folder, mode="rwc")
            connection.execute(f"PRAGMA journal_mode={_db.journal_mode(folder)}")
            with _committing(connection, full=True):
                for statement in (*INTERNAL, *statements):
                    connection.execute(statement)
                rows = {"format": FORMAT, "state": "running", "info": text}
                connection.executemany("INSERT INTO meta VALUES (?, ?)", rows.items())
                connection.execute("INSERT INTO journal (time, kind, text) VALUES (?, 'started', '')", (created,))
            return cls(folder, connection, lock)
        except (OSError, sqlite3.Error) as error:
            # What is left of a run that never was would stand in the way of the next attempt.
            shutil.rmtree(folder / _db.ARRAYS, ignore_errors=True)
            for file in folder.glob(f"{_db.DATABASE}*"):
                file.unlink(missing_ok=True)
            (folder / _db.LOCK).unlink(missing_ok=True)
            lock.release()
            raise StoreError(f"{folder}: the run cannot be created: {_db.one_line(error)}") from None

    @classmethod
    def resume(cls, path: str | Path) -> RunWriter:
        """See :meth:`stablediag.store.run.Run.resume`."""
        folder = Path(path)
        if not (folder / _db.DATABASE).is_file():
            raise StoreError(f"{folder}: not a run (no {_db.DATABASE}); check the path")
        lock = _db.Lock(folder)
        try:
            connection = _db.connect(folder, mode="rw")
            if _db.meta(connection).get("state") == "complete":
                connection.close()
                raise StoreError(f"{folder}: the run is complete; there is nothing to resume")
            # The run may have been moved since it was created.
            connection.execute(f"PRAGMA journal_mode={_db.journal_mode(folder)}")
            (folder / _db.ARRAYS).mkdir(exist_ok=True)
            writer = cls(folder, connection, lock)
            writer._remove_orphans()
            with writer._writing():
                writer._append_journal("resumed", "")
                connection.execute("UPDATE meta SET value = 'running' WHERE key = 'state'")
            return writer
        except sqlite3.Error as error:
            lock.release()
            raise StoreError(f"{folder / _db.DATABASE}: cannot be written: {_db.one_line(error)}") from None
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextmanager
    def transaction(self, step: int) -> Iterator[Transaction]:
        """Collect what a step leaves and commit it when the block ends; an exception in the block leaves no trace."""
        self._check_open()
        pending = Transaction(self, step)
        try:
            yield pending
            self._commit(pending)
        except BaseException:
            for file, _ in pending._arrays.values():
                (self.path / file).unlink(missing_ok=True)
            raise

    def journal(self, kind: str, text: str = "") -> None:
        """Append a row with the time (UTC, ISO 8601) to the table `journal`: started, resumed, interrupted, ..."""
        self._check_open()
        with self._writing():
            self._append_journal(kind, text)

    def truncate_after(self, step: int) -> None:
        """Forget everything past `step`: rows of every table with a column `step`, and arrays with their files.

        A row of an earlier step that a later one has added to keeps the addition until that step is done again.
        """
        self._check_open()
        with self._writing(full=True):
            for table, columns in self._tables.items():
                if "step" in columns and table not in INTERNAL_TABLES:
                    self._connection.execute(f"DELETE FROM {_db.quoted(table)} WHERE step > ?", (step,))
            self._connection.execute("DELETE FROM checkpoint WHERE step > ?", (step,))
        self._remove_orphans()

    def checkpoint(self) -> tuple[int, Path] | None:
        """Step and folder of the last committed checkpoint."""
        row = self._connection.execute("SELECT step, folder FROM checkpoint").fetchone()
        return (row[0], self.path / row[1]) if row else None

    def finish(self, state: Literal["complete", "interrupted", "broken"] = "complete") -> None:
        """Write the run's last word and let go of it. An interrupted run can be resumed; the others cannot go on."""
        self._check_open()
        with self._writing(full=True):
            self._append_journal("finished" if state == "complete" else state, "")
            stored = "running" if state == "interrupted" else state
            self._connection.execute("UPDATE meta SET value = ? WHERE key = 'state'", (stored,))
        if state == "complete":
            # One plain file can be read in a read-only folder and copied alone. While somebody reads, the log stays.
            try:
                self._connection.execute("PRAGMA journal_mode=DELETE")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
        self.close()

    def close(self) -> None:
        """Let go of the run as it stands; harmless when repeated."""
        if self._open:
            self._open = False
            self._connection.close()
            self._lock.release()

    def columns_of(self, table: str) -> dict[str, tuple[str, int]]:
        """Columns of a table that rows may go to; StoreError for any other."""
        if table not in self._tables or table in OWN_TABLES:
            known = ", ".join(name for name in self._tables if name not in OWN_TABLES)
            raise StoreError(f'no table "{table}" in this run; declared: {known}')
        return self._tables[table]

    def refuse_registered(self, name: str, step: int) -> None:
        """StoreError when the array is part of the run already."""
        if self._connection.execute("SELECT 1 FROM arrays WHERE name = ? AND step = ?", (name, step)).fetchone():
            raise StoreError(f'array "{name}" at step {step} is already in {self.path}; truncate the run first')

    def write_array(self, name: str, step: int, data: np.ndarray) -> tuple[str, str]:
        """Write an array file durably; returns its path relative to the run, and its SHA-256."""
        array = np.asarray(data)
        if array.dtype.kind not in "biuf":
            raise StoreError(f'array "{name}" at step {step}: dtype {array.dtype} cannot be stored; give numbers')
        # The file holds raw little-endian memory: strides and byte order must be settled first.
        array = array.astype(array.dtype.newbyteorder("<"), order="C", copy=True)
        content = save_arrays({"data": array})
        file = f"{_db.ARRAYS}/{quote(name, safe='')}-{step}.safetensors"
        try:
            write_durably(self.path / file, content)
        except OSError as error:
            raise StoreError(f"{self.path / file}: cannot be written: {error.strerror}") from None
        return file, hashlib.sha256(content).hexdigest()

    def _commit(self, pending: Transaction) -> None:
        # A pointer must not be newer than the steps it follows, whatever the power does: its commit reaches the disk.
        with self._writing(full=pending._checkpoint is not None):
            for (table, key), values in pending._rows.items():
                self._upsert(table, key, values)
            for (name, step), (file, digest) in pending._arrays.items():
                self._connection.execute("INSERT INTO arrays VALUES (?, ?, ?, ?)", (name, step, file, digest))
            query = "SELECT count(*) FROM events WHERE step = ?"
            already = self._connection.execute(query, (pending.step,)).fetchone()[0]
            for n, (kind, text) in enumerate(pending._events, start=already):
                query = "INSERT INTO events (step, n, kind, text) VALUES (?, ?, ?, ?)"
                self._connection.execute(query, (pending.step, n, kind, text))
            if pending._checkpoint is not None:
                self._connection.execute("INSERT OR REPLACE INTO checkpoint VALUES (0, ?, ?)", pending._checkpoint)

    def _upsert(self, table: str, key: tuple[Any, ...], values: Mapping[str, Any]) -> None:
        columns = self._tables[table]
        keys = _db.key_columns(columns)
        names = [_db.quoted(name) for name in (*keys, *values)]
        changes = ", ".join(f"{_db.quoted(name)} = excluded.{_db.quoted(name)}" for name in values)
        conflict = f"DO UPDATE SET {changes}" if values else "DO NOTHING"
        target = ", ".join(_db.quoted(name) for name in keys)
        query = f"INSERT INTO {_db.quoted(table)} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        self._connection.execute(f"{query} ON CONFLICT ({target}) {conflict}", (*key, *values.values()))

    def _append_journal(self, kind: str, text: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._connection.execute("INSERT INTO journal (time, kind, text) VALUES (?, ?, ?)", (now, kind, text))

    def _remove_orphans(self) -> None:
        """Delete array files that no row names: left by a kill between writing and commit, or just unregistered."""
        known = {Path(file).name for (file,) in self._connection.execute("SELECT file FROM arrays")}
        for file in (self.path / _db.ARRAYS).iterdir():
            if file.is_file() and file.name not in known:
                file.unlink(missing_ok=True)

    def _check_open(self) -> None:
        if not self._open:
            raise StoreError(f"{self.path}: this writer is closed; resume the run to go on")

    @contextmanager
    def _writing(self, full: bool = False) -> Iterator[None]:
        try:
            with _committing(self._connection, full=full):
                yield
        except sqlite3.Error as error:
            raise StoreError(f"{self.path / _db.DATABASE}: cannot be written: {_db.one_line(error)}") from None


@contextmanager
def _committing(connection: sqlite3.Connection, *, full: bool) -> Iterator[None]:
    """One transaction; `full`: it is on the disk when it returns, even with a write-ahead log.

    Without `full` a power cut may cost the last steps of a write-ahead log, never their wholeness; a rollback journal
    promises that only when every commit is full.
    """
    logged = connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    connection.execute(f"PRAGMA synchronous={'NORMAL' if logged and not full else 'FULL'}")
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _json(value: Any, where: str) -> str:
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=True)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{where}: cannot be written as JSON: {_db.one_line(error)}") from None
