"""The project's own layout of edits: JSON lines or one JSON list of records that a published JSON Schema describes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import ijson
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from stablediag.errors import DataError
from stablediag.spec import one_line
from stablediag.types import Edit, Probe

LFS_POINTER = b"version https://git-lfs"
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def _said(text: str) -> str:
    """Text that a tokenizer can take: something besides blanks, no half of a surrogate pair, no blanks at the ends."""
    if not text.strip():
        raise ValueError("must not be blank")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is not a character") from None
    return text.strip()


Text = Annotated[str, AfterValidator(_said)]
Identifier = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if type(value) is int else value, str | int),
    AfterValidator(_said),
]


class _Question(BaseModel):
    """A question that is asked and never taught."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Text
    answer: Text
    id: Identifier | None = None


class _Record(BaseModel):
    """One fact to be written into a model, with the questions that measure what became of it."""

    model_config = ConfigDict(extra="forbid", strict=True, title="stablediag edit record")

    id: Identifier | None = Field(None, description="unique in the file; <file stem>:<row> when missing")
    prompt: Text = Field(description="what precedes the answer")
    target: Text = Field(description="the answer to teach")
    target_true: Text | None = Field(None, description="the answer before the edit (counterfactual streams)")
    subject: Text | None = Field(None, description="the subject, as it stands in the prompt")
    group: Text | None = Field(None, description="relation or family, for grouping")
    rephrases: list[Text] = Field(default_factory=list, description="paraphrases of the prompt (generalization)")
    locality: list[_Question] = Field(default_factory=list, description="unrelated questions (specificity)")
    persona: list[_Question] = Field(default_factory=list, description="the fact asked in a persona's style")
    multihop: list[_Question] = Field(default_factory=list, description="two-hop questions about the fact")
    meta: dict[str, Any] = Field(default_factory=dict, description="anything else; carried along, never read")


def record_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of one record."""
    return {"$schema": SCHEMA_DIALECT, **_Record.model_json_schema(mode="validation")}


def read_jsonl(path: str | Path) -> Iterator[Edit]:
    """Read edits from a file of JSON lines (``.jsonl``) or of one JSON list (``.json``), in constant memory.

    Rows in messages and in default ids count from 1: lines of the file, or items of the list. Blanks around texts are
    removed, since the tokens of an answer must not depend on them.

    Raises
    ------
    DataError
        Missing or empty file, Git LFS pointer, not UTF-8, not JSON, a record against the schema, an id given twice.
    """
    file = Path(path)
    rows: dict[str, int] = {}
    try:
        with open(file, "rb") as handle:
            for row, raw in _records(file, handle):
                edit = _edit(file, row, raw)
                if edit.id in rows:
                    taken = f'id "{edit.id}" is already that of row {rows[edit.id]}'
                    raise DataError(f"{file}, row {row}: {taken}; make ids unique")
                rows[edit.id] = row
                yield edit
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "no such file; check data.source" if missing else f"cannot be read: {error.strerror}"
        raise DataError(f"{file}: {reason}") from None
    if not rows:
        raise DataError(f"{file}: holds no records; give a file with one JSON object per line, or a list of objects")


def _records(file: Path, handle: IO[bytes]) -> Iterator[tuple[int, Any]]:
    """(row, parsed value) of every record; a list is told from lines by its first character."""
    head = handle.read(4096)
    handle.seek(3 if head.startswith(b"\xef\xbb\xbf") else 0)
    if head.startswith(LFS_POINTER):
        raise DataError(f"{file}: a Git LFS pointer, not the data; run `git lfs pull` in its repository")
    if head.startswith((b"\x1f\x8b", b"PK\x03\x04")):
        raise DataError(f"{file}: a compressed file; unpack it first")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from _listed(file, handle)
        return
    for row, line in enumerate(handle, start=1):
        if not line.strip():
            continue
        try:
            yield row, json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise DataError(f"{file}, row {row}: not UTF-8 text; convert the file") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}, row {row}: not JSON: {' '.join(str(error).split())[:120]}") from None


def _listed(file: Path, handle: IO[bytes]) -> Iterator[tuple[int, Any]]:
    row = 0
    try:
        for row, raw in enumerate(ijson.items(handle, "item", use_float=True), start=1):
            yield row, raw
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise DataError(f"{file}, row {row + 1}: not JSON: {' '.join(str(error).split())[:120]}") from None


def _edit(file: Path, row: int, raw: Any) -> Edit:
    if not isinstance(raw, dict):
        raise DataError(f"{file}, row {row}: expected an object with prompt and target, got {type(raw).__name__}")
    try:
        record = _Record.model_validate(raw)
    except ValidationError as error:
        raise DataError(one_line(error, _Record, f"{file}, row {row}")) from None
    name = record.id if record.id is not None else f"{file.stem}:{row}"
    kinds: tuple[Literal["locality", "persona", "multihop"], ...] = ("locality", "persona", "multihop")
    locality, persona, multihop = (_probes(getattr(record, kind), kind, name) for kind in kinds)
    return Edit(
        id=name,
        prompt=record.prompt,
        target=record.target,
        target_true=record.target_true,
        subject=record.subject,
        group=record.group,
        rephrases=tuple(record.rephrases),
        locality=locality,
        persona=persona,
        multihop=multihop,
        source=file.name,
        meta=record.meta,
    )


def _probes(questions: list[_Question], kind: str, owner: str) -> tuple[Probe, ...]:
    return tuple(
        Probe(prompt=item.prompt, answer=item.answer, kind=kind, id=item.id or f"{owner}:{kind}:{i}")
        for i, item in enumerate(questions)
    )
