"""The theory of Lifelong Normalization by simulation: drifting Gaussian processes, exact oracles, bounds, and checks.

The simulator edits nothing: it feeds synthetic value gradients to the very `stablediag.maths` code that edits a language
model, in float64 and with replicates as the leading batch dimension, and compares what comes out with exact values.

>>> from synthetic import Bound, Check, MeanDrift, Process, simulate
>>> process = Process(d=16, n=10, steps=100, mean=MeanDrift(C=0.3, alpha=1.25))
>>> frame = simulate(process, reps=50)                    # doctest: +SKIP
>>> Bound("paper_mse", process).value(100)                # doctest: +SKIP
>>> Check("theorem-3.5", quick=True).run().frame          # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Bound": "synthetic.bounds",
    "Check": "synthetic.checks",
    "CovDrift": "synthetic.process",
    "MeanDrift": "synthetic.process",
    "Noise": "synthetic.process",
    "Process": "synthetic.process",
    "Report": "synthetic.checks",
    "Spectrum": "synthetic.process",
    "run_checks": "synthetic.checks",
    "simulate": "synthetic.tracks",
    "summarise": "synthetic.tracks",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
