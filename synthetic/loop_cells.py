"""What the checks of the closed loop measure: runs of `synthetic.closed_loop`, reduced to means and standard errors.

Every comparison of arms is paired over replicates (same model, same requests).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from stablediag.maths import NIW, gradient_whitener, ln_update
from stablediag.stats.theory import cov_drift_from_update, drift_from_update, horizon, paper_cov_drift, paper_mse
from synthetic.closed_loop import ARMS, Loop, Outcome, Path, run_loop
from synthetic.grid import Cell, derive_seed
from synthetic.reduce import mean_se
from synthetic.softmax import value_gradients

Floats = NDArray[np.float64]
Values = dict[str, float | Floats]

THREE = ("full", "uncentred full", "raw matched")
#: a centred arm and the arm it is compared with
PAIRS = (
    ("full", "uncentred full"),
    ("diagonal", "uncentred diagonal"),
    ("scalar", "uncentred scalar"),
    ("centre", "raw"),
    ("full", "raw matched"),
)
#: blocks of steps over which one-step predictions are averaged
BLOCKS = 4


def measure_loop(
    *, seed: int, reps: int, arms: Sequence[str], size: Mapping[str, Any], knobs: Mapping[str, Any]
) -> Values:
    """Run the loop and reduce every arm to means and standard errors over replicates, named ``arm/quantity``.

    Parameters
    ----------
    seed, reps : int
    arms : sequence of str
        Of `synthetic.closed_loop.ARMS`.
    size, knobs : mapping
        Of `synthetic.closed_loop.Loop`; a knob goes before a size.
    """
    outcome = run_loop(Loop(**{**size, **knobs}), arms, reps=reps, seed=seed)
    out: Values = {"checkpoints": outcome.checkpoints.astype(np.float64)}
    for name, path in outcome.paths.items():
        found: Values = _tracking(outcome, path) | _drift_bounds(outcome, path)
        for series in ("efficacy", "retention", "norm"):
            _put(found, series, getattr(path, series).reshape(reps, -1).mean(axis=1))
        _put(found, "kl", path.kl[:, -1])
        if ARMS[name].centred:
            _put(found, "feedback", _relative(path.feedback, path.error2[:, outcome.checkpoints - 1]))
            _put(found, "gain", path.gain)
        out |= {f"{name}/{key}": value for key, value in found.items()}
    for a, b in PAIRS:
        if a in arms and b in arms:
            one, two = outcome.paths[a], outcome.paths[b]
            _put(out, f"{a}/kl ratio to {b}", np.log(one.kl[:, -1] / two.kl[:, -1]))
            _put(out, f"{a}/retention gain on {b}", one.retention - two.retention)
            _put(out, f"{a}/efficacy gain on {b}", (one.efficacy - two.efficacy).mean(axis=1))
    return out


def _relative(feedback: Floats, error2: Floats) -> Floats:
    """Feedback over squared error, both averaged over checkpoints, shape [R]."""
    return np.asarray(feedback.mean(axis=1) / error2.mean(axis=1))


def _tracking(outcome: Outcome, path: Path) -> Values:
    """Errors of the running mean against the exact one-step prediction and against the paper's recursion."""
    loop, (_, steps) = outcome.loop, path.norm.shape
    t = np.arange(1, steps + 1)
    noise = path.trace / loop.n
    found: Values = {}
    at = outcome.checkpoints - 1
    _put(found, "error", path.error2[:, at])
    sizes = np.sqrt((path.drift**2).mean(axis=0))
    found["paper"] = paper_mse(sizes, d=loop.d, lmax=float(path.top.max()), n=loop.n)[at]
    # Given the past, the batch alone is random: the ratio of the error to this prediction has mean one at every step.
    one_step = (1 - 1 / t) ** 2 * path.prediction2 + noise / t**2
    _put(found, "one step", _blocks(path.error2 / one_step))
    excess = t * path.error2 / noise
    _put(found, "excess", excess[:, -1])
    _put(found, "alpha", _exponent(path.drift))
    found["largest alpha"] = float(_exponent(path.drift).max())
    _put(found, "norm exponent", _exponent(path.norm))
    # Diffusive drift of size c: excess = 1 + (t/t*)^2. Fitted up to twice the predicted horizon, it is linear in 1/t*^2.
    size = np.sqrt((path.drift[:, 1:] ** 2).mean(axis=1))
    predicted = np.array([horizon(c, R, "random") for c, R in zip(size, noise.mean(axis=1), strict=True)])
    scaled = (t / predicted[:, None]) ** 2
    window = t <= 2 * predicted[:, None]
    slope = ((excess - 1) * scaled * window).sum(axis=1) / (scaled**2 * window).sum(axis=1)
    _put(found, "horizon", predicted)
    _put(found, "horizon fit", slope)
    doubled = np.flatnonzero(excess.mean(axis=0) >= 2)
    found["doubling"] = float(doubled[0] + 1) if doubled.size else math.nan
    return found


