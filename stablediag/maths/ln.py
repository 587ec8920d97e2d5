"""The update rule of Lifelong Normalization: used by the editor and by the synthetic checks alike.

``U_i = -lr * c_i * v~_i``, then a ridge regression of U on the raw keys. Source: StableEdit (arXiv:2605.11836),
Algorithm 1; UltraEdit (arXiv:2505.14679) is the same rule with diagonal whitening and ``ridge = 1``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stablediag.maths.ridge import dual_ridge
from stablediag.maths.update import LowRank
from stablediag.maths.whiten import Whitener

Coefficient = Literal["standardised", "raw", "none"]


def key_coefficient(keys: Tensor, key_whitener: Whitener | None, kind: Coefficient = "standardised") -> Tensor:
    """Weight of each row in the target.

    Parameters
    ----------
    keys : Tensor, shape [..., n, p]
        Raw keys.
    key_whitener : Whitener or None
        Standardiser of the keys; needed for "standardised" only.
    kind : {"standardised", "raw", "none"}, optional
        ``||h~||^2``, ``||h||^2`` or one.

    Returns
    -------
    Tensor, float64, shape [..., n]

    Raises
    ------
    ValueError
        "standardised" without a whitener, or an unknown kind.
    """
    if kind == "none":
        return torch.ones(keys.shape[:-1], dtype=torch.float64, device=keys.device)
    if kind == "raw":
        return keys.double().square().sum(dim=-1)
    if kind != "standardised":
        raise ValueError(f"unknown key coefficient {kind!r}; use 'standardised', 'raw' or 'none'")
    if key_whitener is None:
        raise ValueError("key coefficient 'standardised' needs a key whitener; give one or use 'raw'")
    return key_whitener.apply(keys.double()).square().sum(dim=-1)


def ln_update(
    keys: Tensor,
    grads: Tensor,
    *,
    whitener: Whitener | None,
    coefficient: Tensor,
    lr: float,
    ridge: float,
    dtype: torch.dtype | None = None,
) -> LowRank:
    """The weight update of one module for one step, in canonical orientation [d_in, d_out].

    Parameters
    ----------
    keys : Tensor, shape [..., n, d_in]
        Raw keys of the step's rows.
    grads : Tensor, shape [..., n, d_out]
        Value gradients of the same rows.
    whitener : Whitener or None
        Normalisation of the value gradients; None uses them as they are.
    coefficient : Tensor, shape [..., n]
        From `key_coefficient`.
    lr : float
        gamma; the update descends, so it is negated here.
    ridge : float
        lambda of the ridge regression.
    dtype : torch.dtype, optional
        Arithmetic of the solve, see `dual_ridge`.

    Returns
    -------
    LowRank
        ``left`` is a view of the keys, ``right`` has the dtype of the keys, at least float32.

    Raises
    ------
    NumericalError
        From the solve.
    """
    normal = grads.double()
    if whitener is not None:
        normal = whitener.apply(normal)
    targets = (-lr * coefficient.double()).unsqueeze(-1) * normal
    dual = dual_ridge(keys, targets, ridge, dtype=dtype)
    return LowRank(keys.mT, dual.to(torch.promote_types(keys.dtype, torch.float32)))
