"""What a change of a spec does: paired effects on quality and on geometry, over seeds and edits, corrected for their number.

`stablediag.stats.pairs` has the intervals and the correction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from scipy import stats

from stablediag.errors import DataError
from stablediag.stats.pairs import Difference, holm, paired_edits

Group = Literal["quality", "geometry"]
#: relative difference of two numbers of runs below which they are equal
ROUNDING = 1e-6
#: share of the target steps that counts as the beginning of a run and as its end
EDGE = 0.2
COLUMNS = [
    "variation", "against", "metric", "group", "scale", "unit", "reference", "value", "effect", "low", "high", "p", "p_holm",
    "survives", "over", "seeds", "edits",
]  # fmt: skip


class RunLike(Protocol):
    """What gives tables by name, and knows which it has, such as `stablediag.store.run.Run`."""

    def table(self, name: str, /) -> Any:
        """A DataFrame."""
        ...

    def tables(self) -> Any:
        """Names of its tables."""
        ...


@dataclass(frozen=True)
class Measure:
    """A number of a run, and how two runs are compared in it.

    Attributes
    ----------
    name, label, meaning : str
    group : str
    scale : str
        ``difference`` (first less second) or ``ratio`` (first over second, by logarithms).
    unit : str
        Of the value; ``points`` are percent.
    edits : str or None
        Column of the values of single edits, in percent, where there are any.
    """

    name: str
    label: str
    meaning: str
    group: Group
    scale: Literal["difference", "ratio"]
    unit: str
    edits: str | None = None


MEASURES: tuple[Measure, ...] = (
    Measure("immediate", "immediate", "success of an edit right after its step", "quality", "difference", "points", "immediate"),
    Measure("efficacy", "efficacy", "success of the edits at the end", "quality", "difference", "points", "retained"),
    Measure("generalization", "general.", "success on paraphrases at the end", "quality", "difference", "points"),
    Measure("specificity", "specificity", "success on unrelated prompts at the end", "quality", "difference", "points"),
    Measure(
        "retention", "retention", "success at the end of the edits that both runs had all right just after their step",
        "quality", "difference", "points", "kept",
    ),
    Measure("locality_kl", "locality KL", "divergence of unrelated answers from the unedited model's", "quality", "difference", "nats"),
    Measure("update_norm", "update norm", "Frobenius norm of a target update, mean over steps", "geometry", "ratio", ""),
    Measure("cosine", "adj. cosine", "cosine of consecutive target updates, mean over steps", "geometry", "difference", ""),
    Measure("weight_growth", "weight growth", "norm of the weight over its unedited norm, less 1, at the end; largest module",
            "geometry", "difference", "points"),
    Measure("condition", "condition", "condition number of the covariance that normalises, last target step", "geometry", "ratio", ""),
    Measure("floored", "floored", "share of directions that the eigenvalue floor holds up, at the last target step", "geometry",
            "difference", "points"),
    Measure("condition_fall", "its fall", "condition number at the first fifth of the target steps over that at the last",
            "geometry", "ratio", ""),
    Measure("mean_shift_fall", "fall of mean shift", "shift of the tracked mean a step, first over last fifth", "geometry", "ratio", ""),
    Measure("cov_shift_fall", "fall of cov. shift", "shift of the tracked covariance a step, first over last fifth",
            "geometry", "ratio", ""),
    Measure("realised", "realised", "length of the change that the weights took over that of the update", "geometry", "difference", ""),
    Measure("rounding", "rounding", "length of what rounding changed over that of the update", "geometry", "difference", "points"),
)  # fmt: skip


@dataclass(frozen=True)
class Read:
    """One run as it is compared.

    Attributes
    ----------
    values, errors, counts : mapping of str to float
        By measure; standard errors over edits, and numbers of edits, of those that have one. NaN where not recorded.
    edits : DataFrame
        Columns edit, immediate, retained, kept (retained of those that were all right at first), percent; one row per edit.
    """

    values: Mapping[str, float]
    errors: Mapping[str, float]
    counts: Mapping[str, float]
    edits: pd.DataFrame


def read(run: RunLike) -> Read:
    """Everything that is compared of one run, NaN for what it did not record."""
    edits = _edits(run)
    values = {name: float(edits[column].mean()) for name, column in _of_edits().items()}
    quality, errors, counts = _quality(run)
    return Read(values | quality | _updates(run) | _tracking(run), errors, counts, edits)


def effects(
    runs: Iterable[tuple[str, int, RunLike]],
    against: Mapping[str, str],
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    """Effect of every variation on every measure.

    Parameters
    ----------
    runs : iterable of (str, int, RunLike)
        Variation, seed, run.
    against : mapping of str to str
        Variation -> the one that it is compared with. What is not a key is there for others alone.
    groups : mapping of str to sequence of str, optional
        Variation -> groups of measures that may be compared; both where not named.
    level : float
        Coverage of the intervals; an effect survives where `p_holm` is below ``1 - level``.

    Returns
    -------
    DataFrame
        One row per variation and measure that both have: columns `COLUMNS`. ``reference`` and ``value`` are means over seeds
        (geometric ones of ratios). ``over``: what the interval counts as drawn. With several seeds ``seeds`` or ``seeds and
        edits``; with one seed ``edits``, which says nothing about another seed, or ``nothing``, without an interval.
        ``p_holm``: Holm's correction over the whole table.

    Raises
    ------
    DataError
        There are no runs of a variation's reference.

    Notes
    -----
    With one seed the difference of two shares whose single edits are not kept takes their standard errors as independent.
    The runs share their edits, which makes it wide rather than narrow.
    """
    known = {(name, seed): read(run) for name, seed, run in runs}
    rows = []
    for name, other in against.items():
        pairs = [(known[key], known[other, key[1]]) for key in known if key[0] == name and (other, key[1]) in known]
        if not pairs and any(key[0] == name for key in known):
            raise DataError(f"{name}: no run of {other} at the same seed to compare it with")
        for measure in MEASURES:
            if pairs and measure.group in (groups or {}).get(name, ("quality", "geometry")):
                row = _effect(measure, pairs, level)
                if row is not None:
                    rows.append({"variation": name, "against": other, **row})
    table = pd.DataFrame(rows, columns=COLUMNS)
    corrected = holm(table["p"].to_numpy(np.float64))
    return table.assign(p_holm=corrected, survives=corrected < 1 - level)


def means(runs: Iterable[tuple[str, int, RunLike]]) -> pd.DataFrame:
    """Mean over seeds of every measure: one row per variation, geometric means of what is compared by ratio."""
    frame = pd.DataFrame([{"variation": name, **read(run).values} for name, _, run in runs])
    scales = {measure.name: measure.scale for measure in MEASURES}
    rows = [
        {"variation": name, **{key: _mean(part[key].to_numpy(np.float64), scale) for key, scale in scales.items()}}
        for name, part in (frame.groupby("variation", sort=False) if len(frame) else ())
    ]
    return pd.DataFrame(rows, columns=["variation", *scales])


def _of_edits() -> dict[str, str]:
    return {measure.name: measure.edits for measure in MEASURES if measure.edits is not None}


def _effect(measure: Measure, pairs: Sequence[tuple[Read, Read]], level: float) -> dict[str, Any] | None:
    """One row; None where one of the two has nothing."""
    ratio = measure.scale == "ratio"
    first, second = (np.array([pair[side].values[measure.name] for pair in pairs]) for side in (0, 1))
    both = _finite(first, ratio) & _finite(second, ratio)
    if not both.any():
        return None
    over, found = "seeds", _difference(measure, pairs, level)
    if measure.edits is not None and found.edits:
        over = "seeds and edits" if found.seeds > 1 else "edits"
    elif found.seeds == 1:
        over = "nothing" if math.isnan(found.se) else "edits"
    effect, low, high = ((math.exp(x) for x in (found.mean, found.low, found.high)) if ratio
                         else (found.mean, found.low, found.high))  # fmt: skip
    return {
        "metric": measure.name,
        "group": measure.group,
        "scale": measure.scale,
        "unit": measure.unit,
        "reference": _mean(second[both], measure.scale),
        "value": _mean(first[both], measure.scale),
        "effect": effect,
        "low": low,
        "high": high,
        "p": found.p,
        "p_holm": math.nan,
        "survives": False,
        "over": over,
        "seeds": found.seeds,
        "edits": found.edits,
    }


def _difference(measure: Measure, pairs: Sequence[tuple[Read, Read]], level: float) -> Difference:
    """Paired over seeds and edits, over seeds, or from two standard errors, whichever there is."""
    if measure.edits is not None:
        frame = pd.concat([
            read.edits[["edit", measure.edits]].assign(arm=side, seed=place)
            for place, pair in enumerate(pairs) for side, read in zip(("first", "second"), pair, strict=True)
        ])  # fmt: skip
        return paired_edits(
            frame, value=measure.edits, arm="arm", first="first", second="second", bounds=(0, 100), level=level
        )
    log: Callable[[float], float] = _log if measure.scale == "ratio" else float
    rows = []
    for place, pair in enumerate(pairs):
        one, two = (read.values[measure.name] for read in pair)
        # Else rounding errors, which are alike in every seed, would pass for an effect.
        one = two if math.isclose(one, two, rel_tol=ROUNDING) else one
        rows += [{"arm": side, "seed": place, "value": log(x)} for side, x in (("first", one), ("second", two))]
    frame = pd.DataFrame(rows)
    found = paired_edits(frame, value="value", arm="arm", first="first", second="second", edit=None, level=level)
    own, other = (pairs[0][side].errors.get(measure.name, math.nan) for side in (0, 1))
    cells = sum(pair[0].counts.get(measure.name, math.nan) for pair in pairs)
    # Seeds that agree to the last edit do not show that no edit differs: as many pairs with one more at either end.
    least = math.sqrt(2 * 100**2 / ((cells + 2) * cells)) if measure.unit == "points" and cells > 0 else 0.0
    if found.seeds == 1 and not math.isnan(own + other):
        return _student(found.mean, max(math.hypot(own, other), least), math.inf, 1, level)
    return _student(found.mean, least, found.freedom, found.seeds, level) if found.se < least else found


def _student(mean: float, se: float, freedom: float, seeds: int, level: float) -> Difference:
    half = float(stats.t.ppf(0.5 + level / 2, freedom)) * se
    p = 2 * float(stats.t.sf(abs(mean) / se, freedom)) if se > 0 else float(mean == 0)
    return Difference(mean, se, mean - half, mean + half, p, freedom, seeds, 0)


def _log(value: float) -> float:
    return math.log(value) if math.isfinite(value) and value > 0 else math.nan


def _finite(values: np.ndarray, positive: bool) -> np.ndarray:
    return np.isfinite(values) & (values > 0) if positive else np.isfinite(values)


def _mean(values: np.ndarray, scale: str) -> float:
    kept = values[_finite(values, scale == "ratio")]
    if not len(kept):
        return math.nan
    return float(np.exp(np.log(kept).mean())) if scale == "ratio" else float(kept.mean())


def _table(run: RunLike, name: str, columns: Sequence[str]) -> pd.DataFrame:
    """A table with at least these columns, empty or NaN where the run has them not."""
    found = run.table(name) if name in run.tables() else pd.DataFrame()
    missing = {column: np.full(len(found), np.nan) for column in columns if column not in found}
    return found.assign(**missing) if missing else found


def _edits(run: RunLike) -> pd.DataFrame:
    table = _table(run, "edits", ["edit_id", "immediate", "immediate_exact", "retained"])
    shares = {name: 100 * table[name].astype(float) for name in ("immediate", "retained")}
    kept = shares["retained"].where(table["immediate_exact"].astype(float) == 1)
    frame = pd.DataFrame({"edit": table["edit_id"], **shares, "kept": kept})
    # An edit that comes again counts once.
    return frame.groupby("edit", as_index=False, sort=False).mean()


def _quality(run: RunLike) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Values of the last evaluation behind the first edit, their standard errors over edits, and numbers of these."""
    table = _table(run, "quality", ["step", "metric", "kind", "value", "se", "n"])
    table = table[table["step"] >= 0]
    table = table[table["step"] == table["step"].max()]
    names = {
        "generalization": ("generalization", "token", 100.0),
        "specificity": ("specificity", "token", 100.0),
        "locality_kl": ("specificity_kl", "nats", 1.0),
    }
    values, errors, counts = {}, {}, {}
    for name, (metric, kind, factor) in names.items():
        row = table[(table["metric"] == metric) & (table["kind"] == kind)]
        values[name] = factor * float(row["value"].iloc[0]) if len(row) else math.nan
        errors[name] = factor * float(row["se"].astype(float).iloc[0]) if len(row) else math.nan
        counts[name] = float(row["n"].astype(float).iloc[0]) if len(row) else math.nan
    return values, errors, counts


