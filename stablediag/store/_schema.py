"""Tables of a run: what the store itself keeps, what the recorders declare, and how a value becomes a cell."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stablediag.errors import StoreError
from stablediag.store._db import INTERNAL_TABLES, quoted

SQL_TYPES = ("REAL", "INTEGER", "TEXT")
TIMINGS = dict.fromkeys(("seconds", "seconds_capture", "seconds_editor", "seconds_record"), "REAL")
TABLE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")

Keys = Mapping[str, Mapping[str, str] | Sequence[str]]

OWN_TABLES = (*INTERNAL_TABLES, "arrays", "journal", "events")
INTERNAL = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE checkpoint (id INTEGER PRIMARY KEY CHECK (id = 0), step INTEGER NOT NULL, folder TEXT NOT NULL)",
    "CREATE TABLE arrays (name TEXT, step INTEGER, file TEXT NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (name, step))"
    " WITHOUT ROWID",
    "CREATE TABLE journal (id INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL)",
    "CREATE TABLE events (step INTEGER, n INTEGER, kind TEXT NOT NULL, text TEXT NOT NULL, PRIMARY KEY (step, n))"
    " WITHOUT ROWID",
)


def declared_tables(columns: Mapping[str, Mapping[str, str]], keys: Keys) -> list[str]:
    names = sorted({*columns, *keys, "timings"} - {"events"})
    for name in names:
        if not TABLE_NAME.fullmatch(name) or name.startswith("sqlite_"):
            raise StoreError(f'"{name}" cannot name a table; use letters, digits and _')
        if name in OWN_TABLES:
            raise StoreError(f'table "{name}" belongs to the store; choose another name')
        if name not in keys and name != "timings":
            raise StoreError(f'table "{name}" has columns but no key; declare its key columns')
    return names


def typed_columns(
    name: str, columns: Mapping[str, Mapping[str, str]], keys: Keys
) -> tuple[dict[str, str], dict[str, str]]:
    """Key columns and other columns of a table with their types; of untyped keys `step` is whole, others text."""
    declared = dict(columns.get(name, {}))
    key = keys.get(name, ("step",))
    if isinstance(key, Mapping):
        typed = dict(key)
    else:
        typed = {column: declared.get(column, "INTEGER" if column == "step" else "TEXT") for column in key}
    if name == "timings":
        declared = TIMINGS | declared
    return typed, {column: kind for column, kind in declared.items() if column not in typed}


def create_table(name: str, key: Mapping[str, str], values: Mapping[str, str]) -> str:
    if not key:
        raise StoreError(f'table "{name}" has no key columns')
    for column, kind in (*key.items(), *values.items()):
        if kind not in SQL_TYPES:
            raise StoreError(f'table "{name}", column "{column}": type "{kind}" is not one of {", ".join(SQL_TYPES)}')
    listed = [f"{quoted(column)} {kind} NOT NULL" for column, kind in key.items()]
    listed += [f"{quoted(column)} {kind}" for column, kind in values.items()]
    primary = ", ".join(quoted(column) for column in key)
    return f"CREATE TABLE {quoted(name)} ({', '.join(listed)}, PRIMARY KEY ({primary})) WITHOUT ROWID"


def sql_value(value: Any, kind: str, where: str) -> float | int | str | None:
    """One value as SQLite keeps it, so that equal numbers have equal bits whatever type brought them."""
    if hasattr(value, "item") and not isinstance(value, str):
        try:
            value = value.item()
        except (ValueError, RuntimeError):
            raise StoreError(f"{where}: shape {tuple(value.shape)} is not one value; store it as an array") from None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if kind == "TEXT" and isinstance(value, str):
        return value
    if kind == "REAL" and isinstance(value, int | float):
        return float(value)
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if kind == "INTEGER" and whole and -(2**63) <= value < 2**63:
        return int(value)
    raise StoreError(f"{where}: a {type(value).__name__} ({str(value)[:40]}) does not fit a column of type {kind}")
