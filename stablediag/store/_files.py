"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all: temporary name, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def replaced_folder(folder: Path) -> Path:
    """Where a folder waits while another takes its name."""
    return folder.with_name(f".{folder.name}.old")


def surviving(folder: Path) -> Path:
    """`folder`, or what it was before a replacement that a kill cut short between its two renames."""
    return replaced_folder(folder) if not folder.exists() and replaced_folder(folder).is_dir() else folder


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
