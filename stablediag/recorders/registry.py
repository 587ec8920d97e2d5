"""Recorders by name, presets, and schedules as a spec writes them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, cast

from stablediag.editors.base import editor_class, resolve_params
from stablediag.editors.locate_params import LocateParams
from stablediag.errors import SpecError
from stablediag.evaluation.evaluate import check_answerable
from stablediag.evaluation.glue import load_tasks
from stablediag.maths.update import UpdateT
from stablediag.recorders._rows import StepRows
from stablediag.recorders.alarm import Alarm
from stablediag.recorders.base import (
    Recorder,
    Schedule,
    SqlType,
    any_of,
    at,
    at_end,
    every,
    first,
    log_spaced,
    never,
)
from stablediag.recorders.coherence import Coherence
from stablediag.recorders.hidden import HiddenStates
from stablediag.recorders.interference import Interference
from stablediag.recorders.leverage import Leverage
from stablediag.recorders.norm_feedback import ValueNorms, ValueStates
from stablediag.recorders.prequential import Prequential
from stablediag.recorders.probes import PairedProbes
from stablediag.recorders.quality import Quality
from stablediag.recorders.spectra import Spectra
from stablediag.recorders.tracking import Conditioning, DriftSurrogates, WhitenedNorm
from stablediag.recorders.updates import AdjacentCosine, RealisedUpdate, StepUpdates, UpdateNorm, multiplied_out
from stablediag.recorders.variogram import Variogram
from stablediag.spec import (
    CapabilitySpec,
    EditorSpec,
    EvaluationSpec,
    RecorderSpec,
    ScheduleSpec,
    SnapshotSpec,
    Spec,
    lookup_error,
)
from stablediag.testbed import snapshot_probes
from stablediag.types import Edit

#: name -> class of the recorders of this package
RECORDERS: Mapping[str, type[Any]] = {
    "update_norm": UpdateNorm,
    "adjacent_cosine": AdjacentCosine,
    "realised_update": RealisedUpdate,
    "conditioning": Conditioning,
    "drift_surrogates": DriftSurrogates,
    "whitened_norm": WhitenedNorm,
    "prequential": Prequential,
    "variogram": Variogram,
    "coherence": Coherence,
    "leverage": Leverage,
    "spectra": Spectra,
    "interference": Interference,
    "paired_probes": PairedProbes,
    "quality": Quality,
    "hidden_states": HiddenStates,
    "value_norms": ValueNorms,
    "value_states": ValueStates,
    "alarm": Alarm,
}
_PROBED: Mapping[str, type] = {"data": dict, "sample": int, "seed": int, "at": str}
#: parameters that a spec may give, with their types; the rest comes from the spec's other sections
PARAMS: Mapping[str, Mapping[str, type]] = {
    "adjacent_cosine": {"reset_after_warmup": bool},
    "quality": {"immediate_every": int},
    "value_norms": {**_PROBED, "place": str, "solve": bool, "contexts": dict, "targets": dict, "moments": str}
    | {"ridge": float},
    "value_states": _PROBED,
    "prequential": {"seed": int, "probes": int},
    "variogram": {"depth": int},
    "interference": {"size": int, "blocks": int, "by": str, "kinds": int, "seed": int},
    "paired_probes": {"data": dict, "sample": int, **dict.fromkeys(("loss", "tokens"), str), "minibatch": int},
    "alarm": {"level": float, "warning_level": float, "tolerance": float},
}
#: recorders that look requests up as the run's locate-and-edit method does, unless their entry says otherwise
ASKING = ("value_norms", "value_states")
#: recorders whose moments are those of another section of the spec
SECTIONS = {
    "quality": "evaluation.schedule",
    "hidden_states": "snapshots.schedule",
    "value_states": "snapshots.schedule",
}
#: recorders that must see every step; a schedule thins their rows instead
EVERY_STEP = dict.fromkeys(
    (
        *("adjacent_cosine", "prequential", "variogram", "alarm"),
        *("coherence", "spectra", "interference", "paired_probes"),
    ),
    "report",
)

_LIGHT = ("update_norm", "adjacent_cosine", "realised_update")
_STANDARD = (*_LIGHT, "conditioning", "drift_surrogates", "whitened_norm", "prequential", "variogram", "alarm")
#: preset -> recorder names, without those that a section of the spec switches on; what each costs is in docs/recorders.md
PRESETS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "light": _LIGHT,
    "standard": _STANDARD,
    "full": (*_STANDARD, "coherence", "leverage", "spectra", "interference", "paired_probes"),
}
#: how often the presets measure the realised update, which costs a copy of the weight
REALISED: Mapping[str, Schedule] = {"light": every(10), "standard": log_spaced(40), "full": log_spaced(40)}

#: key columns of the tables that recorders write
TABLE_KEYS: Mapping[str, Mapping[str, SqlType]] = {
    "updates": {"step": "INTEGER", "module": "TEXT"},
    "tracking": {"step": "INTEGER", "module": "TEXT"},
    "quality": {"step": "INTEGER", "metric": "TEXT", "kind": "TEXT"},
    "edits": {"position": "INTEGER"},
    "alarms": {"step": "INTEGER"},
    "variogram": {"step": "INTEGER", "module": "TEXT", "lag": "INTEGER"},
    "interference": {"step": "INTEGER", "module": "TEXT"},
    "interference_kinds": {"step": "INTEGER", "module": "TEXT", "writer": "TEXT", "reader": "TEXT"},
    "probes": {"step": "INTEGER", "module": "TEXT"},
}

_TERMS: Mapping[str, Callable[[int], Schedule]] = {
    "every": every,
    "log": log_spaced,
    "at": lambda step: at([step]),
    "first": first,
    "end": lambda _: at_end(),
}


def schedule_from(spec: ScheduleSpec) -> Schedule:
    """The predicate that a spec's schedule describes: the union of its terms, never without any."""
    terms = [_TERMS[kind](value) for kind, value in spec.terms]
    if not terms:
        return never()
    return terms[0] if len(terms) == 1 else any_of(terms)


