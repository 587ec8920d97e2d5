"""Calibration: sampler against exact marginals, quantities against slow twins, uniform ranks if and only if all is right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from stablediag.errors import SpecError
from stablediag.maths import NIW
from synthetic.calibration import (
    RIGHT,
    WRONG,
    Calibration,
    Design,
    Draws,
    calibrate,
    merged,
    quantities,
    sample,
    sequential,
)
from synthetic.certify import LEVEL, uniform


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _state(d: int = 3, nu: float = 7.5, kappa: float = 2.5) -> NIW:
    mix = torch.randn(d, d, generator=_generator(1), dtype=torch.float64)
    return NIW(torch.arange(1.0, d + 1, dtype=torch.float64), kappa, mix @ mix.T + torch.eye(d), nu)


def _batches(design: Design, seed: int = 3) -> list[torch.Tensor]:
    shape = (design.sims, sum(design.batches), design.d)
    rows = torch.randn(shape, generator=_generator(seed), dtype=torch.float64) + 2.0
    return list(rows.split(list(design.batches), dim=-2))


def test_draws_have_the_exact_marginals():
    """``mu_i`` is Student-t, ``Psi_ii/Sigma_ii`` chi-square, ``|Psi|/|Sigma|`` a product of chi-squares."""
    state = _state()
    drawn = sample(state, 20_000, _generator())
    degrees = state.nu - state.d + 1
    sigma = drawn.root @ drawn.root.mT
    for i in range(state.d):
        width = float((state.scale[i, i] / (state.kappa * degrees)).sqrt())
        t = (drawn.mean[:, i] - state.mean[i]).numpy() / width
        assert stats.kstest(t, stats.t(degrees).cdf).pvalue > 1e-3
        ratio = (state.scale[i, i] / sigma[:, i, i]).numpy()
        assert stats.kstest(ratio, stats.chi2(degrees).cdf).pvalue > 1e-3
    rng = np.random.default_rng(0)
    product = np.prod([rng.chisquare(state.nu - k, 20_000) for k in range(state.d)], axis=0)
    ratio = (torch.linalg.det(state.scale) / torch.linalg.det(sigma)).numpy()
    assert stats.ks_2samp(ratio, product).pvalue > 1e-3


def test_draws_agree_with_another_inverse_wishart_sampler():
    state = _state()
    sigma = (lambda root: root @ root.mT)(sample(state, 20_000, _generator()).root).numpy()
    other = stats.invwishart(df=state.nu, scale=state.scale.numpy()).rvs(20_000, random_state=0)
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert stats.ks_2samp(sigma[:, i, j], other[:, i, j]).pvalue > 1e-3


def test_draws_of_the_mean_spread_with_their_own_covariance():
    state = _state()
    drawn = sample(state, 20_000, _generator())
    offset = (drawn.mean - state.mean).unsqueeze(-1)
    white = torch.linalg.solve_triangular(drawn.root, offset, upper=False).squeeze(-1) * state.kappa**0.5
    for i in range(state.d):
        assert stats.kstest(white[:, i].numpy(), "norm").pvalue > 1e-3


def test_quantities_equal_slow_twins():
    drawn = sample(_state(), 5, _generator())
    rows = torch.randn(6, 3, generator=_generator(2), dtype=torch.float64)
    found = quantities(drawn, rows)
    for k in range(5):
        sigma = (drawn.root[k] @ drawn.root[k].T).numpy()
        mean = drawn.mean[k].numpy()
        law = stats.multivariate_normal(mean, sigma)
        centre = rows.numpy().mean(axis=0) - mean
        twins = {
            **{f"mean {i + 1}": mean[i] for i in range(3)},
            "first variance": sigma[0, 0],
            "last variance": sigma[2, 2],
            "correlation": sigma[0, 2] / np.sqrt(sigma[0, 0] * sigma[2, 2]),
            "log determinant": np.log(np.linalg.det(sigma)),
            "log likelihood": law.logpdf(rows.numpy()).sum() + 9 * np.log(2 * np.pi),
            "distance to the data": centre @ np.linalg.solve(sigma, centre),
        }
        assert found.keys() == twins.keys()
        for name, twin in twins.items():
            assert float(found[name][k]) == pytest.approx(twin, rel=1e-9), name


def test_every_simulation_has_its_own_data_and_posterior():
    one = Design(sims=80, draws=7)
    rows = torch.cat(_batches(one), dim=-2)
    posterior = sequential(one.prior(), _batches(one))
    drawn = sample(posterior, 7, _generator())
    found = quantities(drawn, rows)["log likelihood"]
    alone = quantities(Draws(drawn.mean[11], drawn.root[11]), rows[11])["log likelihood"]
    torch.testing.assert_close(found[11], alone)


@pytest.mark.parametrize("name", RIGHT)
def test_right_backends_are_rejected_as_often_as_the_level_says(name):
    design = Design(sims=400, draws=15)
    p = np.array([list(calibrate(design, RIGHT[name], seed=seed).p_values().values()) for seed in range(40)])
    # A set of nine has one below .05/9 with probability .05 at most; more than 9 of 40 sets with less than 1e-4.
    assert ((p < 0.05 / 9).any(axis=1)).sum() <= 9
    assert 0.2 < p.mean() < 0.8
    assert uniform(p).verdict == "holds"


@pytest.mark.parametrize("name", WRONG)
def test_wrong_backends_are_caught_with_room_to_spare(name):
    """The quick scale: 1,000 simulations; a score beyond 5.6 rejects at the family level."""
    found = calibrate(Design(), WRONG[name], seed=12).p_values()
    assert min(found.values()) < LEVEL
    assert uniform(list(found.values())).z > 7.5


def test_ranks_of_parameters_alone_are_blind_where_the_data_are_needed():
    """A posterior that ignores the data is the prior: all parameters are uniform, the likelihood is not."""
    p = calibrate(Design(), lambda prior, batches: prior, seed=5).p_values()
    assert p.pop("log likelihood") < LEVEL
    assert p.pop("distance to the data") < LEVEL
    assert min(p.values()) > 1e-3


ALL = {"mean", "kappa", "scale", "nu"}
CHANGED = {
    "nu one short": {"nu"},
    "no mean-shift term": {"scale"},
    "mean shift about the new mean": {"scale"},
    "mean shift about a stale mean": {"scale"},
    "mean never moved": {"mean", "scale"},  # the scale of later batches, through the mean
    "weights of old and new mean swapped": {"mean", "scale"},
    "sample scatter of each batch": {"scale"},
    "forgetting left on": ALL,
    "last batch counted twice": ALL,
    "no prior": ALL,
    "merge with the prior in every part": ALL,
    "merge by plain average of means": {"mean", "scale"},
    "merge without the shift of means": {"scale"},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_backends_change_what_they_say(name):
    design = Design(sims=80)
    right, wrong = (backend(design.prior(), _batches(design)) for backend in (sequential, WRONG[name]))
    assert {
        field for field in ALL if not np.allclose(getattr(right, field), getattr(wrong, field), rtol=1e-9)
    } == CHANGED[name]
    assert bool((torch.linalg.eigvalsh(wrong.scale) > 0).all())  # it can pass for a posterior


@pytest.mark.parametrize("name", ["mean never moved", "weights of old and new mean swapped"])
def test_the_mean_alone_is_wrong_in_the_first_step(name):
    design = Design(sims=80)
    batches = _batches(design)[1:2]
    right, wrong = sequential(design.prior(), batches), WRONG[name](design.prior(), batches)
    assert torch.equal(right.scale, wrong.scale)
    assert not torch.allclose(right.mean, wrong.mean)


def test_swapped_weights_are_swapped():
    state = NIW.empty(2, kappa0=3.0, nu0=5.0, prior=1.0)
    rows = torch.tensor([[4.0, 8.0]], dtype=torch.float64)
    wrong = WRONG["weights of old and new mean swapped"](state, [rows])
    torch.testing.assert_close(wrong.mean, rows[0] * 3 / 4)


def test_shift_about_the_new_mean_is_about_the_new_mean():
    state = NIW.empty(2, kappa0=3.0, nu0=5.0, prior=1.0)
    rows = torch.tensor([[4.0, 8.0], [6.0, 10.0]], dtype=torch.float64)
    wrong = WRONG["mean shift about the new mean"](state, [rows])
    centre, after = rows.mean(dim=0), state.update(rows).mean
    centred, jump = rows - centre, centre - after
    expected = torch.eye(2) + centred.T @ centred + 3 * 2 / 5 * torch.outer(jump, jump)
    torch.testing.assert_close(wrong.scale, expected)


def test_both_right_backends_give_one_posterior():
    design = Design(sims=80)
    one, other = sequential(design.prior(), _batches(design)), merged(design.prior(), _batches(design))
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.scale, other.scale, rtol=1e-12, atol=1e-12)
    assert (one.kappa, one.nu) == (pytest.approx(other.kappa), other.nu)


def test_what_is_not_a_number_counts_against_the_backend():
    def broken(prior, batches):
        state = sequential(prior, batches)
        return NIW(state.mean * torch.nan, state.kappa, state.scale, state.nu)

    p = calibrate(Design(sims=80, draws=7), broken, seed=0).p_values()
    assert p["mean 1"] < LEVEL
    assert p["log likelihood"] < LEVEL


def test_p_values_know_tilt_and_bend():
    ranks = np.arange(800) % 64
    jitter = np.full(800, 0.5)
    bent = np.concatenate([ranks[:400] // 4, 63 - ranks[:400] // 4])
    found = Calibration({"flat": ranks, "tilted": np.minimum(ranks + 8, 63), "bent": bent}, 63, jitter)
    assert found.p_value("flat") > 0.5
    assert found.p_value("tilted") < 1e-6
    assert found.p_value("bent") < LEVEL
    levels = found.levels("flat")
    assert levels.min() > 0
    assert levels.max() < 1


def test_a_seed_fixes_the_result():
    design = Design(sims=80, draws=7)
    first, again, other = (calibrate(design, sequential, seed=seed).p_values() for seed in (4, 4, 5))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d": 1}, "^d: a correlation needs at least 2 coordinates, got 1"),
        ({"kappa0": 0.0}, "^kappa0, scale: a proper prior needs both positive, got 0 and 2"),
        ({"scale": -1.0}, "^kappa0, scale: .* got 0.3 and -1"),
        ({"nu0": 4.0}, r"^nu0: the covariance needs nu0 > d \+ 1 = 4, got 4"),
        ({"batches": ()}, "^batches: none may be empty"),
        ({"batches": (3, 0, 3)}, "^batches: none may be empty"),
        ({"batches": (3,)}, r"at least d \+ 1 = 4 rows in all"),
        ({"sims": 79}, "^sims: .* at least 80 simulations, got 79"),
        ({"draws": 64}, "^draws: must be one less than a multiple of 8, got 64"),
    ],
)
def test_designs_that_cannot_be_are_refused(change, message):
    with pytest.raises(SpecError, match=message):
        Design(**change)
