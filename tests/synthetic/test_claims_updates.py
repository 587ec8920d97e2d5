"""The checks of the updates: they come out as predicted, and they say false when the numbers or the code are wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import synthetic.update_stream as update_stream
from stablediag.maths import LowRank
from synthetic.certify import Row
from synthetic.claims import Claim, Scale
from synthetic.claims import _updates_measure as measure
from synthetic.claims._updates_energy import within
from synthetic.claims.updates import CLAIMS
from synthetic.grid import Cell, Result, run_cells

QUICK = Scale(quick=True, seed=7)
Run = dict[str, tuple[Claim, list[Cell], list[Result]]]


@pytest.fixture(scope="module")
def done() -> Run:
    work = [(claim, claim.cells(QUICK)) for claim in CLAIMS]
    results = iter(run_cells([cell for _, cells in work for cell in cells]))
    return {claim.id: (claim, cells, [next(results) for _ in cells]) for claim, cells in work}


def rows_of(
    done: Run, name: str, *, change: Callable[[Cell, Result], Result] = lambda cell, result: result
) -> list[Row]:
    claim, cells, results = done[name]
    return claim.rows(cells, [change(cell, result) for cell, result in zip(cells, results, strict=True)])


def test_every_claim_is_as_predicted(done: Run) -> None:
    table = [row for name in done for row in rows_of(done, name)]
    assert [(row.claim, row.setting, row.verdict) for row in table if not row.ok] == []
    assert list(done) == [
        "theorem-3.8a",
        "theorem-3.8b",
        "corollary-3.9",
        "whitened-norm",
        "pythagoras",
        "remark-D.9",
        "theorem-3.8c",
        "cosine-null",
        "gamma-null",
    ]
    assert len({(row.claim, row.setting) for row in table}) == len(table)
    planted = [row for row in table if row.planted]
    assert len(planted) == 8
    assert all(row.power is not None and row.power > 0.99 for row in planted)


def test_cells_are_shared_but_seeds_are_not() -> None:
    for scale in (QUICK, Scale()):
        cells = {cell.digest(): cell for claim in CLAIMS for cell in claim.cells(scale)}
        assert len({cell.seed for cell in cells.values()}) == len(cells) == 23
    assert {cell.params["reps"] for claim in CLAIMS for cell in claim.cells(replace(QUICK, reps=40))} == {40}


WRONG = {
    # what is scaled -> rows that must turn false
    ("theorem-3.8a", "bias_gap"): ["equality, gauss"],
    ("corollary-3.9", "energy_gap"): [
        "equality, gauss",
        "equality, student",
        "equality, exponential",
        "equality, pool",
    ],
    ("pythagoras", "balance"): ["gauss, N", "student, N", "exponential, N"],
    ("pythagoras", "cross"): ["gauss, statistics from before"],
    ("theorem-3.8c", "inner"): ["all pairs of steps 4, 5, 12, gauss"],
    ("theorem-3.8c", "excess"): ["all pairs of 20 steps"],
    ("cosine-null", "mean"): ["gauss", "diagonal", "center", "student"],
    ("gamma-null", "excess"): ["mean"],
}


@pytest.mark.parametrize(("name", "quantity"), WRONG, ids=lambda value: str(value))
def test_a_shift_by_twelve_standard_errors_is_false(done: Run, name: str, quantity: str) -> None:
    def shifted(cell: Cell, result: Result) -> Result:
        if quantity not in result.values:
            return result
        moved = result[quantity] + 12 * result[f"{quantity}_se"]
        return Result({**result.values, quantity: moved}, result.seconds)

    table = rows_of(done, name, change=shifted)
    for setting in WRONG[name, quantity]:
        hit = [row for row in table if row.setting.startswith(setting) and not row.planted]
        assert hit
        assert {row.verdict for row in hit} == {"false"}


@pytest.mark.parametrize(
    ("name", "quantity", "factor"),
    [
        ("theorem-3.8a", "mse", 1e-5),
        ("theorem-3.8b", "M_phi", 1e-12),
        ("corollary-3.9", "M_phi", 1e-12),
        ("remark-D.9", "inflation", 0.1),
        ("remark-D.9", "row", 1.1),
        ("whitened-norm", "row", 1.05),
        ("whitened-norm", "sure", 3.0),
        ("cosine-null", "square", 0.5),
        ("gamma-null", "variance", 2.0),
    ],
)
def test_wrong_sizes_are_not_certified(done: Run, name: str, quantity: str, factor: float) -> None:
    def scaled(cell: Cell, result: Result) -> Result:
        if quantity not in result.values:
            return result
        return Result({**result.values, quantity: result[quantity] * factor}, result.seconds)

    before = {row.setting: row for row in rows_of(done, name)}
    changed = [row for row in rows_of(done, name, change=scaled) if row.verdict != before[row.setting].verdict]
    assert any(row.verdict == "false" for row in changed)


def test_no_centring_leaves_a_constant_bias(done: Run) -> None:
    _, cells, results = done["theorem-3.8a"]
    named = {result["rows"][0]: result for cell, result in zip(cells, results, strict=True) if _of(cell, "offset")}
    (result,) = named.values()
    assert result["bias"][-1] > 0.9 * result["bias"][0]
    assert result["hotelling"][-1] < 0.4 * result["hotelling"][0]


def _of(cell: Cell, option: str) -> float:
    return float(cell.params["stream"][option])


def test_within_needs_certainty_on_both_sides() -> None:
    verdicts = {mean: [test.verdict for test in within(mean, 0.01, 1.0, 1.1, df=999)] for mean in (1.0, 1.2, 0.8, 1.09)}
    assert verdicts == {
        1.0: ["holds", "holds"],
        1.2: ["false", "holds"],
        0.8: ["holds", "false"],
        1.09: ["unknown", "holds"],
    }


def test_a_wrong_root_in_the_code_is_false(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whitener that forgets one row of the statistics: two per cent at 48 rows."""
    claim, cells, results = done["whitened-norm"]
    build = update_stream.gradient_whitener

    def forgetful(stats: update_stream.NIW, **options: object) -> update_stream.Whitener:
        return build(replace(stats, nu=stats.nu - 1), **options)  # type: ignore[arg-type]

    monkeypatch.setattr(update_stream, "gradient_whitener", forgetful)
    wrong = [run_cells([cells[0]])[0], *results[1:]]
    assert claim.rows(cells, wrong)[0].verdict == "false"


