"""What the figures of diagnosis read from a run: its quality at the end, and the geometry of its target updates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from figures.frames import ArmRun, per_module
from stablediag.errors import DataError
from stablediag.stats import horizon
from stablediag.stats.horizon import PARTS

#: columns that name a run
KEYS = ("setting", "arm", "seed")
#: shares, in percent
SHARES = (*PARTS, "score", "agreement", "immediate", "retention")
#: every column of `quality` after the keys
QUALITY = ("edits", *SHARES, "locality_kl")
#: every column of `geometry` after the keys
GEOMETRY = ("norm_mean", "norm_first", "norm_last", "weight_ratio", "cosine", "realised_ratio", "unchanged_fraction")
#: metric -> name with unit, for axes and tables
LABELS = {
    "efficacy": "efficacy (%)",
    "generalization": "generalization (%)",
    "specificity": "specificity (%)",
    "score": "score (%)",
    "agreement": "agreement with the unedited model (%)",
    "immediate": "immediate efficacy (%)",
    "retention": "retention (%)",
    "locality_kl": "locality KL (nats)",
}


def quality(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """Quality at the end of each run.

    Returns
    -------
    DataFrame
        One row per run, columns `KEYS` and `QUALITY`:

        * ``edits``: target edits written until then;
        * efficacy, generalization, specificity (token match over past edits, percent), and their harmonic mean ``score``;
        * ``agreement``: share of locality answers that are the unedited model's, percent;
        * ``locality_kl``: divergence of the locality answers from the unedited model's, nats; NaN where it is not finite;
        * ``immediate``: mean success of every edit just after its step, percent;
        * ``retention``: mean success at the end of those evaluated edits whose answer was all right just after their step,
          percent; NaN where there are none. The mean over all edits would be the efficacy again.

    Raises
    ------
    DataError
        A run was not evaluated by all of these.
    """
    return pd.DataFrame([_quality(one) for one in runs], columns=[*KEYS, *QUALITY])


def unedited(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """The model before its first edit, on the whole stream: one row per setting and seed, arm ``unedited``.

    Returns
    -------
    DataFrame
        Columns `KEYS`, efficacy, generalization, specificity and score, percent.
    """
    found: dict[tuple[str, int], dict[str, object]] = {}
    for one in runs:
        if (one.setting, one.seed) not in found:
            start = horizon.scores(one.run).iloc[0]
            if start["step"] >= 0:
                raise DataError(f"{_name(one)}: the unedited model was not evaluated: make the run again")
            row = {"setting": one.setting, "arm": "unedited", "seed": one.seed}
            found[one.setting, one.seed] = row | {name: float(start[name]) for name in (*PARTS, "score")}
    return pd.DataFrame(list(found.values()), columns=[*KEYS, *PARTS, "score"])


def geometry(runs: Sequence[ArmRun]) -> pd.DataFrame:
    r"""Geometry of the target updates of each run.

    Returns
    -------
    DataFrame
        One row per run, columns `KEYS` and `GEOMETRY`: Frobenius norm of an update, mean over modules, as the mean over
        steps, at the first and at the last; :math:`\|W_n\|_F / \|W_0\|_F` after the last step, the largest over modules;
        mean absolute cosine of consecutive updates; mean share of the update that the weights took, and of the weights that
        did not change though their update is not zero. NaN where the run recorded none.
    """
    rows = []
    for one in runs:
        names = ["norm", "weight_ratio", "cosine", "realised_ratio", "unchanged_fraction"]
        table = per_module([one], "updates", names).astype(dict.fromkeys(names, float))
        table["cosine"] = table["cosine"].abs()
        norms = table.groupby("target_step")["norm"].mean()
        ratios = table.groupby("target_step")["weight_ratio"].max().dropna()
        rows.append(
            {
                **_keys(one),
                "norm_mean": norms.mean(),
                "norm_first": norms.iloc[0] if len(norms) else math.nan,
                "norm_last": norms.iloc[-1] if len(norms) else math.nan,
                "weight_ratio": ratios.iloc[-1] if len(ratios) else math.nan,
                **{name: table[name].mean() for name in ("cosine", "realised_ratio", "unchanged_fraction")},
            }
        )
    return pd.DataFrame(rows, columns=[*KEYS, *GEOMETRY])


def long(frame: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """One row per run and metric: every other column stays, `metric` and `value` are new."""
    kept = [name for name in frame.columns if name not in {*QUALITY, *GEOMETRY}]
    return frame.melt(id_vars=kept, value_vars=list(metrics), var_name="metric", value_name="value")


def _quality(one: ArmRun) -> dict[str, object]:
    last = horizon.scores(one.run).iloc[-1]
    if not last["edits"]:
        raise DataError(f"{_name(one)}: no evaluation after the first target edit: set evaluation.schedule to end")
    table = one.run.table("quality")
    at_end = table[table["step"] == last["step"]]
    edits = one.run.table("edits")
    right = edits.loc[edits["immediate_exact"] == 1, "retained"].astype(float)
    return {
        **_keys(one),
        "edits": int(last["edits"]),
        **{name: float(last[name]) for name in (*PARTS, "score")},
        "agreement": 100 * _value(one, at_end, "specificity_agreement", "token"),
        "immediate": 100 * float(edits["immediate"].astype(float).mean()),
        "retention": 100 * float(right.mean()),
        "locality_kl": _value(one, at_end, "specificity_kl", "nats"),
    }


def _value(one: ArmRun, table: pd.DataFrame, metric: str, kind: str) -> float:
    found = table.loc[(table["metric"] == metric) & (table["kind"] == kind), "value"]
    if not len(found):
        raise DataError(
            f"{_name(one)}: no {metric} ({kind}) at the end: evaluate specificity with evaluation.metrics=[kl]"
        )
    return float(found.astype(float).iloc[0])


def _keys(one: ArmRun) -> dict[str, object]:
    return {"setting": one.setting, "arm": one.arm, "seed": one.seed}


def _name(one: ArmRun) -> str:
    return f"run {one.arm}, {one.setting}, seed {one.seed}"