def build_recorders(spec: Spec, stream: Sequence[Edit]) -> list[Recorder]:
    """The recorders of a run.

    `spec.recorders` is a preset or a list. The recorder `quality` joins them when `evaluation.schedule` is not "never",
    and `hidden_states` when `snapshots.schedule` is not; preset "none" leaves immediate success out. `value_norms` asks as
    the run's locate-and-edit method does: what its entry does not say of `at`, `place`, `contexts` and `targets` is the
    editor's, and so is the `at` of `value_states`; `paired_probes` has the editor's loss, rows and mini-batch.

    Parameters
    ----------
    spec : Spec
        The run's spec.
    stream : sequence of Edit
        Its target stream: where prompts for snapshots come from when it is not the testbed's.

    Returns
    -------
    list of Recorder
        Fresh ones, each name once.

    Raises
    ------
    SpecError
        An unknown recorder or parameter, a recorder named twice, snapshots without prompts, or a metric that the stream
        has no answers for.
    """
    preset = spec.recorders if isinstance(spec.recorders, str) else None
    wanted = [RecorderSpec(name=name) for name in PRESETS[preset]] if preset else list(cast(Any, spec.recorders))
    listed = [entry.name for entry in wanted]
    if spec.evaluation.schedule.terms and "quality" not in listed:
        params = {"immediate_every": 0} if preset == "none" else {}
        wanted.append(RecorderSpec(name="quality", params=params))
    if spec.snapshots.schedule.terms and "hidden_states" not in listed:
        wanted.append(RecorderSpec(name="hidden_states"))
    built: list[Recorder] = []
    for entry in wanted:
        recorder = _build(entry, spec, stream)
        if preset is not None and preset in REALISED and entry.name == "realised_update":
            recorder.schedule = REALISED[preset]
        if any(recorder.name == other.name for other in built):
            raise SpecError(f'recorders: "{recorder.name}" is named twice; join its schedules under one entry')
        built.append(recorder)
    recorder_columns(built)
    share(built)
    return built


