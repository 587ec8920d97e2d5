"""How the mean and the covariance of the simulated rows move: the size of every step is exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from stablediag.errors import SpecError
from synthetic.spectra import Floats, one_of, real, whole

_DIRECTIONS = ("fixed", "random", "rotating", "reverting", "jump", "periodic")


def _sizes(C: float, power: float, total: int, start: int) -> Floats:
    """``C t^-power`` at steps `start` to `total`, zero before."""
    t = np.arange(1.0, total + 1)
    return np.where(t >= start, C * t**-power, 0.0)


@dataclass(frozen=True)
class MeanDrift:
    """Drift of the mean, ``|mu_t - mu_{t-1}| = C t^-alpha`` with t the global step, warm-up included.

    Attributes
    ----------
    C : float
        Size, in units of the rows.
    alpha : float
        Decay; zero never decays. Assumption 3.4 asks for ``alpha > 1``.
    direction : {"fixed", "random", "rotating", "reverting", "jump", "periodic"}
        "fixed": always the same (ballistic); "random": independent and uniform on the sphere (diffusive); "rotating":
        turned by `angle` every step, in one plane; "reverting": autoregressive, the cosine of consecutive directions is
        exactly `persistence` and that of directions s steps apart ``persistence^s`` on average; "jump": nothing moves
        but at step `at`, by C; "periodic": forth for half a period and back for the other half.
    angle : float
        Radians a step.
    persistence : float
        In [-1, 1]; below zero the mean tends to turn back.
    at : int or None
        Global step of the jump.
    period : int
        Steps of a full period, even.

    Raises
    ------
    SpecError
        A negative size or decay, a persistence outside [-1, 1], an odd period, a jump without its step.
    """

    C: float = 0.0
    alpha: float = 1.0
    direction: Literal["fixed", "random", "rotating", "reverting", "jump", "periodic"] = "fixed"
    angle: float = 0.3
    persistence: float = 0.9
    at: int | None = None
    period: int = 50

    def __post_init__(self) -> None:
        real("C", self.C)
        real("alpha", self.alpha)
        one_of("direction", self.direction, _DIRECTIONS)
        real("angle", self.angle, -np.inf)
        real("persistence", self.persistence, -1.0)
        if self.persistence > 1:
            raise SpecError(f"persistence: a cosine is at most 1, got {self.persistence:g}")
        whole("period", self.period, 2)
        if self.period % 2:
            raise SpecError(f"period: must be even, forth and back, got {self.period}")
        if self.at is not None:
            whole("at", self.at, 2)
        if (self.direction == "jump") != (self.at is not None):
            raise SpecError(f"at: the step of a jump, for it alone; got {self.at} with direction {self.direction!r}")

    def check(self, d: int, total: int, start: int) -> None:
        """Refuse what does not fit `d` coordinates or the steps `start` to `total` in which the mean may move."""
        if self.direction in ("rotating", "reverting") and d < 2:
            raise SpecError(f"d: {self.direction} drift needs a plane, d >= 2, got {d}")
        if self.at is not None and not start <= self.at <= total:
            raise SpecError(f"at: the mean moves in steps {start} to {total} alone, got a jump at {self.at}")

    def sizes(self, total: int, start: int) -> Floats:
        """Lengths of the steps, [total]; zero before step `start`."""
        if self.direction == "jump":
            return np.where(np.arange(1, total + 1) == self.at, float(self.C), 0.0)
        return _sizes(self.C, self.alpha, total, start)

    def directions(self, d: int, total: int, start: int, seed: int) -> Floats:
        """Unit vectors of the steps, [total, d]; the first that counts is that of step `start`."""
        rng = np.random.default_rng(seed)
        if self.direction == "random":
            return _unit(rng.standard_normal((total, d)))
        since = np.arange(1, total + 1) - start
        if self.direction == "rotating":
            plane = np.linalg.qr(rng.standard_normal((d, 2)))[0].T
            turned = self.angle * since[:, None]
            return _unit(np.cos(turned) * plane[0] + np.sin(turned) * plane[1])
        if self.direction == "reverting":
            return self._reverting(d, total, rng)
        u = _unit(rng.standard_normal(d))
        back = (self.direction == "periodic") & (since % self.period >= self.period // 2)
        return np.where(back, -1.0, 1.0)[:, None] * u

    def _reverting(self, d: int, total: int, rng: np.random.Generator) -> Floats:
        out = _unit(rng.standard_normal((total, d)))
        across = np.sqrt(1 - self.persistence**2)
        for t in range(1, total):
            before, fresh = out[t - 1], out[t]
            fresh = _unit(fresh - (fresh @ before) * before)
            out[t] = _unit(self.persistence * before + across * fresh)
        return out


def _unit(x: Floats) -> Floats:
    """Vectors [..., d] divided by their lengths."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@dataclass(frozen=True)
