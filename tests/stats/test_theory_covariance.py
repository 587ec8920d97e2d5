"""Expectation, pooled bound and published bound of the running covariance, against simulated streams."""

from __future__ import annotations

import numpy as np
import pytest

from stablediag.stats.theory import (
    W_chevet,
    W_gordon,
    W_sharp,
    cov_bias,
    effective_rank,
    exact_mse,
    mean_cov,
    niw_limit,
    paper_C1,
    paper_cov,
    paper_cov_closed,
    paper_floor,
    scatter_of_means,
    stationary_inflation,
    tight_cov,
)


def spectral(x: np.ndarray) -> np.ndarray:
    return np.abs(np.linalg.eigvalsh(x)).max(axis=-1)


def estimates(
    means: np.ndarray, spectra: np.ndarray, n: int, reps: int, eps0: float = 0.0, seed: int = 0
) -> np.ndarray:
    """Pooled estimates [reps, d, d] of a stream with these means [T, d] and diagonal covariances [T, d]."""
    rng, (steps, d) = np.random.default_rng(seed), means.shape
    rows = n * steps
    x = means[:, None] + np.sqrt(spectra)[:, None] * rng.standard_normal((reps, steps, n, d))
    x = x.reshape(reps, rows, d)
    x = x - x.mean(axis=1, keepdims=True)
    return (np.swapaxes(x, 1, 2) @ x + eps0 * np.eye(d)) / (rows - d - 1)


def stream(steps: int = 30, d: int = 8) -> tuple[np.ndarray, np.ndarray]:
    size = 0.4 * np.arange(1, steps + 1.0) ** -0.75
    means = np.zeros((steps, d))
    means[:, 0], means[:, 1] = np.cumsum(size), np.sin(np.arange(steps))
    spectra = np.stack([np.geomspace(0.1 + 0.5 * t / steps, 1, d) for t in range(steps)])
    return means, spectra


def test_expectation_of_the_estimate_entry_by_entry() -> None:
    means, spectra = stream()
    n, d, reps = 4, 8, 4000
    found = estimates(means, spectra, n, reps, eps0=2.0)
    arguments = {"N": n * len(means), "d": d, "eps0": 2.0}
    exact = mean_cov(np.diag(spectra.mean(axis=0)), scatter_of_means(means), **arguments)
    error = found.std(axis=0, ddof=1) / np.sqrt(reps)
    assert np.abs((found.mean(axis=0) - exact) / error).max() < 4.5
    # Planted violation: the scatter of the means left out.
    assert np.abs((found.mean(axis=0) - mean_cov(np.diag(spectra.mean(axis=0)), **arguments)) / error).max() > 15


def test_expectation_without_drift_is_an_inflation() -> None:
    rows = np.array([4200, 5000, 8192, 20000])
    assert stationary_inflation(4096, rows) == pytest.approx([40.8, 5.5, 2.0, 1.26], rel=0.01)
    sigma = np.diag([1.0, 2, 3])
    assert mean_cov(sigma, N=[10, 50], d=3) == pytest.approx(stationary_inflation(3, [10, 50])[:, None, None] * sigma)


def test_scatter_of_means() -> None:
    means = np.random.default_rng(1).standard_normal((2, 7, 3))
    assert scatter_of_means(means)[1] == pytest.approx(np.cov(means[1].T, bias=True))


def test_bias_term_is_the_written_out_matrix() -> None:
    means, spectra = stream()
    rows, d = 120, 8
    sbar, now, b = np.diag(spectra.mean(axis=0)), np.diag(spectra[-1]), scatter_of_means(means)
    matrix = 2 * np.eye(d) + (rows - 1) * (sbar - now) + rows * b + d * now
    assert cov_bias(sbar, now, b, N=rows, d=d, eps0=2.0) == pytest.approx(np.linalg.norm(matrix, 2))
    steps = np.diff(spectra, axis=0)
    lagged = -(np.arange(1, 30)[:, None] * steps).mean(axis=0) * 29 / 30
    assert np.diag(sbar - now) == pytest.approx(lagged)


@pytest.mark.parametrize("drifting", [False, True])
def test_pooled_bound_holds_at_every_length(drifting: bool) -> None:
    all_means, all_spectra = stream(60)
    n, d = 4, 8
    for steps in (4, 12, 60):
        means = all_means[:steps] if drifting else np.zeros((steps, d))
        spectra = all_spectra[:steps] if drifting else np.tile(all_spectra[0], (steps, 1))
        found = spectral(estimates(means, spectra, n, 200) - np.diag(spectra[-1])).mean()
        dominating = spectra.max(axis=0)
        r, rows = effective_rank(dominating), n * steps
        b = scatter_of_means(means) if drifting else None
        bias = cov_bias(np.diag(spectra.mean(axis=0)), np.diag(spectra[-1]), b, N=rows, d=d)
        w = W_chevet(r, rows) if drifting else W_gordon(r, rows)
        bound = tight_cov(N=rows, d=d, trace=dominating.sum(), top=dominating.max(), w=w, bias=bias, B=b)
        assert found < bound < 8 * found


