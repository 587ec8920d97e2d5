"""Simulation-based calibration of the normal-inverse-Wishart posterior: generator, backend, results, diagnostics.

A truth is drawn from the prior, rows from the truth, and a `Backend` turns prior and rows into a posterior. Whatever the
prior, the rank of the truth among draws of a right posterior is uniform. The same generator and diagnostics run on
backends that are wrong on purpose: production code with one thing changed.

Source: S. Talts, M. Betancourt, D. Simpson, A. Vehtari, A. Gelman, Validating Bayesian inference algorithms with
simulation-based calibration, arXiv:1804.06788; M. Modrak et al., Simulation-based calibration checking for Bayesian
computation: the choice of test quantities shapes sensitivity, arXiv:2211.02383 (why the likelihood of the data is among
the quantities).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from stablediag.errors import SpecError
from stablediag.maths import NIW

#: prior state and batches of rows [..., n, d] to the posterior state
Backend = Callable[[NIW, Sequence[Tensor]], NIW]

#: cells of the chi-square test: few, because what goes wrong bends or tilts the ranks smoothly
BINS = 8


@dataclass(frozen=True)
class Design:
    """The generator: a proper prior and the batches that follow.

    Attributes
    ----------
    d : int
        Coordinates of a row; at least 2.
    kappa0, nu0, scale : float
        Prior: ``Sigma ~ IW(scale I, nu0)``, ``mu | Sigma ~ N(0, Sigma/kappa0)``; ``nu0 > d + 1``. Small counts leave
        every unit of them visible.
    batches : tuple of int
        Rows of each batch; at least ``d + 1`` in all, so that a backend without the prior has a posterior too.
    sims : int
        Simulations, the leading dimension of everything.
    draws : int
        Posterior draws of each simulation; one less than a multiple of `BINS`.
    """

    d: int = 3
    kappa0: float = 0.3
    nu0: float = 4.5
    scale: float = 2.0
    batches: tuple[int, ...] = (1, 2, 1, 3)
    sims: int = 1000
    draws: int = 63

    def __post_init__(self) -> None:
        if self.d < 2:
            raise SpecError(f"d: a correlation needs at least 2 coordinates, got {self.d}")
        if not (self.kappa0 > 0 and self.scale > 0):
            raise SpecError(
                f"kappa0, scale: a proper prior needs both positive, got {self.kappa0:g} and {self.scale:g}"
            )
        if not self.nu0 > self.d + 1:
            raise SpecError(f"nu0: the covariance needs nu0 > d + 1 = {self.d + 1}, got {self.nu0:g}")
        if min(self.batches, default=0) < 1 or sum(self.batches) < self.d + 1:
            raise SpecError(
                f"batches: none may be empty, at least d + 1 = {self.d + 1} rows in all; got {self.batches}"
            )
        if self.sims < 10 * BINS:
            raise SpecError(f"sims: a chi-square test needs at least {10 * BINS} simulations, got {self.sims}")
        if self.draws < 1 or (self.draws + 1) % BINS:
            raise SpecError(f"draws: must be one less than a multiple of {BINS}, got {self.draws}")

    def prior(self) -> NIW:
        """The state before any row, one per simulation."""
        return NIW.empty(self.d, batch_shape=(self.sims,), prior=self.scale, kappa0=self.kappa0, nu0=self.nu0)


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws of mean and covariance: `mean` [..., L, d], `root` [..., L, d, d] lower triangular, Sigma = root root^T."""

    mean: Tensor
    root: Tensor


def sample(state: NIW, draws: int, generator: torch.Generator) -> Draws:
    """Draws from the normal-inverse-Wishart distribution of a state.

    Parameters
    ----------
    state : NIW
        Mean [..., d], positive definite scale, ``nu > d - 1``, ``kappa > 0``.
    draws : int
        L, a new dimension after those of the state.
    generator : torch.Generator

    Notes
    -----
    With ``scale = C C^T`` and A lower triangular, standard normal below the diagonal and ``A_ii^2 ~ chi2(nu - d + i)``
    (i = 1..d), the precision ``(A C^-1)^T (A C^-1)`` is Wishart: M. S. Bartlett's decomposition, read from the last
    coordinate to the first, so that the root of the covariance is triangular as well.
    """
    d = state.d
    shape = (*state.mean.shape[:-1], draws)
    degrees = state.nu - d + torch.arange(1, d + 1, dtype=torch.float64)
    gamma = torch._standard_gamma((degrees / 2).expand(*shape, d), generator=generator)
    factor = torch.randn(*shape, d, d, generator=generator, dtype=torch.float64).tril(-1)
    factor += torch.diag_embed((2 * gamma).sqrt())
    scale_root = torch.linalg.cholesky(state.scale).unsqueeze(-3).expand(*shape, d, d)
    root = torch.linalg.solve_triangular(factor, scale_root, upper=False, left=False)
    noise = torch.randn(*shape, d, 1, generator=generator, dtype=torch.float64)
    mean = state.mean.unsqueeze(-2) + (root @ noise).squeeze(-1) / math.sqrt(state.kappa)
    return Draws(mean, root)