def _blocks(series: Floats) -> Floats:
    """Means over blocks of steps, shape [R, BLOCKS]."""
    return np.stack([part.mean(axis=1) for part in np.array_split(series, BLOCKS, axis=1)], axis=1)


def _drift_bounds(outcome: Outcome, path: Path) -> Values:
    """Largest drifts per unit of update, with the bounds on them: at every step and replicate, not on average."""
    L = outcome.lipschitz[:, None]
    norm, drift, cov = path.norm[:, :-1], path.drift[:, 1:], path.cov_drift[:, 1:]
    probe = _per(path.moved[:, 1:], norm)
    top = np.maximum(path.top[:, 1:], path.top[:, :-1])
    largest = np.sqrt((path.trace + path.mean2).max(axis=1, keepdims=True))
    sharp, paper = cov_drift_from_update(L, norm, top), paper_cov_drift(L, norm, largest)
    return {
        "drift": _largest(drift, norm),
        "drift over probe": _largest(drift, path.moved[:, 1:]),
        "drift over bound": _largest(drift, drift_from_update(L, norm)),
        "probe": float(probe.max()),
        "lipschitz": float(L.max()),
        "cov": _largest(cov, norm),
        "cov over probe": _largest(cov, cov_drift_from_update(probe, norm, top)),
        "cov over sharp": _largest(cov, sharp),
        "cov over paper": _largest(cov, paper),
        # Both at the same step: how loose the paper's constant is, and the least that is claimed of it.
        "paper over sharp": (paper / sharp).ravel(),
        "least loose": (2 * np.sqrt(path.trace[:, 1:] / top)).ravel(),
        "planted over sharp": (paper_cov_drift(L, norm, np.sqrt(top)) / sharp).ravel(),
        "paper constant": float(paper_cov_drift(L, 1.0, largest).max()),
    }


def _per(part: Floats, whole: Floats) -> Floats:
    """The ratio; zero where there is nothing to bound, infinite where only the bound is zero."""
    with np.errstate(divide="ignore"):
        return np.divide(part, whole, out=np.zeros_like(part), where=part > 0)


def _largest(part: Floats, whole: Floats) -> float:
    return float(_per(part, whole).max())


def measure_matching(
    *, seed: int, reps: int, steps: Sequence[float], target: float, share: float, knobs: Mapping[str, Any]
) -> Values:
    """Divergence of the arms at equal efficacy: log-divergence interpolated along a grid of learning rates.

    Parameters
    ----------
    seed, reps : int
    steps : sequence of float
        Values of `Loop.step`, increasing.
    target : float
        Efficacy at which the arms are compared, moved in a replicate where it lies outside what all arms reach within the
        grid; where they share no efficacy, means are NaN.
    share : float
        Of the gap at the smallest rate, from which the gap at the largest rate is subtracted.
    knobs : mapping
        The other knobs.
    """
    runs = [
        run_loop(Loop(**{**knobs, "step": step}), THREE, reps=reps, seed=seed, checkpoints=(), spectra=False)
        for step in steps
    ]
    kls = {arm: np.log(np.stack([run.paths[arm].kl[:, -1] for run in runs], axis=1)) for arm in THREE}
    efficacies = {arm: np.stack([run.paths[arm].efficacy.mean(axis=1) for run in runs], axis=1) for arm in THREE}
    low = np.max([one[:, 0] for one in efficacies.values()], axis=0)
    high = np.min([one[:, -1] for one in efficacies.values()], axis=0)
    # A little inside the range, where every arm passes the level.
    at = np.clip(target, low + 0.05 * (high - low), high - 0.05 * (high - low))
    level = {
        arm: np.array([_cross(x, y, level) for x, y, level in zip(efficacies[arm], kls[arm], at, strict=True)])
        for arm in THREE
    }
    out: Values = {}
    for arm in THREE:
        _put(out, f"{arm}/kl", np.exp(level[arm]))
        _put(out, f"{arm}/efficacy", efficacies[arm])
    for arm in THREE[1:]:
        _put(out, f"gap to {arm}", level["full"] - level[arm])
        same = kls["full"] - kls[arm]
        _put(out, f"same step gap to {arm}", same)
        _put(out, f"share of the gap to {arm}, first less last", share * same[:, 0] - same[:, -1])
    return out


def _cross(x: Floats, y: Floats, target: float) -> float:
    """y where x first reaches `target`, linear in between; NaN when it starts above or never does."""
    above = np.flatnonzero(x >= target)
    if not above.size or above[0] == 0:
        return math.nan
    i = above[0]
    return float(np.interp(target, x[i - 1 : i + 1], y[i - 1 : i + 1]))


