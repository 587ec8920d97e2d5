"""From Monte-Carlo numbers to verdicts: tests with one stated false-alarm level, and the rows of the table of checks.

Every statistical test is made at `LEVEL`, the family level over the number of tests that a full run may hold, so that a
run in which every statement is true calls one false with probability one in ten thousand, whichever claims are selected
(Bonferroni: the tests need not be independent). Nominally so: the level is that of Student's t, and means over few skewed
replicates stray further. A bound is certified by a one-sided test; "not certified" is unknown, never false. What is not a
number is unknown too: it neither confirms a statement nor catches a violation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Verdict = Literal["holds", "loose", "false", "unknown"]
Floats = NDArray[np.float64]

#: probability that any check of a run errs although every statement is true
FAMILY_LEVEL = 1e-4
#: most statistical tests that a run may make; the registry's tests stay below it
FAMILY_SIZE = 4000
LEVEL = FAMILY_LEVEL / FAMILY_SIZE
#: a true bound further than this factor from what was measured is called loose
LOOSE = 2.0


@dataclass(frozen=True)
class Test:
    """Outcome of one comparison, at as many points as were compared.

    Attributes
    ----------
    verdict : {"holds", "false", "unknown"}
    z : float
        The most telling score: standard errors by which the statement is contradicted (positive) or, when it holds, the
        score that came closest to contradicting it. Infinite for a deterministic statement that is wrong.
    size : int
        Statistical tests made; zero for a deterministic comparison.
    """

    verdict: Verdict
    z: float
    size: int


def critical(*, two_sided: bool) -> float:
    """Score beyond which a test rejects at `LEVEL`."""
    return float(stats.norm.isf(LEVEL / (2 if two_sided else 1)))


def scores(mean: ArrayLike, se: ArrayLike, reference: ArrayLike, *, df: float) -> Floats:
    """Normal-equivalent scores of ``mean - reference``: t-statistics mapped to the normal tail of equal probability.

    Parameters
    ----------
    mean, se, reference : array-like
        Broadcast together. A standard error of zero gives a score of zero or infinity.
    df : float
        Degrees of freedom of the standard errors, replicates minus one.

    Notes
    -----
    D. L. Wallace, Bounds on normal approximations to Student's and the chi-square distributions, 1959.
    """
    gap = np.asarray(mean, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    se = np.broadcast_to(np.asarray(se, dtype=np.float64), gap.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(se > 0, gap / se, np.where(gap == 0, 0.0, np.sign(gap) * np.inf))
    return np.sign(t) * (8 * df + 1) / (8 * df + 3) * np.sqrt(df * np.log1p(t**2 / df))


def equality(mean: ArrayLike, se: ArrayLike, exact: ArrayLike, *, df: float) -> Test:
    """Is the expectation equal to `exact`? Two-sided at every point; false when one rejects."""
    return _accepted(np.atleast_1d(np.abs(scores(mean, se, exact, df=df))))


def upper(mean: ArrayLike, se: ArrayLike, bound: ArrayLike, *, df: float) -> Test:
    """Is the expectation at most `bound`? Holds when certified at every point, false when refuted at one, else unknown."""
    z = np.atleast_1d(scores(mean, se, bound, df=df))
    if np.isnan(z).any():
        return Test("unknown", 0.0, 2 * z.size)
    worst = float(z.max())
    limit = critical(two_sided=False)
    verdict: Verdict = "false" if worst > limit else "holds" if worst < -limit else "unknown"
    return Test(verdict, worst, 2 * z.size)


def lower(mean: ArrayLike, se: ArrayLike, bound: ArrayLike, *, df: float) -> Test:
    """Is the expectation at least `bound`? The mirror image of `upper`."""
    return upper(-np.asarray(mean, dtype=np.float64), se, -np.asarray(bound, dtype=np.float64), df=df)


def uniform(p_values: ArrayLike) -> Test:
    """Do goodness-of-fit tests accept? False when one p-value is below `LEVEL`."""
    p = np.atleast_1d(np.asarray(p_values, dtype=np.float64))
    return _accepted(stats.norm.isf(np.maximum(p, 1e-300) / 2))


def standard_normal(z: ArrayLike) -> Test:
    """Are independent scores standard normal? Kolmogorov-Smirnov, mean and spread."""
    z = np.asarray(z, dtype=np.float64).ravel()
    spread = (z**2).sum()
    tails = 2 * min(stats.chi2.cdf(spread, z.size), stats.chi2.sf(spread, z.size))
    return uniform([stats.kstest(z, "norm").pvalue, 2 * stats.norm.sf(abs(z.mean()) * math.sqrt(z.size)), tails])


def dominates(bound: ArrayLike, exact: ArrayLike, *, rtol: float = 1e-9) -> Test:
    """Is a computed bound at least the exact value, to rounding? Deterministic."""
    exact = np.asarray(exact, dtype=np.float64)
    return _deterministic(np.asarray(bound, dtype=np.float64), exact - rtol * np.abs(exact))


def identical(error: ArrayLike, tolerance: float) -> Test:
    """Is a relative error within rounding? Deterministic."""
    return _deterministic(np.asarray(tolerance, dtype=np.float64), np.asarray(error, dtype=np.float64))


def _accepted(z: Floats) -> Test:
    """Two-sided tests with these scores without a sign."""
    if np.isnan(z).any():
        return Test("unknown", 0.0, z.size)
    worst = float(z.max())
    return Test("false" if worst > critical(two_sided=True) else "holds", worst, z.size)


def _deterministic(limit: Floats, value: Floats) -> Test:
    if np.isnan(limit).any() or np.isnan(value).any():
        return Test("unknown", 0.0, 0)
    return Test("holds", 0.0, 0) if np.all(limit >= value) else Test("false", math.inf, 0)


@dataclass(frozen=True)
class Row:
    """One line of the table of checks.

    Attributes
    ----------
    claim, setting : str
        What is claimed, and where it was tried.
    measured, error : float
        Monte-Carlo mean and its standard error (zero for a deterministic comparison).
    exact, tight, paper : float or None
        The exact value, the sharper bound and the paper's bound, where there is one.
    slack : float or None
        The paper's bound, else the sharper one, over what was measured.
    verdict : {"holds", "loose", "false", "unknown"}
        Of the data alone.
    expected : {"holds", "false"}
        What the audited theory predicts; "false" for the paper's sentences that are wrong.
    seconds : float
        Of the simulation behind the row; rows that share one repeat it.
    planted : bool
        A violation put in on purpose, which the check must call false.
    caught : bool or None
        Whether it did; None when nothing was planted.
    z : float
        Score of the deciding test, in standard errors.
    power : float or None
        Probability of catching the violation again, from its score; None when nothing was planted.
    tests : int
        Statistical tests behind the row, counted against `FAMILY_SIZE`.
    note : str
    """

    claim: str
    setting: str
    measured: float
    error: float
    exact: float | None
    tight: float | None
    paper: float | None
    slack: float | None
    verdict: Verdict
    expected: Literal["holds", "false"]
    seconds: float
    planted: bool
    caught: bool | None
    z: float
    power: float | None
    tests: int
    note: str

    @property
    def ok(self) -> bool:
        """Whether the outcome is the predicted one."""
        if self.planted:
            return bool(self.caught)
        return (self.verdict in ("holds", "loose")) if self.expected == "holds" else self.verdict == "false"

    def as_dict(self) -> dict[str, Any]:
        """JSON values: numbers that are not finite become None."""
        plain = asdict(self) | {"ok": self.ok}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}


def row(
    claim: str,
    setting: str,
    tests: Sequence[Test],
    *,
    measured: float,
    error: float = 0.0,
    exact: float | None = None,
    tight: float | None = None,
    paper: float | None = None,
    slack: float | None = None,
    expected: Literal["holds", "false"] = "holds",
    planted: bool = False,
    seconds: float = 0.0,
    note: str = "",
) -> Row:
    """Combine tests to one row: false if one test is, else unknown if one is, else loose beyond a slack of `LOOSE`.

    Parameters
    ----------
    tests : sequence of Test
        Of the one statement that the row is about; at least one.
    slack : float, optional
        By default the paper's bound, else the sharper bound, over `measured`.
    """
    if not tests:
        raise ValueError(f"tests: a row of {claim!r} without a test cannot fail")
    bound = paper if paper is not None else tight
    if slack is None and bound is not None and measured:
        slack = float(bound) / float(measured)
    found = [test.verdict for test in tests]
    verdict: Verdict = "holds"
    if "false" in found:
        verdict = "false"
    elif "unknown" in found:
        verdict = "unknown"
    elif slack is not None and slack > LOOSE:
        verdict = "loose"
    z = max(test.z for test in tests)
    power = None
    if planted:
        power = 1.0 if math.isinf(z) and z > 0 else float(stats.norm.sf(critical(two_sided=True) - z))
    return Row(
        claim=claim,
        setting=setting,
        measured=float(measured),
        error=float(error),
        exact=_number(exact),
        tight=_number(tight),
        paper=_number(paper),
        slack=_number(slack),
        verdict=verdict,
        expected=expected,
        seconds=float(seconds),
        planted=planted,
        caught=(verdict == "false") if planted else None,
        z=z,
        power=power,
        tests=sum(test.size for test in tests),
        note=note,
    )


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
