"""Energies of simulated updates against their exact expectations; published constants and sure bounds."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from stablediag.stats.theory import (
    PAPER_EIGHTH,
    SHARP_EIGHTH,
    bias_share,
    char_energy,
    char_lower,
    cov_drift_from_update,
    drift_from_update,
    hotelling_bias,
    paper_C_a,
    paper_C_b,
    paper_cov_drift,
    phi_rows,
    self_normalised_lag,
    stationary_inflation,
    sure_bound,
    update_energy,
    whitened_norm,
    whitened_norm_out,
)

D, P, N_ROWS, RIDGE = 8, 14, 8, 3.0
GAMMA = 0.7


@lru_cache(maxsize=1)
def batch() -> tuple[np.ndarray, float, float]:
    """Key rows with a part in common, and their two squared norms."""
    phi = 0.2 * (np.random.default_rng(9).standard_normal((N_ROWS, P)) + 2)
    return phi, float(np.square(phi).sum()), float(np.square(phi.sum(axis=0)).sum())


def draw(law: str, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    if law == "gauss":
        return rng.standard_normal(shape)
    if law == "exponential":
        return rng.exponential(size=shape) - 1
    return rng.standard_normal(shape) / np.sqrt(rng.chisquare(5, (*shape[:-1], 1)) / 3)


@lru_cache(maxsize=8)
def simulate(law: str, rows: int, inclusive: bool, reps: int = 4000) -> dict[str, np.ndarray]:
    """Per replicate: energies of the update and its parts, their cross term, squared length of a whitened row."""
    rng = np.random.default_rng(rows + 1000 * inclusive)
    basis = np.linalg.qr(rng.standard_normal((D, D)))[0] * np.sqrt(np.geomspace(0.1, 2, D))
    x = draw(law, rng, (reps, rows, D)) @ basis.T
    mean = x.mean(axis=1, keepdims=True)
    centred = x - mean
    estimate = np.swapaxes(centred, 1, 2) @ centred / (rows - D - 1)
    w, v = np.linalg.eigh(estimate)
    root = (v / np.sqrt(w)[:, None, :]) @ np.swapaxes(v, 1, 2)
    raw = x[:, -N_ROWS:] if inclusive else draw(law, rng, (reps, N_ROWS, D)) @ basis.T
    phi = batch()[0]
    update, char = (-GAMMA * np.swapaxes(rows_, 1, 2) @ phi for rows_ in ((raw - mean) @ root, raw @ root))
    bias = update - char
    energy = {name: np.square(m).sum(axis=(1, 2)) for name, m in (("update", update), ("char", char), ("bias", bias))}
    whitened = np.square((raw - mean) @ root).sum(axis=(1, 2)) / N_ROWS
    inflation = np.trace(np.linalg.solve(basis @ basis.T, estimate), axis1=1, axis2=2) / D
    cross = 2 * (char * bias).sum(axis=(1, 2))
    rows_whitened = {"rows": (raw - mean) @ root}
    return (
        energy | rows_whitened | {"cross": cross, "whitened": whitened, "inflation": inflation, "inverse": 1 / w[:, 0]}
    )


def z(sample: np.ndarray, expected: float) -> float:
    return float((sample.mean() - expected) / (sample.std(ddof=1) / np.sqrt(len(sample))))


@pytest.mark.parametrize("law", ["gauss", "student", "exponential"])
@pytest.mark.parametrize("rows", [16, 60])
def test_exchangeable_identities(law: str, rows: int) -> None:
    found, (_, each, summed) = simulate(law, rows, True), batch()
    assert abs(z(found["whitened"], whitened_norm(D, rows))) < 4
    assert abs(z(found["update"], update_energy(each, summed, d=D, N=rows, gamma=GAMMA))) < 4
    # The cross term is minus twice the bias energy, for every law.
    assert abs(z(found["cross"] + 2 * found["bias"], 0.0)) < 4
    # Planted violations: the divisor N - 1; rows taken as independent; a vanishing cross term.
    assert abs(z(found["whitened"], D * (rows - 1) / rows)) > 15
    assert abs(z(found["update"], GAMMA**2 * float(whitened_norm(D, rows)) * each)) > 10
    assert abs(z(found["cross"], 0.0)) > 15


@pytest.mark.parametrize("rows", [16, 60])
@pytest.mark.parametrize("inclusive", [True, False])
def test_gaussian_energies(rows: int, inclusive: bool) -> None:
    found, (_, each, summed) = simulate("gauss", rows, inclusive), batch()
    arguments = {"d": D, "N": rows, "gamma": GAMMA}
    assert abs(z(found["bias"], hotelling_bias(summed, **arguments))) < 4
    assert abs(z(found["char"], char_energy(each, summed, inclusive=inclusive, **arguments))) < 4
    assert abs(z(found["update"], update_energy(each, summed, inclusive=inclusive, **arguments))) < 4
    difference = found["update"] - found["char"]
    sign = -1 if inclusive else 1
    assert abs(z(difference - sign * found["bias"], 0.0)) < 4
    # Planted violations: the sign of the other kind of statistics; the bias without its finite-sample factor.
    assert abs(z(difference + sign * found["bias"], 0.0)) > (10 if inclusive else 3)
    if rows == 16:
        assert abs(z(found["bias"], GAMMA**2 * summed * D / rows)) > 8


def test_whitening_rows_that_are_not_in_the_statistics() -> None:
    for rows in (16, 60):
        found = simulate("gauss", rows, False)
        assert abs(z(found["whitened"], whitened_norm_out(D, rows))) < 4
        assert abs(z(found["whitened"], whitened_norm(D, rows))) > 15
        assert abs(z(found["inflation"], stationary_inflation(D, rows))) < 4


def test_skew_moves_the_bias_by_a_little() -> None:
    for rows, limit in ((16, 1.6), (60, 1.3)):
        found, summed = simulate("exponential", rows, True)["bias"].mean(), batch()[2]
        assert 1.02 < found / hotelling_bias(summed, d=D, N=rows, gamma=GAMMA) < limit


def test_share_of_the_bias() -> None:
    _, each, summed = batch()
    for rows in (16, 60):
        found = simulate("gauss", rows, True)
        assert found["bias"].mean() / found["update"].mean() == pytest.approx(
            bias_share(each, summed, rows, d=D), rel=0.06
        )
    assert bias_share(each, summed, 10**6, d=D) == pytest.approx(bias_share(each, summed, 10**6), rel=1e-4)
    assert bias_share(each, N_ROWS * each, 40 * N_ROWS) == pytest.approx(1 / 40)


def test_sure_bound_holds_for_every_replicate_and_is_attained() -> None:
    keys = np.random.default_rng(8).standard_normal((N_ROWS, P)) + 0.5
    coefficient = np.square(keys).sum(axis=1) / P
    phi = phi_rows(keys, coefficient, RIDGE)
    bound = sure_bound(coefficient.max(), RIDGE, n=N_ROWS, d=D, N=16, gamma=-GAMMA)
    for law in ("gauss", "student", "exponential"):
        found = GAMMA * np.sqrt(np.square(np.swapaxes(simulate(law, 16, True)["rows"], 1, 2) @ phi).sum(axis=(1, 2)))
        assert bound / 4 < found.max() < bound
    # One row that carries a whole direction: the leverage is 1 - 1/N, and h with |h|^2 = ridge is the worst key.
    rows = 50
    x = np.zeros((rows, 1))
    x[0] = 1.0
    centred = x - x.mean()
    whitened = centred[0, 0] / np.sqrt((centred**2).sum() / (rows - 2))
    phi = phi_rows([[RIDGE**0.5]], [1.0], RIDGE)
    bound = sure_bound(1.0, RIDGE, n=1, d=1, N=rows)
    assert abs(whitened * phi[0, 0]) == pytest.approx(bound * np.sqrt(1 - 1 / rows), rel=1e-12)


def test_lower_bound_of_the_characteristic_part() -> None:
    _, each, _ = batch()
    for rows in (16, 60):
        found, bound = simulate("gauss", rows, False), char_lower(each, stationary_inflation(D, rows), d=D, gamma=GAMMA)
        assert bound == pytest.approx(GAMMA**2 * each * D * (rows - D - 1) / (rows - 1))
        assert bound < found["char"].mean()
    # Whitening with infinitely many rows attains it; the nominal energy is no lower bound with the batch included.
    assert char_lower(each, 1.0, d=D) == pytest.approx(char_energy(each, 0.0, d=D, N=1e9, inclusive=False))
    assert simulate("gauss", 16, True)["char"].mean() < char_lower(each, 1.0, d=D, gamma=GAMMA)


def test_published_constants_bound_the_parts_by_a_wide_margin() -> None:
    rows = 60
    found, phi = simulate("gauss", rows, False), batch()[0]
    m_phi = (np.square(phi).sum(axis=1) ** 2).max()
    m_s = (found["inverse"] ** 4).mean()
    mse = np.geomspace(0.1, 2, D).sum() / rows
    slack_a = paper_C_a(N_ROWS, m_phi, m_s, GAMMA) * mse / found["bias"].mean()
    slack_b = paper_C_b(N_ROWS, D, 2.0, m_phi, m_s, GAMMA) / found["char"].mean()
    assert slack_a > 10
    assert slack_b > 10
    ratio = paper_C_a(N_ROWS, m_phi, m_s, GAMMA, SHARP_EIGHTH) / paper_C_a(N_ROWS, m_phi, m_s, GAMMA)
    assert ratio == pytest.approx(3.20 / 5.20, abs=0.001)
    assert paper_C_a(2, 16, 81, 0.5) == pytest.approx(3 * 3**0.5 * 0.25 * 4 * 4 * 3)
    assert paper_C_b(2, 6, 1.5, 16, 81) == pytest.approx(4 * paper_C_b(2, 6, 1.5, 16, 81, 0.5))
    assert paper_C_b(2, 6, 1.5, 16, 81, 0.5) == pytest.approx(3 * 0.25 * 4 * 1.5 * 48**0.5 * 4 * 3)


def test_eighth_moment_of_a_gaussian_vector() -> None:
    """(E|e|^8)^(1/4) / E|e|^2 by quadrature over one coordinate with any offset, and in closed form for many coordinates."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    weights = weights / weights.sum()
    ratios = [(weights @ (b + nodes) ** 8) ** 0.25 / (weights @ (b + nodes) ** 2) for b in np.linspace(0, 5, 51)]
    assert max(ratios) == pytest.approx(SHARP_EIGHTH)
    for d in (1, 4, 64):
        ratio = (d * (d + 2) * (d + 4) * (d + 6)) ** 0.25 / d
        assert ratio <= SHARP_EIGHTH * (1 + 1e-12) < PAPER_EIGHTH
        assert (d * (d + 2) * (d + 4) * (d + 6)) ** 0.25 <= 3 * np.sqrt(d * (d + 2))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.75])
