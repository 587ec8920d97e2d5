"""The pydantic models of a spec: every key known, every default filled in, one digest for one meaning."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from stablediag.errors import SpecError
from stablediag.spec.base import TESTBED, Positive, ScheduleSpec, Seed, Strict, Text, whole
from stablediag.spec.problems import validate_params
from stablediag.spec.questions import EvaluationSpec
from stablediag.spec.streams import DataSpec, WarmupSpec
from stablediag.types import DEVICE_MAPS

TESTBED_MODULES = ("layers.[1-3].mlp.down_proj",)
DEEPEST = 40


def _is_place(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


class ModelSpec(Strict):
    """Which model, and which of its modules are edited (names, globs, ranges). A bare string is the path."""

    shorthand = "path"
    path: Text = TESTBED
    modules: list[str] = Field(default_factory=list)
    dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    device_map: Any = None
    revision: str | None = None
    offline: bool = False
    chat_template: bool = False

    @field_validator("modules", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else list(value) if isinstance(value, tuple) else value

    @field_validator("device_map")
    @classmethod
    def _placement(cls, value: Any) -> Any:
        mapped = isinstance(value, Mapping) and value and all(map(_is_place, value.values()))
        if value is None or mapped or (isinstance(value, str) and value in DEVICE_MAPS):
            return dict(value) if isinstance(value, Mapping) else value
        raise ValueError(
            f"give {', '.join(DEVICE_MAPS)}, or a mapping of module names to devices such as 0, cpu or disk"
        )

    @model_validator(mode="after")
    def _known_modules(self) -> Self:
        if not self.modules and self.path != TESTBED:
            raise ValueError('"modules" is required: name the modules to edit, such as "layers.[4-8].mlp.down_proj"')
        if not self.modules:
            object.__setattr__(self, "modules", list(TESTBED_MODULES))
        if self.device_map is not None and self.device != "auto":
            raise ValueError("device and device_map are both given: name the places of the modules in device_map only")
        return self


class EditorSpec(Strict):
    """Which editor (`module:Class`: a third party's). A bare string is the name; the editor checks `params` itself."""

    shorthand = "name"
    name: Text = "ln"
    preset: str | None = None
    params: dict[str, Any] = Field(default_factory=dict)


class InitSpec(Strict):
    """Where a run starts from instead of the unedited model and empty statistics: other runs' last checkpoints.

    `weights_from`: the edited weights of that run; `stats_from`: what its editor has learnt (the statistics of editor ln, not
    its weights, its learning rate or its match factors). Each is a run directory, or the name of a sibling of this run's
    directory; ``RUN@STEP`` refuses any other step than that. A warm-up of this run comes on top.

    Quality, hidden states and the norm ratio of the weights are compared with the model as loaded, so that they tell what
    all edits have done together; cumulative coherence and paired probes begin at the weights carried over.
    """

    weights_from: Text | None = None
    stats_from: Text | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.weights_from is None and self.stats_from is None:
            raise ValueError("give weights_from, stats_from or both, each a run directory; or leave init out")
        return self


class SnapshotSpec(Strict):
    """When hidden states of how many prompts are kept."""

    schedule: ScheduleSpec = ScheduleSpec()
    prompts: Positive = 1000


class CheckpointSpec(Strict):
    """How many steps apart the state is saved."""

    every: Positive = 10


class CaptureSpec(Strict):
    """Size of the computational chunks of a capture, in tokens; null: what suits the device."""

    token_budget: Positive | None = None


class RecorderSpec(Strict):
    """One recorder; without a schedule it keeps its own. A bare string is the name."""

    shorthand = "name"
    name: Text
    schedule: ScheduleSpec | None = None
    params: dict[str, Any] = Field(default_factory=dict)


RecordersSpec = Annotated[
    Annotated[Literal["standard", "light", "full", "none"], Tag("preset")] | Annotated[list[RecorderSpec], Tag("list")],
    Discriminator(lambda value: "preset" if isinstance(value, str) else "list"),
]


class Spec(Strict):
    """A whole run. See the fields' own classes; `guard` says what becomes of rows of gradients that are not finite."""

    name: str = Field("run", pattern=r"^[^/\\\x00-\x1f]+$")
    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    calibration: DataSpec | None = None
    warmup: WarmupSpec = WarmupSpec()
    edits_per_step: Positive = 100
    editor: EditorSpec = EditorSpec()
    init: InitSpec | None = None
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
        alone: dict[str, Any] = {"then": [], "arrange": "as_read"}
        return self.data.model_copy(update={"size": self.warmup.size, **alone, **beyond})

    def with_editor_params(self, params: Mapping[str, Any]) -> Spec:
        """The same spec with all the editor's parameters, so that its digest does not depend on which were written."""
        return self.model_copy(update={"editor": self.editor.model_copy(update={"params": dict(params)})})

    def canonical(self) -> dict[str, Any]:
        """Plain JSON values with every default filled in, `name` included; whole floats become integers.

        `init` is left out where there is none, so that specs older than it keep their digests.
        """
        return _canonical(self.model_dump(exclude={"init"} if self.init is None else None), "")

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
        """JSON Schema of a spec file, `preset` and `vary` included."""
        schema = cls.model_json_schema(mode="validation")
        vary = {"type": "object", "additionalProperties": {"type": "array", "minItems": 1}}
        return schema | {"properties": schema["properties"] | {"preset": {"type": "string"}, "vary": vary}}


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
        return whole(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    kind = type(value).__name__
    raise SpecError(f"spec: {where}: a {kind} cannot be written as JSON; give a number, a string or a list")
