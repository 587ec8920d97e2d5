"""Forgetting: steady errors at constant gains, gains for a drift that decays, and a bank of gains that tunes itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from stablediag.maths import NIW, DiagNIW
from stablediag.stats import theory
from stablediag.stats.tracking import prequential_error
from synthetic.bounds import sizes
from synthetic.certify import Row, equality, identical, lower, row, upper
from synthetic.claims import Claim, Scale
from synthetic.claims._adaptation_common import Floats, Values, batch_means, batch_noise, expected_mse
from synthetic.grid import Cell, Result
from synthetic.process import MeanDrift, Process
from synthetic.reduce import mean_se, mean_slope, slope
from synthetic.tracks import checkpoints, track_mean

HERE = "synthetic.claims._adaptation_forgetting"


def measure_steady(*, seed: int, reps: int, process: Mapping[str, Any], gains: Sequence[float], last: int) -> Values:
    """Squared error at constant gains and of the uniform average (last entry), mean of the `last` steps.

    ``less``: every gain less the middle one, the uniform average too, on the same batches.
    """
    path = Process.from_params(process)
    batches, mu = batch_means(path, reps=reps, seed=seed)
    forget = [1 - g for g in gains] + [1.0]
    states = [DiagNIW.empty(path.d, batch_shape=(reps,)) for _ in forget]
    total = torch.zeros(reps, len(forget), dtype=torch.float64)
    for t in range(path.total):
        states = [state.update(batches[:, t : t + 1], forget=f) for state, f in zip(states, forget, strict=True)]
        if t >= path.total - last:
            total += torch.stack([(state.mean - mu[:, t]).square().sum(dim=-1) for state in states], dim=1)
    error = (total / last).numpy()
    mean, se = mean_se(error)
    less, less_se = mean_se(error - error[:, [len(gains) // 2]])
    return {"mean": mean, "se": se, "less": less, "less_se": less_se}


def measure_weights(*, seed: int, d: int, n: int, steps: int, forget: float) -> Values:
    """Largest relative difference of NIW over rows, and of DiagNIW over batch means, from the weighted mean of the batches."""
    rows = Process(d=d, n=n, steps=steps).sampler(3, seed).next(steps)
    full, diagonal = NIW.empty(d, batch_shape=(3,)), DiagNIW.empty(d, batch_shape=(3,))
    for t in range(steps):
        full = full.update(rows[:, t], forget=forget)
        diagonal = diagonal.update(rows[:, t].mean(dim=-2, keepdim=True), forget=forget)
    weights = forget ** torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    mean = torch.einsum("t,rtnd->rd", weights / (n * weights.sum()), rows)
    gain = float(theory.gains(steps, n=n, forget=forget)[-1])
    largest = max(float((state.mean - mean).abs().max() / mean.abs().max()) for state in (full, diagonal))
    return {"difference": max(largest, abs(gain * float(weights.sum()) - 1))}


def measure_decay(*, seed: int, reps: int, process: Mapping[str, Any], steps: Sequence[int]) -> Values:
    """Squared errors at `steps` with tuned gains and with uniform averaging, measured and exact on the same path.

    ``ratio`` is uniform over tuned at the last step; ``slope`` that of the tuned error over all `steps`.
    """
    path = Process.from_params(process)
    tuned = theory.gain_schedule(sizes(path), batch_noise(path), path.mean.direction)
    found = {
        "tuned": track_mean(path, reps=reps, seed=seed, steps=steps, gains=tuned).error2,
        "uniform": track_mean(path, reps=reps, seed=seed, steps=steps).error2,
    }
    at, out = np.asarray(steps) - 1, dict[str, Floats]()
    for name, gains in (("tuned", tuned), ("uniform", None)):
        out[name], out[f"{name}_se"] = mean_se(found[name])
        out[f"{name}_exact"] = theory.exact_mse(path.drift(), path.traces(), n=path.n, gains=gains).total[at]
    last = {name: values[:, -1] for name, values in found.items()}
    ratio = out["uniform"][-1] / out["tuned"][-1]
    trend, trend_se = mean_slope(steps, found["tuned"])
    return {
        **out,
        "ratio": ratio,
        "ratio_se": mean_se(last["uniform"] - ratio * last["tuned"])[1] / out["tuned"][-1],
        "slope": trend,
        "slope_se": trend_se,
        "slope_exact": slope(steps, out["tuned_exact"]),
    }


#: gains of the bank, 1/2 to 1/128, and how long a score remembers (steps)
BANK = tuple(2.0**-k for k in range(1, 8))
MEMORY = 50


def measure_bank(*, seed: int, reps: int, process: Mapping[str, Any]) -> Values:
    """Error of predicting the next mean by the best gain so far, over that of the best constant gain of the bank.

    Gains are scored by the prequential error, or ``peeking``: by the distance of the batch to the estimate that has seen it.
    Errors are averaged over the second half of the path; the best constant gain is that of the exact errors. ``over``: error
    less 1.1 times that of the best constant gain.
    """
    path = Process.from_params(process)
    sampler, mu = path.sampler(reps, seed), torch.as_tensor(path.means())
    states = [DiagNIW.empty(path.d, batch_shape=(reps,)) for _ in BANK]
    score = {"honest": np.zeros((reps, len(BANK))), "peeking": np.zeros((reps, len(BANK)))}
    error = {name: np.zeros(reps) for name in score}
    constant, half = np.zeros((reps, len(BANK))), path.total // 2
    for t in range(path.total):
        rows = sampler.next(1)[:, 0]
        centre = rows.mean(dim=-2)
        before = torch.stack([state.mean for state in states], dim=1)
        if t >= half:
            now = (before - mu[t]).square().sum(dim=-1).numpy()
            constant += now
            for name, values in score.items():
                error[name] += np.take_along_axis(now, values.argmin(axis=1)[:, None], axis=1)[:, 0]
        states = [s.update(centre.unsqueeze(-2), forget=1 - g) for s, g in zip(states, BANK, strict=True)]
        after = torch.stack([state.mean for state in states], dim=1)
        seen = (centre.unsqueeze(1) - after).square().sum(dim=-1).numpy()
        new = {"honest": prequential_error(rows.unsqueeze(1).numpy(), before.numpy()), "peeking": seen}
        if t > 0:
            score = {name: (1 - 1 / MEMORY) * score[name] + new[name] for name in score}
    curves = [theory.exact_mse(path.drift(), path.traces(), n=path.n, forget=1 - g).prediction[half:] for g in BANK]
    exact = np.array([curve.mean() for curve in curves])
    at = int(exact.argmin())
    best = constant[:, at] / (path.total - half)
    out: Values = {"best": BANK[at], "best_exact": exact[at]}
    out["best_mean"], out["best_se"] = mean_se(best)
    for name, total in error.items():
        chosen = total / (path.total - half)
        out[name] = ratio = chosen.mean() / best.mean()
        out[f"{name}_se"] = mean_se(chosen - ratio * best)[1] / best.mean()
        out[f"{name}_over"], out[f"{name}_over_se"] = mean_se(chosen - 1.1 * best)
    return out


#: drift exponents of the decaying drifts, by direction
DECAYS: dict[Literal["fixed", "random"], tuple[float, ...]] = {
    "fixed": (0.0, 0.25, 0.5, 0.75, 1.0, 1.25),
    "random": (0.0, 0.25, 0.5, 0.75, 1.0),
}
STREAMS = {
    "no drift": MeanDrift(),
    "fixed, .1 a step": MeanDrift(C=0.1, alpha=0.0),
    "random, .1 a step": MeanDrift(C=0.1, alpha=0.0, direction="random"),
    "random, t^-.5": MeanDrift(C=1.0, alpha=0.5, direction="random"),
}
#: where looking at the batch before scoring is tried
PEEK = "random, .1 a step"


def _cells(scale: Scale) -> list[Cell]:
    found = [Cell(f"{HERE}:measure_weights", {"d": 8, "n": 5, "steps": 30, "forget": 0.8}, scale.seed_of("weights"))]
    for direction in DECAYS:
        for c in scale.pick((0.1, 0.3), (0.3,)):
            process = Process(steps=scale.pick(500, 200), mean=MeanDrift(C=c, alpha=0.0, direction=direction))
            best = float(theory.optimal_gain(c, batch_noise(process), direction))
            params = {
                "reps": scale.replicates(200, 100),
                "process": process.params(),
                "gains": [best / 2, best, 2 * best],
                "last": process.total // 4,
            }
            found.append(Cell(f"{HERE}:measure_steady", params, scale.seed_of("steady", direction, c)))
    for direction in DECAYS:
        for alpha in scale.pick(DECAYS[direction], (0.0, 0.5)):
            process = Process(steps=scale.pick(10_000, 600), mean=MeanDrift(C=0.3, alpha=alpha, direction=direction))
            params = {
                "reps": scale.replicates(60, 40),
                "process": process.params(),
                "steps": checkpoints(process.total, count=8, first=process.total // 20),
            }
            found.append(Cell(f"{HERE}:measure_decay", params, scale.seed_of("decay", direction, alpha), cost=8.0))
    for name in scale.pick(tuple(STREAMS), (PEEK,)):
        process = Process(steps=scale.pick(600, 240), mean=STREAMS[name])
        params = {"reps": scale.replicates(60, 30), "process": process.params()}
        found.append(Cell(f"{HERE}:measure_bank", params, scale.seed_of("bank", name), cost=4.0))
    return found


def _rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    build = {
        "measure_weights": _weight_rows,
        "measure_steady": _steady_rows,
        "measure_decay": _decay_rows,
        "measure_bank": _bank_rows,
    }
    pairs = zip(cells, results, strict=True)
    return [one for cell, result in pairs for one in build[cell.function.partition(":")[2]](cell, result)]


def _weight_rows(cell: Cell, result: Result) -> list[Row]:
    found = result.number("difference")
    return [
        row(
            "forgetting",
            f"NIW of rows and DiagNIW of batch means are the weighted mean, forget {cell.params['forget']:g}",
            [identical(found, 1e-12)],
            measured=found,
            exact=0.0,
            seconds=result.seconds,
        )
    ]


def _steady_rows(cell: Cell, result: Result) -> list[Row]:
    path, df = Process.from_params(cell.params["process"]), int(cell.params["reps"]) - 1
    gains, c, R = np.asarray(cell.params["gains"]), path.mean.C, batch_noise(path)
    mean, se, less, less_se = (result[name] for name in ("mean", "se", "less", "less_se"))
    steady = theory.steady_mse(gains, c, R, path.mean.direction)
    where = f"{path.mean.direction} direction, {c:g} a step"
    uniform = expected_mse(path).total[-cell.params["last"] :].mean()
    return [
        row(
            "forgetting",
            f"steady error at the best gain and next to it, {where}",
            [equality(mean[:3], se[:3], steady, df=df), lower(less[[0, 2]], less_se[[0, 2]], 0.0, df=df)],
            measured=mean[1],
            error=se[1],
            exact=float(theory.best_mse(c, R, path.mean.direction)),
            seconds=result.seconds,
            note=f"best gain {gains[1]:.3f}; at half of it {mean[0]:.3f} (exact {steady[0]:.3f}), at twice {mean[2]:.3f} "
            f"({steady[2]:.3f})",
        ),
        row(
            "forgetting",
            f"uniform average after {path.total} steps, {where}",
            [equality(mean[3], se[3], uniform, df=df)],
            measured=mean[3],
            error=se[3],
            exact=uniform,
            seconds=result.seconds,
        ),
        row(
            "forgetting",
            f"uniform average is best, {where}",
            [upper(less[3], less_se[3], 0.0, df=df)],
            measured=less[3],
            error=less_se[3],
            planted=True,
            seconds=result.seconds,
            note="its error less that at the best gain",
        ),
    ]


def _decay_rows(cell: Cell, result: Result) -> list[Row]:
    """One row: ratio of the errors at the end, with the tuned error and its slope against the exact curve."""
    path, df = Process.from_params(cell.params["process"]), int(cell.params["reps"]) - 1
    alpha, direction = path.mean.alpha, path.mean.direction
    exact: Floats = result["uniform_exact"] / result["tuned_exact"]
    limit = max(-alpha * (2 / 3 if direction == "fixed" else 1.0), -1.0) + 0.0
    ratio = result.number("ratio")
    # Where the schedule is plain averaging both errors are one number, and their difference is rounding.
    ratio_se = max(result.number("ratio_se"), 1e-9 * ratio)
    return [
        row(
            "forgetting",
            f"uniform over tuned, {direction} .3 t^-{alpha:g}, T={path.total}",
            [
                equality(ratio, ratio_se, exact[-1], df=df),
                equality(result["tuned"], result["tuned_se"], result["tuned_exact"], df=df),
                equality(result["slope"], result["slope_se"], result["slope_exact"], df=df),
            ],
            measured=ratio,
            error=result.number("ratio_se"),
            exact=exact[-1],
            seconds=result.seconds,
            note=f"slope of the tuned error {result.number('slope'):.3f} (se {result.number('slope_se'):.3f}), exact curve "
            f"{result.number('slope_exact'):.3f}, limit {limit:.3f}" + ("; on one path" * (direction == "random")),
        )
    ]


def _bank_rows(cell: Cell, result: Result) -> list[Row]:
    path, df = Process.from_params(cell.params["process"]), int(cell.params["reps"]) - 1
    name = next(name for name, mean in STREAMS.items() if mean == path.mean)
    out = []
    for score, planted in (("honest", False), ("peeking", True)):
        if planted and name != PEEK:
            continue
        how = "a batch the estimate has seen" if planted else "the prequential error"
        out.append(
            row(
                "forgetting",
                f"gain bank scored by {how}: at most 1.1 x the best constant gain, {name}",
                [upper(result[f"{score}_over"], result[f"{score}_over_se"], 0.0, df=df)],
                measured=result.number(score),
                error=result.number(f"{score}_se"),
                tight=1.1,
                planted=planted,
                seconds=result.seconds,
                note=f"best constant gain {result.number('best'):.4f}: error {result.number('best_mean'):.4f}, exact "
                f"{result.number('best_exact'):.4f}",
            )
        )
    return out


CLAIM = Claim(
    "forgetting",
    "forgetting under drift: steady error, best gain, tuned schedule, and a bank of gains that scores itself",
    "derived here",
    _cells,
    _rows,
)