def test_bound_without_the_scatter_of_means_is_broken_by_a_drift() -> None:
    steps, n, d = 300, 4, 8
    means = np.zeros((steps, d))
    means[:, 0] = 0.1 * np.arange(steps)
    spectra = np.ones((steps, d))
    found = spectral(estimates(means, spectra, n, 10) - np.eye(d)).mean()
    rows, b = n * steps, scatter_of_means(means)
    good, bad = (
        tight_cov(
            N=rows, d=d, trace=d, top=1, w=W_gordon(d, rows), B=x, bias=cov_bias(np.eye(d), np.eye(d), x, N=rows, d=d)
        )
        for x in (b, None)
    )
    assert found < good < 1.1 * found
    assert found > 40 * bad


def test_cross_term_of_noise_and_drift() -> None:
    """The part of the bound between noise and means, against the spectral norm of that part alone."""
    rng, d, steps, n = np.random.default_rng(7), 6, 40, 5
    spectrum, rows = np.geomspace(0.2, 2, d), steps * n
    for means in (np.outer(np.arange(steps), np.eye(d)[0]), rng.standard_normal((steps, d)) * 3):
        centred = np.repeat(means - means.mean(axis=0), n, axis=0)
        z = rng.standard_normal((300, rows, d)) * np.sqrt(spectrum)
        cross = np.swapaxes(z, 1, 2) @ centred
        found = spectral(cross + np.swapaxes(cross, 1, 2)).mean()
        b = scatter_of_means(means)
        lam, tr = spectrum.max(), spectrum.sum()
        arguments = {"N": rows, "d": d, "trace": tr, "top": lam}
        both, plain = (tight_cov(w=0.3, bias=4.0, B=x, **arguments) for x in (b, None))
        assert found < (both - plain) * (rows - d - 1) < 3 * found
        assert plain == pytest.approx((rows * lam * 0.3 + 4.0) / (rows - d - 1))


@pytest.mark.parametrize("c", [0.01, 0.2, 0.8])
def test_sharp_noise_in_the_pooled_bound_gives_the_isotropic_limit(c: float) -> None:
    d = 10**6
    rows = d / c
    found = tight_cov(N=rows, d=d, trace=d, top=1, w=W_sharp(d, rows), bias=d)
    assert found == pytest.approx(niw_limit(c), rel=1e-4)
    # The divisor N - 1 has another limit.
    assert niw_limit(c) > 1.05 * (2 * np.sqrt(c) + c)


@pytest.mark.parametrize(("rows", "measured", "ratio"), [(100, 7.89, 1.37), (2000, 0.421, 1.35), (20000, 0.1156, 1.35)])
def test_reference_values_isotropic_64(rows: int, measured: float, ratio: float) -> None:
    d = 64
    bias = cov_bias(np.eye(d), np.eye(d), N=rows, d=d)
    sharp, bound = (tight_cov(N=rows, d=d, trace=d, top=1, w=w(d, rows), bias=bias) for w in (W_sharp, W_gordon))
    assert measured / sharp == pytest.approx(0.965, abs=0.01)
    assert bound / measured == pytest.approx(ratio, abs=0.01)


