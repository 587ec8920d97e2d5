"""Muon: momentum whose matrix updates are orthogonalised by Newton-Schulz iteration.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024,
https://kellerjordan.github.io/posts/muon/; the scale of the update is that of J. Liu et al., "Muon is scalable for LLM
training", 2025, arXiv:2502.16982, section 2.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

# Coefficients of the quintic that drives singular values towards 1 (Jordan et al.); it settles in about [0.7, 1.2].
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalise(matrix: Tensor, *, steps: int = 5) -> Tensor:
    """Approximate ``U V^T`` of the singular value decomposition of each matrix.

    Parameters
    ----------
    matrix : Tensor, shape [..., m, n]
        Floating point; leading dimensions are batched.
    steps : int
        Newton-Schulz iterations.

    Returns
    -------
    Tensor, shape [..., m, n]
        Same singular vectors; singular values of a well conditioned input end within about [0.7, 1.2].
    """
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x = matrix if wide else matrix.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-12)
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonalised updates, for matrices only.

    Parameters
    ----------
    params : iterable of Parameter
        Two-dimensional parameters.
    lr : float
        Learning rate; the root mean square of an update's entries is about ``0.2 * lr``.
    momentum : float
    weight_decay : float
        Decoupled, multiplied by `lr`.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        *,
        lr: float = 4e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; equal shapes are orthogonalised in one batch."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                directions = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(parameter)
                    gradient = cast(Tensor, parameter.grad)
                    state["momentum"].lerp_(gradient, 1 - group["momentum"])
                    directions.append(gradient.lerp(state["momentum"], group["momentum"]))
                scale = 0.2 * max(shape) ** 0.5
                for parameter, update in zip(parameters, orthogonalise(torch.stack(directions)), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"] * scale)