def _target(run: RunLike, name: str, columns: Sequence[str]) -> pd.DataFrame:
    """Rows of a table at target steps, by step and module."""
    steps = _table(run, "steps", ["step", "phase"])
    table = _table(run, name, ["step", "module", *columns])
    found = table[table["step"].isin(steps.loc[steps["phase"] == "target", "step"])].sort_values("step")
    return found.astype(dict.fromkeys(columns, float))


def _updates(run: RunLike) -> dict[str, float]:
    table = _target(run, "updates", ["norm", "cosine", "weight_ratio", "realised_ratio", "realised_cosine"])
    kept = table["realised_ratio"]
    # An update that vanished altogether has no direction left.
    angle = table["realised_cosine"].mask(kept == 0, 0.0)
    table["rounding"] = np.sqrt((1 - 2 * kept * angle + kept**2).clip(lower=0))
    modules = table.groupby("module")
    ratio = modules["weight_ratio"].last().max()
    return {
        "update_norm": _mean(modules["norm"].mean().to_numpy(np.float64), "ratio"),
        "cosine": float(modules["cosine"].mean().mean()),
        "weight_growth": 100 * (float(ratio) - 1),
        "realised": float(modules["realised_ratio"].mean().mean()),
        "rounding": 100 * float(modules["rounding"].mean().mean()),
    }


