r"""The batch of a statistic as independent units, and its moments by the n x n Gram matrix: nothing is d x d.

A unit is an edit: its rows (tokens, and modules where several share the statistic) are dependent. The statistics count rows,
so that a unit is the *sum* over its rows, divided by the mean number of rows. Where all edits have equally many, that is the
edit's average; where they have not, averages would have another mean than the one which is tracked, and the difference would
look like an error that never goes away.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stablediag.maths._threads import single_thread
from stablediag.maths.spectral import DENSE_WIDTH, symmetric_norm
from stablediag.recorders.innovation import edit_units


@dataclass(frozen=True, eq=False)
class Units:
    r"""A batch as units about a point.

    Attributes
    ----------
    offset : Tensor, float64, shape [d]
        Mean of the rows less the point.
    centred : Tensor, shape [n, d]
        Units less their mean.
    trace : Tensor, float64, shape []
        :math:`\mathrm{tr} S/(n - 1)`, unbiased for the trace of a unit's covariance. NaN with fewer than two units.
    n : int
        Units.
    """

    offset: Tensor
    centred: Tensor
    trace: Tensor
    n: int

    @property
    def noise(self) -> Tensor:
        """Variance of the batch mean, ``tr S/(n(n - 1))``, float64."""
        return self.trace / self.n


def units_of(rows: Tensor, edits: Tensor) -> Units:
    """Units of a batch.

    Parameters
    ----------
    rows : Tensor, shape [m, d]
        At least one, less a point: the mean known before the batch, or that of the batch itself.
    edits : Tensor, int64, shape [m]

    Returns
    -------
    Units
    """
    return units_from(edit_units(rows, edits), len(rows))


def units_from(sums: Tensor, rows: int) -> Units:
    """Units of a batch of so many rows from their sums over edits [n, d], which are left as they are."""
    n = len(sums)
    share = n / rows
    offset = sums.mean(dim=0, dtype=torch.float64) * share
    centred = (sums * share).sub_(offset.to(sums))
    trace = torch.full((), torch.nan, dtype=torch.float64, device=sums.device)
    if n > 1:
        trace = torch.linalg.vector_norm(centred, dtype=torch.float64).square() / (n - 1)
    return Units(offset, centred, trace, n)


def trace_of_square(gram: Tensor) -> Tensor:
    r"""Unbiased estimate of :math:`\mathrm{tr}\,\Sigma^2` for every law of the units.

    Parameters
    ----------
    gram : Tensor, shape [n, n]
        Inner products of centred units.

    Returns
    -------
    Tensor, float64, shape []
        NaN with fewer than four units.

    Notes
    -----
    Equal to the mean of :math:`((v_i - v_j)'(v_k - v_l))^2/4` over four different units. Himeno and Yamada, Journal of
    Multivariate Analysis 130 (2014) 27, doi:10.1016/j.jmva.2014.04.020; Chen and Qin, Annals of Statistics 38 (2010) 808,
    doi:10.1214/09-AOS716.
    """
    n = len(gram)
    if n < 4:
        return torch.full((), torch.nan, dtype=torch.float64, device=gram.device)
    own = gram.diagonal().double()
    square = torch.linalg.vector_norm(gram, dtype=torch.float64).square() / (n - 1) ** 2
    trace, fourth = own.sum() / (n - 1), own.square().sum() / (n - 1)
    return (n - 1) / (n * (n - 2) * (n - 3)) * ((n - 1) * (n - 2) * square + trace.square() - n * fourth)


def largest_eigenvalue(gram: Tensor) -> Tensor:
    """Largest eigenvalue of the sample covariance of centred units, from their finite Gram matrix [n, n]; float64."""
    n = len(gram)
    if n > DENSE_WIDTH:
        exact = gram.double()
        return symmetric_norm(lambda v: exact @ v, n, tol=1e-6, device=gram.device) / (n - 1)
    with single_thread(gram.device):
        return torch.linalg.eigvalsh(gram)[-1].double() / (n - 1)
