"""Tables of a run in formats that other tools read."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

from stablediag.errors import StoreError
from stablediag.store.run import Run


def export(run: Run, out_dir: str | Path, *, to: Literal["csv", "parquet"] = "csv") -> list[Path]:
    """Write every table as ``<out_dir>/<table>.<to>``, replacing files of those names, and return the paths.

    CSV keeps every bit of every number (shortest round-trip decimals), with missing cells empty.

    Raises
    ------
    StoreError
        Unknown format, `pyarrow` not installed, or the folder cannot be written.
    """
    if to not in ("csv", "parquet"):
        raise StoreError(f'cannot export to "{to}"; choose csv or parquet')
    if to == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise StoreError("export to parquet needs pyarrow; install stablediag[parquet]")
    folder = Path(out_dir)
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in run.tables():
            path = folder / f"{name}.{to}"
            frame = run.table(name)
            frame.to_csv(path, index=False) if to == "csv" else frame.to_parquet(path, index=False)
            written.append(path)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written: {error.strerror or error}") from None
    return written
