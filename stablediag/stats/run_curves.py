"""Curves of a run for drawing: one number per step or evaluation, over modules, thinned to what a picture can show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from stablediag.errors import StablediagError
from stablediag.stats.horizon import scores
from stablediag.stats.switches import RunLike


@dataclass(frozen=True)
class Panel:
    """One quantity along a run.

    Attributes
    ----------
    name, label : str
        Label of the y axis, with its unit.
    table, column : str
        Where it comes from; of `quality` it is the score.
    over : str
        How modules become one number: geometric ``mean`` in logarithms, plain mean, or the largest.
    log : bool
        Whether the axis is logarithmic.
    """

    name: str
    label: str
    table: str
    column: str
    over: Literal["geometric", "mean", "largest"]
    log: bool


PANELS: tuple[Panel, ...] = (
    Panel("score", "score (%)", "quality", "score", "mean", False),
    Panel("update_norm", "update norm", "updates", "norm", "geometric", True),
    Panel("cosine", "adjacent cosine", "updates", "cosine", "mean", False),
    Panel("weight_ratio", "weight norm / unedited", "updates", "weight_ratio", "largest", True),
    Panel("condition", "condition number", "tracking", "condition_raw", "geometric", True),
    Panel("realised", "realised / wanted length", "updates", "realised_ratio", "mean", False),
)


def curve(run: RunLike, panel: Panel, *, points: int = 400) -> pd.DataFrame:
    """One quantity along the target steps of a run.

    Parameters
    ----------
    run : RunLike
    panel : Panel
    points : int
        Longer curves become means (geometric on a logarithmic axis) of as many blocks of steps.

    Returns
    -------
    DataFrame
        Columns edits (target edits written by then) and value; empty where it was not recorded.
    """
    found = _score(run) if panel.table == "quality" else _steps(run, panel)
    found = found[np.isfinite(found["value"]) & ((found["value"] > 0) | (not panel.log))]
    if len(found) <= points:
        return found.reset_index(drop=True)
    block = np.arange(len(found)) * points // len(found)
    value = np.log(found["value"]) if panel.log else found["value"]
    thinned = pd.DataFrame({"edits": found["edits"], "value": value}).groupby(block).mean().reset_index(drop=True)
    return thinned.assign(value=np.exp(thinned["value"])) if panel.log else thinned


def together(curves: Sequence[pd.DataFrame], *, log: bool) -> pd.DataFrame:
    """Mean of several curves where all of them are, on the places of the first; empty where they share none.

    Parameters
    ----------
    curves : sequence of DataFrame
        From `curve`.
    log : bool
        Geometric mean.
    """
    if not curves or any(not len(one) for one in curves):
        return pd.DataFrame({"edits": [], "value": []}, dtype=np.float64)
    low, high = max(one["edits"].iloc[0] for one in curves), min(one["edits"].iloc[-1] for one in curves)
    places = curves[0]["edits"].to_numpy(np.float64)
    places = places[(places >= low) & (places <= high)]
    rows = [np.interp(places, one["edits"], np.log(one["value"]) if log else one["value"]) for one in curves]
    mean = np.mean(rows, axis=0)
    return pd.DataFrame({"edits": places, "value": np.exp(mean) if log else mean})


def _score(run: RunLike) -> pd.DataFrame:
    try:
        found = scores(run)
    except (StablediagError, KeyError):
        return _empty()
    after: Any = found[found["edits"] > 0]
    return after[["edits", "score"]].rename(columns={"score": "value"})


def _steps(run: RunLike, panel: Panel) -> pd.DataFrame:
    if not {panel.table, "steps"} <= set(run.tables()):
        return _empty()
    table = _select(run, panel.table, ["step", panel.column])
    steps = _select(run, "steps", ["step", "phase", "edits", "skipped"]).sort_values("step")
    if panel.column not in table or not len(table):
        return _empty()
    target = steps[steps["phase"] == "target"]
    edits = dict(zip(target["step"], target["edits"].where(target["skipped"].isna(), 0).cumsum(), strict=True))
    table = table[table["step"].isin(list(edits))]
    value: Any = table[panel.column].astype(np.float64)
    value = np.log(value.where(value > 0)) if panel.over == "geometric" else value
    grouped = value.groupby(table["step"])
    one: Any = grouped.max() if panel.over == "largest" else grouped.mean()
    one = np.exp(one) if panel.over == "geometric" else one
    return pd.DataFrame({"edits": [float(edits.get(step, math.nan)) for step in one.index], "value": one.to_numpy()})


def _select(run: RunLike, name: str, columns: Sequence[str]) -> pd.DataFrame:
    """Some columns of a table, read alone where the run can."""
    select = getattr(run, "select", None)
    found: pd.DataFrame = run.table(name) if select is None else select(name, columns)
    return found


def _empty() -> pd.DataFrame:
    return pd.DataFrame({"edits": [], "value": []}, dtype=np.float64)
