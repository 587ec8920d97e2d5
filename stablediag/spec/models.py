"""The pydantic models of a spec: every key known, every default filled in, one digest for one meaning."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from stablediag.errors import SpecError
from stablediag.spec.problems import validate_params

TESTBED = "testbed"
TESTBED_MODULES = ("layers.[1-3].mlp.down_proj",)


def _whole(value: Any) -> Any:
    """Take 1e3 for 1000, so that a size may be written either way."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_whole), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
Seed = Annotated[int, BeforeValidator(_whole), Field(ge=0, lt=2**63)]
Text = Annotated[str, Field(min_length=1)]
ProbeKind = Literal["efficacy", "generalization", "specificity", "persona", "multihop"]
DEEPEST = 40
STANDARD_PROBES: tuple[ProbeKind, ...] = ("efficacy", "generalization", "specificity")


class _Strict(BaseModel):
    """Frozen, with no unknown keys, no silent conversions, and an optional one-string shorthand for one field."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)
    shorthand: ClassVar[str | None] = None

    @model_validator(mode="before")
    @classmethod
    def _from_shorthand(cls, value: Any) -> Any:
        return {cls.shorthand: value} if cls.shorthand and isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        return {"anyOf": [{"type": "string"}, schema]} if cls.shorthand else schema


class ScheduleSpec(_Strict):
    """When something happens: the union of its terms, "never" when there are none.

    Written as ``"never"``, ``"end"``, ``{every: k}``, ``{log: n}``, ``{at: [..]}``, ``{first: n}``, several in
    one mapping, or a list of these. Fields hold sorted, distinct values, so that equal schedules have equal digests.
    """

    every: tuple[Positive, ...] = ()
    log: tuple[Positive, ...] = ()
    at: tuple[Count, ...] = ()
    first: Count = 0
    end: bool = False

    @model_validator(mode="before")
    @classmethod
    def _union(cls, value: Any) -> Any:
        terms = value if isinstance(value, list | tuple) else [value]
        merged: dict[str, Any] = {"every": [], "log": [], "at": []}
        for term in terms:
            if isinstance(term, ScheduleSpec):
                term = dict(term)
            if term == "never":
                continue
            if term == "end":
                merged["end"] = True
                continue
            if not isinstance(term, Mapping):
                raise ValueError('give "never", "end", {every: k}, {log: n}, {at: [..]}, {first: n} or a list of these')
            for key, part in term.items():
                if key in ("every", "log", "at"):
                    merged[key].extend(part if isinstance(part, list | tuple) else [part])
                elif key == "first":
                    merged[key] = max(part, merged.get(key, 0)) if _is_number(part) else part
                else:
                    merged[key] = part
        numbers = {key: merged[key] for key in ("every", "log", "at")}
        return merged | {k: tuple(sorted(set(v)) if all(map(_is_number, v)) else v) for k, v in numbers.items()}

    @property
    def terms(self) -> tuple[tuple[str, int], ...]:
        """The union's terms as (kind, number): ("every", k), ("log", n), ("at", step), ("first", n), ("end", 0)."""
        listed = [(kind, number) for kind in ("every", "log", "at") for number in getattr(self, kind)]
        return tuple(listed + [("first", self.first)] * (self.first > 0) + [("end", 0)] * self.end)

    @model_serializer
    def _compact(self) -> Any:
        parts: list[Any] = [{"every": k} for k in self.every] + [{"log": n} for n in self.log]
        parts += [{"at": list(self.at)}] * bool(self.at) + [{"first": self.first}] * (self.first > 0)
        parts += ["end"] * self.end
        return parts[0] if len(parts) == 1 else parts or "never"

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        number = {"type": "integer", "minimum": 1}
        numbers = {"type": "array", "items": {"type": "integer", "minimum": 0}}
        keys = {"every": number, "log": number, "at": numbers, "first": number, "end": {"type": "boolean"}}
        mapping = {"type": "object", "properties": keys, "additionalProperties": False}
        term = {"anyOf": [{"enum": ["never", "end"]}, mapping]}
        return {"anyOf": [term, {"type": "array", "items": term}]}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class ModelSpec(_Strict):
    """Which model, and which of its modules are edited (names, globs, ranges). A bare string is the path."""

    shorthand = "path"
    path: Text = TESTBED
    modules: list[str] = Field(default_factory=list)
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    revision: str | None = None

    @field_validator("modules", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else list(value) if isinstance(value, tuple) else value

    @model_validator(mode="after")
    def _known_modules(self) -> Self:
        if not self.modules and self.path != TESTBED:
            raise ValueError('"modules" is required: name the modules to edit, such as "layers.[4-8].mlp.down_proj"')
        if not self.modules:
            object.__setattr__(self, "modules", list(TESTBED_MODULES))
        return self


class DataSpec(_Strict):
    """Which edits: a testbed stream, or `size` records of a file after `offset`, in file order unless `shuffle`."""

    source: Text = TESTBED
    stream: str = "new"
    size: Positive = 1000
    seed: Seed = 0
    relation: str | None = None
    offset: Count = 0
    shuffle: bool = False


class WarmupSpec(_Strict):
    """Edits before (or among) the target stream. No warm-up has exactly one form: size 0, placement "none"."""

    size: Count = 0
    placement: Literal["start", "q1", "middle", "q3", "end", "none"] = "start"
    data: DataSpec | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.size == 0 or self.placement == "none":
            for field, value in (("size", 0), ("placement", "none"), ("data", None)):
                object.__setattr__(self, field, value)
        elif self.data is not None:
            if "size" in self.data.model_fields_set and self.data.size != self.size:
                raise ValueError(f"data.size is {self.data.size} but size is {self.size}: leave data.size out")
            object.__setattr__(self, "data", self.data.model_copy(update={"size": self.size}))
        return self


class EditorSpec(_Strict):
    """Which editor (`module:Class`: a third party's). A bare string is the name; the editor checks `params` itself."""

    shorthand = "name"
    name: Text = "ln"
    preset: str | None = None
    params: dict[str, Any] = Field(default_factory=dict)


class EvaluationSpec(_Strict):
    """What is asked of the model, when, of how many edits, and in batches of how many tokens."""

    schedule: ScheduleSpec = ScheduleSpec(end=True)
    subsample: Positive | None = None
    probes: list[ProbeKind] = Field(default_factory=lambda: list(STANDARD_PROBES))
    capability: bool = False
    token_budget: Positive = 8192


class SnapshotSpec(_Strict):
    """When hidden states of how many prompts are kept."""

    schedule: ScheduleSpec = ScheduleSpec()
    prompts: Positive = 1000


class CheckpointSpec(_Strict):
    """How many steps apart the state is saved."""

    every: Positive = 10


class CaptureSpec(_Strict):
    """Size of the computational chunks of a capture, in tokens; null: what suits the device."""

    token_budget: Positive | None = None


class RecorderSpec(_Strict):
    """One recorder; without a schedule it keeps its own. A bare string is the name."""

    shorthand = "name"
    name: Text
    schedule: ScheduleSpec | None = None
    params: dict[str, Any] = Field(default_factory=dict)


RecordersSpec = Annotated[
    Annotated[Literal["standard", "light", "none"], Tag("preset")] | Annotated[list[RecorderSpec], Tag("list")],
    Discriminator(lambda value: "preset" if isinstance(value, str) else "list"),
]


class Spec(_Strict):
    """A whole run. See the fields' own classes; `guard` says what becomes of rows of gradients that are not finite."""

    name: str = Field("run", pattern=r"^[^/\\\x00-\x1f]+$")
    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    calibration: DataSpec | None = None
    warmup: WarmupSpec = WarmupSpec()
    edits_per_step: Positive = 100
    editor: EditorSpec = EditorSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    snapshots: SnapshotSpec = SnapshotSpec()
    recorders: RecordersSpec = "standard"
    checkpoint: CheckpointSpec = CheckpointSpec()
    capture: CaptureSpec = CaptureSpec()
    guard: Literal["raise", "drop", "skip"] = "raise"
    seed: Seed = 0
    threads: Positive | None = None

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], *, where: str = "spec") -> Spec:
        """Validate a mapping, such as the one stored with a run; SpecError, one line, when it is not a spec."""
        return validate_params(cls, mapping, where)

    @property
    def warmup_data(self) -> DataSpec | None:
        """Where the warm-up edits come from, None without a warm-up: `warmup.data`, else the target's own source.

        From the target's own file they are the records after the target's range, so that no record is in both.
        """
        if self.warmup.size == 0 or self.warmup.data is not None:
            return self.warmup.data
        beyond = {} if self.data.source == TESTBED else {"offset": self.data.offset + self.data.size}
        return self.data.model_copy(update={"size": self.warmup.size, **beyond})

    def with_editor_params(self, params: Mapping[str, Any]) -> Spec:
        """The same spec with all the editor's parameters, so that its digest does not depend on which were written."""
        return self.model_copy(update={"editor": self.editor.model_copy(update={"params": dict(params)})})

    def canonical(self) -> dict[str, Any]:
        """Plain JSON values with every default filled in, `name` included; whole floats become integers."""
        return _canonical(self.model_dump(), "")

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical form without `name`: the same in every process and on every machine."""
        named = {key: value for key, value in self.canonical().items() if key != "name"}
        text = json.dumps(named, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def resolved_yaml(self) -> str:
        """The spec as YAML with every default filled in; loading it gives the same digest."""
        return yaml.safe_dump(self.canonical(), sort_keys=False, allow_unicode=True, default_flow_style=False)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON Schema of a spec file, `vary` included."""
        schema = cls.model_json_schema(mode="validation")
        vary = {"type": "object", "additionalProperties": {"type": "array", "minItems": 1}}
        return schema | {"properties": schema["properties"] | {"vary": vary}}


def _canonical(value: Any, where: str, depth: int = 0) -> Any:
    if depth > DEEPEST:
        # Also what a YAML alias that refers to itself comes to.
        raise SpecError(f"spec: {'.'.join(where.split('.')[:3])}: nested more than {DEEPEST} deep; flatten it")
    if isinstance(value, Mapping):
        return {str(key): _canonical(item, f"{where}.{key}".lstrip("."), depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item, f"{where}.{i}", depth + 1) for i, item in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise SpecError(f"spec: {where}: {value} is not a finite number; leave the key out or give a number")
        return _whole(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    kind = type(value).__name__
    raise SpecError(f"spec: {where}: a {kind} cannot be written as JSON; give a number, a string or a list")
