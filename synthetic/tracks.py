"""Running moments along simulated streams, by the production recursion, with replicates in the leading dimension."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from stablediag.errors import SpecError
from stablediag.maths import NIW, DiagNIW
from synthetic.bounds import mean_oracle
from synthetic.process import CHUNK, Process, Sampler
from synthetic.reduce import spectral_norms
from synthetic.spectra import Floats, one_of, real, whole

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MeanTrack:
    """The running mean of R replicates at K steps.

    Attributes
    ----------
    steps : ndarray, int64, shape [K]
    error2 : ndarray, shape [R, K]
        ``|m_t - mu_t|^2``.
    prediction2 : ndarray, shape [R, K]
        ``|m_{t-1} - mu_t|^2``, the error before the step; NaN at the first step unless its gain is below one.
    means : ndarray, shape [R, K, d], or None
        The estimates m_t, if they were asked for.
    """

    steps: Ints
    error2: Floats
    prediction2: Floats
    means: Floats | None


@dataclass(frozen=True, eq=False)
class CovTrack:
    """The running covariance of R replicates at K steps; NaN while no estimate exists (rows <= d + 1).

    Attributes
    ----------
    steps, rows : ndarray, int64, shape [K]
        Steps, and the rows seen by then.
    error2, prediction2 : ndarray, shape [R, K]
        Squared error of the running mean of the same rows, as in `MeanTrack`.
    spectral : ndarray, shape [R, K]
        ``|Sh_t - Sigma_t|``, spectral norm.
    condition, eig_max, eig_min : ndarray, shape [R, K]
        Condition number and extreme eigenvalues of Sh_t.
    relative : ndarray, shape [R, K], or None
        ``|Sigma_t^(-1/2) Sh_t Sigma_t^(-1/2) - I|``, if asked for.
    mean_cov, var_cov : ndarray, shape [K, d, d], or None
        Mean and variance (divisor R - 1) of every entry of Sh_t over the replicates, if asked for.
    """

    steps: Ints
    rows: Ints
    error2: Floats
    prediction2: Floats
    spectral: Floats
    condition: Floats
    eig_max: Floats
    eig_min: Floats
    relative: Floats | None = None
    mean_cov: Floats | None = None
    var_cov: Floats | None = None


def checkpoints(total: int, count: int = 20, first: int = 1) -> list[int]:
    """About `count` log-spaced steps from `first` to `total`, both included."""
    whole("total", total)
    whole("count", count)
    whole("first", first)
    if first > total:
        raise SpecError(f"first: {first} is beyond the last step {total}")
    if count == 1:
        return [total]
    return sorted({round(float(step)) for step in np.geomspace(first, total, count)} | {first, total})


def track_mean(
    process: Process,
    *,
    reps: int,
    seed: int,
    steps: Sequence[int],
    forget: float = 1.0,
    gains: ArrayLike | None = None,
    keep_means: bool = False,
) -> MeanTrack:
    """Run `DiagNIW` over the batch means, one row a step: the gains are those of the recursion over rows.

    Parameters
    ----------
    process : Process
    reps, seed : int
        Replicates and the seed of their samples.
    steps : sequence of int
        Ascending steps at which to record.
    forget : float
        Factor on the counts at every step, in (0, 1].
    gains : array-like, shape [T], optional
        Weight of every batch, in (0, 1], instead of `forget`. With ``gains[0] < 1`` the estimate starts from zero.
    keep_means : bool
        Keep the estimates, [R, K, d].

    Returns
    -------
    MeanTrack

    Raises
    ------
    SpecError
        Steps that are not ascending in 1 ... T, gains of the wrong shape or range.
    """
    at, last = _steps(process, steps)
    factors, kappa0 = _factors(process.total, forget, gains)
    sampler, mu = process.sampler(reps, seed), torch.as_tensor(process.means())
    state = DiagNIW.empty(process.d, batch_shape=(reps,), kappa0=kappa0)
    error2, prediction2, kept = [], [], []
    wanted = set(at.tolist())
    for step, row in _batch_means(sampler, last):
        due = step in wanted
        if due:
            prediction2.append(_squared(state, mu[step - 1]))
        state = state.update(row, forget=float(factors[step - 1]))
        if due:
            error2.append(_squared(state, mu[step - 1]))
            if keep_means:
                kept.append(state.mean)
    means = torch.stack(kept, dim=1).numpy() if keep_means else None
    return MeanTrack(at, torch.stack(error2, dim=1).numpy(), torch.stack(prediction2, dim=1).numpy(), means)


def track_covariance(
    process: Process,
    *,
    reps: int,
    seed: int,
    steps: Sequence[int],
    prior: float = 0.0,
    method: Literal["auto", "rows", "wishart"] = "auto",
    relative: bool = False,
    keep_moments: bool = False,
) -> CovTrack:
    """Run `NIW` over the rows, the rows between two recorded steps in few large pieces.

    Without forgetting the moments do not depend on how the rows are cut (Corollary 3.3), so that this is the recursion
    over batches at a fraction of its cost.

    Parameters
    ----------
    process : Process
    reps, seed : int
        Replicates and the seed of their samples.
    steps : sequence of int
        Ascending steps at which to record; at the last there must be more than d + 1 rows.
    prior : float
        The scale starts from ``prior * I``.
    method : {"auto", "rows", "wishart"}
        "wishart" draws the scatter within batches between two recorded steps at once, from its Wishart distribution
        (M. S. Bartlett, 1933), and merges it: exact for independent Gaussian rows and constant covariance, and the cost
        does not depend on n. "auto" does so where it is allowed.
    relative : bool
        Also the error relative to Sigma_t.
    keep_moments : bool
        Also mean and variance of every entry over the replicates.

    Returns
    -------
    CovTrack

    Raises
    ------
    SpecError
        Steps as in `track_mean`, too few rows at the last step, "wishart" where it does not hold.
    """
    at, last = _steps(process, steps)
    real("prior", prior)
    one_of("method", method, ("auto", "rows", "wishart"))
    plain = process.noise.gaussian and not process.cov.moves
    if method == "wishart" and not plain:
        raise SpecError("method: 'wishart' needs independent Gaussian rows and a constant covariance; use 'rows'")
    if process.n * last <= process.d + 1:
        raise SpecError(f"steps: {process.n * last} rows <= d + 1 = {process.d + 1}: no covariance exists; take more")
    sampler = process.sampler(reps, seed)
    state = NIW.empty(process.d, batch_shape=(reps,), prior=prior)
    mu, found = torch.as_tensor(process.means()), []
    for step in at.tolist():
        state = advance(state, sampler, step - 1, wishart=plain and method != "rows")
        before = _squared(state, mu[step - 1])
        state = advance(state, sampler, step, wishart=False)
        errors = {"prediction2": before, "error2": _squared(state, mu[step - 1])}
        found.append(errors | _measure(process, step, state, relative=relative, keep_moments=keep_moments))
    # Replicates first; what has none has the steps first.
    columns = {name: torch.stack([one[name] for one in found], dim=int(found[0][name].ndim == 1)) for name in found[0]}
    return CovTrack(steps=at, rows=at * process.n, **{name: column.numpy() for name, column in columns.items()})


def simulate(
    process: Process,
    *,
    reps: int = 100,
    seed: int = 0,
    steps: Sequence[int] | None = None,
    covariance: bool = False,
) -> pd.DataFrame:
    """Errors of the running moments, one row for every recorded step and replicate.

    Parameters
    ----------
    process : Process
    reps, seed : int
        Replicates and the seed of their samples.
    steps : sequence of int, optional
        Steps to record; `checkpoints` by default.
    covariance : bool
        Also the covariance, from the same rows; slower.

    Returns
    -------
    DataFrame
        Columns step, rows, replicate, mse (squared error of the mean), prediction (the same before the step), and with
        `covariance` cov_error (spectral), condition, eig_max, eig_min. ``attrs["process"]`` holds the parameters.
    """
    at = checkpoints(process.total) if steps is None else steps
    columns: dict[str, Floats] = {}
    if covariance:
        moments = track_covariance(process, reps=reps, seed=seed, steps=at)
        columns = {
            "cov_error": moments.spectral,
            "condition": moments.condition,
            "eig_max": moments.eig_max,
            "eig_min": moments.eig_min,
        }
        track: CovTrack | MeanTrack = moments
    else:
        track = track_mean(process, reps=reps, seed=seed, steps=at)
    step = np.repeat(track.steps, reps)
    frame = pd.DataFrame({"step": step, "rows": step * process.n, "replicate": np.tile(np.arange(reps), len(at))})
    for name, values in {"mse": track.error2, "prediction": track.prediction2, **columns}.items():
        frame[name] = values.T.ravel()
    frame.attrs["process"] = process.params()
    return frame


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over the replicates of what `simulate` returns, beside the exact values.

    Returns
    -------
    DataFrame
        One row for every step and quantity: step, quantity, mean, se (standard error), n (replicates with a value),
        exact. It is NaN where there is no oracle: for the covariance, for rows that depend on earlier batches, and for a
        frame without ``attrs["process"]``.
    """
    quantities = [name for name in frame.columns if name not in ("step", "rows", "replicate")]
    exact = _oracles(Process.from_params(frame.attrs["process"])) if "process" in frame.attrs else {}
    groups = frame.groupby("step")
    parts = []
    for name in quantities:
        part = groups[name].agg(["mean", "sem", "count"]).reset_index()
        part.columns = pd.Index(["step", "mean", "se", "n"])
        part.insert(1, "quantity", name)
        part["exact"] = exact[name][part["step"] - 1] if name in exact else np.nan
        parts.append(part)
    return pd.concat(parts).sort_values("step", kind="stable", ignore_index=True)


