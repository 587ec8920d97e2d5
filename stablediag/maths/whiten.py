"""Normalisation of rows: full (symmetric inverse root), diagonal, scalar, centring, none.

The symmetric (ZCA) root matters: the LN editor is not rotation invariant, so a Cholesky or PCA root gives another
direction of the update. Source: StableEdit (arXiv:2605.11836), Algorithm 1; UltraEdit (arXiv:2505.14679) for the
diagonal form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stablediag.errors import NumericalError
from stablediag.maths._threads import single_thread
from stablediag.maths.niw import NIW, DiagNIW

Kind = Literal["full", "diagonal", "scalar", "center", "none"]
PreThreshold = Literal["diagonal", "shrink", "error"]


@dataclass(frozen=True)
class Floor:
    """Lower bound on the eigenvalues that are inverted.

    Attributes
    ----------
    kind : {"absolute", "relative", "none"}
        "relative" means ``value * trace/d`` of the covariance.
    value : float
    """

    kind: Literal["absolute", "relative", "none"] = "relative"
    value: float = 1e-12


@dataclass(frozen=True, eq=False)
class Condition:
    """Condition numbers of a covariance, float64 tensors of shape [...].

    Attributes
    ----------
    raw : Tensor
        Of the estimate itself; infinite when it is singular to the last eigenvalue.
    floored : Tensor
        Of the matrix that was inverted, after shrinkage and floor.
    exact : bool
        From all eigenvalues. When False the numbers are lower bounds from variances, or NaN when unknown.
    """

    raw: Tensor
    floored: Tensor
    exact: bool


@dataclass(frozen=True, eq=False)
class Whitener:
    """A normalisation of rows, ready to apply.

    Attributes
    ----------
    mean : Tensor, float64, shape [..., d]
    kind : {"full", "diagonal", "scalar", "center", "none"}
    transform : Tensor or None
        Inverse root [..., d, d], inverse scales [..., d] or inverse scale [...]. Its dtype is that of the product in
        `apply`: float64 unless the builder was asked for another.
    eigenvalues : Tensor or None
        Raw eigenvalues of the covariance estimate, before shrinkage and floor: float64, ascending, shape [..., d].
        None unless `kind` is "full".
    inverted : Tensor or None
        The eigenvalues that were inverted, after shrinkage and floor, in the same order.
    floored : Tensor, int64, shape [...]
        Directions lifted by the floor ("full") or silenced for want of variance ("diagonal", "scalar").
    active : bool
        Full whitening with the posterior mean of the covariance is on; False for every fallback.
    """

    mean: Tensor
    kind: Kind
    transform: Tensor | None
    eigenvalues: Tensor | None
    inverted: Tensor | None
    floored: Tensor
    active: bool

    def apply(self, rows: Tensor) -> Tensor:
        """Normalised rows.

        Parameters
        ----------
        rows : Tensor, shape [..., n, d]

        Returns
        -------
        Tensor, shape [..., n, d], dtype of `rows`
            Rows are centred in float64 (cancellation), then multiplied in the dtype of `transform`.
        """
        if self.kind == "none":
            return rows
        centred = rows.double() - self.mean.double().unsqueeze(-2)
        if self.transform is None:
            return centred.to(rows.dtype)
        centred = centred.to(self.transform.dtype)
        if self.kind == "full":
            return (centred @ self.transform).to(rows.dtype)
        factor = self.transform.unsqueeze(-2) if self.kind == "diagonal" else self.transform[..., None, None]
        return (centred * factor).to(rows.dtype)

    def condition(self, exact: bool = True) -> Condition:
        """Condition numbers of the covariance.

        Parameters
        ----------
        exact : bool, optional
            True answers NaN without eigenvalues. False then falls back, for a diagonal whitener, on the ratio of the
            extreme variances: a lower bound of the condition number of any covariance with that diagonal.
        """
        if self.eigenvalues is not None and self.inverted is not None:
            return Condition(_spread(self.eigenvalues), _spread(self.inverted), True)
        if not exact and self.kind == "diagonal" and self.transform is not None:
            bound = _spread(self.transform.double().square())
            return Condition(bound, bound, False)
        return Condition(self._unknown(), self._unknown(), False)

    @property
    def floored_fraction(self) -> Tensor:
        """`floored` over d, float64, shape [...]."""
        return self.floored.double() / self.mean.shape[-1]

    @property
    def eig_max(self) -> Tensor:
        """Largest raw eigenvalue, float64, shape [...]; NaN unless "full"."""
        return self._unknown() if self.eigenvalues is None else self.eigenvalues[..., -1]

    @property
    def energy(self) -> Tensor:
        """Out-of-sample whitened energy ``sum_k w_k/inverted_k``, float64, shape [...]; NaN unless "full"."""
        if self.eigenvalues is None or self.inverted is None:
            return self._unknown()
        return (self.eigenvalues.clamp_min(0.0) * _reciprocal(self.inverted)).sum(dim=-1)

    def _unknown(self) -> Tensor:
        return torch.full(self.mean.shape[:-1], torch.nan, dtype=torch.float64, device=self.mean.device)


def full_whitener(
    niw: NIW,
    *,
    floor: Floor = Floor(),
    shrinkage: float = 0.0,
    eps: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Whitener:
    """Symmetric inverse root of the posterior-mean covariance, by a float64 eigendecomposition.

    Parameters
    ----------
    niw : NIW
    floor : Floor, optional
        Applied after shrinkage; lifted eigenvalues are counted in `Whitener.floored`.
    shrinkage : float, optional
        rho in [0, 1]: ``(1 - rho) S + rho tr(S)/d I``.
    eps : float, optional
        Added to the divisor ``nu - d - 1`` (the released code adds float32 machine epsilon).
    dtype : torch.dtype, optional
        Of the stored root, hence of the product in `Whitener.apply`. Float64 costs as much as float32 on data-centre
        GPUs and little beside the decomposition elsewhere.

    Raises
    ------
    NumericalError
        ``nu - d - 1 + eps <= 0``; a scatter that is not finite; a singular covariance with ``Floor("none")``.
    """
    divisor = niw.nu - niw.d - 1 + eps
    if divisor <= 0:
        raise NumericalError(
            f"full whitening needs nu > d + 1 but nu = {niw.nu:g}, d = {niw.d}; see more rows or use a fallback"
        )
    return _inverse_root(niw, divisor, floor, shrinkage, dtype, active=True)


def diagonal_whitener(diag: DiagNIW, *, eps: float = 0.0, dtype: torch.dtype = torch.float64) -> Whitener:
    """``(x - mean)/(std + eps)`` with ``std = sqrt(scale/(nu - 1 + eps))``.

    A coordinate without variance, to within the rounding of its mean, gives zero and is counted in `floored`.
    """
    std = diag.variance(eps=eps).sqrt()
    silent = _is_rounding(std, diag.mean)
    transform = torch.where(silent, 0.0, _reciprocal(std + eps))
    return _plain(diag.mean, "diagonal", transform.to(dtype), silent.sum(dim=-1))


def scalar_whitener(diag: DiagNIW, *, eps: float = 0.0, dtype: torch.dtype = torch.float64) -> Whitener:
    """``(x - mean)/(s + eps)`` with ``s^2`` the mean variance over coordinates: one scale, no change of direction."""
    scale = diag.variance(eps=eps).mean(dim=-1).sqrt()
    silent = scale == 0
    transform = torch.where(silent, 0.0, _reciprocal(scale + eps))
    return _plain(diag.mean, "scalar", transform.to(dtype), silent * diag.d)


def center_whitener(mean: Tensor) -> Whitener:
    """``x - mean``."""
    return _plain(mean, "center", None, _no_count(mean))


def identity_whitener(d: int) -> Whitener:
    """Rows as they are."""
    mean = torch.zeros(d, dtype=torch.float64)
    return _plain(mean, "none", None, _no_count(mean))


def gradient_whitener(
    niw: NIW | None,
    diag: DiagNIW | None = None,
    *,
    kind: Kind = "full",
    floor: Floor = Floor(),
    shrinkage: float = 0.0,
    pre_threshold: PreThreshold = "diagonal",
    eps: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Whitener:
    """The normalisation of value gradients that an LN editor asks for, with its behaviour before the threshold.

    Parameters
    ----------
    niw : NIW or None
        Full moments; needed for ``kind="full"``.
    diag : DiagNIW or None, optional
        Diagonal moments of the same rows; taken from `niw` by default.
    kind : {"full", "diagonal", "scalar", "center", "none"}, optional
    floor, shrinkage, eps, dtype
        As in `full_whitener`.
    pre_threshold : {"diagonal", "shrink", "error"}, optional
        What to do for ``kind="full"`` while ``nu <= d + 1``, where the posterior mean does not exist. "shrink" whitens
        with ``(1 - rho) Psi/nu + rho tr(Psi)/(nu d) I`` and ``rho = 1 - 0.9 nu/(d + 2)``: the identity direction alone
        at first, one tenth of it at the threshold (a choice of this package; the paper is silent).

    Raises
    ------
    NumericalError
        ``pre_threshold="error"`` before the threshold; also whatever `full_whitener` raises.
    ValueError
        The moments that `kind` needs are missing.
    """
    if kind == "full":
        if niw is None:
            raise ValueError("full whitening needs full moments; give niw or choose another kind")
        if niw.exists:
            return full_whitener(niw, floor=floor, shrinkage=shrinkage, eps=eps, dtype=dtype)
        if pre_threshold == "shrink" and niw.nu > 0:
            rho = 1 - 0.9 * min(1.0, niw.nu / (niw.d + 2))
            return _inverse_root(niw, niw.nu, floor, rho, dtype, active=False)
        if pre_threshold == "error":
            raise NumericalError(
                f"full whitening needs nu > d + 1 but nu = {niw.nu:g}, d = {niw.d}; set pre_threshold to 'diagonal'"
            )
        kind = "diagonal"
    moments = diag if diag is not None else (niw.diag() if niw is not None else None)
    if moments is None:
        raise ValueError(f"{kind} whitening needs moments; give niw or diag")
    if kind == "none":
        return _plain(torch.zeros_like(moments.mean), "none", None, _no_count(moments.mean))
    if kind == "center":
        return center_whitener(moments.mean)
    build = diagonal_whitener if kind == "diagonal" else scalar_whitener
    return build(moments, eps=eps, dtype=dtype)


def _inverse_root(
    niw: NIW, divisor: float, floor: Floor, shrinkage: float, dtype: torch.dtype, *, active: bool
) -> Whitener:
    """Whitener of ``scale/divisor`` with shrinkage and floor on its eigenvalues."""
    scale = niw.scale.double()
    message = f"eigendecomposition of the {niw.d} x {niw.d} scatter failed; look for non-finite rows"
    try:
        with single_thread(scale.device):
            raw, q = torch.linalg.eigh(scale)
    except torch.linalg.LinAlgError as error:
        raise NumericalError(message) from error
    if not bool(raw.isfinite().all()):  # what a GPU returns instead of raising
        raise NumericalError(message)
    raw = raw / divisor
    trace = raw.mean(dim=-1, keepdim=True)
    shrunk = (1 - shrinkage) * raw + shrinkage * trace
    if floor.kind == "none":
        if not bool((shrunk > 0).all()):
            raise NumericalError(
                f"covariance is singular (smallest eigenvalue {float(shrunk.min()):.3g}); use a floor or shrinkage"
            )
        bound = torch.zeros_like(trace)
    else:
        bound = floor.value * (trace.clamp_min(0.0) if floor.kind == "relative" else torch.ones_like(trace))
    lifted = (shrunk < bound) | (shrunk <= 0)
    inverted = torch.maximum(shrunk, bound)
    # A direction without any variance and without a floor gives zero, and is counted.
    gains = _reciprocal(inverted).sqrt()
    root = (q * gains.unsqueeze(-2)) @ q.mT
    return Whitener(niw.mean.double(), "full", root.to(dtype), raw, inverted, lifted.sum(dim=-1), active)


def _plain(mean: Tensor, kind: Kind, transform: Tensor | None, floored: Tensor) -> Whitener:
    return Whitener(mean.double(), kind, transform, None, None, floored, False)


def _no_count(mean: Tensor) -> Tensor:
    return torch.zeros(mean.shape[:-1], dtype=torch.int64, device=mean.device)


def _reciprocal(x: Tensor) -> Tensor:
    """1/x where x is positive, zero where it is not; NaN stays NaN, so that nothing broken looks whole."""
    empty = x <= 0
    return torch.where(empty, 0.0, 1 / torch.where(empty, 1.0, x))


def _is_rounding(std: Tensor, mean: Tensor) -> Tensor:
    """Whether a standard deviation is no more than the rounding of the mean that was subtracted."""
    return std <= 64 * torch.finfo(mean.dtype).eps * mean.double().abs()


def _spread(values: Tensor) -> Tensor:
    """Largest over smallest, infinite when the smallest is not positive."""
    smallest = values.amin(dim=-1)
    return torch.where(smallest <= 0, torch.inf, values.amax(dim=-1) / smallest)
