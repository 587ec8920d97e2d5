"""What the checks of the updates simulate: settings, and reductions of the recorded replicates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stablediag.stats import theory
from synthetic.claims import Scale
from synthetic.grid import Cell
from synthetic.process import MeanDrift, Noise, Process, Spectrum
from synthetic.reduce import mean_se
from synthetic.update_stream import Updates, UpdateStream, simulate_updates

Floats = NDArray[np.float64]
Values = dict[str, Any]

HERE = "synthetic.claims._updates_measure"
D, N_ROWS, WIDTH = 24, 12, 60
#: mean of the keys: without one, updates are orthogonal on average by the sign of the keys alone
KEY_MEAN = 4.0

LAWS: Mapping[str, Noise] = {
    "gauss": Noise(),
    "student": Noise("student", df=4.0),
    "exponential": Noise("exponential"),
    "pool": Noise(dependence="pool", pool=600),
}

#: by name: law of the gradients, size of the drift of their mean, and what else differs from the plain stream
SETTINGS: Mapping[str, tuple[str, float, dict[str, Any]]] = {
    "gauss": ("gauss", 0.0, {}),
    "student": ("student", 0.0, {}),
    "exponential": ("exponential", 0.0, {}),
    "pool": ("pool", 0.0, {}),
    "drift": ("gauss", 1.0, {}),
    "before": ("gauss", 0.0, {"inclusive": False}),
    "drift before": ("gauss", 1.0, {"inclusive": False}),
    "exponential, centre": ("exponential", 0.0, {"whitening": "center"}),
    "uncentred": ("gauss", 0.0, {"centred": False, "offset": 1.75}),
    "signal": ("gauss", 0.0, {"signal": 0.75}),
    "divisor": ("gauss", 0.0, {"eps": float(D)}),
    "diagonal": ("gauss", 0.0, {"whitening": "diagonal", "rotated": True}),
    "center": ("gauss", 0.0, {"whitening": "center"}),
    "none": ("gauss", 0.0, {"whitening": "none"}),
    "tanh": ("gauss", 0.0, {"transform": "tanh"}),
    "sine": ("gauss", 0.0, {"transform": "sine"}),
    "relu": ("gauss", 0.0, {"transform": "relu"}),
    "abs": ("gauss", 0.0, {"transform": "abs"}),
}


def stream(
    name: str, last: int, *, d: int = D, n: int = N_ROWS, p: int = WIDTH, key_mean: float = KEY_MEAN
) -> dict[str, Any]:
    """JSON parameters of the stream of a setting, for so many steps; eigenvalues from 1 down to 0.01."""
    law, drift, options = SETTINGS[name]
    process = Process(
        d=d,
        n=n,
        steps=last,
        spectrum=Spectrum("geometric", lmin=0.01),
        mean=MeanDrift(C=drift, alpha=1.25),
        noise=LAWS[law],
    )
    return UpdateStream(process, p=p, key_mean=key_mean, **options).params()


def _cell(scale: Scale, function: str, name: str, reps: int, steps: list[int], given: dict[str, Any]) -> Cell:
    """One setting under one reduction has one seed, so claims that need the same numbers share a cell."""
    params = {"reps": reps, "steps": steps, "stream": given}
    seed = scale.seed_of("updates", function, name)
    return Cell(f"{HERE}:{function}", params, seed, cost=reps * (steps[-1] + 5 * len(steps)) * 4e-5)


def energies(scale: Scale, name: str) -> Cell:
    """Cell of `measure_energies`: 48 to 480 rows in the statistics."""
    steps = scale.pick([4, 8, 16, 40], [4, 12])
    if not SETTINGS[name][2].get("inclusive", True):
        steps = [min(step + 1, 40) for step in steps]
    # How far these laws are from the Gaussian value at 48 rows must show at either scale.
    reps = scale.replicates(1500, {"exponential": 1000, "student": 700}.get(name, 200))
    return _cell(scale, "measure_energies", name, reps, steps, stream(name, steps[-1]))


def pairs(scale: Scale, name: str) -> Cell:
    """Cell of `measure_pairs`: consecutive, distant, and one fixed while the other grows."""
    steps = scale.pick([4, 5, 8, 16, 40], [4, 5, 12])
    return _cell(scale, "measure_pairs", name, scale.replicates(1500, 200), steps, stream(name, steps[-1]))


def cosines(scale: Scale, name: str) -> Cell:
    """Cell of `measure_cosines`: consecutive updates, once the statistics have settled."""
    steps = scale.pick(list(range(30, 42)), list(range(10, 15)))
    given = stream(name, steps[-1], key_mean=0.0)
    return _cell(scale, "measure_cosines", name, scale.replicates(1500, 500), steps, given)


def growth(scale: Scale, name: str) -> Cell:
    """Cell of `measure_growth`: every step of a run."""
    d, n, p, first, count = scale.pick((40, 12, 50, 20, 60), (12, 6, 30, 10, 20))
    steps = list(range(first, first + count))
    given = stream(name, steps[-1], d=d, n=n, p=p, key_mean=0.0)
    # A spread needs more replicates than a mean that is far off.
    reps = scale.replicates(1500, 1000) if name == "gauss" else scale.replicates(400, 100)
    return _cell(scale, "measure_growth", name, reps, steps, given)


def startup(scale: Scale) -> Cell:
    """Cell of `measure_energies` over the step at which the covariance begins to exist, d + 2 rows."""
    steps = [D // 2, D // 2 + 1]
    given = stream("gauss", steps[-1], n=2)
    return _cell(scale, "measure_energies", "start-up", scale.replicates(1500, 500), steps, given)


def measure_energies(*, seed: int, reps: int, steps: list[int], stream: dict[str, Any]) -> Values:
    """Energies of the updates and of their parts.

    Returns
    -------
    dict
        Arrays [K]. Means and, under ``NAME_se``, standard errors of row, update, char, bias, cross, of ``balance`` =
        cross + 2 bias, and of what update and bias exceed their exact values by, given the features (NaN where there is
        none): ``energy_gap``, ``bias_gap``, and ``algorithm_gap`` from the value for statistics with the step's own
        rows, whatever the stream has. Means energy, algorithm, hotelling, phi_sq, inflation. ``M_phi``, ``M_S``: the
        moments of the paper's constants. ``mse``: exact ``E|m - mu|^2`` of the running mean. ``rows``: N. ``sure``:
        largest ratio of ``|DW|`` to its sure bound.
    """
    what = UpdateStream.from_params(stream)
    u = simulate_updates(what, steps=steps, reps=reps, seed=seed)
    values: Values = {"rows": u.rows}
    energy, hotelling = _exact(what, u, what.inclusive)
    algorithm, _ = _exact(what, u, True)
    for name, x in {
        "row": u.row,
        "update": u.update,
        "char": u.char,
        "bias": u.bias,
        "cross": u.cross,
        "balance": u.cross + 2 * u.bias,
        "energy_gap": u.update - energy,
        "algorithm_gap": u.update - algorithm,
        "bias_gap": u.bias - hotelling,
    }.items():
        values[name], values[f"{name}_se"] = mean_se(x)
    d, n = what.process.d, what.process.n
    exists = u.rows > d + 1
    sure = np.full(len(steps), np.nan)
    bound = theory.sure_bound(u.largest[:, exists], what.ridge, n=n, d=d, N=u.rows[exists], gamma=what.lr)
    sure[exists] = (np.sqrt(u.update[:, exists]) / bound).max(axis=0)
    return values | {
        "energy": energy.mean(axis=0),
        "algorithm": algorithm.mean(axis=0),
        "hotelling": hotelling.mean(axis=0),
        "phi_sq": u.phi_sq.mean(axis=0),
        "inflation": u.inflation.mean(axis=0),
        "M_phi": u.phi_fourth.mean(axis=0),
        "M_S": (u.precision**4).mean(axis=0),
        "mse": _mse(what)[np.asarray(steps) - 1],
        "sure": sure,
    }


def measure_pairs(*, seed: int, reps: int, steps: list[int], stream: dict[str, Any]) -> Values:
    """Inner products of updates of different steps.

    Returns
    -------
    dict
        Over the pairs s < t in the order of ``np.triu_indices(K, 1)``: ``inner`` and ``inner_se``; ``product`` and
        ``product_se``, the Cauchy-Schwarz product ``sqrt(E|DW_bias,s|^2 E|DW_char,t|^2)``, and ``product_exact``;
        ``term`` and ``term_se``, ``E<DW_bias,s, DW_char,t>`` itself. Scalars ``cosine`` and ``cosine_se``: the mean over
        pairs of inner products over root mean square norms; ``coherence``, ``self_coherence``: means of
        ``<Phi_s, Phi_t>`` over the pairs and of ``|Phi|^2`` over the steps, over the mean of ``sum |phi_i|^2``.
    """
    what = UpdateStream.from_params(stream)
    u = simulate_updates(what, steps=steps, reps=reps, seed=seed, pairs=True)
    assert u.inner is not None  # asked for, and the two below with it
    assert u.char_inner is not None
    assert u.Phi_inner is not None
    s, t = np.triu_indices(len(steps), 1)
    norms = np.sqrt(u.update.mean(axis=0))
    inner, inner_se = mean_se(u.inner[:, s, t])
    cosine, cosine_se = mean_se((u.inner[:, s, t] / (norms[s] * norms[t])).mean(axis=1))
    term, term_se = mean_se(u.char_inner[:, s, t])
    bias, char = u.bias.mean(axis=0), u.char.mean(axis=0)
    product = np.sqrt(bias[s] * char[t])
    # First-order: the logarithm of the product is half the sum of the logarithms of two means.
    _, relative = mean_se((u.bias / bias)[:, s] / 2 + (u.char / char)[:, t] / 2)
    energy, hotelling = (x.mean(axis=0) for x in _exact(what, u, what.inclusive))
    return {
        "s": s,
        "t": t,
        "inner": inner,
        "inner_se": inner_se,
        "cosine": cosine,
        "cosine_se": cosine_se,
        "term": term,
        "term_se": term_se,
        "product": product,
        "product_se": product * relative,
        "product_exact": np.sqrt(hotelling[s] * (energy + hotelling)[t]),
        "coherence": u.Phi_inner[:, s, t].mean() / u.phi_sq.mean(),
        "self_coherence": u.Phi_sq.mean() / u.phi_sq.mean(),
    }


def measure_cosines(*, seed: int, reps: int, steps: list[int], stream: dict[str, Any]) -> Values:
    """Mean and mean square of the cosine over kappa_Phi of consecutive updates, with standard errors over replicates.

    Returns
    -------
    dict
        ``mean``, ``mean_se``, ``square``, ``square_se`` (of the average over the pairs of one replicate), ``d_eff``.
    """
    what = UpdateStream.from_params(stream)
    u = simulate_updates(what, steps=steps, reps=reps, seed=seed)
    scaled = u.cosine / u.kappa
    mean, error = mean_se(scaled.mean(axis=1))
    square, square_se = mean_se((scaled**2).mean(axis=1))
    return {
        "mean": mean,
        "mean_se": error,
        "square": square,
        "square_se": square_se,
        "d_eff": what.d_eff(steps[-1]),
    }


def measure_growth(*, seed: int, reps: int, steps: list[int], stream: dict[str, Any]) -> Values:
    """Cumulative coherence ``|sum DW|^2 / sum |DW|^2`` of a run.

    Returns
    -------
    dict
        ``mean``, ``mean_se``; ``variance``, ``variance_se``; ``excess``, ``excess_se``, what ``|sum DW|^2`` exceeds
        ``sum |DW|^2`` by, in units of the latter's mean; ``null``, standard deviation under the null law.
    """
    what = UpdateStream.from_params(stream)
    u = simulate_updates(what, steps=steps, reps=reps, seed=seed, total=True)
    assert u.total is not None  # asked for
    total, energy = u.total[:, -1], u.update.sum(axis=1)
    coherence = total / energy
    mean, error = mean_se(coherence)
    variance, variance_se = mean_se((coherence - mean) ** 2 * reps / (reps - 1))
    excess, excess_se = mean_se((total - energy) / energy.mean())
    kappa = np.sqrt(np.mean(u.kappa**2))
    return {
        "mean": mean,
        "mean_se": error,
        "variance": variance,
        "variance_se": variance_se,
        "excess": excess,
        "excess_se": excess_se,
        "null": theory.gamma_null(kappa, what.d_eff(steps[-1]), steps=len(steps)),
    }


def _exact(what: UpdateStream, u: Updates, inclusive: bool) -> tuple[Floats, Floats]:
    """Energies of update and bias given the features, [R, K]; NaN before N > d + 2, where one does not exist."""
    d = what.process.d
    energy, hotelling = np.full(u.update.shape, np.nan), np.full(u.update.shape, np.nan)
    at = u.rows > d + 2
    rows = u.rows[at]
    energy[:, at] = theory.update_energy(
        u.phi_sq[:, at], u.Phi_sq[:, at], d=d, N=rows, gamma=what.lr, inclusive=inclusive
    )
    hotelling[:, at] = theory.hotelling_bias(u.Phi_sq[:, at], d=d, N=rows, gamma=what.lr)
    return energy, hotelling


def _mse(what: UpdateStream) -> Floats:
    """Exact mean squared error of the running mean at every step, [T]."""
    process = what.process
    traces = process.traces() * (1 + what.signal**2)
    pool = process.noise.pool or None
    return np.asarray(theory.exact_mse(process.drift(), traces, n=process.n, pool=pool).total)
