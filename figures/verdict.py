"""Whether the data show what the paper claims: shown, not shown, or opposite, with effect and interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from stablediag.stats.compare import Interval

Answer = Literal["shown", "not shown", "opposite"]


@dataclass(frozen=True)
class Verdict:
    """One claim of the paper and what the runs say about it.

    Attributes
    ----------
    claim : str
        The paper's sentence, or the control's, in short.
    answer : str
        ``shown``, ``not shown`` or ``opposite``.
    effect : str
        What was measured, with interval and number of seeds.
    """

    claim: str
    answer: Answer
    effect: str

    def __str__(self) -> str:
        return f"{self.claim}: {self.answer.upper()}; {self.effect}"

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"claim": self.claim, "answer": self.answer, "effect": self.effect}


def judge(
    claim: str, interval: Interval, *, name: str, shown_above: float = 0.0, opposite_below: float | None = None
) -> Verdict:
    """Decide by where the interval lies.

    Parameters
    ----------
    claim : str
        The claim.
    interval : Interval
        Of an effect whose sign is such that the claim asks for large values.
    name : str
        What the effect is.
    shown_above : float
        Shown when the whole interval lies above this value.
    opposite_below : float, optional
        Opposite when the whole interval lies below this value; by default `shown_above`.
    """
    limit = shown_above if opposite_below is None else opposite_below
    answer: Answer = "not shown"
    if interval.low > shown_above:
        answer = "shown"
    elif interval.high < limit:
        answer = "opposite"
    return Verdict(claim, answer, f"{name} {interval}")
