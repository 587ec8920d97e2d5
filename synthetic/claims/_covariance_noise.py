"""What the watched curves of the covariance do when nothing moves: condition number, largest eigenvalue, steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from stablediag.stats.spectra import iid_mean_shift, mp_condition, mp_edges
from synthetic.certify import Row, equality, identical, lower, row, upper
from synthetic.claims import STABLEEDIT, Claim, Scale
from synthetic.claims._covariance_common import Values, spectral_norms, states
from synthetic.grid import Cell, Result
from synthetic.process import CovDrift, MeanDrift, Process, Spectrum
from synthetic.reduce import mean_se, mean_slope
from synthetic.tracks import checkpoints

HERE = "synthetic.claims._covariance_noise"


def measure_noise(
    *,
    seed: int,
    reps: int,
    d: int,
    n: int,
    steps: int,
    count: int = 12,
    mean_size: float = 0.0,
    mean_exponent: float = 0.0,
    mean_direction: Literal["fixed", "random", "rotating"] = "fixed",
    cov_size: float = 0.0,
    cov_exponent: float = 0.0,
) -> Values:
    """Curves along a stream with identity covariance, or with drift if a size is given.

    Parameters
    ----------
    seed, reps : int
    d, n, steps : int
        Dimension, rows a step, steps.
    count : int
        Points of the curves, log-spaced from the first step at which the estimate before it exists.
    mean_size, mean_exponent, mean_direction
        Drift of the mean, ``size t^-exponent``.
    cov_size, cov_exponent
        Drift of the covariance in spectral norm; its eigenvalues move between 1 and 0.05.

    Returns
    -------
    dict
        ``step`` and ``rows`` [K]; mean and standard error (``_se``) over replicates [K] of ``condition`` and ``eig_max``
        (logarithms), ``mean_step2`` (squared norm of the last change of the mean) and ``cov_step`` (spectral norm of
        the last change of the estimate); slopes of the last two against the step, ``mean_step_slope`` and
        ``cov_step_slope``, over the second half of the points.
    """
    drifting = cov_size > 0
    path = Process(
        d=d,
        n=n,
        steps=steps,
        spectrum=Spectrum("iso", lmin=0.05),
        mean=MeanDrift(C=mean_size, alpha=mean_exponent, direction=mean_direction),
        cov=CovDrift(C=cov_size, beta=cov_exponent, kind="folding") if drifting else CovDrift(),
    )
    at = [int(step) for step in checkpoints(steps, count=count, first=(d + 1) // n + 2)]
    every = sorted({step - 1 for step in at} | set(at))
    curves: dict[str, list[Any]] = {"condition": [], "eig_max": [], "mean_step2": [], "cov_step": []}
    before = None
    for step, state in zip(every, states(path, reps=reps, seed=seed, steps=every), strict=True):
        if step in at and before is not None:
            values = torch.linalg.eigvalsh(state.cov)
            curves["condition"].append((values[:, -1] / values[:, 0]).log().numpy())
            curves["eig_max"].append(values[:, -1].log().numpy())
            curves["mean_step2"].append((state.mean - before.mean).square().sum(dim=-1).numpy())
            curves["cov_step"].append(spectral_norms(state.cov - before.cov))
        before = state
    out: Values = {"step": np.array(at, dtype=np.float64), "rows": n * np.array(at, dtype=np.float64)}
    late = len(at) // 2
    for name, rows in curves.items():
        values = np.stack(rows, axis=1)
        out[name], out[f"{name}_se"] = mean_se(values)
        if name.endswith(("step2", "step")):
            root = np.sqrt(values) if name == "mean_step2" else values
            key = name.removesuffix("2") + "_slope"
            out[key], out[f"{key}_se"] = mean_slope(at[late:], root[:, late:])
    return out


#: rows to condition number at d = 4096, as pure noise gives it
KNOWN = {4200: 25451.0, 8192: 34.0, 20_000: 7.0, 102_400: 2.25, 2_000_000: 1.20}
#: how far (logarithm) condition number and largest eigenvalue may be from their values at infinite dimension
FINITE_D = {"condition": 0.5, "eig_max": 0.15}
#: how far a slope may be from -1
SLOPE_WITHIN = 0.3
STILL: dict[str, Any] = {}
DRIFTING: dict[str, Any] = {"mean_size": 0.3, "mean_exponent": 0.0, "mean_direction": "random"}


def _cells(scale: Scale) -> list[Cell]:
    size = {"d": 64, "n": 20, "steps": scale.pick(1000, 200), "count": scale.pick(12, 8)}
    return [
        Cell(
            f"{HERE}:measure_noise",
            {"reps": scale.replicates(40, 40), **size, **drift},
            scale.seed_of("pure-noise", *drift.items()),
            cost=3.0,
        )
        for drift in (STILL, DRIFTING)
    ]


def _rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    still, drifting = results
    df, d, n = (int(cells[0].params[name]) for name in ("reps", "d", "n"))
    df -= 1
    counts = np.array(list(KNOWN))
    formula, known = mp_condition(counts, 4096), np.array(list(KNOWN.values()))
    out = [
        row(
            "pure-noise",
            "Marchenko-Pastur condition number at d=4096, formula against tabulated values",
            [identical(np.abs(formula / known - 1), 0.01)],
            measured=formula[2],
            exact=known[2],
            note=", ".join(f"{value:.5g} at N = {rows}" for value, rows in zip(formula, counts, strict=True)),
        )
    ]
    rows = still["rows"]
    limits = {"condition": mp_condition(rows, d), "eig_max": mp_edges(rows, d)[1]}
    for name, title in (("condition", "condition number"), ("eig_max", "largest eigenvalue")):
        log, se, limit, within = still[name], still[f"{name}_se"], np.log(limits[name]), FINITE_D[name]
        out.append(
            row(
                "pure-noise",
                f"{title} falls although nothing moves, d={d} n={n}",
                [upper(log, se, limit + within, df=df), lower(log, se, limit - within, df=df)],
                measured=float(np.exp(log[-1])),
                error=float(np.exp(log[-1]) * se[-1]),
                exact=float(limits[name][-1]),
                seconds=still.seconds,
                note=f"within {within:g} (logarithm) of the Marchenko-Pastur value: "
                + ", ".join(
                    f"{np.exp(v):.3g} of {w:.3g} (N={N:.0f})" for v, w, N in zip(log, limits[name], rows, strict=True)
                ),
            )
        )
    at = still["step"].astype(int) - 1
    steps = [n] * int(still["step"][-1])
    exact = iid_mean_shift(steps, float(d))[at] ** 2
    out.append(
        row(
            "pure-noise",
            f"step of the mean although nothing moves, squared, d={d} n={n}",
            [equality(still["mean_step2"], still["mean_step2_se"], exact, df=df)],
            measured=still["mean_step2"][-1],
            error=still["mean_step2_se"][-1],
            exact=exact[-1],
            seconds=still.seconds,
            note=f"slope of the step {still.number('mean_step_slope'):.2f}",
        )
    )
    for name, title in (("mean_step", "step of the mean"), ("cov_step", "step of the covariance")):
        rate, rate_se = still.number(f"{name}_slope"), still.number(f"{name}_slope_se")
        out.append(
            row(
                "pure-noise",
                f"{title} falls about as 1/t although nothing moves, d={d} n={n}",
                [upper(rate, rate_se, SLOPE_WITHIN - 1, df=df), lower(rate, rate_se, -SLOPE_WITHIN - 1, df=df)],
                measured=rate,
                error=rate_se,
                exact=-1.0,
                seconds=still.seconds,
                note="slope over the second half of the points",
            )
        )
        rate, rate_se = drifting.number(f"{name}_slope"), drifting.number(f"{name}_slope_se")
        out.append(
            row(
                "pure-noise",
                f"{title} falls only if the drift does, random drift of constant size",
                [lower(rate, rate_se, -0.1, df=df)],
                measured=rate,
                error=rate_se,
                expected="false",
                seconds=drifting.seconds,
                note=f"falls with slope {rate:.2f} while the drift stays at {DRIFTING['mean_size']:g} a step",
            )
        )
    return out


CLAIM = Claim(
    "pure-noise",
    "condition number, largest eigenvalue and steps fall when nothing moves",
    f"{STABLEEDIT}, Appendix B.3.3 and B.6.3; Marchenko and Pastur 1967",
    _cells,
    _rows,
)
