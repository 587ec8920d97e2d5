"""What a run is asked to do: the validated spec, its digest, and the only reader of YAML.

Every key is known or refused, every default is filled in, and the SHA-256 of the canonical form (without `name`) names
the run. Nothing here imports torch. Relative paths inside a spec are relative to the working directory.
"""

from stablediag.spec.load import load, load_many
from stablediag.spec.models import (
    TESTBED,
    CaptureSpec,
    CheckpointSpec,
    DataSpec,
    EditorSpec,
    EvaluationSpec,
    ModelSpec,
    RecorderSpec,
    RecordersSpec,
    ScheduleSpec,
    SnapshotSpec,
    Spec,
    WarmupSpec,
)
from stablediag.spec.problems import lookup_error, one_line, validate_params

__all__ = [
    "TESTBED",
    "CaptureSpec",
    "CheckpointSpec",
    "DataSpec",
    "EditorSpec",
    "EvaluationSpec",
    "ModelSpec",
    "RecorderSpec",
    "RecordersSpec",
    "ScheduleSpec",
    "SnapshotSpec",
    "Spec",
    "WarmupSpec",
    "load",
    "load_many",
    "lookup_error",
    "one_line",
    "validate_params",
]