def quantities(at: Draws, rows: Tensor) -> dict[str, Tensor]:
    """Test quantities of every draw, each of shape [..., L].

    Parameters
    ----------
    at : Draws
    rows : Tensor, float64, shape [..., N, d]
        The data. The last two quantities depend on them, which shows faults that no function of the parameters shows.
    """
    root, count = at.root, rows.shape[-2]
    centre = rows.mean(dim=-2)
    # A square root of the scatter has d columns, the centred rows have N.
    scatter_root = torch.linalg.qr(rows - centre.unsqueeze(-2), mode="r").R.mT.unsqueeze(-3)
    offset = (centre.unsqueeze(-2) - at.mean).unsqueeze(-1)
    both = torch.cat([scatter_root.expand(*root.shape[:-2], *scatter_root.shape[-2:]), offset], dim=-1)
    white = torch.linalg.solve_triangular(root, both, upper=False).square()
    spread, distance = white[..., :-1].sum(dim=(-2, -1)), white[..., -1].sum(dim=-1)
    log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    first, last = root[..., 0, :], root[..., -1, :]
    variance = last.square().sum(dim=-1)
    means = {f"mean {i + 1}": at.mean[..., i] for i in range(at.mean.shape[-1])}
    return means | {
        "first variance": first.square().sum(dim=-1),
        "last variance": variance,
        "correlation": (first * last).sum(dim=-1) / (first.square().sum(dim=-1) * variance).sqrt(),
        "log determinant": log_det,
        "log likelihood": -0.5 * (count * log_det + spread + count * distance),
        "distance to the data": distance,
    }


