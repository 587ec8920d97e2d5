"""What goes into the closed loop and what comes out: arms, knobs, paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stablediag.errors import SpecError
from stablediag.maths.whiten import Kind

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Arm:
    """How an arm normalises the value gradients.

    Attributes
    ----------
    kind : {"full", "diagonal", "scalar", "none"}
        Scaling.
    centred : bool
        Subtract the running mean.
    matched : str or None
        Rescale every update to the norm of this arm's update at the same step.
    """

    kind: Kind
    centred: bool
    matched: str | None = None


ARMS: Mapping[str, Arm] = {
    "full": Arm("full", True),
    "diagonal": Arm("diagonal", True),
    "scalar": Arm("scalar", True),
    "centre": Arm("none", True),
    "uncentred full": Arm("full", False),
    "uncentred diagonal": Arm("diagonal", False),
    "uncentred scalar": Arm("scalar", False),
    "raw": Arm("none", False),
    "raw matched": Arm("none", False, matched="full"),
}


@dataclass(frozen=True)
class Loop:
    """Knobs of the closed loop.

    Attributes
    ----------
    d, p, n, steps : int
        Width of the values and of the keys, requests per batch, number of updates.
    classes, population, held_out : int
        Labels, requests in the population, rows of the held-out set.
    step : float
        Learning rate times p: the move of a request's own layer output per unit of its normalised gradient, about.
    decay : float
        The step at t is ``step * t^-decay``.
    ridge : float
        lambda, in squared key units (a key has squared length p on average).
    key_mean : float
        Share of the common mean in the squared length of a key, in [0, 1).
    skew : float
        Label k has probability proportional to ``k^-skew``.
    unseen : float
        Other layers move the softmax input by this many times as much as the edited one does, outside |DW|.
    """

    d: int = 32
    p: int = 384
    n: int = 16
    steps: int = 120
    classes: int = 32
    population: int = 1000
    held_out: int = 256
    step: float = 0.02
    decay: float = 0.0
    ridge: float = 10.0
    key_mean: float = 0.5
    skew: float = 0.0
    unseen: float = 0.0

    def __post_init__(self) -> None:
        for name in ("d", "p", "n", "steps", "held_out"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("classes", "population"):
            if getattr(self, name) < 2:
                raise SpecError(f"{name}: must be at least 2, got {getattr(self, name)}")
        for name in ("step", "ridge"):
            if not getattr(self, name) > 0:
                raise SpecError(f"{name}: must be positive, got {getattr(self, name)}")
        if not 0 <= self.key_mean < 1:
            raise SpecError(f"key_mean: must lie in [0, 1), got {self.key_mean}")
        for name in ("decay", "skew", "unseen"):
            if not getattr(self, name) >= 0:
                raise SpecError(f"{name}: must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Path:
    """What one arm did: float64 arrays [R, T] unless said otherwise, row index t - 1 for step t.

    Attributes
    ----------
    norm : array
        ``|DW_t|_F``.
    travelled : array
        ``|W_t - W_0|_F``.
    cosine : array
        Of DW_t with DW_{t-1}; NaN at the first step.
    error2 : array
        ``|m_t - mu_t|^2`` against the exact mean at the weights that the batch saw.
    prediction2 : array
        ``|m_{t-1} - mu_t|^2``.
    drift, cov_drift : array
        ``|mu_t - mu_{t-1}|`` and ``|Sigma_t - Sigma_{t-1}|_2``, caused by DW_{t-1}; zero at the first step.
    moved : array
        Root mean square, over the population, of the change of the gradients that goes with `drift`.
    trace, top, mean2 : array
        Trace and largest eigenvalue of Sigma_t, and ``|mu_t|^2``.
    efficacy, accuracy : array
        Probability of the label just after the edit, and how often it exceeds one half, over the batch.
    feedback, gain : array [R, C]
        At the checkpoints: ``<e_t, dmu>`` for the move dmu of the mean under the part of DW_t that is due to the error
        ``e_t = m_t - mu_t`` alone, and the same over ``|e_t|^2``. NaN without centring, where there is no such part.
    kl : array [R, C]
        Divergence from the unedited model on the held-out set, at the checkpoints.
    retention, retained : array [R]
        As efficacy and accuracy, at the end, over everything that was edited.
    """

    norm: Floats
    travelled: Floats
    cosine: Floats
    error2: Floats
    prediction2: Floats
    drift: Floats
    cov_drift: Floats
    moved: Floats
    trace: Floats
    top: Floats
    mean2: Floats
    efficacy: Floats
    accuracy: Floats
    feedback: Floats
    gain: Floats
    kl: Floats
    retention: Floats
    retained: Floats


@dataclass(frozen=True, eq=False)
class Outcome:
    """Paths of all arms on the same model and requests.

    Attributes
    ----------
    loop : Loop
    paths : dict of Path
        By name of the arm.
    checkpoints : array of int, shape [C]
        Steps, counted from 1; the last one is the end.
    lipschitz : array, shape [R]
        The model's Lipschitz constant of the value gradient in W.
    """

    loop: Loop
    paths: dict[str, Path]
    checkpoints: NDArray[np.int64]
    lipschitz: Floats

    def frame(self) -> pd.DataFrame:
        """Tidy table: one row per arm, replicate and step, with every series of `Path`."""
        parts = []
        for name, path in self.paths.items():
            reps, steps = path.norm.shape
            series = {f.name: getattr(path, f.name) for f in fields(Path)}
            index = {
                "arm": name,
                "replicate": np.repeat(np.arange(reps), steps),
                "step": np.tile(np.arange(1, steps + 1), reps),
            }
            columns = {key: value.ravel() for key, value in series.items() if value.shape == (reps, steps)}
            for key in ("feedback", "gain", "kl"):
                wide = np.full((reps, steps), np.nan)
                wide[:, self.checkpoints - 1] = series[key]
                columns[key] = wide.ravel()
            columns |= {key: np.repeat(series[key], steps) for key in ("retention", "retained")}
            parts.append(pd.DataFrame(index | columns))
        return pd.concat(parts, ignore_index=True)


def joined(parts: Sequence[Outcome]) -> Outcome:
    """Replicates of several outcomes of the same loop, one after another."""
    paths = {
        name: Path(*(np.concatenate([getattr(one.paths[name], f.name) for one in parts]) for f in fields(Path)))
        for name in parts[0].paths
    }
    return replace(parts[0], paths=paths, lipschitz=np.concatenate([one.lipschitz for one in parts]))
