"""Which edits make up which step: a pure function of the spec and the streams."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from stablediag.errors import SpecError
from stablediag.types import Edit, EditBatch, Phase

#: placement -> index of the target step before which the warm-up runs, given the number of target steps
PLACEMENTS = {
    "start": lambda steps: 0,
    "q1": lambda steps: steps // 4,
    "middle": lambda steps: steps // 2,
    "q3": lambda steps: 3 * steps // 4,
    "end": lambda steps: steps - 1,
}


def plan_steps(
    target: Sequence[Edit], warmup: Sequence[Edit], *, edits_per_step: int, placement: str
) -> tuple[EditBatch, ...]:
    """Cut the streams into steps and put the warm-up in its place.

    Parameters
    ----------
    target, warmup : Sequence of Edit
        Streams in order. The last step of each may be smaller; no edit is left out.
    placement : str
        One of `PLACEMENTS`, or ``none``. The place is computed from the steps that exist, so it is always reached.

    Raises
    ------
    SpecError
        If the placement is unknown, or the two streams share a record.
    """
    shared = {edit.id for edit in target} & {edit.id for edit in warmup}
    if shared:
        raise SpecError(f"warm-up and target streams share {len(shared)} records ({min(shared)!r}, ...): separate them")
    steps = ceil(len(target) / edits_per_step)
    if placement != "none" and placement not in PLACEMENTS:
        raise SpecError(f"unknown warm-up placement {placement!r}: use none, {', '.join(PLACEMENTS)}")
    before = PLACEMENTS[placement](steps) if placement != "none" and warmup else None
    parts: list[tuple[Phase, tuple[Edit, ...]]] = []
    for j in range(steps):
        if j == before:
            parts += [("warmup", tuple(warmup[i : i + edits_per_step])) for i in range(0, len(warmup), edits_per_step)]
        parts.append(("target", tuple(target[j * edits_per_step : (j + 1) * edits_per_step])))
    return tuple(EditBatch(index, phase, edits) for index, (phase, edits) in enumerate(parts))
