"""Runs in memory whose gradients are drawn from a stream with a known mean, covariance and drift: no model, no store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from figures.frames import ArmRun
from stablediag.errors import StoreError
from stablediag.stats.tracking import prequential_error
from stablediag.store.run import Run
from stablediag.store.state import save_state

D, N, STEPS = 12, 24, 30
MODULES = ("layers.1.down", "layers.2.down")


@dataclass
class Stream:
    """A run that has nothing but these."""

    info: Any
    checkpoint: tuple[int, Path]
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def spec(self) -> dict[str, Any]:
        """The run's spec, plain values."""
        return dict(self.info.spec)

    def table(self, name: str) -> pd.DataFrame:
        """A copy, or the store's error."""
        if name not in self.tables:
            raise StoreError(f"no table {name}")
        return self.tables[name].copy()


def stream(
    arm: str,
    seed: int,
    folder: Path,
    *,
    drift: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
    warmup: int = 0,
    steps: int = STEPS,
) -> ArmRun:
    """A run whose every row is an edit of its own.

    Parameters
    ----------
    drift : ndarray, shape [steps, D], optional
        Moves of the mean before each step; the paired probes see them without noise.
    sizes : ndarray, shape [steps], optional
        Standard deviations of the rows at each step, times those of the spectrum.
    warmup : int
        Steps of the warm-up.
    """
    moves = np.zeros((steps, D)) if drift is None else drift
    scale = np.ones(steps) if sizes is None else sizes
    tracking, variogram, probes, state = [], [], [], {}
    for i, module in enumerate(MODULES):
        rng = np.random.default_rng([seed, i, len(arm)])
        root = np.sqrt(np.linspace(0.5, 2.0, D))
        means = moves.cumsum(axis=0)
        batches = [means[t] + scale[t] * root * rng.standard_normal((N, D)) for t in range(steps)]
        tracking += [{"step": t, "module": module, **_statistics(batches[: t + 1])} for t in range(steps)]
        variogram += [{"module": module, **row} for row in _variogram(batches)]
        if moves.any():
            squares = np.square(moves).sum(axis=1)[1:]
            probes += [{"step": t, "module": module, "mean_sq": value} for t, value in enumerate(squares)]
        pooled = np.concatenate(batches)
        scatter = torch.from_numpy(np.cov(pooled.T, bias=True) * len(pooled))
        state |= {f"editor/{module}/niw/scale": scatter, f"editor/{module}/niw/nu": torch.tensor(float(len(pooled)))}
    tables = {"tracking": pd.DataFrame(tracking), "variogram": pd.DataFrame(variogram)}
    tables["probes"] = pd.DataFrame(probes, columns=["step", "module", "mean_sq"])
    tables["steps"] = pd.DataFrame(
        {
            "step": range(steps),
            "phase": ["warmup"] * warmup + ["target"] * (steps - warmup),
            "target_step": [None] * warmup + list(range(steps - warmup)),
            "edits": N,
            "rows": N,
        }
    )
    spec = {"editor": {"params": {"prior": 0.0}}, "warmup": {"size": warmup * N}}
    info = SimpleNamespace(spec=spec, model={"modules": {name: [16, D] for name in MODULES}})
    saved = save_state(folder / f"{arm}-{seed}" / "state", state, meta={})
    return ArmRun(arm, "controls", seed, cast(Run, Stream(info, (steps - 1, saved), tables)))


def _statistics(batches: list[np.ndarray]) -> dict[str, float]:
    """Of the last batch and of all pooled rows, by the formulas."""
    last = batches[-1]
    scatter = np.square(last - last.mean(axis=0)).sum()
    found = {"prior_error_null": scatter / (N * (N - 1)), "trace": scatter / (N - 1), "edits": N}
    after, now = _moments(batches)
    found |= {"nu": N * len(batches), "shadow_mean": np.nan, "prior_error": np.nan}
    found |= {"mean_shift": np.nan, "cov_shift": np.nan, "condition_raw": np.nan}
    if now is not None:
        eigenvalues = np.linalg.eigvalsh(now)
        found["condition_raw"] = eigenvalues[-1] / eigenvalues[0]
    if len(batches) > 1:
        before, then = _moments(batches[:-1])
        noise = sum(np.square(b - b.mean(axis=0)).sum() / (N - 1) for b in batches[:-1]) / N / (len(batches) - 1) ** 2
        found |= {"prior_error": float(prequential_error(last, before)), "shadow_mean": float(noise)}
        found["mean_shift"] = float(np.linalg.norm(after - before))
        if then is not None and now is not None:
            found["cov_shift"] = float(np.linalg.norm(now - then, ord=2))
    return found


def _moments(batches: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    rows = np.concatenate(batches)
    mean = rows.mean(axis=0)
    free = len(rows) - D - 1
    return mean, (rows - mean).T @ (rows - mean) / free if free > 0 else None


def _variogram(batches: list[np.ndarray]) -> list[dict[str, float]]:
    means = [b.mean(axis=0) for b in batches]
    noise = [np.square(b - b.mean(axis=0)).sum() / (N * (N - 1)) for b in batches]
    return [
        {"step": t, "lag": k, "value": float(np.square(means[t] - means[t - k]).sum() - noise[t] - noise[t - k])}
        for t in range(len(batches))
        for k in (1, 2, 4, 8, 16)
        if t >= k
    ]
