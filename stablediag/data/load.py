"""From a DataSpec to a list of edits, whatever the source."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from stablediag.data.jsonl import read_jsonl
from stablediag.errors import DataError
from stablediag.spec import TESTBED, DataSpec
from stablediag.types import Edit

Split = Literal["target", "warmup", "calibration"]
SUFFIXES = (".jsonl", ".json")


def load_stream(data: DataSpec, *, split: Split = "target") -> list[Edit]:
    """The `size` edits that a DataSpec names, after its first `offset`.

    Parameters
    ----------
    data : DataSpec
        With ``shuffle`` the whole file is read and put in an order of `seed` alone, before `offset` counts.
    split : {"target", "warmup", "calibration"}
        What the edits are for. The testbed keeps separate facts for each; in a file the ranges are the caller's
        business (``Spec.warmup_data`` takes the records after the target's).

    Raises
    ------
    DataError
        Unknown source, a file that cannot be read, or fewer edits than asked for.
    """
    wanted = data.offset + data.size
    if data.source == TESTBED:
        # Imported here because the testbed's world takes a moment to build and files do not need it.
        from stablediag.testbed.streams import edit_stream

        # Its own check names the streams there are.
        kind: Any = data.stream
        edits = list(edit_stream(kind, size=wanted, seed=data.seed, split=split, relation=data.relation))
    else:
        edits = _from_file(data, wanted)
    chosen = edits[data.offset : wanted]
    if len(chosen) < data.size:
        after = f" after the first {data.offset}" if data.offset else ""
        found = max(0, len(chosen))
        text = f"{split} stream has {found} edits{after}, {data.size} are wanted"
        raise DataError(f"{data.source}: {text}; lower its size")
    return chosen


def dataset_info(data: DataSpec, edits: Sequence[Edit]) -> dict[str, Any]:
    """Provenance of a stream: its source, the number of edits, and the SHA-256 of what they say.

    Returns
    -------
    dict
        source, count, sha256 (of the edits in their order), and for a file file_sha256 and file_bytes.
    """
    digest = hashlib.sha256()
    for edit in edits:
        fields = {key: value for key, value in asdict(edit).items() if key != "source"}
        digest.update(json.dumps(fields, sort_keys=True, ensure_ascii=True, default=str).encode("ascii") + b"\n")
    info: dict[str, Any] = {"source": data.source, "count": len(edits), "sha256": digest.hexdigest()}
    if data.source != TESTBED:
        try:
            with open(data.source, "rb") as handle:
                info["file_sha256"] = hashlib.file_digest(handle, "sha256").hexdigest()
                info["file_bytes"] = handle.tell()
        except OSError as error:
            raise DataError(f"{data.source}: cannot be read: {error.strerror}") from None
    return info


def _from_file(data: DataSpec, wanted: int) -> list[Edit]:
    path = Path(data.source)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f'{data.source}: not a source of edits; give "{TESTBED}" or a {" or ".join(SUFFIXES)} file')
    reader: Iterator[Edit] = read_jsonl(path)
    if data.relation is not None:
        reader = (edit for edit in reader if edit.group == data.relation)
    if not data.shuffle:
        return list(itertools.islice(reader, wanted))
    edits = list(reader)
    random.Random(data.seed).shuffle(edits)
    return edits
