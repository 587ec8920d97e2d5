"""Standardised noise: mean zero and covariance I for every row, whatever the distribution and the dependence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stablediag.errors import SpecError
from synthetic.grid import derive_seed
from synthetic.spectra import one_of, real, whole

_DEPENDENCE = ("iid", "intraclass", "ar1", "pool", "tokens", "layers")
_CORRELATED = ("intraclass", "ar1", "tokens")


@dataclass(frozen=True)
class Noise:
    """Distribution and dependence of the rows around their mean.

    In every kind a row has mean mu_t and covariance Sigma_t exactly; what is violated is normality or independence.

    Attributes
    ----------
    kind : {"gauss", "student", "exponential"}
        "student": elliptical, one chi-square a row, scaled by ``sqrt((df-2)/df)``; "exponential": independent
        exponentials less one along the eigenvectors, skewness 2.
    df : float
        Degrees of freedom of "student", above 2.
    dependence : {"iid", "intraclass", "ar1", "pool", "tokens", "layers"}
        "intraclass": all rows of a batch correlate by `rho`, which multiplies the covariance of the batch mean by
        ``1 + (n-1) rho``. "tokens": the rows come in clusters of `tokens` consecutive rows that correlate by `rho`
        (1: duplicates), factor ``1 + (tokens-1) rho``. "ar1": row i of a batch correlates by `rho` with row i of the
        batch before, so that the errors of the batch means are autoregressive with coefficient `rho`. "pool": rows
        without replacement from a frozen pool of `pool` rows whose mean is mu and whose covariance, with divisor
        pool - 1, is Sigma; the mean of the first N has covariance ``(1 - N/pool) Sigma/N``. "layers": every row
        belongs to one of `layers` layers, at random and independently; layer means lie at distance `spread` from mu in
        units of Sigma^(1/2), on a regular simplex, and the covariance within a layer is smaller by what they spread.
    rho : float
        In [0, 1] for "intraclass" and "tokens", in (-1, 1) for "ar1".
    pool, tokens, layers : int
    spread : float
        At most ``sqrt(layers - 1)``.

    Raises
    ------
    SpecError
        ``df <= 2``, `rho` outside its range, a setting that belongs to another dependence.

    Notes
    -----
    Of a sum of two draws (all but "iid" and "pool") only mean and covariance are those of `kind`, unless it is "gauss".
    """

    kind: Literal["gauss", "student", "exponential"] = "gauss"
    df: float = 5.0
    dependence: Literal["iid", "intraclass", "ar1", "pool", "tokens", "layers"] = "iid"
    rho: float = 0.0
    pool: int = 0
    tokens: int = 1
    layers: int = 1
    spread: float = 0.0

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("gauss", "student", "exponential"))
        one_of("dependence", self.dependence, _DEPENDENCE)
        real("df", self.df)
        if self.df <= 2:
            raise SpecError(f"df: must exceed 2, got {self.df:g}; the covariance would be infinite")
        whole("pool", self.pool, 0)
        whole("tokens", self.tokens)
        whole("layers", self.layers)
        real("spread", self.spread)
        self._check_rho()
        for name, owner, default in (("pool", "pool", 0), ("tokens", "tokens", 1), ("layers", "layers", 1)):
            if getattr(self, name) != default and self.dependence != owner:
                raise SpecError(f"{name}: no effect with dependence {self.dependence!r}; use {owner!r}")
        if self.dependence == "pool" and self.pool < 2:
            raise SpecError(f"pool: give its size, at least 2 rows, got {self.pool}")
        if self.spread**2 > self.layers - 1:
            raise SpecError(
                f"spread: at most sqrt(layers - 1) = {math.sqrt(self.layers - 1):g}, got {self.spread:g}; "
                "nothing would be left within a layer"
            )

    def _check_rho(self) -> None:
        real("rho", self.rho, -1.0)
        if self.rho != 0 and self.dependence not in _CORRELATED:
            raise SpecError(f"rho: no effect with dependence {self.dependence!r}; use one of {', '.join(_CORRELATED)}")
        if self.dependence == "ar1" and not abs(self.rho) < 1:
            raise SpecError(f"rho: must lie in (-1, 1) for 'ar1', got {self.rho:g}")
        if self.dependence != "ar1" and not 0 <= self.rho <= 1:
            raise SpecError(f"rho: must lie in [0, 1] for {self.dependence!r}, got {self.rho:g}")

    def check(self, d: int, n: int, total: int) -> None:
        """Refuse what does not fit `total` batches of `n` rows in `d` coordinates."""
        if n % self.tokens:
            raise SpecError(f"tokens: clusters of {self.tokens} do not fill a batch of n = {n} rows")
        if self.layers - 1 > d:
            raise SpecError(f"layers: {self.layers} means on a simplex need d >= {self.layers - 1}, got {d}")
        if self.dependence != "pool":
            return
        if self.pool < n * total:
            raise SpecError(f"pool: {self.pool} rows < n x steps = {n * total} drawn without replacement")
        if self.pool <= d:
            raise SpecError(f"pool: {self.pool} rows <= d = {d} have no invertible covariance")

    @property
    def gaussian(self) -> bool:
        """Whether the rows are independent and Gaussian."""
        return self.kind == "gauss" and self.dependence == "iid"

    def design_effect(self, n: int) -> float:
        """Factor on the covariance Sigma/n of the mean of a batch of `n` rows; a pool's ``1 - N/pool`` not included."""
        if self.dependence == "intraclass":
            return 1 + (n - 1) * self.rho
        if self.dependence == "tokens":
            return 1 + (self.tokens - 1) * self.rho
        return 1.0

    def draw(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Independent rows of `kind`, float64, shape [*shape]; the last dimension is that of the coordinates."""
        if self.kind == "exponential":
            return torch.empty(*shape, dtype=torch.float64).exponential_(generator=generator).sub_(1.0)
        z = torch.randn(*shape, generator=generator, dtype=torch.float64)
        if self.kind == "student":
            half = torch.full((*shape[:-1], 1), self.df / 2, dtype=torch.float64)
            z.mul_((torch._standard_gamma(half, generator=generator) * (2 / (self.df - 2))).rsqrt_())
        return z


class NoiseStream:
    """Standardised batches of R replicates, one after the other; it remembers what "ar1" and "pool" need.

    Parameters
    ----------
    noise : Noise
    reps, n, d : int
    generator : torch.Generator
        Of the samples.
    seed : int
        Of what all replicates share: the pool, the plane of the layer means.
    """

    def __init__(self, noise: Noise, *, reps: int, n: int, d: int, generator: torch.Generator, seed: int) -> None:
        self._noise, self._reps, self._n, self._d, self._generator = noise, reps, n, d, generator
        self._before: Tensor | None = None
        self._used = 0
        if noise.dependence == "pool":
            self._pool = _pool(noise, d, derive_seed(seed, "pool"))
            self._order = torch.rand(reps, noise.pool, generator=generator, dtype=torch.float64).argsort(dim=1)
        elif noise.dependence == "layers":
            self._basis, self._offsets = _layer_means(noise, d, derive_seed(seed, "layers"))

    def next(self, k: int) -> Tensor:
        """The next k batches, float64, shape [R, k, n, d]."""
        noise, shape = self._noise, (self._reps, k, self._n, self._d)
        if noise.dependence == "pool":
            taken = self._order[:, self._used : self._used + k * self._n]
            self._used += k * self._n
            return self._pool[taken].view(shape)
        z = noise.draw(*shape, generator=self._generator)
        if noise.dependence == "intraclass":
            self._correlate(z)
        elif noise.dependence == "tokens":
            self._correlate(z.view(self._reps, k, -1, noise.tokens, self._d))
        elif noise.dependence == "ar1":
            self._carry(z)
        elif noise.dependence == "layers":
            self._spread(z)
        return z

    def _correlate(self, z: Tensor) -> None:
        """Give the rows of every cluster, dimension -2, a common part."""
        rho = self._noise.rho
        common = self._noise.draw(*z.shape[:-2], 1, self._d, generator=self._generator)
        z.mul_(math.sqrt(1 - rho)).add_(common, alpha=math.sqrt(rho))

    def _carry(self, z: Tensor) -> None:
        """Turn innovations into a stationary first-order autoregression over the batches."""
        rho = self._noise.rho
        fresh = math.sqrt(1 - rho**2)
        before = self._before
        for now in z.unbind(dim=1):
            if before is not None:
                now.mul_(fresh).add_(before, alpha=rho)
            before = now
        # The rows are scaled in place later on.
        self._before = z[:, -1].clone()

    def _spread(self, z: Tensor) -> None:
        """Shrink the rows in the plane of the layer means, then add the mean of a random layer."""
        layers = self._noise.layers
        if layers == 1:
            return
        within = math.sqrt(1 - self._noise.spread**2 / (layers - 1))
        layer = torch.randint(layers, z.shape[:-1], generator=self._generator)
        z.add_(((z @ self._basis) * (within - 1) + self._offsets[layer]) @ self._basis.mT)


def _pool(noise: Noise, d: int, seed: int) -> Tensor:
    """Rows [pool, d] with mean zero and covariance (divisor pool - 1) I, to rounding."""
    rows = noise.draw(noise.pool, d, generator=torch.Generator().manual_seed(seed))
    rows -= rows.mean(dim=0)
    # The polar factor has the orthonormal columns that are closest to the centred rows; they are centred too.
    left, _, right = torch.linalg.svd(rows, full_matrices=False)
    return (left @ right) * math.sqrt(noise.pool - 1)


def _layer_means(noise: Noise, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Orthonormal basis [d, layers - 1] of the plane of the layer means, and their coordinates [layers, layers - 1]."""
    layers = noise.layers
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, layers - 1)))[0]
    # Corners of a regular simplex: the unit vectors of `layers` dimensions, seen from their mean.
    centred = np.eye(layers) - 1 / layers
    corners = centred @ np.linalg.svd(centred)[0][:, : layers - 1]
    corners *= noise.spread / math.sqrt(1 - 1 / max(layers, 2))
    return torch.as_tensor(basis), torch.as_tensor(corners)
