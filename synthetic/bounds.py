"""Oracles and bounds of `stablediag.stats.theory`, evaluated on a process.

An oracle is exact, a bound is an inequality: the sharper one of this package, or the paper's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stablediag.errors import SpecError
from stablediag.stats import theory
from synthetic.process import Process

Floats = NDArray[np.float64]
Kind = Literal["exact", "tight", "paper"]
Quantity = Literal["mse", "cov_error"]


@dataclass(frozen=True)
class Bound:
    """One oracle or bound on one process.

    Attributes
    ----------
    name : str
        One of `Bound.names()`, such as ``exact_mse`` (Theorem 3.5 as an equality), ``worst_mse``, ``paper_mse``,
        ``paper_mse_closed``, ``tight_cov``, ``paper_cov`` (Theorem 3.6).
    process : Process

    Raises
    ------
    SpecError
        An unknown name, or a process outside the statement (dependent rows; for covariances: no Gaussian noise).
    """

    name: str
    process: Process

    def __post_init__(self) -> None:
        if self.name not in _TABLE:
            raise SpecError(f"name: no bound {self.name!r}: choose from {', '.join(_TABLE)}")
        if not isinstance(self.process, Process):
            raise SpecError(f"process: must be a Process, got {self.process!r}")
        noise = self.process.noise
        if noise.dependence == "ar1" or (self.kind != "exact" and noise.dependence != "iid"):
            raise SpecError(f"noise: {self.name} is stated for independent rows, got dependence {noise.dependence!r}")
        if self.name == "paper_cov" and self.process.d < 6:
            raise SpecError(f"d: the constants of paper_cov hold from d = 6 on, got {self.process.d}")
        if self.quantity == "cov_error" and noise.kind != "gauss":
            raise SpecError(f"noise: {self.name} is stated for Gaussian rows, got {noise.kind!r}")

    @staticmethod
    def names() -> list[str]:
        """All names."""
        return list(_TABLE)

    @property
    def kind(self) -> Kind:
        """Exact value, sharper bound, or the paper's bound."""
        return _TABLE[self.name][0]

    @property
    def quantity(self) -> Quantity:
        """What is bounded: the mean squared error of the mean, or the spectral error of the covariance."""
        return _TABLE[self.name][1]

    @cached_property
    def curve(self) -> Floats:
        """Values at steps 1 ... T, NaN where the statement is silent (covariances while N <= d + 1)."""
        return _TABLE[self.name][2](self.process)

    def value(self, t: int) -> float:
        """Value after step `t`.

        Raises
        ------
        SpecError
            A step that the process does not have.
        """
        if not 1 <= t <= self.process.total:
            raise SpecError(f"t: the process has steps 1 to {self.process.total}, got {t}")
        return float(self.curve[t - 1])


def sizes(process: Process) -> Floats:
    """``|mu_t - mu_{t-1}|`` at every step, the jump at the end of a warm-up with an offset included."""
    return np.linalg.norm(process.drift(), axis=1)


def mean_oracle(process: Process) -> theory.MSE:
    """Exact errors of the running mean, for every dependence within batches, and for a pool without replacement.

    Raises
    ------
    SpecError
        Batches that depend on each other.
    """
    noise = process.noise
    if noise.dependence == "ar1":
        raise SpecError("noise: there is no exact error of the mean for dependence 'ar1'; use another")
    return theory.exact_mse(
        process.drift(),
        process.traces() * noise.design_effect(process.n),
        n=process.n,
        pool=noise.pool if noise.dependence == "pool" else None,
    )


def _paper(process: Process, formula: Callable[..., Floats]) -> Floats:
    lmax = float(process.eigenvalues().max())
    return formula(sizes(process), d=process.d, lmax=lmax, n=process.n)


def _first(process: Process) -> int:
    """Step at which the covariance estimate exists for the first time."""
    return (process.d + 1) // process.n + 1


def _tight_cov(process: Process) -> Floats:
    out = np.full(process.total, np.nan)
    for t in range(_first(process), process.total + 1):
        out[t - 1] = pooled_bound(process, t)
    return out


def _paper_cov(process: Process) -> Floats:
    """The paper's recursion from the first step at which the estimate exists, started from the sharper bound."""
    out = np.full(process.total, np.nan)
    first = _first(process)
    if first > process.total:
        return out
    out[first - 1] = pooled_bound(process, first)
    after = slice(first, process.total)
    out[after] = theory.paper_cov(
        sizes(process)[after],
        process.cov_steps()[after],
        mean_oracle(process).total[first - 1 : -1],
        F0=out[first - 1],
        nu0=process.n * first,
        d=process.d,
        n=process.n,
        lmax=float(process.eigenvalues().max()),
    )
    return out


def pooled_bound(
    process: Process,
    step: int,
    *,
    noise: Callable[[float, float], ArrayLike] | None = None,
    scatter: bool = True,
) -> float:
    """The pooled bound of the spectral error after a step, with the better of two covariances that dominate all others.

    Parameters
    ----------
    process : Process
    step : int
    noise : callable, optional
        Relative noise of (effective rank, rows). By default that of the mean error: Gordon's constants while the
        covariance is constant, else Chevet's.
    scatter : bool, optional
        False leaves the scatter of the means out, which is wrong under drift of the mean.
    """
    eigenvalues = process.eigenvalues()[:step]
    now, d = eigenvalues[-1], process.d
    # By the triangle inequality no earlier covariance is further from this one than the sum of the steps between.
    moved = float(process.cov_steps()[1:step].sum())
    dominating = [(float(now.sum()) + d * moved, float(now.max()) + moved)]
    if moved > 0:
        lmax = float(eigenvalues.max())
        dominating.append((d * lmax, lmax))
    if noise is None:
        noise = theory.W_chevet if moved > 0 else theory.W_gordon
    B = theory.scatter_of_means(process.means()[:step]) if scatter else None
    rows, bias = process.n * step, _bias(process, step, B)
    found = [
        theory.tight_cov(N=rows, d=d, trace=trace, top=top, w=noise(trace / top, rows), bias=bias, B=B)
        for trace, top in dominating
    ]
    return float(min(found))


def leading_order(process: Process, step: int) -> float:
    """What the pooled bound comes to with the sharp noise of the average covariance, without its cross terms."""
    rows = process.n * step
    eigenvalues = np.linalg.eigvalsh(process.time_average(step))
    bias = _bias(process, step, theory.scatter_of_means(process.means()[:step]))
    trace, top = eigenvalues.sum(), eigenvalues.max()
    w = theory.W_sharp(trace / top, rows)
    return float(theory.tight_cov(N=rows, d=process.d, trace=trace, top=top, w=w, bias=bias))


def _bias(process: Process, step: int, B: Floats | None) -> Floats:
    rows = process.n * step
    return theory.cov_bias(process.time_average(step), process.covariance(step), B, N=rows, d=process.d)


_TABLE: dict[str, tuple[Kind, Quantity, Callable[[Process], Floats]]] = {
    "exact_mse": ("exact", "mse", lambda process: mean_oracle(process).total),
    "worst_mse": ("tight", "mse", lambda process: theory.worst_mse(sizes(process), process.traces(), n=process.n)),
    "paper_mse": ("paper", "mse", lambda process: _paper(process, theory.paper_mse)),
    "paper_mse_closed": ("paper", "mse", lambda process: _paper(process, theory.paper_mse_closed)),
    "tight_cov": ("tight", "cov_error", _tight_cov),
    "paper_cov": ("paper", "cov_error", _paper_cov),
}
