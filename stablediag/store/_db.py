"""Connections to a run's database: journal mode by file system, recovery after a kill, one-line errors, identifiers."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from stablediag.errors import StoreError

DATABASE = "run.sqlite"
LOCK = "run.lock"
ARRAYS = "arrays"
# Kept out of Run.tables(): the run's own description and the pointer to its state, not results.
INTERNAL_TABLES = ("meta", "checkpoint")
# The only tables with wall-clock values: a resumed run equals an uninterrupted one in every other table.
BUSY_SECONDS = 30.0
# Write-ahead logging needs memory shared by processes, which only a local disk gives; others are not trusted.
LOCAL_FILE_SYSTEMS = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "jfs", "bcachefs", "overlay"}
)


def file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Type of the file system that holds `path` ("ext4", "nfs4", ...), "unknown" when it cannot be told."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "unknown"
    target = path.resolve()
    best, found = -1, "unknown"
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        # Spaces and tabs in mount points are written as octal escapes.
        point = Path(fields[1].replace("\\040", " ").replace("\\011", "\t"))
        # Of equally long mount points the later one is mounted over the earlier.
        if (target == point or point in target.parents) and len(point.parts) >= best:
            best, found = len(point.parts), fields[2]
    return found


def journal_mode(path: Path) -> str:
    """ "wal" on a local disk, "delete" (a rollback journal) anywhere else."""
    return "wal" if file_system(path) in LOCAL_FILE_SYSTEMS else "delete"


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def one_line(error: Exception) -> str:
    """The text of an exception on one line."""
    return " ".join(str(error).split())


def connect(folder: Path, *, mode: str = "ro", immutable: bool = False) -> sqlite3.Connection:
    """Open the database of `folder`; `mode` as in SQLite URIs. Transactions are explicit."""
    uri = f"{(folder.resolve() / DATABASE).as_uri()}?mode={mode}{'&immutable=1' if immutable else ''}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)


@contextmanager
def reading(folder: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection in one read transaction, so that what is read belongs to one moment.

    A journal that a killed writer left behind is rolled back first, which needs write access to the folder.
    """
    connection = None
    try:
        connection = _open_reader(folder)
        yield connection
    except sqlite3.Error as error:
        advice = "restore it from a copy or run again"
        raise StoreError(f"{folder / DATABASE}: cannot be read: {one_line(error)}; {advice}") from None
    finally:
        if connection is not None:
            connection.close()


def _open_reader(folder: Path) -> sqlite3.Connection:
    try:
        return _begun(connect(folder))
    except sqlite3.OperationalError as error:
        if not (folder / DATABASE).is_file():
            raise StoreError(f"{folder}: not a run (no {DATABASE}); check the path") from None
        wal = folder / f"{DATABASE}-wal"
        if not os.access(folder, os.W_OK) and not (wal.exists() and wal.stat().st_size) and not _hot_journal(folder):
            # A read-only folder cannot hold the shared memory of WAL; without a log the file alone is the whole truth.
            return _begun(connect(folder, immutable=True))
        if not _hot_journal(folder):
            raise error
    recovering = connect(folder, mode="rw")
    try:
        recovering.execute("SELECT count(*) FROM sqlite_master").fetchone()
    finally:
        recovering.close()
    return _begun(connect(folder))


def _begun(connection: sqlite3.Connection) -> sqlite3.Connection:
    try:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _hot_journal(folder: Path) -> bool:
    return (folder / f"{DATABASE}-journal").exists()


def table_columns(connection: sqlite3.Connection, table: str) -> dict[str, tuple[str, int]]:
    """Columns of a table: name -> (SQL type, position in the primary key from 1, 0 when outside it)."""
    rows = connection.execute(f"PRAGMA table_info({quoted(table)})").fetchall()
    return {name: (kind, position) for _, name, kind, _, _, position in rows}


def key_columns(columns: Mapping[str, tuple[str, int]]) -> list[str]:
    """Names of the key columns in their order."""
    return [name for name, (_, position) in sorted(columns.items(), key=lambda item: item[1][1]) if position]


def table_names(connection: sqlite3.Connection) -> list[str]:
    """All tables of the run, internal ones included, sorted."""
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
    return [name for (name,) in connection.execute(query)]


def meta(connection: sqlite3.Connection) -> Mapping[str, str]:
    """Contents of the table `meta`."""
    return dict(connection.execute("SELECT key, value FROM meta").fetchall())


class Lock:
    """The right to write a run, held until :meth:`release` or the death of the process."""

    def __init__(self, folder: Path) -> None:
        self._handle = open(folder / LOCK, "a+", encoding="ascii")  # noqa: SIM115  held for the writer's life
        # A reader that asks whether the run is live holds the lock for an instant.
        for attempt in range(20):
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 19:
                    self._handle.seek(0)
                    holder = self._handle.read().strip() or "unknown"
                    self._handle.close()
                    message = f"another process writes this run (pid {holder}); wait for it or stop it"
                    raise StoreError(f"{folder}: {message}") from None
                time.sleep(0.02)
            except OSError as error:
                self._handle.close()
                message = f"cannot be locked: {error.strerror}; use a file system with locks"
                raise StoreError(f"{folder}: {message}") from None
        self._handle.truncate(0)
        self._handle.write(f"{os.getpid()}\n")
        self._handle.flush()

    def release(self) -> None:
        """Let another process write."""
        self._handle.close()


def is_locked(folder: Path) -> bool:
    """Whether a living process holds the run's lock."""
    try:
        with open(folder / LOCK, encoding="ascii") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
