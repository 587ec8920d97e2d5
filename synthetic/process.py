"""A stream of batches whose mean and covariance drift along known paths.

The rows live in the eigenbasis of the first covariance: it is diagonal, and nothing is lost, since everything that is
tested is invariant under rotations. Row t - 1 of every array over time belongs to step t = 1 ... T; T counts the warm-up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from stablediag.errors import SpecError
from synthetic.drift import CovDrift, MeanDrift, pair_gap
from synthetic.grid import derive_seed
from synthetic.noise import Noise, NoiseStream
from synthetic.spectra import Floats, Spectrum, real, whole

__all__ = ["CovDrift", "MeanDrift", "Noise", "Process", "Sampler", "Spectrum"]

#: entries drawn at a time where rows are reduced at once: 16 MB
CHUNK = 1 << 21


@dataclass(frozen=True)
class Process:
    """Batches of n rows in R^d around a mean mu_t with covariance Sigma_t, both known at every step.

    Attributes
    ----------
    d, n : int
        Coordinates of a row and rows of a batch.
    steps : int
        Batches of the target phase.
    spectrum : Spectrum
        Eigenvalues at the first step, and the bounds that all later ones keep.
    mean : MeanDrift
    cov : CovDrift
    noise : Noise
    warmup : int
        Batches before the target phase, during which nothing drifts.
    offset : float
        Distance of the mean of the warm-up from where the target phase starts, along the first direction of drift.
    seed : int
        Of the paths alone (directions, pool); samples have their own.

    Raises
    ------
    SpecError
        Sizes below one, a drift without room, a pool that is too small or that drifts.
    """

    d: int = 64
    n: int = 20
    steps: int = 200
    spectrum: Spectrum = field(default_factory=Spectrum)
    mean: MeanDrift = field(default_factory=MeanDrift)
    cov: CovDrift = field(default_factory=CovDrift)
    noise: Noise = field(default_factory=Noise)
    warmup: int = 0
    offset: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("d", "n", "steps"):
            whole(name, getattr(self, name))
        whole("warmup", self.warmup, 0)
        whole("seed", self.seed, 0)
        real("offset", self.offset)
        if self.offset > 0 and self.warmup == 0:
            raise SpecError(f"offset: {self.offset:g} has no effect without a warm-up; set warmup")
        for name, kind in _PARTS.items():
            if not isinstance(getattr(self, name), kind):
                raise SpecError(f"{name}: must be a {kind.__name__}, got {getattr(self, name)!r}")
        self.mean.check(self.d, self.total, self._start)
        self.cov.check(self.spectrum.values(self.d), self.spectrum.lmin, self.spectrum.lmax, self._start)
        self.noise.check(self.d, self.n, self.total)
        if self.noise.dependence == "pool" and (self.mean.C > 0 or self.cov.moves or self.offset > 0):
            raise SpecError("noise: a frozen pool does not drift; set mean.C, cov.C and offset to 0")

    @property
    def total(self) -> int:
        """Number T of steps, warm-up included."""
        return self.warmup + self.steps

    @property
    def _start(self) -> int:
        """First step that may drift."""
        return max(2, self.warmup + 1)

    def means(self) -> Floats:
        """Mean mu_t at every step, [T, d]; the target phase starts from zero, the warm-up lies `offset` away."""
        return self._means.copy()

    def drift(self) -> Floats:
        """Steps ``mu_t - mu_{t-1}``, [T, d], the end of a warm-up with an offset included; the first is zero."""
        out = self._own.copy()
        if self.warmup:
            out[self.warmup] -= self.offset * self._first
        return out

    def own_drift(self) -> Floats:
        """Steps of the target phase without the jump back from the offset, [steps, d]: lengths ``C t^-alpha``."""
        return self._own[self.warmup :].copy()

    def eigenvalues(self) -> Floats:
        """Eigenvalues of Sigma_t, [T, d], in the order of the coordinates (descending at the first step)."""
        return self._eigenvalues.copy()

    def traces(self) -> Floats:
        """Trace of Sigma_t, [T]."""
        return self._eigenvalues.sum(axis=1)

    def cov_steps(self) -> Floats:
        """Spectral norms of ``Sigma_t - Sigma_{t-1}``, [T]; the first is zero."""
        out = np.zeros(self.total)
        if self.cov.kind == "rotation" and self.cov.moves:
            out[1:] = pair_gap(self._eigenvalues[0]) * np.abs(np.sin(np.diff(self._angles)))
        else:
            out[1:] = np.abs(np.diff(self._eigenvalues, axis=0)).max(axis=1)
        return out

    def covariance(self, t: int) -> Floats:
        """Covariance Sigma_t of a row at step t, [d, d].

        Raises
        ------
        SpecError
            A step outside 1 ... T.
        """
        self._step(t)
        double = 2 * self._angles[t - 1]
        return _turned(self._eigenvalues[t - 1], math.cos(double), math.sin(double))

    def root(self, t: int) -> Floats:
        """A root A of the covariance, ``A A^T = Sigma_t``, [d, d]: rows are ``mu_t + A z`` with z standardised.

        It is symmetric unless the eigenvectors turn.
        """
        self._step(t)
        scale, angle, half = np.sqrt(self._eigenvalues[t - 1]), self._angles[t - 1], self.d // 2
        i = np.arange(half)
        vectors = np.eye(self.d)
        vectors[i, i] = vectors[i + half, i + half] = math.cos(angle)
        vectors[i + half, i], vectors[i, i + half] = math.sin(angle), -math.sin(angle)
        return vectors * scale

    def time_average(self, t: int) -> Floats:
        """Mean of Sigma_1 ... Sigma_t, [d, d]."""
        self._step(t)
        double = 2 * self._angles[:t]
        return _turned(self._eigenvalues[:t].mean(axis=0), float(np.cos(double).mean()), float(np.sin(double).mean()))

    def sampler(self, reps: int, seed: int) -> Sampler:
        """Independent replicates of the stream, from its first step.

        Parameters
        ----------
        reps : int
            R, the leading dimension of everything that is drawn.
        seed : int
            Of the samples.
        """
        return Sampler(self, reps, seed)

    def params(self) -> dict[str, Any]:
        """Everything that defines the process, as JSON values."""
        plain = dataclasses.asdict(self)
        return {name: _json(value) for name, value in plain.items()}

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """Inverse of `params`; what is left out takes its default.

        Raises
        ------
        SpecError
            Unknown names or refused values.
        """
        _known(cls, params, "process")
        values = dict(params)
        for name, kind in _PARTS.items():
            if isinstance(values.get(name), Mapping):
                _known(kind, values[name], name)
                values[name] = kind(**values[name])
        return cls(**values)

    def _step(self, t: int) -> None:
        if not 1 <= t <= self.total:
            raise SpecError(f"t: the process has steps 1 to {self.total}, got {t}")

    @cached_property
    def _directions(self) -> Floats:
        rows = max(self.total, self._start)
        return self.mean.directions(self.d, rows, self._start, derive_seed(self.seed, "mean"))

    @property
    def _first(self) -> Floats:
        """Direction of the first step that may drift."""
        return self._directions[self._start - 1]

    @cached_property
    def _own(self) -> Floats:
        return self.mean.sizes(self.total, self._start)[:, None] * self._directions[: self.total]

    @cached_property
    def _means(self) -> Floats:
        out = np.cumsum(self._own, axis=0)
        out[: self.warmup] += self.offset * self._first
        return out

    @cached_property
    def _eigenvalues(self) -> Floats:
        values, bounds = self.spectrum.values(self.d), self.spectrum
        return self.cov.eigenvalues(values, bounds.lmin, bounds.lmax, self.total, self._start)

    @cached_property
    def _angles(self) -> Floats:
        return self.cov.angles(self.spectrum.values(self.d), self.total, self._start)


_PARTS = {"spectrum": Spectrum, "mean": MeanDrift, "cov": CovDrift, "noise": Noise}


def _known(kind: type, given: Mapping[str, Any], where: str) -> None:
    names = {one.name for one in dataclasses.fields(kind)}
    extra = sorted(set(given) - names)
    if extra:
        raise SpecError(f"{where}: unknown {', '.join(map(repr, extra))}; use {', '.join(sorted(names))}")


def _json(value: Any) -> Any:
    """NumPy numbers as plain ones."""
    if isinstance(value, dict):
        return {name: _json(inner) for name, inner in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _turned(values: Floats, cosine: float, sine: float) -> Floats:
    """Diagonal matrix [d, d] seen after the planes (i, i + d/2) have turned; cosine and sine of the double angle."""
    half = len(values) // 2
    i = np.arange(half)
    out = np.diag(values)
    middle, gap = (values[:half] + values[half : 2 * half]) / 2, (values[:half] - values[half : 2 * half]) / 2
    out[i, i], out[i + half, i + half] = middle + gap * cosine, middle - gap * cosine
    out[i, i + half] = out[i + half, i] = gap * sine
    return out


class Sampler:
    """R independent replicates of a process, drawn in order.

    Which numbers come depends on the seed and on how the batches are asked for, not on anything else.

    Parameters
    ----------
    process : Process
    reps, seed : int
        As in `Process.sampler`.

    Attributes
    ----------
    at : int
        Batches drawn so far.
    """

    def __init__(self, process: Process, reps: int, seed: int) -> None:
        whole("reps", reps)
        whole("seed", seed, 0)
        self.process, self.reps, self.at = process, reps, 0
        self._generator = torch.Generator().manual_seed(seed)
        self._stream = NoiseStream(
            process.noise, reps=reps, n=process.n, d=process.d, generator=self._generator, seed=process.seed
        )

    def next(self, k: int = 1) -> Tensor:
        """Rows of the next k batches, float64, shape [R, k, n, d].

        Raises
        ------
        SpecError
            More batches than are left.
        """
        self._left(k)
        rows = self._stream.next(k)
        self._shape(rows, 1.0)
        self.at += k
        return rows

    def next_means(self, k: int = 1) -> Tensor:
        """Means of the next k batches, float64, shape [R, k, d].

        Drawn from ``N(mu_t, Sigma_t/n)`` when the rows are independent and Gaussian, else the means of rows.
        """
        self._left(k)
        process = self.process
        if process.noise.gaussian:
            out = torch.randn(self.reps, k, 1, process.d, generator=self._generator, dtype=torch.float64)
            self._shape(out, process.n)
            self.at += k
            return out.squeeze(2)
        most = max(1, CHUNK // (self.reps * process.n * process.d))
        return torch.cat([self.next(min(most, k - i)).mean(dim=2) for i in range(0, k, most)], dim=1)

    def wishart(self, df: int) -> Tensor:
        """Scatter of `df` independent standard Gaussian rows, float64, shape [R, d, d], by Bartlett's triangle.

        Raises
        ------
        SpecError
            ``df < d``.
        """
        d = self.process.d
        if df < d:
            raise SpecError(f"df: {df} rows < d = {d} have no triangle; draw the rows")
        shape = (df - torch.arange(d, dtype=torch.float64)).div(2).expand(self.reps, d)
        squares = 2 * torch._standard_gamma(shape, generator=self._generator)
        triangle = torch.randn(self.reps, d, d, generator=self._generator, dtype=torch.float64).tril(-1)
        triangle.diagonal(dim1=-2, dim2=-1).copy_(squares.sqrt())
        return triangle @ triangle.mT

    def _left(self, k: int) -> None:
        whole("k", k)
        left = self.process.total - self.at
        if k > left:
            raise SpecError(f"k: {k} batches asked for, {left} of {self.process.total} are left")

    def _shape(self, z: Tensor, divisor: float) -> None:
        """Standardised rows [R, k, m, d] to rows with the moments of the next k steps, the covariance over `divisor`."""
        now, path = slice(self.at, self.at + z.shape[1]), self.process
        z.mul_(torch.as_tensor(np.sqrt(path._eigenvalues[now] / divisor)).unsqueeze(1))
        if path.cov.kind == "rotation" and path.cov.moves:
            half = path.d // 2
            angle = torch.as_tensor(path._angles[now]).view(-1, 1, 1)
            first, second = z[..., :half], z[..., half : 2 * half]
            turned = angle.cos() * first - angle.sin() * second
            second.mul_(angle.cos()).add_(angle.sin() * first)
            first.copy_(turned)
        z.add_(torch.as_tensor(path._means[now]).unsqueeze(1))