def share(recorders: Sequence[Recorder]) -> None:
    """Have what several recorders need of a step made once. What they record does not depend on it.

    Those that compare updates hold one `StepUpdates`, those that judge gradients one `StepRows`; `alarm` asks the run's
    `adjacent_cosine`, if that compares as its own would: with nulls after every warm-up.
    """
    updates, rows = StepUpdates(), StepRows()
    cosines = [recorder for recorder in recorders if isinstance(recorder, AdjacentCosine)]
    for recorder in recorders:
        if isinstance(recorder, Alarm):
            for cosine in (cosine for cosine in cosines if cosine.reset_after_warmup):
                cosine.asked, recorder.cosine = True, cosine
            recorder.cosine.updates = updates
        if isinstance(recorder, UpdateNorm | AdjacentCosine | Coherence):
            recorder.updates = updates
        if isinstance(recorder, Prequential | Variogram | Alarm):
            recorder.rows = rows


def keeps(recorders: Sequence[Recorder]) -> Callable[[UpdateT], bool]:
    """Which updates the writer is to keep multiplied out: those that a recorder would multiply out once more."""
    comparing = (UpdateNorm, AdjacentCosine, Coherence, Alarm)
    some = any(isinstance(recorder, comparing) for recorder in recorders)
    return multiplied_out if some else lambda update: False


def measures(recorders: Sequence[Recorder], *, step: int, total: int) -> bool:
    """Whether a recorder wants to know at this step of `total` what the weights really received."""
    return any(
        "realised_ratio" in recorder.columns.get("updates", {}) and recorder.schedule(step, total)
        for recorder in recorders
    )


def _build(entry: RecorderSpec, spec: Spec, stream: Sequence[Edit]) -> Recorder:
    cls = _recorder_class(entry.name)
    options = _checked(entry, cls)
    if entry.schedule is not None:
        if entry.name in SECTIONS:
            raise SpecError(f'recorders: "{entry.name}" follows {SECTIONS[entry.name]}; set that, not its schedule')
        options[EVERY_STEP.get(entry.name, "schedule")] = schedule_from(entry.schedule)
        if entry.name == "conditioning":
            options["decompose"] = schedule_from(entry.schedule)
    if entry.name == "quality":
        if len(stream):  # there is none where recorders are built to ask for their versions
            check_answerable(spec.evaluation.metrics, stream)
        options |= _quality_options(spec.evaluation, spec.seed)
    if entry.name == "hidden_states":
        options |= {"prompts": snapshot_prompts(spec, stream), "token_budget": spec.evaluation.token_budget}
    if entry.name in ASKING:
        asked = {name: said for name, said in _as_the_editor_asks(spec.editor).items() if name in PARAMS[entry.name]}
        for name in ("contexts", "targets"):
            if name in asked and name in options:
                options[name] = {**asked[name], **options[name]}
        options = asked | options
    if entry.name == "paired_probes":
        options = _as_the_editor_captures(spec.editor) | options
    return cast(Recorder, cls(**options))


def _as_the_editor_asks(editor: EditorSpec) -> dict[str, Any]:
    """Where a locate-and-edit method, wrapped or not, looks edits up and how it optimises; nothing for other editors."""
    params: Any = resolve_params(editor.name, editor.preset, editor.params)
    wrapped = getattr(params, "editor", None)
    if isinstance(wrapped, EditorSpec):
        return _as_the_editor_asks(wrapped)
    if not isinstance(params, LocateParams):
        return {}
    return {
        "at": params.at,
        "place": editor_class(editor.name).place,
        "contexts": params.contexts.model_dump(),
        "targets": params.targets.model_dump(),
    }


