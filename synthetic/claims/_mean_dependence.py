"""What the error of the running mean is when rows or batches depend on each other, and when they are not Gaussian.

The equality asks for independent rows alone, not for normality. Dependence changes the variance by a factor that is exact
too (derived here), and the formula for independent rows must then be refuted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from synthetic.certify import Row, row
from synthetic.claims import Claim, Scale
from synthetic.claims._mean_cells import SIZE, Floats, Run, fresh_cell, independent, oracle
from synthetic.grid import Cell, Result
from synthetic.process import MeanDrift, Noise, Process

ID = "dependence"
STEPS = (5, 15, 50)
ROWS = 20

#: noise by name
KINDS: Mapping[str, Noise] = {
    "Student rows, 5 degrees of freedom": Noise("student", df=5.0),
    "skewed rows (exponential)": Noise("exponential"),
    "rows of three layers": Noise(dependence="layers", layers=3, spread=1.0),
    "rows of a batch correlated by 0.3": Noise(dependence="intraclass", rho=0.3),
    "four tokens an edit, correlated by 0.6": Noise(dependence="tokens", tokens=4, rho=0.6),
    "duplicated tokens, two of each": Noise(dependence="tokens", tokens=2, rho=1.0),
    "batches autoregressive with 0.5": Noise(dependence="ar1", rho=0.5),
    "rows without replacement from a pool": Noise(dependence="pool", pool=2 * ROWS * STEPS[-1]),
}
#: independent rows are assumed where they are not
PLANTED = (
    "rows of a batch correlated by 0.3",
    "duplicated tokens, two of each",
    "batches autoregressive with 0.5",
    "rows without replacement from a pool",
)


def _process(scale: Scale, name: str) -> Process:
    noise = KINDS[name]
    # A frozen pool does not drift.
    mean = MeanDrift() if noise.dependence == "pool" else MeanDrift(C=SIZE, alpha=2.0)
    seed = scale.seed_of("mean", "path", name)
    return Process(d=32, n=ROWS, steps=STEPS[-1], mean=mean, noise=noise, seed=seed)


def _cells(scale: Scale) -> list[Cell]:
    return [fresh_cell(scale, _process(scale, name), STEPS, name, cost=2.0) for name in KINDS]


def _rows(cells: Sequence[Cell], results: Sequence[Result]) -> list[Row]:
    runs = {name: Run.of(cell, one) for name, cell, one in zip(KINDS, cells, results, strict=True)}
    return [
        *(_row(name, run, oracle(run.process).total) for name, run in runs.items()),
        *(
            _row(f"planted: {name}, taken for independent", runs[name], independent(runs[name].process).total, True)
            for name in PLANTED
        ),
    ]


def _row(name: str, run: Run, exact: Floats, planted: bool = False) -> Row:
    measured, error = run.final()
    iid = independent(replace(run.process, noise=Noise())).total[-1]
    return row(
        ID,
        name,
        [run.equals(exact)],
        measured=measured,
        error=error,
        exact=exact[-1],
        planted=planted,
        seconds=0.0 if planted else run.result.seconds,
        note=f"{measured / iid:.2f} times the error of independent rows",
    )


CLAIMS = (
    Claim(
        ID,
        "the error of the running mean is exact for every distribution, and under dependence up to a known factor",
        "derived here",
        _cells,
        _rows,
    ),
)
