"""Streams of updates: synthetic keys and value gradients through the editor's own update rule, over replicates.

The value gradients are those of a `Process`; keys, whitening, coefficients and ridge regression are what the editor does
at a step. Every update is split as the theorems split it: a characteristic part, whose rows are centred at the true mean,
and the bias, which is what the error of the running mean adds.

Source: StableEdit, arXiv:2605.11836, Algorithm 1, Theorem 3.8 and Corollary D.7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stablediag.errors import SpecError
from stablediag.maths import (
    NIW,
    DiagNIW,
    LowRank,
    Whitener,
    center_whitener,
    diagonal_whitener,
    gradient_whitener,
    key_coefficient,
    ln_update,
)
from stablediag.maths.whiten import Kind
from stablediag.stats import theory
from synthetic.grid import derive_seed
from synthetic.process import Process

Floats = NDArray[np.float64]

#: entries of the rows that are drawn at a time: 32 MB
CHUNK = 1 << 22

#: transforms of the whitened rows, entry by entry, and their Lipschitz constants
TRANSFORMS: Mapping[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "identity": (lambda x: x, 1.0),
    "tanh": (torch.tanh, 1.0),
    "sine": (lambda x: torch.sin(3 * x), 3.0),
    "relu": (torch.relu, 1.0),
    "abs": (torch.abs, 1.0),
}


@dataclass(frozen=True)
class UpdateStream:
    """What is fed to the update rule, and which rule.

    Attributes
    ----------
    process : Process
        The value gradients, n rows in R^d a step.
    p : int
        Width of the keys, which are standard normal about their mean.
    ridge, lr : float
        lambda > 0 and gamma > 0 of the update.
    whitening : {"full", "diagonal", "scalar", "center", "none"}
        Kind of the whitener. Full whitening is diagonal while its covariance does not exist, as in the editor.
    centred : bool
        False whitens without subtracting the running mean.
    inclusive : bool
        The statistics contain the step's own rows, as in the algorithm; False uses those before the step.
    eps : float
        Added to the divisor N - d - 1 of the covariance.
    transform : str
        One of `TRANSFORMS`, applied to the whitened rows.
    key_mean : float
        Length of the mean of the keys. Without one, updates are orthogonal on average by the signs of the keys alone.
    signal : float
        Share of the gradients that the keys explain: ``signal * Sigma^{1/2}`` times the first d key entries is added.
    offset : float
        Length of a constant mean of the gradients, in the norm of the inverse covariance of the first step.
    rotated : bool
        The eigenbasis of the covariance is a random one instead of the axes.

    Raises
    ------
    SpecError
        A number out of range.
    """

    process: Process
    p: int = 60
    ridge: float = 10.0
    lr: float = 1.0
    whitening: Kind = "full"
    centred: bool = True
    inclusive: bool = True
    eps: float = 0.0
    transform: str = "identity"
    key_mean: float = 0.0
    signal: float = 0.0
    offset: float = 0.0
    rotated: bool = False

    def __post_init__(self) -> None:
        if self.p < 1 or (self.signal and self.p < self.process.d):
            raise SpecError(f"p: keys must have an entry, with a signal at least d = {self.process.d}; got {self.p}")
        for name in ("ridge", "lr"):
            if not getattr(self, name) > 0:
                raise SpecError(f"{name}: must be positive, got {getattr(self, name):g}")
        for name in ("eps", "key_mean", "signal", "offset"):
            if not getattr(self, name) >= 0:
                raise SpecError(f"{name}: must not be negative, got {getattr(self, name):g}")
        if self.whitening not in get_args(Kind):
            raise SpecError(f"whitening: must be one of {', '.join(get_args(Kind))}, got {self.whitening!r}")
        if self.transform not in TRANSFORMS:
            raise SpecError(f"transform: must be one of {', '.join(TRANSFORMS)}, got {self.transform!r}")

    def params(self) -> dict[str, Any]:
        """JSON values that `from_params` takes."""
        plain = {name: value for name, value in vars(self).items() if name in self.__dataclass_fields__}
        return plain | {"process": self.process.params()}

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> UpdateStream:
        """Inverse of `params`."""
        return cls(**{**params, "process": Process.from_params(params["process"])})

    @cached_property
    def basis(self) -> Tensor:
        """Eigenbasis in use, orthogonal [d, d]: rows of the process are multiplied by its transpose."""
        d = self.process.d
        if not self.rotated:
            return torch.eye(d, dtype=torch.float64)
        generator = torch.Generator().manual_seed(derive_seed(self.process.seed, "basis", d))
        return torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q

    @cached_property
    def means(self) -> Tensor:
        """True mean of the gradients at every step, [T, d]."""
        d = self.process.d
        root = torch.as_tensor(self.process.root(1))
        shift = self.offset / math.sqrt(d) * root.sum(dim=-1)
        return (torch.as_tensor(self.process.means()) + shift) @ self.basis.mT

    def covariance(self, step: int) -> Tensor:
        """True covariance of the gradients at a step, [d, d]; the signal is part of it."""
        plain = torch.as_tensor(self.process.covariance(step))
        if self.signal:
            plain = plain + self.signal**2 * torch.as_tensor(self.process.covariance(1))
        return self.basis @ plain @ self.basis.mT

    def d_eff(self, step: int) -> float:
        """Effective dimension of the rows that the exact whitener of this kind would leave at a step."""
        sigma = self.covariance(step)
        if self.whitening == "full":
            return float(self.process.d)
        if self.whitening == "diagonal":
            scale = sigma.diagonal().rsqrt()
            sigma = scale[:, None] * sigma * scale
        return float(theory.d_eff(torch.linalg.eigvalsh(sigma).numpy()))


@dataclass(frozen=True, eq=False)
class Updates:
    """What was recorded, float64, replicates first: [R, K] for K recorded steps unless a shape is given.

    Attributes
    ----------
    steps, rows : [K]
        Recorded steps, and rows in the statistics that whitened them.
    row : mean of ``|v~_i|^2`` over the rows of the step, after the transform.
    update, char, bias, cross : ``|DW|^2``, its two parts, and twice their inner product.
    phi_sq, Phi_sq, phi_fourth : ``sum_i |phi_i|^2``, ``|sum_i phi_i|^2`` and the mean of ``|phi_i|^4``.
    largest : largest coefficient ``|h~_i|^2`` of the step.
    error : ``|m - mu|^2`` of the centre that was subtracted.
    precision : ``|Sh^-1|``, spectral; NaN unless whitened in full.
    inflation : ``tr(Sigma^-1 Sh)/d``; NaN unless whitened in full.
    cosine, kappa : [R, K - 1]
        Cosine of consecutive recorded updates, and `theory.kappa_phi` of their features.
    inner, char_inner, Phi_inner : [R, K, K] or None
        ``<DW_s, DW_t>``, ``<DW_bias,s, DW_char,t>`` and ``<Phi_s, Phi_t>`` of all recorded pairs.
    total : [R, K] or None
        ``|sum DW|^2`` over the recorded steps so far.
    """

    steps: NDArray[np.int64]
    rows: NDArray[np.int64]
    row: Floats
    update: Floats
    char: Floats
    bias: Floats
    cross: Floats
    phi_sq: Floats
    Phi_sq: Floats
    phi_fourth: Floats
    largest: Floats
    error: Floats
    precision: Floats
    inflation: Floats
    cosine: Floats
    kappa: Floats
    inner: Floats | None = None
    char_inner: Floats | None = None
    Phi_inner: Floats | None = None
    total: Floats | None = None


def simulate_updates(
    stream: UpdateStream, *, steps: Sequence[int], reps: int, seed: int, pairs: bool = False, total: bool = False
) -> Updates:
    """Run replicates of a stream and record the updates of some steps.

    Parameters
    ----------
    stream : UpdateStream
    steps : sequence of int
        Ascending, at most ``process.total``. The rows of other steps enter the statistics only.
    reps : int
        Replicates.
    seed : int
    pairs : bool, optional
        Inner products of all recorded pairs. Keeps every recorded update: for few steps.
    total : bool, optional
        The running sum of the recorded updates.

    Raises
    ------
    ValueError
        `steps` or `reps` out of range.
    NumericalError
        From the whitener.
    """
    last = stream.process.total
    if not steps or steps[0] < 1 or steps[-1] > last or any(a >= b for a, b in pairwise(steps)):
        raise ValueError(f"steps: must ascend within 1 ... {last}, got {list(steps)}")
    if reps < 1:
        raise ValueError(f"reps: must be at least 1, got {reps}")
    source = _Source(stream, reps, seed)
    rows = np.zeros(len(steps), dtype=np.int64)
    records: list[dict[str, Tensor]] = []
    cosine, kappa = np.empty((reps, len(steps) - 1)), np.empty((reps, len(steps) - 1))
    kept: list[_Step] = []
    before: _Step | None = None
    running = torch.zeros(reps, stream.p, stream.process.d, dtype=torch.float64) if total else None
    for k, step in enumerate(steps):
        found = source.advance(step)
        rows[k] = found.rows
        record = _reduce(stream, step, found)
        if running is not None:
            running += found.update.dense()
            record["total"] = running.square().sum(dim=(-2, -1))
        records.append(record)
        if before is not None:
            cosine[:, k - 1] = before.update.cosine(found.update).numpy()
            kappa[:, k - 1] = theory.kappa_phi(before.phi, found.phi)
        before = found
        if pairs:
            kept.append(found)
    fields = {name: torch.stack([one[name] for one in records], dim=-1).numpy() for name in records[0]}
    inner = _pairs(kept) if pairs else {}
    return Updates(np.asarray(steps, dtype=np.int64), rows, cosine=cosine, kappa=kappa, **fields, **inner)


@dataclass(frozen=True, eq=False)
class _Step:
    """One step of all replicates: whitener and rows, the update and its parts, phi rows [R, n, p]."""

    rows: int
    whitener: Whitener
    whitened: Tensor
    coefficient: Tensor
    phi: Floats
    update: LowRank
    char: LowRank
    bias: LowRank


@dataclass(eq=False)
class _Source:
    """Draws rows and keeps the running statistics."""

    stream: UpdateStream
    reps: int
    seed: int
    at: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        process = self.stream.process
        self.sampler = process.sampler(self.reps, derive_seed(self.seed, "gradients"))
        self.generator = torch.Generator().manual_seed(derive_seed(self.seed, "keys"))
        self.shift = self.stream.means - torch.as_tensor(process.means()) @ self.stream.basis.mT
        self.lift = self.stream.signal * self.stream.basis @ torch.as_tensor(process.root(1))
        self.grads = NIW.empty(process.d, batch_shape=(self.reps,))
        self.keys = DiagNIW.empty(self.stream.p, batch_shape=(self.reps,))

    def advance(self, step: int) -> _Step:
        """Statistics up to the step before, then the step itself."""
        most = max(1, CHUNK // (self.reps * self.stream.process.n * max(self.stream.p, self.stream.process.d)))
        while self.at < step - 1:
            keys, grads = self._draw(min(step - 1 - self.at, most))
            self.keys, self.grads = self.keys.update(keys.flatten(1, 2)), self.grads.update(grads.flatten(1, 2))
        keys, grads = (rows.squeeze(1) for rows in self._draw(1))
        before, self.grads, self.keys = self.grads, self.grads.update(grads), self.keys.update(keys)
        return _step(self.stream, step, keys, grads, self.grads if self.stream.inclusive else before, self.keys)

    def _draw(self, k: int) -> tuple[Tensor, Tensor]:
        """Keys [R, k, n, p] and gradients [R, k, n, d] of the next k steps."""
        stream, process = self.stream, self.stream.process
        shape = (self.reps, k, process.n, stream.p)
        keys = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        grads = self.sampler.next(k)
        if stream.rotated:
            grads = grads @ stream.basis.mT
        if stream.offset:
            grads = grads + self.shift[self.at : self.at + k, None]
        if stream.signal:
            grads = grads + keys[..., : process.d] @ self.lift.mT
        self.at += k
        return keys + stream.key_mean / math.sqrt(stream.p), grads


def _step(stream: UpdateStream, step: int, keys: Tensor, grads: Tensor, stats: NIW, key_stats: DiagNIW) -> _Step:
    """The update of one step and its parts."""
    whitener = gradient_whitener(stats, kind=stream.whitening, eps=stream.eps)
    if not stream.centred:
        whitener = replace(whitener, mean=torch.zeros_like(whitener.mean))
    mean = stream.means[step - 1]
    ideal = center_whitener(mean) if whitener.kind == "none" else replace(whitener, mean=mean)
    coefficient = key_coefficient(keys, diagonal_whitener(key_stats))
    transform, _ = TRANSFORMS[stream.transform]

    def updated(by: Whitener) -> tuple[Tensor, LowRank]:
        whitened = transform(by.apply(grads))
        plain = stream.transform == "identity"
        update = ln_update(
            keys,
            grads if plain else whitened,
            whitener=by if plain else None,
            coefficient=coefficient,
            lr=stream.lr,
            ridge=stream.ridge,
        )
        return whitened, update

    whitened, update = updated(whitener)
    _, char = updated(ideal)
    bias = LowRank(update.left, update.right - char.right)
    phi = theory.phi_rows(keys.numpy(), coefficient.numpy(), stream.ridge)
    return _Step(int(stats.nu), whitener, whitened, coefficient, phi, update, char, bias)


def _reduce(stream: UpdateStream, step: int, found: _Step) -> dict[str, Tensor]:
    """Numbers of one step, [R] each."""
    phi_sq = torch.as_tensor(found.phi).square().sum(dim=-1)
    whitener = found.whitener
    unknown = torch.full(phi_sq.shape[:1], torch.nan, dtype=torch.float64)
    precision, inflation = unknown, unknown
    if whitener.transform is not None and whitener.inverted is not None:
        precision = 1 / whitener.inverted[..., 0]
        # Sh is the inverse of the whitener's square, so that tr(Sigma^-1 Sh) is the trace of one inverse.
        ratio = torch.linalg.inv(stream.covariance(step) @ whitener.transform @ whitener.transform)
        inflation = ratio.diagonal(dim1=-2, dim2=-1).sum(dim=-1) / stream.process.d
    return {
        "row": found.whitened.square().sum(dim=-1).mean(dim=-1),
        "update": found.update.inner(found.update),
        "char": found.char.inner(found.char),
        "bias": found.bias.inner(found.bias),
        "cross": 2 * found.char.inner(found.bias),
        "phi_sq": phi_sq.sum(dim=-1),
        "Phi_sq": torch.as_tensor(found.phi).sum(dim=-2).square().sum(dim=-1),
        "phi_fourth": phi_sq.square().mean(dim=-1),
        "largest": found.coefficient.amax(dim=-1),
        "error": (whitener.mean - stream.means[step - 1]).square().sum(dim=-1).expand(phi_sq.shape[:1]),
        "precision": precision,
        "inflation": inflation,
    }


def _pairs(kept: Sequence[_Step]) -> dict[str, Floats]:
    """Inner products of all pairs, [R, K, K] each."""
    count, reps = len(kept), len(kept[0].phi)
    inner, char_inner = np.empty((reps, count, count)), np.empty((reps, count, count))
    for i, a in enumerate(kept):
        for j, b in enumerate(kept):
            char_inner[:, i, j] = a.bias.inner(b.char).numpy()
            if j >= i:
                inner[:, i, j] = inner[:, j, i] = a.update.inner(b.update).numpy()
    sums = np.stack([one.phi.sum(axis=-2) for one in kept], axis=1)
    return {"inner": inner, "char_inner": char_inner, "Phi_inner": sums @ np.swapaxes(sums, 1, 2)}