def test_published_bound_keeps_a_floor() -> None:
    """The recursion from a measured start, with the measured noise of one batch: 22 and 80 times the measured error."""
    d, n, first = 64, 20, 100
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, n, d))
    x = x - x.mean(axis=1, keepdims=True)
    noise = spectral(np.swapaxes(x, 1, 2) @ x / n - np.eye(d)).mean()
    steps = (20_000 - first) // n
    before = exact_mse(np.zeros((1000, d)), np.full(1000, d), n=n).total[first // n - 1 : -1]
    constants = {"F0": 7.89, "nu0": first, "d": d, "n": n, "lmax": 1.0, "C2": 0.0, "noise": noise}
    bound = paper_cov(np.zeros(steps), np.zeros(steps), before, **constants)
    closed = paper_cov_closed(np.zeros(steps), np.zeros(steps), before, **constants)
    assert bound[(2000 - first) // n - 1] / 0.421 == pytest.approx(22, rel=0.05)
    assert bound[-1] / 0.1156 == pytest.approx(80, rel=0.03)
    assert (closed >= bound).all()
    long = paper_cov(np.zeros(200_000), np.zeros(200_000), np.zeros(200_000), **constants)
    assert long[-1] == pytest.approx(paper_floor(d=d, n=n, C2=0.0, noise=noise), rel=1e-2)


def test_recursion_by_hand_and_unrolled() -> None:
    eps, moved, before = np.array([0.1, 0.3]), np.array([0.05, 0.2]), np.array([0.4, 0.25])
    constants = {"F0": 2.0, "nu0": 30.0, "d": 6, "n": 5.0, "lmax": 1.5, "C1": 3.0}
    y = np.sqrt(6 / 5)
    f, divisor, kappa = 2.0, 23.0, 40.0
    for i in range(2):
        f = divisor / (divisor + 5) * (f + moved[i]) + 5 / (divisor + 5) * 1.5 * (3 * (y + y**2) + y**2)
        f += kappa * 5 / (kappa + 5) / (divisor + 5) * (6 * 1.5 / 5 + 2 * eps[i] ** 2 + 2 * before[i])
        divisor, kappa = divisor + 5, kappa + 5
    assert paper_cov(eps, moved, before, kappa0=40, **constants)[-1] == pytest.approx(f)
    floor = paper_floor(d=6, n=5, lmax=1.5, C1=3.0)
    assert floor == pytest.approx(1.5 * (3 * (y + y**2) + 2 * y**2))
    total = 23 * 2.0 + 10 * floor + 23 * moved[0] + 28 * moved[1] + 10 * (eps**2 + before).sum()
    closed = paper_cov_closed(eps, moved, before, **constants)
    assert closed[-1] == pytest.approx(total / 33)
    assert (closed > paper_cov(eps, moved, before, **constants)).all()


def test_published_bound_of_batches_of_streams() -> None:
    eps = np.array([[0.1, 0.3], [0.2, 0.6]])
    constants = {"F0": 2.0, "nu0": 30.0, "d": 6, "n": 5.0, "lmax": 1.5}
    for bound in (paper_cov, paper_cov_closed):
        found = bound(eps, [0.05, 0.2], [0.4, 0.25], **constants)
        assert found[1] == pytest.approx(bound(eps[1], [0.05, 0.2], [0.4, 0.25], **constants))


def test_published_recursion_bounds_a_drifting_stream() -> None:
    means, spectra = stream(30)
    n, d, start = 10, 8, 4
    found = [spectral(estimates(means[:t], spectra[:t], n, 100) - np.diag(spectra[t - 1])).mean() for t in (start, 30)]
    moved = np.abs(np.diff(spectra, axis=0)).max(axis=1)[start - 1 :]
    drift = np.diff(means, axis=0, prepend=means[:1])
    before = exact_mse(drift, spectra.sum(axis=1), n=n).total[start - 1 : -1]
    sizes = np.linalg.norm(drift, axis=1)[start:]
    bound = paper_cov(sizes, moved, before, F0=found[0], nu0=n * start, d=d, n=n, lmax=1.0)
    assert found[1] < bound[-1]


def test_constant_of_one_batch_and_the_floor() -> None:
    """C1 (y + y^2) covers the bound of one batch for d >= 6, with little to spare; floors at d = 4096."""
    for d in (6, 64, 4096):
        for n in (1, d, 100 * d):
            y = np.sqrt(d / n)
            assert W_gordon(d, n) <= paper_C1(d) * (y + y**2)
    y = np.sqrt(6 / 1e9)
    assert W_gordon(6, 1e9) == pytest.approx(paper_C1(6) * y, rel=0.01)
    assert W_gordon(4, 1) > (2 + 4.77 / 2) * (2 + 4)
    assert paper_C1(4096) == pytest.approx(2.0745, abs=1e-4)
    assert paper_floor(d=4096, n=100, noise=float(W_sharp(4096, 100))) == pytest.approx(135.7, abs=0.05)
    # Vacuous (error of the estimate zero is one) exactly up to n = 9 d rows.
    for n, vacuous in ((8.99 * 64, True), (9.01 * 64, False)):
        assert (paper_floor(d=64, n=n, noise=float(W_sharp(64, n))) > 1) is vacuous


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_cov(np.eye(64), N=60, d=64), r"N: 60 <= d \+ 1 = 65: no inverse exists; take more rows"),
        (lambda: mean_cov(np.eye(3), N=60, d=4), r"Sbar: must have shape \[..., 4, 4\], got \[3, 3\]"),
        (lambda: mean_cov(np.eye(3), np.ones(3), N=60, d=3), r"B: must have shape \[..., 3, 3\], got \[3\]"),
        (lambda: cov_bias(np.eye(3), np.eye(2), N=60, d=3), "Sigma_t: must have shape"),
        (lambda: tight_cov(N=60, d=3, trace=3, top=0, w=1, bias=1), "top: must be positive and finite, got 0"),
        (lambda: tight_cov(N=60, d=3, trace=3, top=1, w=1, bias=-1), "bias: must be finite and at least 0, got -1"),
        (lambda: paper_cov([0], [0], [0], F0=1, nu0=5, d=4, n=2, lmax=1), r"nu0: 5 <= d \+ 1 = 5: no inverse"),
        (lambda: paper_cov([0, 1], [0], [0, 1], F0=1, nu0=9, d=4, n=2, lmax=1), "cov_steps: must have 2 steps"),
        (lambda: paper_floor(d=4, n=2), "d: must be at least 6 for this constant, got 4"),
        (lambda: paper_floor(d=9, n=2, C1=1, noise=1), "noise: give either noise or C1"),
        (lambda: scatter_of_means([1, 2]), r"means: must have shape \[..., t, d\]"),
        (lambda: niw_limit(1.0), "c: must be below 1, got 1"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