def _oracles(process: Process) -> dict[str, Floats]:
    """Expected errors of the mean at every step, by column of `simulate`."""
    if process.noise.dependence == "ar1":
        return {}
    exact = mean_oracle(process)
    return {"mse": exact.total, "prediction": exact.prediction}


def _steps(process: Process, steps: Sequence[int]) -> tuple[Ints, int]:
    """Steps as an array, and the last of them."""
    at = np.asarray(steps)
    if at.ndim != 1 or at.size == 0 or at.dtype.kind not in "iu":
        raise SpecError(f"steps: must be a list of integers, got {steps!r}")
    if at[0] < 1 or at[-1] > process.total or np.any(np.diff(at) <= 0):
        raise SpecError(f"steps: must ascend within 1 to {process.total}, got {list(map(int, at))}")
    return at.astype(np.int64), int(at[-1])


def _factors(total: int, forget: float, gains: ArrayLike | None) -> tuple[Floats, float]:
    """Factor on the counts at every step, and the count before the first."""
    if not 0 < forget <= 1:
        raise SpecError(f"forget: must lie in (0, 1], got {forget:g}")
    if gains is None:
        return np.full(total, float(forget)), 0.0
    x = np.asarray(gains, dtype=np.float64)
    if x.shape != (total,):
        raise SpecError(f"gains: must have shape [{total}], one a step, got {list(x.shape)}")
    if not np.all((x > 0) & (x <= 1)):
        raise SpecError("gains: must lie in (0, 1]")
    if forget != 1.0:
        raise SpecError("gains: give either gains or forget, not both")
    # A batch weighs 1/kappa_t with kappa_t = f_t kappa_{t-1} + 1.
    kappa0 = float(1 / x[0] - 1)
    before = np.concatenate([[kappa0 if kappa0 > 0 else 1.0], 1 / x[:-1]])
    return (1 / x - 1) / before, kappa0


