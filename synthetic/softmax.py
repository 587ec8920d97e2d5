"""A model small enough to know everything about: one edited linear layer under a tanh and a softmax.

``x = x0(h) + W^T h``, logits ``A tanh(x)``, cross-entropy to a label y. The value gradient (of the loss, with respect to the
layer's output) has a closed form, and the requests are a fixed population of pairs (h, y), so that its mean and covariance
are sums over the population: exact at every step, for every W.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: largest slope of 1 - tanh^2
_BEND = 4 / (3 * math.sqrt(3))


@dataclass(frozen=True, eq=False)
class Model:
    """Replicates of the fixed part of the model, the population of requests and a held-out set.

    Attributes
    ----------
    head : Tensor, float64, shape [R, V, d]
        A.
    keys : Tensor, float64, shape [R, M, p]
        h of the population.
    base : Tensor, float64, shape [R, M, d]
        x0 of the population.
    labels : Tensor, int64, shape [R, M]
        y of the population.
    other_keys, other_base : Tensor, float64, shapes [R, O, p] and [R, O, d]
        Held out: never edited, of the same law.
    """

    head: Tensor
    keys: Tensor
    base: Tensor
    labels: Tensor
    other_keys: Tensor
    other_base: Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Gradients of the population and their exact moments at one W.

    Attributes
    ----------
    rows : Tensor, float64, shape [R, M, d]
    mean : Tensor, float64, shape [R, d]
    cov : Tensor, float64, shape [R, d, d]
    correct : Tensor, float64, shape [R, M]
        Probability of the label.
    """

    rows: Tensor
    mean: Tensor
    cov: Tensor
    correct: Tensor


def draw_model(
    *,
    reps: int,
    d: int,
    p: int,
    classes: int,
    population: int,
    held_out: int,
    key_mean: float,
    skew: float,
    generator: torch.Generator,
    spread: float = 1.0,
    sharpness: float = 3.0,
) -> Model:
    """A random model and its requests.

    Parameters
    ----------
    reps, d, p, classes, population, held_out : int
        R, width of the values, width of the keys, V, M and O.
    key_mean : float
        Share of the common mean in the squared length of a key, in [0, 1). Keys have squared length p on average.
    skew : float
        Label k has probability proportional to ``k^-skew``; zero is uniform.
    generator : torch.Generator
        On the CPU.
    spread : float, optional
        Standard deviation of an entry of x0, which is linear in h.
    sharpness : float, optional
        Standard deviation of a logit per unit of the root mean square of ``tanh(x)``.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    common = math.sqrt(key_mean * p) * torch.nn.functional.normalize(normal(reps, 1, p), dim=-1)
    keys = common + math.sqrt(1 - key_mean) * normal(reps, population + held_out, p)
    base = keys @ (normal(reps, p, d) * (spread / math.sqrt(p)))
    head = normal(reps, classes, d) * (sharpness / math.sqrt(d))
    prior = torch.arange(1, classes + 1, dtype=torch.float64) ** -skew
    labels = torch.multinomial(prior, reps * population, replacement=True, generator=generator)
    return Model(
        head=head,
        keys=keys[:, :population],
        base=base[:, :population],
        labels=labels.reshape(reps, population),
        other_keys=keys[:, population:],
        other_base=base[:, population:],
    )


def log_probabilities(x: Tensor, head: Tensor) -> Tensor:
    """``log softmax(A tanh(x))``, shape [..., rows, V]."""
    return torch.log_softmax(torch.tanh(x) @ head.mT, dim=-1)


def value_gradients(x: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """``(1 - tanh(x)^2) * A^T (P - e_y)`` of every row, and the probability of its label.

    Parameters
    ----------
    x : Tensor, shape [..., rows, d]
    head : Tensor, shape [..., V, d]
    labels : Tensor, int64, shape [..., rows]

    Returns
    -------
    tuple of Tensor, shapes [..., rows, d] and [..., rows]
    """
    active = torch.tanh(x)
    residual = torch.softmax(active @ head.mT, dim=-1)
    index = labels.unsqueeze(-1)
    correct = residual.gather(-1, index).squeeze(-1)
    residual.scatter_add_(-1, index, -torch.ones_like(index, dtype=residual.dtype))
    return (1 - active.square()) * (residual @ head), correct


def moments(x: Tensor, head: Tensor, labels: Tensor) -> Moments:
    """Gradients at the inputs `x` [R, M, d] of the softmax and their exact moments over the M rows."""
    rows, correct = value_gradients(x, head, labels)
    mean = rows.mean(dim=-2)
    cov = rows.mT @ rows / rows.shape[-2] - mean.unsqueeze(-1) * mean.unsqueeze(-2)
    return Moments(rows, mean, cov, correct)


def divergence(before: Tensor, after: Tensor) -> Tensor:
    """Kullback-Leibler divergence of `after` from `before` (log-probabilities), averaged over rows, shape [...]."""
    return (before.exp() * (before - after)).sum(dim=-1).mean(dim=-1)


def lipschitz(model: Model) -> Tensor:
    """Constant L with ``|v(W; h, y) - v(W'; h, y)| <= L |W - W'|_F`` for every request and all W, W', shape [R].

    Notes
    -----
    The Jacobian of v in x is ``diag(-2 tanh s g) + s A^T (diag P - P P^T) A s`` with ``s = 1 - tanh^2 <= 1`` and
    ``g = A^T (P - e_y)``. The first part is at most the largest slope of s times the range of a column of A, the second
    at most a quarter of the squared distance between two rows of A (Popoviciu's inequality).
    """
    columns = (model.head.amax(dim=-2) - model.head.amin(dim=-2)).amax(dim=-1)
    diameter = torch.cdist(model.head, model.head).amax(dim=(-2, -1))
    longest = torch.linalg.vector_norm(model.keys, dim=-1).amax(dim=-1)
    return longest * (_BEND * columns + diameter.square() / 4)
