"""Controls of Lifelong Normalization: the same normalisation without its centre, or with its scales in wrong places.

Each takes a finished `Whitener` and returns another, so that what is counted and decomposed stays that of the statistics.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
from torch import Tensor

from stablediag.maths.whiten import Whitener


def uncentred(whitener: Whitener) -> Whitener:
    """The same scaling about the origin: ``S v`` instead of ``S (v - m)``.

    Parameters
    ----------
    whitener : Whitener
        Of any kind; one of kind ``none`` has no centre, one of kind ``center`` then does nothing.
    """
    return replace(whitener, mean=torch.zeros_like(whitener.mean))


def permutation(d: int, *, seed: int, name: str) -> Tensor:
    """A random order of d features that depends on the seed and the name alone, int64 [d], on the CPU.

    Parameters
    ----------
    d : int
    seed : int
        Not negative.
    name : str
        What is permuted, such as ``model.layers.3.mlp.down_proj/grads``: other names have independent permutations.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randperm(d, generator=generator)


def shuffled(whitener: Whitener, order: Tensor) -> Whitener:
    """The whitener that belongs to permuted moments, ``m[p]`` and ``Sigma[p, p]``: right scales in wrong places.

    Parameters
    ----------
    whitener : Whitener
    order : Tensor, int64, shape [d]
        p; feature i is normalised as feature p[i] ought to be.

    Notes
    -----
    The symmetric root of a permuted covariance is the permuted root, so that eigenvalues and condition number stay, to the
    last bit. A ``scalar`` scale is the same for all features: only its mean moves. Nothing moves in kind ``none``.
    """
    p = order.to(whitener.mean.device)
    transform = whitener.transform
    if transform is not None and whitener.kind == "full":
        transform = transform[..., p, :][..., :, p]
    elif transform is not None and whitener.kind == "diagonal":
        transform = transform[..., p]
    return replace(whitener, mean=whitener.mean[..., p], transform=transform)
