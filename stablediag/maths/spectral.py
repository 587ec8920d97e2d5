"""Spectral norms by Lanczos: a few products with the operator instead of a dense decomposition."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stablediag.maths._threads import single_thread
from stablediag.maths.niw import NIW

# Up to this width a dense decomposition is as fast as Lanczos and exact.
DENSE_WIDTH = 256


def symmetric_norm(
    matvec: Callable[[Tensor], Tensor],
    d: int,
    *,
    iters: int = 20,
    seed: int = 0,
    tol: float = 1e-12,
    batch_shape: Sequence[int] = (),
    device: torch.device | str = "cpu",
) -> Tensor:
    """Largest absolute eigenvalue of a symmetric operator, by Lanczos with full reorthogonalisation.

    Parameters
    ----------
    matvec : callable
        Maps float64 [..., d] to float64 [..., d]; linear and symmetric.
    d : int
        Width of the operator.
    iters : int, optional
        Most products taken; no more than `d` are ever needed.
    seed : int, optional
        Of the start vector.
    tol : float, optional
        Stops when the residual of the extreme Ritz pair is below ``tol`` times its value, in every batch element.
    batch_shape : sequence of int, optional
        Leading dimensions of the vectors.
    device : torch.device or str, optional

    Returns
    -------
    Tensor, float64, shape `batch_shape`
        A lower bound, whose relative error is at most the relative residual and in practice its square.
    """
    device = torch.device(device)
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that every device starts from the same vector
    start = torch.randn(d, generator=generator, dtype=torch.float64).to(device)
    v = (start / start.square().sum().sqrt()).expand(*batch_shape, d)
    basis: list[Tensor] = []
    alphas: list[Tensor] = []
    betas: list[Tensor] = []
    norm = torch.zeros(tuple(batch_shape), dtype=torch.float64, device=device)
    for step in range(min(iters, d)):
        basis.append(v)
        w = matvec(v)
        alphas.append((w * v).sum(dim=-1))
        span = torch.stack(basis, dim=-2)
        for _ in range(2):  # once is not enough: the second sweep restores orthogonality to rounding
            w = w - (span.mT @ (span @ w.unsqueeze(-1))).squeeze(-1)
        beta = w.square().sum(dim=-1).sqrt()
        betas.append(beta)
        if step % 4 == 3 or step == min(iters, d) - 1:
            norm, residual = _ritz(alphas, betas)
            if bool((residual <= tol * norm).all()):
                break
        # An exhausted Krylov space continues with a zero vector, which adds zero rows to the tridiagonal matrix.
        size = torch.stack(alphas).abs().amax(dim=0) + torch.stack(betas).amax(dim=0)
        alive = beta > 1e-14 * size
        betas[-1] = torch.where(alive, beta, torch.zeros_like(beta))
        v = torch.where(alive.unsqueeze(-1), w / beta.clamp_min(torch.finfo(beta.dtype).tiny).unsqueeze(-1), 0.0)
    return norm


def covariance_shifts(
    after: NIW, before_nu: float, factor: Tensor, *, forget: float = 1.0, iters: int = 64, seed: int = 0
) -> Tensor:
    """``||Sigma_t - Sigma_{t-1}||_2`` of posterior-mean covariances, from the new state and the batch factor.

    Both covariances follow from ``Psi_t = forget * Psi_{t-1} + G^T G``, so no second d x d matrix is kept, and above
    a width of 256 the difference is never formed.

    Parameters
    ----------
    after : NIW
        State after the step, batch dimensions allowed.
    before_nu : float
        `nu` before the step, not yet multiplied by `forget`.
    factor : Tensor, shape [..., m, d]
        From `NIW.factor` on the state before the step.
    forget : float, optional
    iters, seed : int, optional
        Of `symmetric_norm`.

    Returns
    -------
    Tensor, float64, shape [...]
        NaN where one of the two covariances does not exist.
    """
    d = after.d
    batch = after.mean.shape[:-1]
    if before_nu <= d + 1 or not after.exists:
        return torch.full(batch, torch.nan, dtype=torch.float64, device=after.mean.device)
    now = 1 / (after.nu - d - 1)
    then = 1 / (forget * (before_nu - d - 1))
    scale = after.scale.double()
    rows = factor.double()
    if d <= DENSE_WIDTH:
        difference = (now - then) * scale + then * (rows.mT @ rows)
        with single_thread(difference.device):
            return torch.linalg.eigvalsh(difference).abs().amax(dim=-1)

    def matvec(x: Tensor) -> Tensor:
        column = x.unsqueeze(-1)
        return ((now - then) * (scale @ column) + then * (rows.mT @ (rows @ column))).squeeze(-1)

    return symmetric_norm(matvec, d, iters=iters, seed=seed, tol=1e-8, batch_shape=batch, device=scale.device)


def covariance_shift(
    after: NIW, before_nu: float, factor: Tensor, *, forget: float = 1.0, iters: int = 64, seed: int = 0
) -> float:
    """`covariance_shifts` of a single state, as a number."""
    return float(covariance_shifts(after, before_nu, factor, forget=forget, iters=iters, seed=seed))


def _ritz(alphas: list[Tensor], betas: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Largest absolute Ritz value and the residual of its pair."""
    diagonal = torch.stack(alphas, dim=-1)
    matrix = torch.diag_embed(diagonal)
    if len(alphas) > 1:
        side = torch.stack(betas[:-1], dim=-1)
        matrix = matrix + torch.diag_embed(side, offset=1) + torch.diag_embed(side, offset=-1)
    values, vectors = torch.linalg.eigh(matrix.cpu())
    best = values.abs().argmax(dim=-1, keepdim=True)
    norm = values.abs().gather(-1, best).squeeze(-1)
    last = vectors[..., -1, :].gather(-1, best).squeeze(-1).abs()
    device = diagonal.device
    return norm.to(device), betas[-1] * last.to(device)
