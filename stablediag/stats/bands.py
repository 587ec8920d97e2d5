"""Trajectories of several seeds as one band: mean, extremes, and the interval of the mean at every step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

COLUMNS = ("mean", "min", "max", "low", "high", "n")


def band(
    frame: pd.DataFrame, *, x: str, y: str, by: Sequence[str], unit: str = "seed", level: float = 0.95
) -> pd.DataFrame:
    """Collapse seeds at every value of `x`.

    Rows that share group, `x` and unit (modules of one run) are averaged first, so that a module never counts as a
    repetition.

    Parameters
    ----------
    frame : DataFrame
        Long format, one row per group, unit, `x` (and module).
    x, y : str
        Columns of the abscissa and of the value; rows whose value is missing are left out.
    by : sequence of str
        Columns that name a curve.
    unit : str
        Column of the independent repetitions.
    level : float
        Coverage of the t-interval of the mean.

    Returns
    -------
    DataFrame
        Columns `by`, `x`, mean, min, max (over units), low, high (t-interval of the mean, NaN for one unit), n; sorted by
        `x` within each curve, curves in order of first appearance.
    """
    keys = [*by, x]
    known = frame.dropna(subset=[y])
    per_unit = known.groupby([*keys, unit], sort=False, as_index=False)[y].mean()
    grouped = per_unit.groupby(keys, sort=False)[y]
    found = grouped.agg(["mean", "min", "max", "std", "count"]).reset_index().rename(columns={"count": "n"})
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = stats.t.ppf(0.5 + level / 2, found["n"] - 1) * found["std"] / np.sqrt(found["n"])
    spread = spread.where(found["n"] > 1)
    found = found.assign(low=found["mean"] - spread, high=found["mean"] + spread)
    order = {key: i for i, key in enumerate(dict.fromkeys(known[list(by)].itertuples(index=False, name=None)))}
    rank = [order[key] for key in found[list(by)].itertuples(index=False, name=None)]
    found = found.assign(_rank=rank).sort_values(["_rank", x], kind="stable").drop(columns="_rank")
    return found[[*keys, *COLUMNS]].reset_index(drop=True)


def slope(x: ArrayLike, y: ArrayLike) -> float:
    """Least-squares slope of log y on log x, over the points where both are positive; NaN with fewer than two."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    usable = (a > 0) & (b > 0) & np.isfinite(a) & np.isfinite(b)
    if np.unique(a[usable]).size < 2:
        return float("nan")
    return float(np.polyfit(np.log(a[usable]), np.log(b[usable]), 1)[0])
