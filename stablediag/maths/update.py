"""Weight updates as values: `LowRank` (left times right) and `Dense`, with one interface.

Canonical orientation: an update has shape [..., d_in, d_out] and acts as ``y += x @ update``. Scalars are float64
tensors of the batch shape, and are accumulated in float64: float32 reductions over large tensors lose digits on CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from stablediag.maths._threads import single_thread
from stablediag.maths.ridge import gram
from stablediag.maths.spectral import symmetric_norm

# Entries of a row block: bounds every float64 or product temporary to 32 MB per batch element.
BLOCK_ENTRIES = 1 << 22
# Up to this width a dense decomposition gives the spectral norm, above it Lanczos does.
DENSE_WIDTH = 512
# Sums of float32 products beyond these may have overflowed, or consist of what underflowed.
_FLOAT32_RANGE = (1e-20, 1e37)


@dataclass(frozen=True, eq=False)
class LowRank:
    """The update ``left @ right``, never formed unless asked for.

    Scalars come from n x n Gram matrices. Their relative error is about 1e-16 times the square of
    ``||left|| ||right|| / ||left right||``, so a sum that nearly cancels has few correct digits.

    Attributes
    ----------
    left : Tensor, shape [..., p, n]
    right : Tensor, shape [..., n, d]
    """

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        if self.left.shape[-1] != self.right.shape[-2]:
            raise ValueError(f"low-rank factors {tuple(self.left.shape)} and {tuple(self.right.shape)} do not chain")

    @property
    def shape(self) -> torch.Size:
        """Shape of the dense update, [..., p, d]."""
        batch = torch.broadcast_shapes(self.left.shape[:-2], self.right.shape[:-2])
        return torch.Size((*batch, self.left.shape[-2], self.right.shape[-1]))

    def dense(self) -> Tensor:
        """The update as a matrix, in the dtype of the factors."""
        dtype = torch.promote_types(self.left.dtype, self.right.dtype)
        return self.left.to(dtype) @ self.right.to(dtype)

    def scaled(self, c: float) -> LowRank:
        """The update times `c`."""
        return LowRank(self.left, self.right * c)

    def norm(self) -> Tensor:
        """Frobenius norm, float64, shape [...]."""
        return self.inner(self).clamp_min(0.0).sqrt()

    def inner(self, other: Update) -> Tensor:
        """Frobenius inner product, float64, shape [...]."""
        _same_shape(self, other)
        if isinstance(other, Dense):
            return other.inner(self)
        mine = None if other is self else other
        keys = gram(self.left.mT, None if mine is None else mine.left.mT)
        values = gram(self.right, None if mine is None else mine.right)
        return (keys * values).sum(dim=(-2, -1))

    def cosine(self, other: Update) -> Tensor:
        """Cosine of the angle to `other`, float64, shape [...]; NaN when one of the two is zero."""
        return self.inner(other) / (self.norm() * other.norm())

    def spectral_norm(self) -> Tensor:
        """Largest singular value, float64, shape [...]."""
        if self.left.shape[-1] > min(self.shape[-2:]):
            return Dense(self.dense()).spectral_norm()
        keys = gram(self.left.mT)
        values = gram(self.right)
        with single_thread(keys.device):
            w, q = torch.linalg.eigh(keys)
            root = q * w.clamp_min(0.0).sqrt().unsqueeze(-2)
            return torch.linalg.eigvalsh(root.mT @ values @ root).amax(dim=-1).clamp_min(0.0).sqrt()

    def max_abs(self) -> Tensor:
        """Largest absolute entry, float64, shape [...]; formed in row blocks, in the dtype of the factors."""
        dtype = torch.promote_types(self.left.dtype, self.right.dtype)
        right = self.right.to(dtype)
        largest = torch.zeros(self.shape[:-2], dtype=torch.float64, device=right.device)
        for rows in _row_blocks(self.shape):
            block = (self.left[..., rows, :].to(dtype) @ right).abs().amax(dim=(-2, -1))
            largest = torch.maximum(largest, block.double())
        return largest


@dataclass(frozen=True, eq=False)
class Dense:
    """An update kept as a matrix, shape [..., p, d]."""

    matrix: Tensor

    @property
    def shape(self) -> torch.Size:
        """Shape of the update, [..., p, d]."""
        return self.matrix.shape

    def dense(self) -> Tensor:
        """The matrix itself."""
        return self.matrix

    def scaled(self, c: float) -> Dense:
        """The update times `c`."""
        return Dense(self.matrix * c)

    def norm(self) -> Tensor:
        """Frobenius norm, float64, shape [...]."""
        parts = [torch.linalg.vector_norm(block, dim=(-2, -1), dtype=torch.float64) for block in self._blocks()]
        return torch.linalg.vector_norm(torch.stack(parts), dim=0)

    def inner(self, other: Update) -> Tensor:
        """Frobenius inner product, float64, shape [...]."""
        _same_shape(self, other)
        if other is self:
            return self.norm().square()
        if isinstance(other, Dense) and self.matrix.dtype == other.matrix.dtype == torch.float32:
            # Sums along rows in float32 lose nothing that shows, unless they leave its range.
            turned = self.matrix.mT.is_contiguous() and other.matrix.mT.is_contiguous()
            a, b = (self.matrix.mT, other.matrix.mT) if turned else (self.matrix, other.matrix)
            short = torch.linalg.vecdot(a, b).sum(dim=-1, dtype=torch.float64)
            if bool(((short.abs() > _FLOAT32_RANGE[0]) & (short.abs() < _FLOAT32_RANGE[1])).all()):
                return short
        total = torch.zeros(self.shape[:-2], dtype=torch.float64, device=self.matrix.device)
        for rows in _row_blocks(self.shape):
            block = self.matrix[..., rows, :].double()
            if isinstance(other, LowRank):
                # <left right, M> = <left, M right^T>: the product with the thin factor comes first.
                total = total + ((block @ other.right.double().mT) * other.left[..., rows, :].double()).sum(
                    dim=(-2, -1)
                )
            else:
                total = total + (block * other.matrix[..., rows, :].double()).sum(dim=(-2, -1))
        return total

    def cosine(self, other: Update) -> Tensor:
        """Cosine of the angle to `other`, float64, shape [...]; NaN when one of the two is zero."""
        return self.inner(other) / (self.norm() * other.norm())

    def spectral_norm(self) -> Tensor:
        """Largest singular value, float64, shape [...]."""
        p, d = self.shape[-2:]
        if min(p, d) <= DENSE_WIDTH:
            with single_thread(self.matrix.device):
                small = gram(self.matrix if p <= d else self.matrix.mT)
                return torch.linalg.eigvalsh(small).amax(dim=-1).clamp_min(0.0).sqrt()

        def matvec(x: Tensor) -> Tensor:
            column = x.unsqueeze(-1)
            total = torch.zeros_like(column)
            for rows in _row_blocks(self.shape):
                block = self.matrix[..., rows, :].double()
                total = total + block.mT @ (block @ column)
            return total.squeeze(-1)

        batch = self.shape[:-2]
        return symmetric_norm(matvec, d, iters=64, tol=1e-8, batch_shape=batch, device=self.matrix.device).sqrt()

    def max_abs(self) -> Tensor:
        """Largest absolute entry, float64, shape [...]."""
        return self.matrix.abs().amax(dim=(-2, -1)).double()

    def _blocks(self) -> Iterator[Tensor]:
        return (self.matrix[..., rows, :] for rows in _row_blocks(self.shape))


Update: TypeAlias = LowRank | Dense
UpdateT: TypeAlias = Update


def concat(updates: Sequence[LowRank]) -> LowRank:
    """The sum of low-rank updates of equal shape, as one low-rank update.

    Raises
    ------
    ValueError
        Nothing to sum.
    """
    if not updates:
        raise ValueError("concat needs at least one update")
    return LowRank(torch.cat([u.left for u in updates], dim=-1), torch.cat([u.right for u in updates], dim=-2))


def _same_shape(a: Update, b: Update) -> None:
    if a.shape[-2:] != b.shape[-2:]:
        raise ValueError(f"updates of shapes {tuple(a.shape)} and {tuple(b.shape)} have no inner product")


def _row_blocks(shape: torch.Size) -> Iterator[slice]:
    """Slices over the rows of a [..., p, d] update, each with a bounded number of entries per batch element."""
    p, d = shape[-2:]
    step = max(1, BLOCK_ENTRIES // max(1, d))
    for start in range(0, p, step):
        yield slice(start, min(p, start + step))