def _tracking(run: RunLike) -> dict[str, float]:
    """Geometric means over scopes; the raw condition number, which also exists where nothing is inverted."""
    table = _target(run, "tracking", ["condition_raw", "floored_fraction", "mean_shift", "cov_shift"])
    falls: dict[str, list[float]] = {"condition_raw": [], "mean_shift": [], "cov_shift": []}
    last = []
    for _, scope in table.groupby("module"):
        for name, found in falls.items():
            known = scope[name].to_numpy(np.float64)
            known = known[_finite(known, True)]
            n = max(1, round(EDGE * len(known)))
            if len(known) > 1:
                found.append(_mean(known[:n], "ratio") / _mean(known[-n:], "ratio"))
        known = scope["condition_raw"].to_numpy(np.float64)
        last.append(known[np.isfinite(known)][-1] if np.isfinite(known).any() else math.nan)
    return {
        "floored": 100 * float(table.groupby("module")["floored_fraction"].last().mean()),
        "condition": _mean(np.array(last), "ratio"),
        "condition_fall": _mean(np.array(falls["condition_raw"]), "ratio"),
        "mean_shift_fall": _mean(np.array(falls["mean_shift"]), "ratio"),
        "cov_shift_fall": _mean(np.array(falls["cov_shift"]), "ratio"),
    }