@dataclass(frozen=True, eq=False)
class Calibration:
    """The results.

    Attributes
    ----------
    ranks : mapping of str to int64 [sims]
        By test quantity, how many posterior draws lie below the truth: 0 .. draws.
    draws : int
    jitter : float64 [sims]
        In [0, 1); spreads a rank over its share of the unit interval, so that exact continuous tests apply.
    """

    ranks: Mapping[str, NDArray[np.int64]]
    draws: int
    jitter: NDArray[np.float64]

    def levels(self, quantity: str) -> NDArray[np.float64]:
        """Posterior probabilities below the truth, one per simulation: independent and uniform when all is right."""
        return (self.ranks[quantity] + self.jitter) / (self.draws + 1)

    def p_value(self, quantity: str) -> float:
        """Of uniformity: twice the smaller one of a chi-square test (bends) and Kolmogorov-Smirnov (tilts)."""
        counts = np.bincount(self.ranks[quantity] * BINS // (self.draws + 1), minlength=BINS)
        tilt = stats.kstest(self.levels(quantity), "uniform").pvalue
        return float(min(1.0, 2 * min(stats.chisquare(counts).pvalue, tilt)))

    def p_values(self) -> dict[str, float]:
        """`p_value` of every quantity."""
        return {name: self.p_value(name) for name in self.ranks}


def calibrate(design: Design, backend: Backend, *, seed: int) -> Calibration:
    """Ranks of the truth among posterior draws.

    Parameters
    ----------
    design : Design
    backend : Backend
    seed : int

    Returns
    -------
    Calibration
        A quantity that is not a number has rank zero, which counts against the backend.
    """
    generator = torch.Generator().manual_seed(seed)
    prior = design.prior()
    truth = sample(prior, 1, generator)
    noise = torch.randn(design.sims, sum(design.batches), design.d, generator=generator, dtype=torch.float64)
    rows = truth.mean + noise @ truth.root.squeeze(-3).mT
    posterior = backend(prior, rows.split(list(design.batches), dim=-2))
    drawn = quantities(sample(posterior, design.draws, generator), rows)
    ranks = {name: (drawn[name] < value).sum(dim=-1).numpy() for name, value in quantities(truth, rows).items()}
    jitter = torch.rand(design.sims, generator=generator, dtype=torch.float64).numpy()
    return Calibration(ranks, design.draws, jitter)


def sequential(prior: NIW, batches: Sequence[Tensor]) -> NIW:
    """The recursion, batch by batch: what an editor does."""
    return _each(NIW.update)(prior, batches)


def merged(prior: NIW, batches: Sequence[Tensor]) -> NIW:
    """Every batch on its own, then merged into the prior: what workers in parallel would do."""
    return _joined(NIW.merge)(prior, batches)


def _each(step: Callable[[NIW, Tensor], NIW]) -> Backend:
    return lambda prior, batches: reduce(step, batches, prior)


def _joined(join: Callable[[NIW, NIW], NIW]) -> Backend:
    return lambda prior, batches: reduce(join, [_blank(prior).update(rows) for rows in batches], prior)


def _blank(like: NIW) -> NIW:
    return NIW.empty(like.d, batch_shape=like.mean.shape[:-1])


def _less_shift(state: NIW, rows: Tensor, share: float) -> NIW:
    """The right step with a share of the mean-shift term taken out of the scatter."""
    jump = state.factor(rows)[..., -1:, :]
    right = state.update(rows)
    return replace(right, scale=right.scale - share * jump.mT @ jump)


def _shift_about_new_mean(state: NIW, rows: Tensor) -> NIW:
    """The jump measured from the mean after the batch instead of before: ``(kappa/(kappa + n))^2`` of the term is left."""
    left = state.kappa / (state.kappa + rows.shape[-2])
    return _less_shift(state, rows, 1 - left**2)


def _swapped_weights(state: NIW, rows: Tensor) -> NIW:
    """Old and new mean change their weights."""
    right = state.update(rows)
    return replace(right, mean=state.mean + rows.mean(dim=-2) - right.mean)


def _stale_shift(prior: NIW, batches: Sequence[Tensor]) -> NIW:
    """The shift of a batch taken about the mean of one batch earlier."""
    state, older = prior, prior.mean
    for rows in batches:
        wrong = replace(state, mean=older).update(rows)
        older, state = state.mean, replace(state.update(rows), scale=wrong.scale)
    return state


def _no_prior(prior: NIW, batches: Sequence[Tensor]) -> NIW:
    return sequential(_blank(prior), batches)


def _one_degree_short(prior: NIW, batches: Sequence[Tensor]) -> NIW:
    right = sequential(prior, batches)
    return replace(right, nu=right.nu - 1)


def _last_batch_twice(prior: NIW, batches: Sequence[Tensor]) -> NIW:
    return sequential(prior, [*batches, batches[-1]])


def _prior_in_every_part(prior: NIW, batches: Sequence[Tensor]) -> NIW:
    return reduce(NIW.merge, [prior.update(rows) for rows in batches])


def _plain_mean_merge(left: NIW, right: NIW) -> NIW:
    """The two means averaged without their counts."""
    return replace(left.merge(right), mean=(left.mean + right.mean) / 2)


def _shiftless_merge(left: NIW, right: NIW) -> NIW:
    """Scatters added without the distance of the means."""
    return replace(left.merge(right), scale=left.scale + right.scale)


#: backends that are right
RIGHT: Mapping[str, Backend] = {"update": sequential, "merge": merged}

#: backends that are wrong, each by one change
WRONG: Mapping[str, Backend] = {
    "nu one short": _one_degree_short,
    "no mean-shift term": _each(lambda state, rows: _less_shift(state, rows, 1.0)),
    "mean shift about the new mean": _each(_shift_about_new_mean),
    "mean shift about a stale mean": _stale_shift,
    "mean never moved": _each(lambda state, rows: replace(state.update(rows), mean=state.mean)),
    "weights of old and new mean swapped": _each(_swapped_weights),
    "sample scatter of each batch": _each(lambda state, rows: state.update(rows, block_var="sample")),
    "forgetting left on": _each(lambda state, rows: state.update(rows, forget=0.8)),
    "last batch counted twice": _last_batch_twice,
    "no prior": _no_prior,
    "merge with the prior in every part": _prior_in_every_part,
    "merge by plain average of means": _joined(_plain_mean_merge),
    "merge without the shift of means": _joined(_shiftless_merge),
}