def measure_pair(*, seed: int, move: float) -> Values:
    """Two requests in one dimension, mirror images of each other, and one small update: the sharp constant is attained.

    Parameters
    ----------
    seed : int
        Not used: nothing is random.
    move : float
        ``|DW|``.
    """
    head = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    keys = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    before, after = (value_gradients(keys * w, head, labels)[0].numpy() for w in (0.0, move))
    L = math.sqrt(((after - before) ** 2).mean()) / move
    top = max(before.var(), after.var())
    return {
        "cov": abs(after.var() - before.var()),
        "sharp": float(cov_drift_from_update(L, move, top)),
        "planted": float(cov_drift_from_update(L, move, top)) / 2,
    }


def measure_diffusion(
    *, seed: int, reps: int, steps: int, d: int, p: int, n: int, mean: float, centred: bool
) -> Values:
    """Sum of updates of norm one, from Gaussian gradients that do not answer.

    Parameters
    ----------
    seed, reps, steps, d, p, n : int
    mean : float
        Length of the mean gradient; the covariance is the identity.
    centred : bool
        Whether the running mean is subtracted.
    """
    generator = torch.Generator().manual_seed(seed)
    state = NIW.empty(d, batch_shape=(reps,))
    total = torch.zeros(reps, p, d, dtype=torch.float64)
    marks = np.unique(np.geomspace(max(2, steps // 16), steps, 5).astype(int))
    found = []
    for t in range(1, steps + 1):
        keys = torch.randn(reps, n, p, generator=generator, dtype=torch.float64) + 0.5
        rows = torch.randn(reps, n, d, generator=generator, dtype=torch.float64)
        rows[..., 0] += mean
        state = state.update(rows)
        whitener = gradient_whitener(state)
        if not centred:
            whitener = replace(whitener, mean=torch.zeros_like(whitener.mean))
        ones = torch.ones(reps, n, dtype=torch.float64)
        update = ln_update(keys, rows, whitener=whitener, coefficient=ones, lr=1.0, ridge=1.0)
        total = total + update.dense() / update.norm()[:, None, None]
        if t in marks:
            found.append(total.square().sum(dim=(-2, -1)).numpy())
    out: Values = {"steps": marks.astype(np.float64)}
    _put(out, "distance", np.stack(found, axis=1))
    _put(out, "growth", found[-1] - found[0])
    return out


def measure_phase(*, seed: int, reps: int, knobs: Mapping[str, Any]) -> Values:
    """Centred LN against raw updates of the same norm, at one point of the phase diagram.

    Parameters
    ----------
    seed, reps : int
    knobs : mapping
        Of `synthetic.closed_loop.Loop`.
    """
    loop = Loop(**knobs)
    outcome = run_loop(loop, ("full", "raw matched"), reps=reps, seed=seed, checkpoints=(), spectra=False)
    one, two = outcome.paths["full"], outcome.paths["raw matched"]
    out: Values = {"step": loop.step, "overlap": loop.n / loop.p}
    _put(out, "log kl", np.log(one.kl[:, -1] / two.kl[:, -1]))
    _put(out, "retention", one.retention - two.retention)
    _put(out, "efficacy", (one.efficacy - two.efficacy).mean(axis=1))
    return out


def phase_cells(quick: bool, *, seed: int = 0) -> list[Cell]:
    """Phase diagram in the learning rate and the overlap of the keys: cells of `measure_phase`.

    Each returns ``step``, ``overlap`` (n/p) and, for LN minus raw updates of the same norm, mean and standard error
    (``... se``) of ``log kl`` (log-ratio of the held-out divergences), ``retention`` and ``efficacy``.
    """
    steps = (0.05, 0.2, 0.8) if quick else (0.03, 0.06, 0.12, 0.25, 0.5, 1.0)
    widths = (24, 96, 384) if quick else (12, 24, 48, 96, 192, 384)
    size = {"steps": 40, "population": 400} if quick else {"steps": 100, "population": 800}
    return [
        Cell(
            "synthetic.loop_cells:measure_phase",
            {"reps": 4 if quick else 8, "knobs": {"step": step, "p": p, **size}},
            derive_seed(seed, "phase", step, p),
        )
        for step in steps
        for p in widths
    ]


def _put(out: Values, name: str, values: ArrayLike) -> None:
    """Mean and standard error over replicates, the leading axis."""
    out[name], out[f"{name} se"] = mean_se(values)


def _exponent(series: Floats) -> Floats:
    """Minus the log-log slope of every replicate over the last nine tenths of the steps, shape [R]."""
    t = np.arange(1, series.shape[1] + 1)
    window = t > max(1, t.size // 10)
    return np.asarray(-np.polyfit(np.log(t[window]), np.log(series[:, window]).T, 1)[0])
