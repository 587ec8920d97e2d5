"""The prequential error: unbiased without the truth, with a known variance, and by edits rather than by tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stablediag.maths import DiagNIW
from stablediag.stats import theory
from stablediag.stats.tracking import posterior_error, prequential_error, prequential_sd, prequential_variance
from synthetic.certify import Row, Test, equality, row
from synthetic.claims import Claim, Scale
from synthetic.claims._adaptation_common import Values, batch_noise
from synthetic.grid import Cell, Result
from synthetic.process import MeanDrift, Noise, Process
from synthetic.reduce import mean_se

HERE = "synthetic.claims._adaptation_prequential"
#: stretches of the path in which the estimate is compared with the truth
WINDOWS = 4


def measure_prequential(*, seed: int, reps: int, process: Mapping[str, Any]) -> Values:
    """Estimates less what they estimate, in stretches of the path, under plain averaging; tokens averaged by edit.

    ``gap``: prequential error less truth; ``after``: the same after the step; ``token_gap``: tokens taken for edits;
    ``squares``: squared gap over its predicted variance; ``variance``: estimated less predicted variance, relative.
    """
    path = Process.from_params(process)
    tokens = path.noise.tokens
    edits = np.arange(path.n) // tokens
    count = path.n // tokens
    effect = path.noise.design_effect(path.n)
    sampler, mu = path.sampler(reps, seed), path.means()
    state = DiagNIW.empty(path.d, batch_shape=(reps,)).update(sampler.next(1)[:, 0])
    names = ("estimate", "gap", "after", "token_gap", "squares", "variance")
    found = {name: np.empty((reps, path.total - 1)) for name in names}
    for t, gain in enumerate(theory.gains(path.total, n=path.n)[1:], start=1):
        rows = sampler.next(1)[:, 0]
        v, before = rows.numpy(), state.mean.numpy()
        state = state.update(rows)
        error = before - mu[t]
        truth = np.square(error).sum(axis=-1)
        estimate = prequential_error(v, before, groups=edits)
        # A mean over k correlated tokens has the covariance of a row times the design effect over k.
        cov = path.covariance(t + 1) * effect / tokens
        predicted = prequential_sd(cov, n=count, error=error) ** 2
        later = np.square(state.mean.numpy() - mu[t]).sum(axis=-1)
        values = {
            "estimate": estimate,
            "gap": estimate - truth,
            "after": posterior_error(v, before, gain, groups=edits) - later,
            "token_gap": prequential_error(v, before) - truth,
            "squares": (estimate - truth) ** 2 / predicted,
            "variance": prequential_variance(v, before, groups=edits) / predicted - 1,
        }
        for name, one in values.items():
            found[name][:, t - 1] = one
    out: Values = {}
    for name, all_steps in found.items():
        pieces = [piece.mean(axis=1) for piece in np.array_split(all_steps, WINDOWS, axis=1)]
        out[name], out[f"{name}_se"] = mean_se(np.stack(pieces, axis=1))
        out[f"{name}_all"], out[f"{name}_all_se"] = mean_se(all_steps.mean(axis=1))
    exact = theory.exact_mse(path.drift(), path.traces() * effect, n=path.n).prediction[1:]
    out["exact"] = np.array([piece.mean() for piece in np.array_split(exact, WINDOWS)])
    out["exact_all"] = exact.mean()
    return out


#: mean drift and noise by name
SCENARIOS: dict[str, tuple[MeanDrift, Noise]] = {
    "no drift": (MeanDrift(), Noise()),
    "fixed .3 t^-.5": (MeanDrift(C=0.3, alpha=0.5), Noise()),
    "random .3, exponential rows": (MeanDrift(C=0.3, alpha=0.0, direction="random"), Noise(kind="exponential")),
    "rotating .5 t^-.25": (MeanDrift(C=0.5, alpha=0.25, direction="rotating"), Noise()),
    "jump of 2, Student-t df 5": (MeanDrift(C=2.0, direction="jump", at=15), Noise(kind="student", df=5.0)),
    "periodic .2": (MeanDrift(C=0.2, alpha=0.0, direction="periodic", period=20), Noise()),
}
QUICK = ("no drift", "fixed .3 t^-.5", "random .3, exponential rows")
TOKENS = Noise(dependence="tokens", tokens=3, rho=0.6)


def _cells(scale: Scale) -> list[Cell]:
    def cell(name: str, process: Process) -> Cell:
        params = {"reps": scale.replicates(200, 60), "process": process.params()}
        return Cell(f"{HERE}:measure_prequential", params, scale.seed_of("prequential", name), cost=3.0)

    steps = scale.pick(100, 40)
    kept = scale.pick(tuple(SCENARIOS), QUICK)
    found = [cell(name, Process(steps=steps, mean=SCENARIOS[name][0], noise=SCENARIOS[name][1])) for name in kept]
    return [*found, cell("tokens", Process(n=90, steps=scale.pick(40, 12), noise=TOKENS))]


def _rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    out = []
    for cell, result in zip(cells, results, strict=True):
        path, df = Process.from_params(cell.params["process"]), int(cell.params["reps"]) - 1
        grouped = path.noise.dependence == "tokens"
        where = "3 tokens an edit, averaged first" if grouped else _name(path)
        unbiased = [
            equality(result["gap"], result["gap_se"], 0.0, df=df),
            equality(result["estimate"], result["estimate_se"], result["exact"], df=df),
            equality(result["after"], result["after_se"], 0.0, df=df),
        ]
        exact = result.number("exact_all")
        out += [
            _row(result, f"unbiased before and after the step, {where}", "estimate_all", exact, unbiased),
            _spread(result, where, df),
        ]
        if grouped:
            out += _token_rows(path, result, df)
    return out


def _name(path: Process) -> str:
    return next(name for name, (mean, noise) in SCENARIOS.items() if (mean, noise) == (path.mean, path.noise))


def _row(result: Result, setting: str, name: str, exact: float, tests: list[Test], *, planted: bool = False) -> Row:
    return row(
        "prequential",
        setting,
        tests,
        measured=result.number(name),
        error=result.number(f"{name}_se"),
        exact=exact,
        planted=planted,
        seconds=result.seconds,
    )


def _spread(result: Result, where: str, df: int) -> Row:
    """Squared gaps over their predicted variance have mean one; shown as a ratio of standard deviations."""
    ratio = float(np.sqrt(result.number("squares_all")))
    return row(
        "prequential",
        f"standard deviation over its formula, {where}",
        [
            equality(result["squares"], result["squares_se"], 1.0, df=df),
            equality(result["variance"], result["variance_se"], 0.0, df=df),
        ],
        measured=ratio,
        error=result.number("squares_all_se") / (2 * ratio),
        exact=1.0,
        seconds=result.seconds,
        note=f"relative error of the variance estimated from the batch {result.number('variance_all'):.4f} "
        f"(se {result.number('variance_all_se'):.4f})",
    )


def _token_rows(path: Process, result: Result, df: int) -> list[Row]:
    """Tokens of an edit taken for edits: pairs within an edit bring their correlation."""
    bias = path.noise.rho * (path.noise.tokens - 1) * batch_noise(path) * path.n / (path.n - 1)
    found = (result["token_gap"], result["token_gap_se"])
    return [
        _row(
            result,
            f"bias of tokens taken for edits, rho={path.noise.rho:g}",
            "token_gap_all",
            bias,
            [equality(*found, bias, df=df)],
        ),
        _row(
            result,
            f"unbiased, tokens taken for edits, rho={path.noise.rho:g}",
            "token_gap_all",
            0.0,
            [equality(*found, 0.0, df=df)],
            planted=True,
        ),
    ]


CLAIM = Claim(
    "prequential",
    "tracking error without the truth: unbiased, with its standard deviation; split by edit, not by token",
    "derived here; estimator of Chen and Qin 2010",
    _cells,
    _rows,
)