class CovDrift:
    """Drift of the covariance, ``|Sigma_t - Sigma_{t-1}| = C t^-beta`` in spectral norm, t the global step.

    Attributes
    ----------
    C : float
        Size, in squared units of the rows.
    beta : float
        Decay. Assumption 3.4 asks for ``beta > 1``.
    kind : {"none", "folding", "rotation"}
        "folding": every eigenvalue moves by ``C t^-beta``, one down and the next up, and turns back at lmin and lmax;
        the step is exact while one of them does not turn. "rotation": the spectrum stays and the eigenvectors i and
        i + d/2 turn in their plane by the angle that makes the step exact; the pair with the largest gap attains it.

    Raises
    ------
    SpecError
        A negative size or decay; a size with kind "none".
    """

    C: float = 0.0
    beta: float = 2.0
    kind: Literal["none", "folding", "rotation"] = "none"

    def __post_init__(self) -> None:
        real("C", self.C)
        real("beta", self.beta)
        one_of("kind", self.kind, ("none", "folding", "rotation"))
        if self.kind == "none" and self.C > 0:
            raise SpecError(f"C: kind 'none' does not drift, got {self.C:g}; use 'folding' or 'rotation'")

    @property
    def moves(self) -> bool:
        """Whether the covariance changes at all."""
        return self.C > 0

    def sizes(self, total: int, start: int) -> Floats:
        """Nominal spectral norms of the steps, [total]; zero before step `start`."""
        return _sizes(self.C, self.beta, total, start)

    def check(self, values: Floats, lmin: float, lmax: float, start: int) -> None:
        """Refuse a drift that eigenvalues `values` in [lmin, lmax] leave no room for from step `start` on."""
        if not self.moves:
            return
        if self.kind == "folding" and lmin == lmax:
            raise SpecError(f"cov: folding needs room, but lmin = lmax = {lmax:g}")
        if self.kind == "rotation":
            gap, largest = pair_gap(values), self.C * float(start) ** -self.beta
            if largest > gap:
                raise SpecError(
                    f"cov: a rotation moves Sigma by at most {gap:g}, the largest gap of the pairs (i, i + d/2); "
                    f"C t^-beta is {largest:g} at t = {start}"
                )

    def eigenvalues(self, values: Floats, lmin: float, lmax: float, total: int, start: int) -> Floats:
        """Eigenvalues by coordinate, [total, d], in the order of the coordinates."""
        if self.kind != "folding" or not self.moves:
            return np.tile(values, (total, 1))
        moved = np.cumsum(self.sizes(total, start))[:, None]
        # The largest eigenvalue goes down, so that it does not turn at the first step.
        signs = np.where(np.arange(len(values)) % 2 == 0, -1.0, 1.0)
        width = lmax - lmin
        folded = lmin + width - np.abs((values + signs * moved - lmin) % (2 * width) - width)
        return np.clip(folded, lmin, lmax)

    def angles(self, values: Floats, total: int, start: int) -> Floats:
        """Angles by which the eigenvectors have turned since the first step, [total], radians."""
        if self.kind != "rotation" or not self.moves:
            return np.zeros(total)
        return np.cumsum(np.arcsin(self.sizes(total, start) / pair_gap(values)))


def pair_gap(values: Floats) -> float:
    """Largest difference of the eigenvalues i and i + d/2 (rounded down): the largest step of a rotation."""
    half = len(values) // 2
    return float(np.max(values[:half] - values[half : 2 * half], initial=0.0))
