"""The prequential error: against its definition, its moments by enumeration and simulation, and what breaks it."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest

from stablediag.stats.tracking import posterior_error, prequential_error, prequential_sd, prequential_variance


def by_pairs(rows, mean):
    """The definition: all pairs of different rows."""
    w = rows - mean
    n = len(w)
    return sum(w[i] @ w[j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))


def by_quadruples(rows, mean):
    w = rows - mean
    four = [(w[i] @ w[j]) * (w[k] @ w[p]) for i, j, k, p in itertools.permutations(range(len(w)), 4)]
    return by_pairs(rows, mean) ** 2 - np.mean(four)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 3, 6, 4)) + 5, rng.standard_normal((2, 3, 4))


def test_is_the_mean_over_pairs_of_different_rows(batch):
    rows, mean = batch
    found = prequential_error(rows, mean)
    assert found.shape == (2, 3)
    for at in np.ndindex(2, 3):
        assert found[at] == pytest.approx(by_pairs(rows[at], mean[at]), rel=1e-12)
    # one mean for all
    assert prequential_error(rows, mean[0, 0])[1, 2] == pytest.approx(by_pairs(rows[1, 2], mean[0, 0]), rel=1e-12)


def test_groups_average_tokens_first_wherever_they_stand(batch):
    rows, mean = batch
    groups = np.array([7, 1, 7, 3, 1, 7])
    edits = np.stack([rows[..., groups == g, :].mean(axis=-2) for g in (1, 3, 7)], axis=-2)
    np.testing.assert_allclose(prequential_error(rows, mean, groups=groups), prequential_error(edits, mean))
    np.testing.assert_allclose(
        posterior_error(rows, mean, 0.3, groups=list("baacba")),
        posterior_error(np.stack([rows[..., i, :].mean(axis=-2) for i in ([1, 2, 5], [0, 4], [3])], -2), mean, 0.3),
    )
    own = np.arange(6)[::-1]
    np.testing.assert_allclose(prequential_error(rows, mean, groups=own), prequential_error(rows, mean))


def test_posterior_error_follows_the_gain(batch):
    rows, mean = batch
    scatter = rows.var(axis=-2, ddof=1).sum(axis=-1) / 6
    before = prequential_error(rows, mean)
    np.testing.assert_allclose(posterior_error(rows, mean, 0.0), before)
    np.testing.assert_allclose(posterior_error(rows, mean, 1.0), scatter)
    np.testing.assert_allclose(posterior_error(rows, mean, 0.25), 0.5625 * before + 0.0625 * scatter)


def test_variance_is_that_of_pairs_less_quadruples(batch):
    rows, mean = batch
    found = prequential_variance(rows, mean)
    assert found.shape == (2, 3)
    assert found[1, 1] == pytest.approx(by_quadruples(rows[1, 1], mean[1, 1]), rel=1e-9)
    groups = [0, 0, 1, 2, 3, 3]
    edits = np.stack([rows[1, 1][np.array(groups) == g].mean(axis=0) for g in range(4)])
    assert prequential_variance(rows[1, 1], mean[1, 1], groups=groups) == pytest.approx(
        by_quadruples(edits, mean[1, 1]), rel=1e-9
    )


def test_moments_are_exact_for_a_skewed_law():
    """All batches of a law on three points, each with its probability: no sampling error."""
    points = np.array([[0.0, 0.0], [1.0, -1.0], [6.0, 2.0]])
    weight = np.array([0.6, 0.3, 0.1])
    mu = weight @ points
    cov = (points - mu).T @ (weight[:, None] * (points - mu))
    mean = mu + np.array([0.7, -0.4])
    n = 4
    choices = np.array(list(itertools.product(range(3), repeat=n)))
    chance = weight[choices].prod(axis=1)
    found = prequential_error(points[choices], mean)
    first = chance @ found
    assert first == pytest.approx(np.square(mean - mu).sum())
    variance = chance @ (found - first) ** 2
    assert variance == pytest.approx(prequential_sd(cov, n=n, error=mean - mu) ** 2)
    assert chance @ prequential_variance(points[choices], mean) == pytest.approx(variance)
    after = posterior_error(points[choices], mean, 0.3)
    truth = np.square(0.7 * mean + 0.3 * points[choices].mean(axis=1) - mu).sum(axis=-1)
    assert chance @ after == pytest.approx(chance @ truth)
    # The naive squared distance has the noise of the batch in it, and the error of an estimate at rest has none.
    naive = chance @ np.square(points[choices].mean(axis=1) - mean).sum(axis=-1)
    assert naive == pytest.approx(first + np.trace(cov) / n)
    assert prequential_sd(cov, n=n) ** 2 < variance


def test_mean_that_has_seen_the_batch_is_biased():
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((4000, 5, 3))
    stale = rng.standard_normal((4000, 3)) * 0.5
    honest = prequential_error(rows, stale) - np.square(stale).sum(axis=-1)
    peeked = (stale + rows.mean(axis=1)) / 2
    leaky = prequential_error(rows, peeked) - np.square(peeked).sum(axis=-1)
    z = [x.mean() / (x.std(ddof=1) / np.sqrt(len(x))) for x in (honest, leaky)]
    assert abs(z[0]) < 4
    assert z[1] < -15


def test_duplicated_tokens_inflate_the_error_unless_grouped():
    rng = np.random.default_rng(2)
    edits = rng.standard_normal((3000, 8, 4))
    tokens = np.repeat(edits, 3, axis=1)
    zero = np.zeros(4)
    groups = np.repeat(np.arange(8), 3)
    np.testing.assert_allclose(prequential_error(tokens, zero, groups=groups), prequential_error(edits, zero))
    # n = 24 rows, rho = 1: rho (m - 1) tr/(n - 1), which the docstring gives to leading order
    assert prequential_error(tokens, zero).mean() == pytest.approx(2 * 4 / 23, abs=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prequential_error(np.ones((1, 3)), np.zeros(3)), "rows: at least 2 are needed, got 1"),
        (lambda: prequential_error(np.ones(3), np.zeros(3)), r"rows: must have shape \[..., n, d\], got \[3\]"),
        (lambda: prequential_error(np.ones((4, 3)), np.zeros(2)), r"mean: must have shape \[..., 3\]"),
        (lambda: prequential_error(np.ones((4, 3)), 0.0), r"mean: must have shape \[..., 3\]"),
        (lambda: prequential_error(np.full((4, 3), np.nan), np.zeros(3)), "rows: must be finite"),
        (lambda: prequential_error(np.ones((4, 3)), np.full(3, np.inf)), "mean: must be finite"),
        (lambda: prequential_error(np.ones((4, 3)), np.zeros(3), groups=[0, 1]), r"groups: must have shape \[4\]"),
        (lambda: prequential_error(np.ones((4, 3)), np.zeros(3), groups=[2] * 4), "groups: at least 2 are needed"),
        (lambda: prequential_error(np.ones((0, 3)), np.zeros(3), groups=[]), "groups: at least 2 are needed, got 0"),
        (lambda: prequential_variance(np.ones((3, 2)), np.zeros(2)), "rows: at least 4 are needed, got 3"),
        (lambda: posterior_error(np.ones((4, 3)), np.zeros(3), 1.5), r"gain: must be in \[0, 1\], got 1.5"),
        (lambda: prequential_sd(np.eye(3), n=1), "n: must be at least 2, got 1"),
        (lambda: prequential_sd(np.ones((2, 3)), n=4), r"cov: must have shape \[..., d, d\]"),
        (lambda: prequential_sd(np.eye(3), n=4, error=np.ones(2)), r"error: must have shape \[..., 3\]"),
    ],
)
def test_refusals_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_needs_no_torch():
    code = "import sys, stablediag.stats.tracking; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