def _as_the_editor_captures(editor: EditorSpec) -> dict[str, Any]:
    """Loss, rows and mini-batch of an editor that says them, wrapped or not: they set the unit of a value gradient."""
    params: Any = resolve_params(editor.name, editor.preset, editor.params)
    wrapped = getattr(params, "editor", None)
    if isinstance(wrapped, EditorSpec):
        return _as_the_editor_captures(wrapped)
    said = ("loss", "tokens", "minibatch")
    return {name: getattr(params, name) for name in said} if all(hasattr(params, name) for name in said) else {}


def _recorder_class(name: str) -> type[Any]:
    if name in RECORDERS:
        return RECORDERS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise SpecError(f"recorders: {lookup_error('recorder', name, RECORDERS)}, or give package.module:Class")
    try:
        return cast(type[Any], getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise SpecError(f'recorders: "{name}" cannot be imported ({error}); check the installation') from None


def _checked(entry: RecorderSpec, cls: type[Any]) -> dict[str, Any]:
    """The entry's parameters, known and of the right type. A third party's class is asked for its field names only."""
    own = entry.name in RECORDERS
    known: Mapping[str, type] = PARAMS.get(entry.name, {})
    if not own and is_dataclass(cls):
        known = {field.name: object for field in fields(cls) if field.init and field.name != "schedule"}
    for key, value in entry.params.items():
        if key not in known:
            raise SpecError(f"recorders.{entry.name}: {lookup_error('parameter', key, known)}")
        # bool is an int to Python, but "immediate_every: true" is a mistake.
        if not isinstance(value, known[key]) or (known[key] is int and isinstance(value, bool)):
            raise SpecError(f"recorders.{entry.name}: {key} must be of type {known[key].__name__}, not {value!r}")
    return dict(entry.params)


def _quality_options(evaluation: EvaluationSpec, seed: int) -> dict[str, Any]:
    capability = evaluation.capability
    return {
        "probes": tuple(evaluation.probes),
        "metrics": tuple(evaluation.metrics),
        "generation": evaluation.generation,
        "subsample": evaluation.subsample,
        "seed": seed,
        "capability": bool(capability),
        "tasks": load_tasks(capability) if capability else None,
        "capability_generation": isinstance(capability, CapabilitySpec) and capability.generate,
        "token_budget": evaluation.token_budget,
        "batch_size": evaluation.batch_size,
    }


def snapshot_prompts(spec: Spec, stream: Sequence[Edit]) -> tuple[str, ...]:
    """Prompts for hidden states: the testbed's own, else the distinct locality prompts of the stream, in its order.

    Raises
    ------
    SpecError
        The stream has no locality prompts.
    """
    snapshots: SnapshotSpec = spec.snapshots
    if spec.data.source == "testbed":
        return tuple(probe.prompt for probe in snapshot_probes(snapshots.prompts))
    prompts: dict[str, None] = {}
    for edit in stream:
        prompts |= dict.fromkeys(probe.prompt for probe in edit.locality)
        if len(prompts) >= snapshots.prompts:  # a stream of millions is not read to its end
            break
    if not prompts:
        raise SpecError("snapshots: the stream has no locality prompts to take hidden states of; set schedule: never")
    return tuple(prompts)[: snapshots.prompts]


def recorder_columns(recorders: Sequence[Recorder]) -> dict[str, dict[str, SqlType]]:
    """The columns of all recorders, by table.

    Raises
    ------
    SpecError
        Two recorders declare the same column.
    """
    merged: dict[str, dict[str, SqlType]] = {}
    owner: dict[tuple[str, str], str] = {}
    for recorder in recorders:
        for table, columns in recorder.columns.items():
            for column, kind in columns.items():
                other = owner.setdefault((table, column), recorder.name)
                if other != recorder.name:
                    raise SpecError(
                        f'recorders: "{other}" and "{recorder.name}" both fill {table}.{column}; leave one of them out'
                    )
                merged.setdefault(table, {})[column] = kind
    return merged
