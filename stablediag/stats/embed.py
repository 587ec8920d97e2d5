"""Clouds of hidden states: a planar view fitted on the unedited model only, and numbers that need no plane."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Ellipse:
    """Covariance ellipse of a planar Gaussian.

    Attributes
    ----------
    x, y : float
        Centre.
    width, height : float
        Full axes.
    angle : float
        Degrees, anticlockwise, from the x axis to the axis of length `width`.
    """

    x: float
    y: float
    width: float
    height: float
    angle: float


def umap_plane(
    reference: Array, others: Mapping[str, Array], *, seed: int = 0, neighbours: int = 15, min_dist: float = 0.1
) -> tuple[Array, dict[str, Array]]:
    """Fit UMAP on the reference cloud alone and place the others in the same plane.

    The others have no say in the plane, so what they show is movement against the reference and not a compromise between
    the two.

    Parameters
    ----------
    reference : ndarray, shape [n, d]
        Hidden states of the unedited model.
    others : mapping of str to ndarray, shape [m, d]
        Hidden states to be transformed.
    seed : int
        Makes fit and transform repeatable (single-threaded).
    neighbours, min_dist : int, float
        UMAP's `n_neighbors` and `min_dist`.

    Returns
    -------
    plane : ndarray, float32, shape [n, 2]
    placed : dict of str to ndarray, float32, shape [m, 2]

    Notes
    -----
    L. McInnes, J. Healy and J. Melville, UMAP, arXiv:1802.03426.
    """
    # Imported here: it compiles for seconds, and every other statistic works without it.
    from umap import UMAP

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*n_jobs value.*overridden.*")
        mapper = UMAP(n_neighbors=neighbours, min_dist=min_dist, n_components=2, random_state=seed, n_jobs=1)
        plane = mapper.fit_transform(np.asarray(reference, dtype=np.float32))
        placed = {name: mapper.transform(np.asarray(cloud, dtype=np.float32)) for name, cloud in others.items()}
    return plane, placed


def linear_cka(a: Array, b: Array) -> float:
    """Linear centred kernel alignment of two views of the same prompts, in [0, 1].

    Parameters
    ----------
    a, b : ndarray, shapes [n, p] and [n, q]
        Row i of both belongs to the same prompt. Invariant to rotation, isotropic scaling and translation.

    Notes
    -----
    S. Kornblith et al., Similarity of neural network representations revisited, arXiv:1905.00414.
    """
    x = np.asarray(a, dtype=np.float64) - np.mean(a, axis=0, dtype=np.float64)
    y = np.asarray(b, dtype=np.float64) - np.mean(b, axis=0, dtype=np.float64)
    scale = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(x.T @ y) ** 2 / scale) if scale > 0 else float("nan")


def mean_shift(before: Array, after: Array) -> float:
    """Distance between the two clouds' centres over the root-mean-square radius of the first; 0: no shift.

    Parameters
    ----------
    before, after : ndarray, shapes [n, d] and [m, d]
    """
    start, end = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    centre = start.mean(axis=0)
    radius = np.sqrt(((start - centre) ** 2).sum(axis=1).mean())
    return float(np.linalg.norm(end.mean(axis=0) - centre) / radius)


def covariance_ellipse(points: Array, *, level: float = 0.95) -> Ellipse:
    """Ellipse that holds `level` of a planar Gaussian with the points' mean and covariance.

    Parameters
    ----------
    points : ndarray, shape [n, 2]
    """
    cloud = np.asarray(points, dtype=np.float64)
    w, v = np.linalg.eigh(np.cov(cloud.T))
    axes = 2 * np.sqrt(np.clip(w, 0, None) * stats.chi2.ppf(level, 2))
    x, y = cloud.mean(axis=0)
    angle = np.degrees(np.arctan2(v[1, 1], v[0, 1]))
    return Ellipse(float(x), float(y), float(axes[1]), float(axes[0]), float(angle))