def _batch_means(sampler: Sampler, last: int) -> Iterator[tuple[int, Tensor]]:
    """Steps and batch means [R, 1, d], drawn in pieces of bounded size."""
    most = max(1, CHUNK // (sampler.reps * sampler.process.d))
    while sampler.at < last:
        first = sampler.at + 1
        piece = sampler.next_means(min(most, last - sampler.at))
        for i, row in enumerate(piece.split(1, dim=1)):
            yield first + i, row


def _squared(state: NIW | DiagNIW, mu: Tensor) -> Tensor:
    """Squared error of the mean of every replicate, [R]; NaN before the first row."""
    if state.kappa == 0:
        return torch.full(state.mean.shape[:-1], torch.nan, dtype=torch.float64)
    return (state.mean - mu).square().sum(dim=-1)


def advance(state: NIW, sampler: Sampler, step: int, *, wishart: bool = False) -> NIW:
    """The state after the rows up to `step`, which enter as few batches: the moments do not depend on how rows are cut."""
    process, k = sampler.process, step - sampler.at
    if k == 0:
        return state
    within = k * (process.n - 1)
    # Bartlett's triangle needs d degrees of freedom, and pays where there are more rows than numbers to draw.
    if wishart and within >= process.d:
        return _merge_segment(state, sampler, k)
    most = max(1, CHUNK // (sampler.reps * process.n * process.d))
    while sampler.at < step:
        state = state.update(sampler.next(min(most, step - sampler.at)).flatten(1, 2))
    return state


def _merge_segment(state: NIW, sampler: Sampler, k: int) -> NIW:
    """The state after k more batches: their means are drawn one by one, the scatter within them at once."""
    process, d = sampler.process, sampler.process.d
    first = sampler.at + 1
    between = NIW.empty(d, batch_shape=(sampler.reps,))
    most = max(1, CHUNK // (sampler.reps * d))
    for i in range(0, k, most):
        between = between.update(sampler.next_means(min(most, k - i)))
    root = torch.as_tensor(process.root(first))
    scatter = root @ sampler.wishart(k * (process.n - 1)) @ root.mT
    rows = float(k * process.n)
    return state.merge(NIW(between.mean, rows, process.n * between.scale + scatter, rows))


def _measure(process: Process, step: int, state: NIW, *, relative: bool, keep_moments: bool) -> dict[str, Tensor]:
    """Fields of a `CovTrack` at one step; NaN while there is no estimate."""
    exists, d = state.exists, process.d
    cov = state.cov if exists else torch.full((*state.mean.shape, d), torch.nan, dtype=torch.float64)
    values = torch.linalg.eigvalsh(cov) if exists else cov[..., 0]
    low, high = values[..., 0], values[..., -1]
    gap = cov - torch.as_tensor(process.covariance(step))
    found = {
        "condition": high / low,
        "eig_max": high,
        "eig_min": low,
        "spectral": spectral_norms(gap) if exists else low,
    }
    if relative:
        inverse = torch.linalg.inv(torch.as_tensor(process.root(step)))
        found["relative"] = spectral_norms(inverse @ gap @ inverse.mT) if exists else low
    if keep_moments:
        found["mean_cov"] = cov.mean(dim=0)
        found["var_cov"] = cov.var(dim=0) if len(cov) > 1 else torch.full_like(cov[0], torch.nan)
    return found
