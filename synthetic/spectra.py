"""Spectra of the simulated covariances, and the checks that the descriptions of a process share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stablediag.errors import SpecError

Floats = NDArray[np.float64]


def whole(name: str, value: object, least: int = 1) -> None:
    """Refuse what is not an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise SpecError(f"{name}: must be an integer of at least {least}, got {value!r}")


def real(name: str, value: object, least: float = 0.0) -> None:
    """Refuse what is not a finite number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or float(value) < least:
        raise SpecError(f"{name}: must be a finite number of at least {least:g}, got {value!r}")


def one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    """Refuse a name that is not known."""
    if value not in known:
        raise SpecError(f"{name}: unknown {value!r}; use one of {', '.join(known)}")


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of the covariance at the first step, all in [lmin, lmax].

    Attributes
    ----------
    kind : {"geometric", "iso", "power", "spiked"}
        "geometric": equal ratios from `lmax` down to `lmin`; "iso": all equal to `lmax`; "power":
        ``lmax i^-exponent``, cut off below at `lmin`; "spiked": `spikes` eigenvalues equal to `lmax`, the bulk to
        ``lmax/spike``.
    lmin, lmax : float
        Spectral bounds of Assumption 3.1(b), in squared units of the rows. They hold at every step, so that a folding
        covariance turns back there; `lmin` need not be attained.
    exponent : float
        Decay of "power".
    spikes : int
        Number of spikes of "spiked".
    spike : float
        Ratio of a spike to the bulk, at least one.

    Raises
    ------
    SpecError
        ``lmin <= 0``, ``lmin > lmax``, a bulk below `lmin`, an unknown kind.

    Notes
    -----
    StableEdit (arXiv:2605.11836), Assumption 3.1(b).
    """

    kind: Literal["iso", "geometric", "power", "spiked"] = "geometric"
    lmin: float = 0.05
    lmax: float = 1.0
    exponent: float = 1.0
    spikes: int = 1
    spike: float = 10.0

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("iso", "geometric", "power", "spiked"))
        real("lmin", self.lmin)
        real("lmax", self.lmax)
        real("exponent", self.exponent)
        whole("spikes", self.spikes)
        real("spike", self.spike, 1.0)
        if self.lmin <= 0:
            raise SpecError(f"lmin: must be positive, got {self.lmin:g}; the covariance would be singular")
        if self.lmin > self.lmax:
            raise SpecError(f"lmin: {self.lmin:g} > lmax {self.lmax:g}; no eigenvalue lies between")
        if self.kind == "spiked" and self.lmax / self.spike < self.lmin:
            raise SpecError(f"spike: the bulk lmax/spike = {self.lmax / self.spike:g} is below lmin {self.lmin:g}")

    def values(self, d: int) -> Floats:
        """Eigenvalues in descending order.

        Parameters
        ----------
        d : int
            Number of coordinates; more than `spikes` for a spiked spectrum.

        Returns
        -------
        ndarray, float64, shape [d]
        """
        whole("d", d)
        if self.kind == "iso":
            return np.full(d, float(self.lmax))
        if self.kind == "geometric":
            # Powers and logarithms round: the ends must not leave the bounds by a bit.
            return np.clip(np.geomspace(self.lmax, self.lmin, d), self.lmin, self.lmax)
        if self.kind == "power":
            return np.maximum(self.lmax * np.arange(1.0, d + 1) ** -self.exponent, self.lmin)
        if self.spikes >= d:
            raise SpecError(f"spikes: {self.spikes} spikes leave no bulk in d = {d}")
        values = np.full(d, self.lmax / self.spike)
        values[: self.spikes] = self.lmax
        return values
