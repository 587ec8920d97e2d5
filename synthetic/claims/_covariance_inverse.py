"""Assumption 3.7, moments of the inverse covariance and of the keys' factors: what is bounded, and by what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from stablediag.maths import NIW, DiagNIW, diagonal_whitener, key_coefficient
from stablediag.stats import theory
from synthetic.certify import Row, dominates, identical, row, uniform
from synthetic.claims import STABLEEDIT, Claim, Scale
from synthetic.claims._covariance_common import Floats, Values, params, states
from synthetic.grid import Cell, Result
from synthetic.process import Process

HERE = "synthetic.claims._covariance_inverse"


def measure_prior(*, seed: int, d: int, prior: float, rows: Sequence[int]) -> Values:
    """``|Sh^-1|`` of rows that leave one direction empty, after so many rows, and what the prior allows it to be."""
    generator = torch.Generator().manual_seed(seed)
    state = NIW.empty(d, prior=prior)
    found: list[float] = []
    seen = 0
    for count in rows:
        values = torch.randn(count - seen, d, generator=generator, dtype=torch.float64)
        values[:, 0] = 0.0
        state, seen = state.update(values), count
        found.append(float(1 / torch.linalg.eigvalsh(state.cov)[0]))
    return {"norm": np.array(found), "bound": (np.asarray(rows) - d - 1) / prior}


def measure_inverse(*, seed: int, reps: int, process: Mapping[str, Any], rows: Sequence[int]) -> Values:
    """Goodness of fit of ``(N-d-1)/(u'Sh^-1 u)`` with a chi-square law of N - d degrees of freedom, iid Gaussian rows.

    `|Sh^-1|` lies between ``u'Sh^-1 u`` and ``tr Sh^-1``, so its k-th moment is finite iff ``N - d > 2k``. The p-values
    of one degree of freedom less are returned too.
    """
    path = Process.from_params(process)
    p_values, less = [], []
    for count, state in zip(rows, states(path, reps=reps, seed=seed, steps=rows), strict=True):
        entry = torch.linalg.inv(state.scale)[:, 0, 0].numpy()
        ratio = 1 / (entry * float(path.covariance(1)[0, 0]))
        p_values.append(float(stats.kstest(ratio, stats.chi2(count - path.d).cdf).pvalue))
        less.append(float(stats.kstest(ratio, stats.chi2(count - path.d - 1).cdf).pvalue))
    return {"p": np.array(p_values), "less": np.array(less)}


def measure_keys(*, seed: int, trials: int) -> Values:
    """Largest ``|phi_i|`` over ``|h~_i|^2/(2 sqrt lam)`` on random keys, and on keys chosen to make it large."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    ratios: dict[str, list[float]] = {"random": [], "adversarial": []}
    for trial in range(trials):
        n, p = 1 + trial % 12, 2 + 3 * (trial % 7)
        ridge = 10.0 ** (trial % 6 - 3)
        scale = 10.0 ** (trial % 9 - 4)
        ratios["random"].append(_largest(scale * normal(n, p), ridge))
        first = normal(1, p)
        unit = first / first.norm()
        twins = first + 1e-6 * normal(n, p)
        for keys in (twins, ridge**0.5 * unit, torch.cat([ridge**0.5 * unit, 1e4 * normal(n, p)])):
            ratios["adversarial"].append(_largest(keys, ridge))
    return {name: float(max(values)) for name, values in ratios.items()}


def _largest(keys: Tensor, ridge: float) -> float:
    """Largest ratio over the rows, with raw and with standardised keys as the weight."""
    moments = DiagNIW.empty(keys.shape[-1]).update(keys)
    found = []
    for coefficient in (
        key_coefficient(keys, None, "raw"),
        key_coefficient(keys, diagonal_whitener(moments), "standardised"),
    ):
        weight: Floats = coefficient.numpy()
        size = np.linalg.norm(theory.phi_rows(keys.numpy(), weight, ridge), axis=-1)
        bound = weight / (2 * ridge**0.5)
        found.append(float(np.max(np.divide(size, bound, out=np.zeros_like(size), where=bound > 0))))
    return max(found)


D, PRIOR = 8, 0.5
#: rows of the fits; d + 8 is the last count without a fourth moment
COUNTS = [D + 4, D + 8, D + 9, D + 16]


def _cells(scale: Scale) -> list[Cell]:
    return [
        Cell(
            f"{HERE}:measure_prior",
            {"d": D, "prior": PRIOR, "rows": [2 * D, 100, 1000, 10_000]},
            scale.seed_of("audit-12", "prior"),
        ),
        Cell(
            f"{HERE}:measure_inverse",
            {"reps": scale.replicates(20_000, 4000), "process": params(D, 1, COUNTS[-1]), "rows": COUNTS},
            scale.seed_of("audit-12", "inverse"),
        ),
        Cell(f"{HERE}:measure_keys", {"trials": scale.pick(2000, 300)}, scale.seed_of("audit-12", "keys")),
    ]


def _rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    prior, inverse, keys = results
    norm, bound = prior["norm"], prior["bound"]
    rows = cells[0].params["rows"]
    counts = "/".join(f"d+{count - D}" for count in cells[1].params["rows"])
    out = [
        row(
            "audit-12",
            "moments of Sh^-1 are naturally bounded: no growth with N",
            [dominates(norm[0], norm[1:])],
            measured=norm[-1],
            paper=norm[0],
            slack=norm[0] / norm[-1],
            expected="false",
            seconds=prior.seconds,
            note=f"rows that leave a direction empty: from {norm[0]:.0f} at N = {rows[0]} to {norm[-1]:.0f} at {rows[-1]}",
        ),
        row(
            "audit-12",
            "|Sh^-1| is at most (N-d-1)/prior, and attains it",
            [dominates(bound, norm, rtol=1e-6), identical(np.abs(norm / bound - 1), 1e-6)],
            measured=norm[-1],
            tight=bound[-1],
            seconds=prior.seconds,
        ),
    ]
    for key, law, planted in (("p", "N-d", False), ("less", "N-d-1", True)):
        out.append(
            row(
                "audit-12",
                f"(N-d-1)/(u'Sh^-1 u) is chi-square with {law} degrees of freedom, d={D}",
                [uniform(inverse[key])],
                measured=float(inverse[key].min()),
                planted=planted,
                seconds=inverse.seconds,
                note=f"smallest Kolmogorov-Smirnov p-value at N = {counts}; with N-d the fourth moment of |Sh^-1| is finite "
                "iff N > d+8",
            )
        )
    largest = max(keys.number("random"), keys.number("adversarial"))
    for factor, planted in ((1.0, False), (0.5, True)):
        out.append(
            row(
                "audit-12",
                f"|phi_i| is at most {factor:g} x |h~_i|^2/(2 sqrt lam), for any keys",
                [dominates(factor, largest)],
                measured=largest,
                tight=factor,
                planted=planted,
                seconds=keys.seconds,
                note=f"largest ratio {keys.number('random'):.3f} on random keys, {keys.number('adversarial'):.6f} on keys "
                "near each other or of length sqrt lam",
            )
        )
    return out


CLAIM = Claim(
    "audit-12",
    "moments of Sh^-1 and of the keys' factors: the ridge bounds the latter, nothing bounds the former",
    f"{STABLEEDIT}, Assumption 3.7 and Appendix C.2; bounds derived here",
    _cells,
    _rows,
)
