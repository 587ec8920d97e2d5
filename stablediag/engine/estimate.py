"""What a run will cost, before it starts: counted or assumed tokens, modelled arithmetic, measured or assumed rates."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch

from stablediag.engine.estimate_parts import Bill, Body, Kind, Part, Work, bill, weight_bytes
from stablediag.engine.plan import Plan
from stablediag.models import ResolvedModule
from stablediag.recorders.registry import schedule_from
from stablediag.spec import Spec
from stablediag.tokens import RowKind, encode, rows_mask

#: edits whose tokens are counted at most, give or take a factor of two
COUNTED = 20_000
#: tokens of prompt and answer, and answer tokens, of an edit whose text is not at hand: 3,000 and 400 in a step of 100
ASSUMED_TOKENS, ASSUMED_ROWS = 30, 4
#: bytes of the database per step and module and per target edit, with the standard recorders; arrays are not counted
_ROW_BYTES, _EDIT_BYTES = 700, 120
#: how many checkpoints are on disk at once: the two latest and the one being written
_CHECKPOINTS = 3


@dataclass(frozen=True, slots=True)
class Rates:
    """Operations per second of a machine.

    Attributes
    ----------
    name : str
    model, dense, eigen : float
        Of passes through the model, of products in the statistics' type, and of symmetric eigendecompositions.
    measured : bool
        Here and now; else what somebody expects of a machine that is not at hand.
    """

    name: str
    model: float
    dense: float
    eigen: float
    measured: bool

    def seconds(self, parts: Sequence[Part]) -> float:
        """Time that parts take one after the other."""
        rate: dict[Kind, float] = {"model": self.model, "dense": self.dense, "eigen": self.eigen}
        return sum(part.flops / rate[part.kind] for part in parts)


def h200_rates(dtype: str) -> Rates:
    """What is expected of an H200, not measured.

    Half of the peak of products (700 TFLOP/s in 16 bits, 50 in 32 and 64), and an eigendecomposition of 4,096 dimensions,
    9 d^3 operations, in 0.4 s.
    """
    return Rates("one H200", 350e12 if dtype in ("bfloat16", "float16") else 25e12, 25e12, 1.5e12, measured=False)


@dataclass(frozen=True)
class Estimate:
    """Cost of a run.

    Attributes
    ----------
    work : Work
        Steps, edits, tokens and rows. Of a stream of more than `COUNTED` edits, tokens and rows are extrapolated from steps
        spread over it.
    parts : tuple of Part
        Arithmetic of the editor.
    evaluation : tuple of Part
        Arithmetic of the questions that the schedule of the evaluation asks.
    memory : dict of str to int
        Bytes by what they hold, the model's own weights first; activations are not among them.
    disk : dict of str to int
        Bytes by what they hold.
    assumed : tuple of str
        What the numbers take for granted, a line each.
    """

    work: Work
    parts: tuple[Part, ...]
    evaluation: tuple[Part, ...]
    memory: dict[str, int]
    disk: dict[str, int]
    assumed: tuple[str, ...]

    @property
    def flops(self) -> float:
        """Operations of the editing, the evaluation not counted."""
        return sum(part.flops for part in self.parts)

    @property
    def memory_bytes(self) -> int:
        """Bytes beside the model and its activations."""
        return sum(self.memory.values()) - self.memory.get("model", 0)


def estimate(
    spec: Spec, params: Any, model: Any, modules: Sequence[ResolvedModule], *, work: Work, dtype: str
) -> Estimate:
    """Model the cost of a run.

    Parameters
    ----------
    spec : Spec
        Schedules, and how far checkpoints are apart.
    params : Any
        The editor's, resolved.
    model : nn.Module
        The model, or its outline: only names and shapes are read.
    modules : sequence of ResolvedModule
        The edited ones.
    work : Work
        From `counted` or `assumed`.
    dtype : str
        Name of the weights' type.
    """
    body = Body.of(model)
    made: Bill = bill(params, modules, body, work)
    edited = sum(m.d_in * m.d_out for m in modules)
    width = weight_bytes(model, dtype) // max(1, sum(p.numel() for p in model.parameters()))
    mastered = getattr(params, "master", "model") == "fp32" and width < 4
    memory = {"model": weight_bytes(model, dtype)}
    if mastered:
        memory["float32 master copies"] = 4 * edited
    memory |= made.memory
    memory["one update multiplied out"] = 4 * max((m.d_in * m.d_out for m in modules), default=0)
    checkpoint = (4 if mastered else width) * edited + made.state
    database = _ROW_BYTES * work.steps * len(modules) + _EDIT_BYTES * work.target_edits
    few = min(_CHECKPOINTS, 1 + ceil(work.steps / spec.checkpoint.every))
    disk = {f"checkpoints ({few} at most at a time)": few * checkpoint, "database": database}
    asked, told = _evaluation(spec, body, work)
    assumed = [*made.assumed, told, "activations, key-value caches and the file cache are not in the memory"]
    if not work.counted:
        assumed.insert(0, f"{ASSUMED_TOKENS} tokens and {ASSUMED_ROWS} answer tokens an edit (nothing was counted)")
    return Estimate(work, tuple(made.parts), asked, memory, disk, tuple(assumed))


def _evaluation(spec: Spec, body: Body, work: Work) -> tuple[tuple[Part, ...], str]:
    """Forward passes over the questions of the schedule, and what is not in them."""
    due = schedule_from(spec.evaluation.schedule)
    places = [step for step in range(work.steps) if due(step, work.steps)]
    edits_a_step = work.target_edits / max(work.target_steps, 1)
    first = work.steps - work.target_steps
    limit = spec.evaluation.subsample or work.target_edits
    asked = sum(min(limit, edits_a_step * max(0, step + 1 - first)) for step in places)
    questions = asked * len(spec.evaluation.probes)
    per_edit = work.tokens / max(work.edits, 1)
    answers = work.rows / max(work.edits, 1)
    immediate = work.target_edits if spec.recorders != "none" else 0
    passes = 2.0 * (questions + immediate) * (per_edit * body.all + answers * body.head)
    told = f"{len(places)} evaluation{'s' * (len(places) != 1)}, one question of each kind an edit"
    told += ", and each edit asked right after its step" if immediate else ""
    beyond = [*spec.evaluation.metrics, *(["capability"] if spec.evaluation.capability else [])]
    told += f"; not counted: {', '.join(beyond)}" if beyond else ""
    return (Part("evaluation", "model", passes),), told


def counted(plan: Plan, tokenizer: Any, *, rows: RowKind = "answer") -> Work:
    """How much a plan edits, its tokens counted.

    Parameters
    ----------
    plan : Plan
    tokenizer
        The model's own.
    rows : {"answer", "all", "last_prompt"}
        Which token positions give rows.
    """
    read = kept = 0
    every = max(1, sum(plan.sizes) // COUNTED)
    for step in range(0, len(plan), every):
        encoded = encode(plan[step].edits, tokenizer)
        _, attention_mask, labels = encoded.padded()
        read += int(attention_mask.sum())
        kept += int(rows_mask(labels, attention_mask, kind=rows).sum())
    scale = sum(plan.sizes) / max(1, sum(plan.sizes[::every]))
    target = plan.steps("target")
    return Work(
        steps=len(plan),
        target_steps=len(target),
        edits=sum(plan.sizes),
        target_edits=sum(plan.sizes[step] for step in target),
        tokens=round(read * scale),
        rows=round(kept * scale),
        counted=True,
    )


def assumed(spec: Spec, *, rows: RowKind = "answer") -> Work:
    """How much a spec edits when neither its data nor a tokenizer is at hand."""
    target, warmup = spec.data.total, spec.warmup.size
    steps = ceil(target / spec.edits_per_step)
    edits = target + warmup
    per_edit = {"answer": ASSUMED_ROWS, "all": ASSUMED_TOKENS, "last_prompt": 1}[rows]
    return Work(
        steps=steps + ceil(warmup / spec.edits_per_step),
        target_steps=steps,
        edits=edits,
        target_edits=target,
        tokens=ASSUMED_TOKENS * edits,
        rows=per_edit * edits,
        counted=False,
    )


def measured_rates(dtype: str, device: torch.device | str | None = None, *, size: int = 1024) -> Rates:
    """Rates of square products in the weights' type and in float64, and of a float64 eigendecomposition of half that size.

    On a device; None: CUDA where there is one. Best of three, so that what else runs is in the way as little as may be.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    half = size // 2
    a = torch.randn(size, size, device=place, dtype=torch.float64)
    narrow, symmetric = a.to(getattr(torch, dtype)), a[:half, :half] @ a[:half, :half].T
    return Rates(
        name=f"this machine ({place.type})",
        model=2.0 * size**3 / _best(lambda: narrow @ narrow),
        dense=2.0 * size**3 / _best(lambda: a @ a),
        eigen=9.0 * half**3 / _best(lambda: torch.linalg.eigh(symmetric)[1]),
        measured=True,
    )


def _best(work: Callable[[], torch.Tensor]) -> float:
    """Shortest of three times, in seconds; reading an entry waits for the device."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        float(work()[0, 0])
        times.append(time.perf_counter() - began)
    return min(times)