def test_self_normalised_lag(alpha: float) -> None:
    t = np.arange(1, 200_001.0)
    mean = np.cumsum(t**-alpha)
    scatter = np.mean(mean**2) - mean.mean() ** 2
    assert (mean.mean() - mean[-1]) ** 2 / scatter == pytest.approx(self_normalised_lag(alpha), rel=1e-3)


def test_drift_that_a_lipschitz_gradient_allows() -> None:
    """v -> v + delta with E|delta|^2 = (L |DW|)^2: both bounds hold, and scaling one coordinate comes near the second."""
    rng = np.random.default_rng(0)
    v = rng.standard_normal((400, 3)) * [2, 1, 0.3]
    for size in (0.01, 0.1, 1.0):
        directions = rng.standard_normal((200, 400, 3))
        # Half of the shifts are blends of v itself, the rest is arbitrary.
        directions[:100] = v * rng.standard_normal((100, 1, 3))
        delta = directions * size / np.sqrt(np.square(directions).sum(axis=2).mean(axis=1))[:, None, None]
        moved = v + delta
        mean_step = np.linalg.norm(delta.mean(axis=1), axis=1)
        covs = np.stack([np.cov(m.T, bias=True) for m in moved])
        before = np.cov(v.T, bias=True)
        lmax = np.maximum(np.linalg.eigvalsh(covs)[:, -1], np.linalg.eigvalsh(before)[-1])
        cov_step = np.abs(np.linalg.eigvalsh(covs - before)).max(axis=1)
        sharp = cov_drift_from_update(0.5, 2 * size, lmax)
        g = np.sqrt(np.square(moved).sum(axis=2).mean(axis=1).max())
        assert (mean_step <= drift_from_update(0.5, 2 * size)).all()
        assert (cov_step <= sharp).all()
        assert (cov_step / sharp).max() > 0.8
        assert (paper_cov_drift(0.5, 2 * size, g) >= 2 * sharp).all()
    assert paper_cov_drift(0.5, 0.2, 3.0) == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: whitened_norm(64, [100, 60]), r"N: 60 <= d \+ 1 = 65: no inverse exists; take more rows"),
        (lambda: whitened_norm_out(64, 66), r"N: 66 <= d \+ 2 = 66: no mean of the inverse exists"),
        (lambda: whitened_norm(0, 10), "d: must be at least 1, got 0"),
        (lambda: update_energy(-1, 1, d=2, N=10), "phi_sq: must be finite and at least 0, got -1"),
        (lambda: hotelling_bias(1, d=2, N=4), r"N: 4 <= d \+ 2 = 4"),
        (lambda: bias_share(0, 1, 10), "phi_sq: must be positive and finite, got 0"),
        (lambda: sure_bound(1, 0, n=2, d=2, N=10), "ridge: must be positive and finite, got 0"),
        (lambda: paper_C_a(0, 1, 1), "n: must be at least 1, got 0"),
        (lambda: paper_C_b(1, 2, -1, 1, 1), "lmax: must be positive and finite, got -1"),
        (lambda: char_lower(1, 0, d=2), "inflation: must be positive and finite, got 0"),
        (lambda: self_normalised_lag([0.5, 1.0]), "alpha: must be below 1, got 1"),
        (lambda: drift_from_update(-1, 1), "L: must be finite and at least 0, got -1"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
