"""Error of the running mean against simulation, closed forms and published values, each with something planted wrong."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from stablediag.stats.theory import exact_mse, gains, lag, paper_mse, paper_mse_closed, worst_mse

D, N_ROWS = 64, 20
SPECTRUM = np.geomspace(0.05, 1, D)
TRACE = SPECTRUM.sum()


def sizes(steps: int, alpha: float, c: float = 0.3) -> np.ndarray:
    out = c * np.arange(1, steps + 1.0) ** -alpha
    out[0] = 0.0
    return out


def drift(direction: str, alpha: float, steps: int, d: int = D) -> np.ndarray:
    t = np.arange(steps)
    units = np.zeros((steps, d))
    if direction == "fixed":
        units[:, 0] = 1
    elif direction == "rotating":
        units[:, 0], units[:, 1] = np.cos(0.3 * t), np.sin(0.3 * t)
    else:
        units = np.random.default_rng(5).standard_normal((steps, d))
        units /= np.linalg.norm(units, axis=1, keepdims=True)
    return sizes(steps, alpha)[:, None] * units


def z_scores(samples: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return (samples.mean(axis=0) - expected) / (samples.std(axis=0, ddof=1) / np.sqrt(len(samples)))


def test_gains_follow_their_recursion() -> None:
    assert gains(4, n=20) == pytest.approx(1 / np.arange(1, 5))
    assert gains(3, n=20, kappa0=60) == pytest.approx([1 / 4, 1 / 5, 1 / 6])
    assert gains(300, n=7, kappa0=3, forget=0.9)[-1] == pytest.approx(0.1)


def test_lag_is_the_weighted_sum_of_the_drift() -> None:
    steps, n, kappa0 = 40, 5, 30.0
    d, b0 = drift("random", 0.4, steps, 6), np.arange(6.0)
    kappa = kappa0 + n * np.arange(steps + 1)
    unrolled = [
        (kappa0 * b0 - sum(kappa[j - 1] * d[j - 1] for j in range(1, t + 1))) / kappa[t] for t in range(1, steps + 1)
    ]
    assert lag(d, gains(steps, n=n, kappa0=kappa0), b0=b0) == pytest.approx(np.array(unrolled))
    cold = lag(d, gains(steps, n=n))
    assert cold[-1] == pytest.approx(-(np.arange(steps)[:, None] * d).mean(axis=0))


@pytest.mark.parametrize("law", ["gauss", "exponential"])
@pytest.mark.parametrize(("kappa0", "forget"), [(0.0, 1.0), (12.0, 1.0), (0.0, 0.8)])
def test_exact_mse_against_simulated_rows(law: str, kappa0: float, forget: float) -> None:
    """Any distribution, changing covariance, wrong start: total and prediction are equalities."""
    reps, steps, n, d = 8000, 12, 4, 3
    rng = np.random.default_rng(1)
    moved = drift("random", 0.5, steps, d) * 3
    spread = np.linspace(0.5, 2, steps)[:, None] * np.array([1.0, 0.5, 0.2])
    b0, v0 = np.array([0.5, 0, -0.3]), 0.6
    draw = rng.standard_normal if law == "gauss" else (lambda size: rng.exponential(size=size) - 1)
    estimate = np.sqrt(v0 / d) * rng.standard_normal((reps, d)) + b0
    mu, kappa = np.zeros(d), kappa0
    total, prediction = np.empty((reps, steps)), np.empty((reps, steps))
    for t in range(steps):
        mu = mu + moved[t]
        prediction[:, t] = ((estimate - mu) ** 2).sum(axis=1)
        batch = (mu + np.sqrt(spread[t]) * draw(size=(reps, n, d))).mean(axis=1)
        estimate = (forget * kappa * estimate + n * batch) / (forget * kappa + n)
        kappa = forget * kappa + n
        total[:, t] = ((estimate - mu) ** 2).sum(axis=1)
    exact = exact_mse(moved, spread.sum(axis=1), n=n, kappa0=kappa0, forget=forget, b0=b0, v0=v0)
    assert np.abs(z_scores(total, exact.total)).max() < 4
    assert np.abs(z_scores(prediction, exact.prediction)).max() < 4
    assert exact.total == pytest.approx(exact.lag2 + exact.variance)
    x = gains(steps, n=n, kappa0=kappa0, forget=forget)
    assert exact.total == pytest.approx((1 - x) ** 2 * exact.prediction + x**2 * spread.sum(axis=1) / n)
    # Planted violations: today's noise in place of the pooled one, and the last drift left out.
    assert np.abs(z_scores(total, exact.lag2 + spread.sum(axis=1) * x / n)).max() > 15
    assert np.abs(z_scores(prediction, np.r_[np.inf, exact.total[:-1]])[1:]).max() > 15


def test_exact_mse_takes_batches_and_given_gains() -> None:
    moved = np.stack([drift("random", 0.5, 9, 4), drift("fixed", 0.5, 9, 4)])
    both = exact_mse(moved, np.full(9, 2.0), n=5, gains=gains(9, n=5, kappa0=10))
    for i in (0, 1):
        one = exact_mse(moved[i], np.full(9, 2.0), n=5, kappa0=10)
        assert both.total[i] == pytest.approx(one.total)
        assert both.prediction[i] == pytest.approx(one.prediction)


def test_no_prediction_before_the_first_row() -> None:
    moved = drift("fixed", 1, 3, 2)
    assert np.isnan(exact_mse(moved, np.ones(3), n=2).prediction).tolist() == [True, False, False]
    assert exact_mse(moved, np.ones(3), n=2, b0=[3, 4], v0=1.0).prediction[0] == pytest.approx(26)
    assert exact_mse(moved, np.ones(3), n=2, kappa0=1).prediction[0] == 0


def test_pool_without_replacement_by_enumeration() -> None:
    """All ways to draw 2 rows, 4 rows and 6 rows from 6: the error of their mean, exactly."""
    pool = np.random.default_rng(3).standard_normal((6, 2))
    pool -= pool.mean(axis=0)
    trace = np.trace(np.cov(pool.T))
    found = exact_mse(np.zeros((3, 2)), np.full(3, trace), n=2, pool=6).total
    for i, rows in enumerate((2, 4)):
        means = [pool[list(c)].mean(axis=0) for c in combinations(range(6), rows)]
        assert found[i] == pytest.approx(np.mean([m @ m for m in means]))
    assert found[2] == pytest.approx(0)


@pytest.mark.parametrize("direction", ["fixed", "random", "rotating"])
@pytest.mark.parametrize("kappa0", [0.0, 2000.0])
def test_order_of_the_bounds(direction: str, kappa0: float) -> None:
    steps, alpha, b0, v0 = 400, 0.8, 0.4, 0.1
    start = np.zeros(D)
    start[2] = b0
    exact = exact_mse(drift(direction, alpha, steps), np.full(steps, TRACE), n=N_ROWS, kappa0=kappa0, b0=start, v0=v0)
    eps = sizes(steps, alpha)
    worst = worst_mse(eps, np.full(steps, TRACE), n=N_ROWS, kappa0=kappa0, b0=b0, v0=v0)
    paper = paper_mse(eps, d=D, lmax=1, n=N_ROWS, kappa0=kappa0, e0=b0**2 + v0)
    closed = paper_mse_closed(eps, d=D, lmax=1, n=N_ROWS, kappa0=kappa0, e0=b0**2 + v0)
    assert (worst >= exact.total * (1 - 1e-12)).all()
    assert (paper >= worst).all()
    assert (closed >= paper * (1 - 1e-12)).all()
    # The order is not trivial: half of the drift's size is refused as a bound where the drift keeps its direction.
    if direction == "fixed":
        assert (worst_mse(eps / 2, np.full(steps, TRACE), n=N_ROWS, kappa0=kappa0, b0=b0, v0=v0) < exact.total).any()


def test_worst_case_is_attained_by_aligned_drift() -> None:
    steps, eps = 100, sizes(100, 0.7)
    start = np.zeros(D)
    start[0] = -0.4
    aligned = exact_mse(drift("fixed", 0.7, steps), np.full(steps, TRACE), n=N_ROWS, kappa0=60, b0=start, v0=0.2).total
    assert worst_mse(eps, np.full(steps, TRACE), n=N_ROWS, kappa0=60, b0=0.4, v0=0.2) == pytest.approx(aligned)


@pytest.mark.parametrize("kappa0", [0.0, 50.0])
def test_paper_closed_form_unrolls_the_relaxed_recursion(kappa0: float) -> None:
    """Contraction kappa_{t-1}/kappa_t and drift weight kappa_t/n; the logarithm bounds the harmonic sum."""
    steps, n, eps, e = 30, 5, sizes(30, 1.2), 0.7
    eps[0] = 0.4
    by_recursion, kappa = [], kappa0
    for t in range(steps):
        before, kappa = kappa, kappa + n
        e = before / kappa * e + (kappa / n * eps[t] ** 2 if before else 0.0) + n / kappa**2 * 8 * 0.5
        by_recursion.append(e)
    closed = paper_mse_closed(eps, d=8, lmax=0.5, n=n, kappa0=kappa0, e0=0.7)
    assert (closed >= np.array(by_recursion) * (1 - 1e-12)).all()
    k = np.arange(1, steps + 1)
    harmonic = np.cumsum(n / (kappa0 + n * k))
    log = 1 + np.log(k) if kappa0 == 0 else np.log1p(n * k / kappa0)
    assert closed - np.array(by_recursion) == pytest.approx(8 * 0.5 * (log - harmonic) / (kappa0 + n * k), abs=1e-12)


def test_paper_recursion_step_by_step_and_for_batches_of_streams() -> None:
    eps, n, d, lmax, kappa, e = np.array([0.3, 0.1, 0.2]), 5, 8, 0.5, 15.0, 0.7
    for size in eps:
        x = n / (kappa + n)
        e = (1 - x) ** 2 * (1 + x) * e + (1 - x) ** 2 * (1 + 1 / x) * size**2 + x**2 * d * lmax / n
        kappa += n
    both = np.stack([eps, 2 * eps])
    found = paper_mse(both, d=d, lmax=lmax, n=n, kappa0=15, e0=0.7)
    assert found[0, -1] == pytest.approx(e)
    assert found[1] == pytest.approx(paper_mse(2 * eps, d=d, lmax=lmax, n=n, kappa0=15, e0=0.7))
    worst = worst_mse(both, np.array([[1.0, 2, 3], [2, 2, 2]]), n=n, kappa0=15, b0=0.5, v0=0.1)
    assert worst[1] == pytest.approx(worst_mse(2 * eps, [2, 2, 2], n=n, kappa0=15, b0=0.5, v0=0.1))
    closed = paper_mse_closed(both, d=d, lmax=lmax, n=n, kappa0=15, e0=0.7)
    assert closed[1] == pytest.approx(paper_mse_closed(2 * eps, d=d, lmax=lmax, n=n, kappa0=15, e0=0.7))


@pytest.mark.parametrize(
    ("direction", "alpha", "error", "recursion", "unrolled"),
    [
        ("fixed", 0.75, 2.567, 1.05, 1.05),
        ("fixed", 1.0, 0.0898, 1.13, 1.16),
        ("fixed", 1.25, 4.01e-3, 3.82, 4.42),
        ("fixed", 2.0, 5.14e-4, 22.4, 26.9),
        ("rotating", 0.25, 0.02307, 1.4e5, 1.4e5),
        ("rotating", 1, 5.13e-4, 197, 202),
    ],
)
def test_reference_values_after_2000_steps(
    direction: str, alpha: float, error: float, recursion: float, unrolled: float
) -> None:
    exact = exact_mse(drift(direction, alpha, 2000), np.full(2000, TRACE), n=N_ROWS).total[-1]
    eps = sizes(2000, alpha)
    assert exact == pytest.approx(error, rel=0.003)
    assert paper_mse(eps, d=D, lmax=1, n=N_ROWS)[-1] / exact == pytest.approx(recursion, rel=0.02)
    assert paper_mse_closed(eps, d=D, lmax=1, n=N_ROWS)[-1] / exact == pytest.approx(unrolled, rel=0.02)


def test_error_rises_after_a_warm_start_within_the_assumptions() -> None:
    """alpha = 1.25 > 1: the sentence that the error never increases is wrong by a factor of fifty."""
    moved = np.zeros((400, D))
    moved[:, 0] = 0.3 * np.arange(1, 401.0) ** -1.25
    start = TRACE / N_ROWS / 100
    total = exact_mse(moved, np.full(400, TRACE), n=N_ROWS, kappa0=100 * N_ROWS, v0=start).total
    assert start == pytest.approx(0.0103, rel=0.01)
    assert total.max() == pytest.approx(0.50, abs=0.01)
    assert total.argmax() + 1 == 23


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gains(0, n=3), "steps: must be at least 1, got 0"),
        (lambda: gains(3, n=-3), "n: must be at least 1, got -3"),
        (lambda: gains(3, n=3, forget=1.5), r"forget: must be in \(0, 1\], got 1.5"),
        (lambda: lag(np.ones((3, 2)), [0.5, 0, 1]), r"gains: must be in \(0, 1\], got 0"),
        (lambda: lag(np.ones(3), np.ones(3)), r"drift: must have shape \[..., T, d\]"),
        (lambda: lag(np.ones((3, 2)), np.ones(4)), r"gains: must have shape \[3\]"),
        (lambda: exact_mse(np.ones((3, 2)), np.ones(4), n=2), "traces: must have 3 steps"),
        (lambda: exact_mse(np.ones((3, 2)), [1, -1, 1], n=2), "traces: must be finite and at least 0, got -1"),
        (lambda: exact_mse(np.ones((3, 2)), np.ones(3), n=2, gains=np.ones(3), kappa0=1), "gains: give either"),
        (lambda: exact_mse(np.ones((3, 2)), np.ones(3), n=2, pool=10), "pool: needs frozen moments"),
        (lambda: exact_mse(np.zeros((3, 2)), np.ones(3), n=2, pool=5), "pool: must hold at least the 6 rows"),
        (lambda: worst_mse([0, 1], [1, 1], n=2, b0=-1), "b0: must be finite and at least 0, got -1"),
        (lambda: paper_mse([0, 1], d=2, lmax=0, n=2), "lmax: must be positive and finite, got 0"),
        (lambda: paper_mse_closed([0, np.nan], d=2, lmax=1, n=2), "sizes: must be finite and at least 0, got nan"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
