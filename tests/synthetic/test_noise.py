"""Noise: every kind has mean zero and covariance I, and the dependence that is documented and no other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stablediag.errors import SpecError
from synthetic.noise import Noise, NoiseStream

REPS, K, N, D = 1500, 3, 6, 4
NOISES = [
    Noise(),
    Noise("student", df=6.0),
    Noise("exponential"),
    Noise(dependence="intraclass", rho=0.3),
    Noise("exponential", dependence="intraclass", rho=0.6),
    Noise(dependence="tokens", tokens=3, rho=0.5),
    Noise("student", df=9.0, dependence="tokens", tokens=2, rho=1.0),
    Noise(dependence="ar1", rho=0.8),
    Noise("exponential", dependence="ar1", rho=-0.5),
    Noise(dependence="pool", pool=20),
    Noise("student", df=5.0, dependence="pool", pool=300),
    Noise(dependence="layers", layers=3, spread=1.2),
    Noise("student", df=8.0, dependence="layers", layers=2, spread=1.0),
]


def name_of(noise: Noise) -> str:
    return f"{noise.kind}-{noise.dependence}"


def stream_of(noise: Noise, *, reps: int = REPS, n: int = N, d: int = D, seed: int = 0) -> NoiseStream:
    return NoiseStream(noise, reps=reps, n=n, d=d, generator=torch.Generator().manual_seed(seed), seed=7)


def worst(sample: Tensor, expected: Tensor | float) -> float:
    """Largest z-score of the means over the independent replicates, dimension 0."""
    gap, spread = sample.mean(dim=0) - expected, sample.std(dim=0)
    tiny = 1e-12 * (1 + gap.abs())  # a pool drawn to the end does not vary
    return float((gap.abs() / (spread / math.sqrt(len(sample))).clamp_min(tiny)).max())


def products(a: Tensor, b: Tensor) -> Tensor:
    """Products of all coordinates of a and b [R, d], [R, d, d]."""
    return a.unsqueeze(2) * b.unsqueeze(1)


@pytest.mark.parametrize("noise", [n for n in NOISES if n.pool != 20], ids=name_of)
def test_rows_are_standardised_at_every_step(noise: Noise) -> None:
    stream = stream_of(noise)
    z = torch.cat([stream.next(2), stream.next(1)], dim=1)
    assert z.shape == (REPS, K, N, D)
    assert z.dtype == torch.float64
    for step in range(K):
        rows = z[:, step]
        assert worst(rows.mean(dim=1), 0.0) < 4.5
        second = (rows.mT @ rows) / N
        # The sample moments of a pool have divisor P - 1, so that one row's second moment is 1 - 1/P.
        size = 1 - 1 / noise.pool if noise.pool else 1.0
        assert worst(second, size * torch.eye(D, dtype=torch.float64)) < 4.5


@pytest.mark.parametrize("noise", [n for n in NOISES if n.dependence not in ("pool", "ar1")], ids=name_of)
def test_batch_means_have_the_design_effect_and_are_independent(noise: Noise) -> None:
    means = stream_of(noise, seed=1).next(2).mean(dim=2)
    factor = noise.design_effect(N) / N
    assert worst(products(means[:, 0], means[:, 0]), factor * torch.eye(D, dtype=torch.float64)) < 4.5
    assert worst(products(means[:, 0], means[:, 1]), 0.0) < 4.5


def test_design_effects() -> None:
    assert Noise(dependence="intraclass", rho=0.3).design_effect(20) == pytest.approx(6.7)
    assert Noise(dependence="tokens", tokens=3, rho=0.6).design_effect(12) == pytest.approx(2.2)
    assert Noise("student").design_effect(9) == 1


def test_the_check_sees_wrong_moments() -> None:
    eye = torch.eye(D, dtype=torch.float64)
    wild = stream_of(Noise("student", df=6.0)).next(1)[:, 0] * math.sqrt(6 / 4)  # without the factor (df - 2)/df
    assert worst((wild.mT @ wild) / N, eye) > 8
    means = stream_of(Noise(dependence="intraclass", rho=0.3)).next(1)[:, 0].mean(dim=1)
    assert worst(products(means, means), eye / N) > 8  # taken for independent rows
    offset = stream_of(Noise("exponential")).next(1)[:, 0] + 1  # not centred
    assert worst(offset.mean(dim=1), 0.0) > 8


def test_exponential_rows_are_skewed_and_independent_along_the_coordinates() -> None:
    z = stream_of(Noise("exponential"), n=40).next(1)[:, 0]
    assert float(z.min()) >= -1
    assert worst((z**3).mean(dim=1), 2.0) < 4.5
    assert worst((z[..., 0] ** 2 * z[..., 1] ** 2).mean(dim=1, keepdim=True), 1.0) < 4.5


def test_student_rows_share_one_chi_square() -> None:
    df = 12.0
    z = stream_of(Noise("student", df=df), n=40).next(1)[:, 0]
    squares = z[..., 0] ** 2 * z[..., 1] ** 2
    assert worst(squares.mean(dim=1, keepdim=True), (df - 2) / (df - 4)) < 4.5
    assert worst(squares.mean(dim=1, keepdim=True), 1.0) > 8  # not a product of independent t
    assert worst((z**4).mean(dim=1), 3 * (df - 2) / (df - 4)) < 4.5


def test_duplicated_tokens_are_equal() -> None:
    z = stream_of(Noise(dependence="tokens", tokens=3, rho=1.0)).next(2)
    clusters = z.view(REPS, 2, 2, 3, D)
    assert torch.equal(clusters[..., 0, :], clusters[..., 2, :])
    assert not torch.allclose(clusters[:, :, 0], clusters[:, :, 1])


def test_clusters_do_not_correlate() -> None:
    z = stream_of(Noise(dependence="tokens", tokens=3, rho=0.5)).next(1)[:, 0]
    eye = torch.eye(D, dtype=torch.float64)
    assert worst(products(z[:, 0], z[:, 2]), 0.5 * eye) < 4.5
    assert worst(products(z[:, 2], z[:, 3]), 0.0) < 4.5


@pytest.mark.parametrize("pieces", [(5,), (2, 3), (1, 1, 1, 1, 1)])
def test_autoregression_goes_on_across_calls(pieces: tuple[int, ...]) -> None:
    rho = 0.8
    stream = stream_of(Noise(dependence="ar1", rho=rho), n=2, seed=2)
    drawn = []
    for k in pieces:
        rows = stream.next(k)
        drawn.append(rows.clone())
        rows.mul_(100)  # what the caller does to its rows must not come back
    z = torch.cat(drawn, dim=1)
    eye = torch.eye(D, dtype=torch.float64)
    for lag in (1, 4):
        assert worst(products(z[:, 0, 0], z[:, lag, 0]), rho**lag * eye) < 4.5
    assert worst(products(z[:, 0, 0], z[:, 1, 1]), 0.0) < 4.5


def test_a_pool_has_its_moments_exactly_and_is_drawn_without_replacement() -> None:
    noise = Noise("exponential", dependence="pool", pool=20)
    stream = stream_of(noise, reps=3, n=5)
    rows = torch.cat([stream.next(2), stream.next(1), stream.next(1)], dim=1).flatten(1, 2)
    for one in rows:
        torch.testing.assert_close(one.mean(dim=0), torch.zeros(D, dtype=torch.float64), atol=1e-14, rtol=0)
        torch.testing.assert_close(one.T.cov(), torch.eye(D, dtype=torch.float64), atol=1e-13, rtol=0)
        assert len(torch.unique(one, dim=0)) == 20
    assert not torch.equal(rows[0], rows[1])  # the same rows in another order
    torch.testing.assert_close(rows[0].sort(dim=0).values, rows[1].sort(dim=0).values)


def test_pooled_means_shrink_by_the_finite_population_factor() -> None:
    noise = Noise(dependence="pool", pool=20)
    means = stream_of(noise, seed=3).next(2).flatten(1, 2).mean(dim=1)
    factor = (1 - 12 / 20) / 12
    eye = torch.eye(D, dtype=torch.float64)
    assert worst(products(means, means), factor * eye) < 4.5
    assert worst(products(means, means), eye / 12) > 8


def test_layer_means_form_a_regular_simplex() -> None:
    # Five layers at the largest distance in four coordinates: nothing is left within, every row is the mean of its layer.
    noise = Noise(dependence="layers", layers=5, spread=2.0)
    rows = stream_of(noise, reps=50).next(2).reshape(-1, D)
    corners = torch.unique(rows.round(decimals=9), dim=0)
    assert len(corners) == 5
    gram = corners @ corners.T
    torch.testing.assert_close(gram, 5 * torch.eye(5, dtype=torch.float64) - 1, atol=1e-7, rtol=0)


def test_rows_choose_their_layers_independently() -> None:
    noise = Noise(dependence="layers", layers=2, spread=1.0)
    stream = stream_of(noise)
    rows = stream.next(1)[:, 0]
    side = rows @ stream._basis  # two layers one apart from the mean: nothing is left within along their axis
    torch.testing.assert_close(side.abs(), torch.ones_like(side))
    assert worst(side[:, 0], 0.0) < 4.5
    assert worst(side[:, 0] * side[:, 1], 0.0) < 4.5


def test_one_layer_is_plain_noise() -> None:
    layered = stream_of(Noise(dependence="layers"), seed=4).next(1)
    assert torch.equal(layered, stream_of(Noise(), seed=4).next(1))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"kind": "cauchy"}, "kind"),
        ({"dependence": "some"}, "dependence"),
        ({"kind": "student", "df": 2.0}, "df: must exceed 2, got 2"),
        ({"df": -1.0}, "df"),
        ({"rho": 0.3}, "rho: no effect with dependence 'iid'"),
        ({"dependence": "intraclass", "rho": 1.1}, "rho"),
        ({"dependence": "intraclass", "rho": -0.1}, "rho"),
        ({"dependence": "tokens", "rho": -0.1}, "rho"),
        ({"dependence": "ar1", "rho": 1.0}, "rho"),
        ({"dependence": "ar1", "rho": -1.0}, "rho"),
        ({"dependence": "pool"}, "pool: give its size"),
        ({"pool": 100}, "pool: no effect"),
        ({"tokens": 3}, "tokens: no effect"),
        ({"layers": 3}, "layers: no effect"),
        ({"spread": 0.5}, "spread: at most"),
        ({"dependence": "layers", "layers": 3, "spread": 1.5}, "spread: at most sqrt"),
        ({"tokens": 0}, "tokens"),
    ],
)
def test_refusals_name_the_argument(fields: dict[str, object], name: str) -> None:
    with pytest.raises(SpecError, match=f"^{name}") as caught:
        Noise(**fields)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (Noise(dependence="tokens", tokens=4), "tokens: clusters of 4 do not fill a batch of n = 6 rows"),
        (Noise(dependence="layers", layers=6, spread=1.0), "layers: 6 means"),
        (Noise(dependence="pool", pool=59), "pool: 59 rows < n x steps = 60"),
    ],
)
def test_refusals_that_need_the_process(noise: Noise, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        noise.check(D, N, 10)


def test_a_pool_smaller_than_its_space_is_refused() -> None:
    with pytest.raises(SpecError, match="pool: 8 rows <= d = 8"):
        Noise(dependence="pool", pool=8).check(8, 2, 4)