def test_a_bias_of_the_wrong_sign_in_the_code_is_false(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts must add up to the update with the right sign for the cross term to be minus twice the bias."""
    claim, cells, results = done["pythagoras"]
    reduce = update_stream._reduce

    def flipped(stream: update_stream.UpdateStream, step: int, found: update_stream._Step) -> object:
        other = LowRank(found.bias.left, -found.bias.right)
        return reduce(stream, step, replace(found, bias=other))

    monkeypatch.setattr(update_stream, "_reduce", flipped)
    wrong = [run_cells([cells[0]])[0], *results[1:]]
    assert claim.rows(cells, wrong)[0].verdict == "false"


def test_without_a_mean_of_the_keys_interference_would_not_show() -> None:
    """Keys of random sign hide a bias that is there: the reason for the mean of the keys in the settings."""
    stream = measure.stream("uncentred", 5, key_mean=0.0)
    hidden = measure.measure_pairs(seed=3, reps=400, steps=[4, 5], stream=stream)
    shown = measure.measure_pairs(seed=3, reps=400, steps=[4, 5], stream=measure.stream("uncentred", 5))
    assert np.all(np.abs(hidden["inner"] / hidden["inner_se"]) < 5)
    assert np.all(shown["inner"] / shown["inner_se"] > 10)
