"""A run that meets every assumption of the doctor, and a fault for every rule."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pandas as pd

from stablediag.errors import StoreError

MODULES = ("a", "b")
STEPS, WARMUP, EDITS, D = 60, 10, 20, 24


@dataclass
class Fake:
    """A run of tables alone, with what `diagnose` reads beside them."""

    tables: dict[str, pd.DataFrame]
    info: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(model={"modules": {m: [32, D] for m in MODULES}})
    )

    def table(self, name):
        if name not in self.tables:
            raise StoreError(f"no table {name}")
        return self.tables[name]


def healthy(seed=0, steps=STEPS, modules=MODULES):
    """A run that meets every assumption."""
    rng = np.random.default_rng(seed)
    t = np.repeat(np.arange(steps), len(modules))
    key = {"step": t, "module": np.tile(modules, steps)}
    n = len(t)
    nu = (t + 1) * EDITS * 2.0
    norm = 0.5 * np.exp(rng.normal(size=n) * 0.05)
    weight = np.sqrt(100 + (t + 1) * 0.25)
    updates = {
        "norm": norm,
        "weight_norm": weight,
        "weight_ratio": weight / 10,
        "cosine": np.where(t > WARMUP, rng.normal(size=n) * 0.02, np.nan),
        "cosine_sd": 0.02,
        "realised_ratio": 1 + rng.normal(size=n) * 1e-6,
        "realised_cosine": 1.0,
        "unchanged_fraction": 0.0,
        "coherence": 1 + rng.normal(size=n) * 0.01,
        "coherence_low": 0.97,
        "coherence_high": 1.03,
        "bias_share": 0.5 / (t + 1),
        "grad_sq": np.exp(rng.normal(size=n) * 0.1),
    }
    tracking = {
        "nu": nu,
        "whitening_active": 1,
        "condition_raw": 50.0,
        "condition_floored": 50.0,
        "floored_fraction": 0.0,
        "whitened_index": np.exp(rng.normal(size=n) * 0.03),
        "prior_error": np.where(t == 0, np.nan, 1 / (t + 1) + rng.normal(size=n) * 0.1),
        "prior_error_null": 1.0,
        "effective_rank": 50.0,
        "edits": EDITS,
        "grad_tail": 1.2,
    }
    lags = [
        {"step": s, "module": m, "lag": lag, "value": rng.normal() * math.sqrt(8 / 50)}
        for m in modules
        for lag in (1, 2, 4, 8)
        for s in range(lag, steps)
    ]
    target = t >= WARMUP
    interference = {"past_sq": 0.01 * np.exp(rng.normal(size=n) * 0.1), "own_sq": 1.0, "chance_sq": 0.008}
    norms = {
        "weight_norm": weight,
        "new_sq": 5 + 0.3 * weight**2 + rng.normal(size=n) * 0.1,
        "old_sq": 2 + 0.5 * weight**2 + rng.normal(size=n) * 0.1,
    }
    done = EDITS * (steps - WARMUP)
    immediate = (np.arange(done) % 12 > 0).astype(float)
    quality = [
        ("efficacy", "exact", steps - 1, 0.9, done),
        ("efficacy_last_target", "exact", steps - 1, 0.9, done),
        ("specificity", "token", -1, 1.0, done),
        ("specificity", "token", steps - 1, 0.98, done),
        ("specificity_agreement", "token", steps - 1, 0.98, done),
        ("capability_mean", "exact", -1, 0.9, 1000),
        ("capability_mean", "exact", steps - 1, 0.9, 1000),
    ]
    rows = pd.DataFrame(quality, columns=["metric", "kind", "step", "value", "n"])
    every = np.arange(steps)
    return Fake(
        {
            "steps": pd.DataFrame(
                {
                    "step": every,
                    "phase": np.where(every < WARMUP, "warmup", "target"),
                    "written": 1,
                    "rows": 40,
                    "dropped_rows": 0,
                    "skipped": pd.Series([None] * steps, dtype=object),
                }
            ),
            "updates": pd.DataFrame(key | updates),
            "tracking": pd.DataFrame(key | tracking),
            "variogram": pd.DataFrame(lags),
            "interference": pd.DataFrame(key | interference)[target],
            "value_norms": pd.DataFrame(key | norms),
            "alarms": pd.DataFrame({"step": every[WARMUP:], "state": 0, "which": None}),
            "edits": pd.DataFrame(
                {
                    "position": np.arange(done),
                    "step": WARMUP + np.arange(done) // EDITS,
                    "immediate": immediate,
                    "retained": immediate * (rng.random(done) < 0.97),
                }
            ),
            "quality": rows.assign(low=rows["value"] - 0.01, high=rows["value"] + 0.01),
        }
    )


def updates_of(run, module):
    return run.tables["updates"]["module"] == module


def conflicts(run):
    rows = run.tables["quality"]
    rows.loc[rows["metric"] == "efficacy_last_target", "n"] -= 200


def rounding(run):
    u = run.tables["updates"]
    u.loc[updates_of(run, "b"), ["realised_ratio", "realised_cosine", "unchanged_fraction"]] = (0.6, 0.9, 0.7)


def shared(run):
    t = run.tables["tracking"]
    run.tables["tracking"] = t[t["module"] == "a"].assign(module=f"shape:32x{D}")
    u = run.tables["updates"]
    u.loc[updates_of(run, "b"), "grad_sq"] *= 16


def divisor(run):
    t = run.tables["tracking"]
    t["whitened_index"] *= (t["nu"] - 1) / (t["nu"] - D - 1)


def no_warmup(run):
    t = run.tables["tracking"]
    t["nu"] = (D + 1) * 1.2 + (t["step"] - WARMUP).clip(lower=0) * 40


def floored(run):
    t = run.tables["tracking"]
    t.loc[t["module"] == "a", "floored_fraction"] = 0.2


def singular(run):
    run.tables["tracking"]["condition_floored"] = 1e9


def too_large(run):
    run.tables["updates"]["norm"] *= 20


def overflow(run):
    run.tables["steps"].loc[[20, 21], "skipped"] = "not finite"


def one_long_update(run):
    u = run.tables["updates"]
    u.loc[(u["step"] == 30) & updates_of(run, "a"), "norm"] *= 9


def switch(run):
    t = run.tables["tracking"]
    t.loc[t["step"] >= 35, "whitened_index"] *= 0.3


def stale_scale(run):
    t = run.tables["tracking"]
    t["whitened_index"] *= np.exp(-1.2 * t["step"] / STEPS)


def drift(run):
    v = run.tables["variogram"]
    v["value"] += np.square(0.6 * v["lag"])


def stale_mean(run):
    t = run.tables["tracking"]
    t["prior_error"] += 200 / (t["step"] + 1)


def growing_updates(run):
    u = run.tables["updates"]
    u["norm"] *= np.exp(3 * (u["step"] - STEPS / 4) / STEPS).clip(lower=1.0)


def feedback(run):
    norms = run.tables["value_norms"]
    norms["new_sq"] += 0.6 * norms["weight_norm"] ** 2


def growing_weight(run):
    u = run.tables["updates"]
    u[["weight_norm", "weight_ratio"]] = u[["weight_norm", "weight_ratio"]].mul(1 + u["step"] / 20, axis=0)


def adding_up(run):
    run.tables["updates"]["coherence"] = 1 + run.tables["updates"]["step"] / 10


def alike(run):
    run.tables["updates"]["cosine"] += 0.3


def interfering(run):
    run.tables["interference"]["past_sq"] *= 90


def alarming(run):
    run.tables["alarms"].loc[30:, ["state", "which"]] = (2, "updates tracking")


def untaught(run):
    run.tables["edits"]["immediate"] *= 0.4
    run.tables["edits"]["retained"] *= 0.4


def used_up(run):
    e = run.tables["edits"]
    for column in ("immediate", "retained"):
        e.loc[e["step"] > 45, column] *= 0.75


def forgotten(run):
    run.tables["edits"]["retained"] *= 0.5


def side_effects(run):
    rows = run.tables["quality"]
    rows.loc[rows["metric"] == "specificity_agreement", ["value", "low", "high"]] = (0.7, 0.67, 0.73)


def damaged(run):
    rows = run.tables["quality"]
    rows.loc[(rows["metric"] == "capability_mean") & (rows["step"] > 0), ["value", "low", "high"]] = (0.6, 0.57, 0.63)


#: rule -> what breaks it
PLANTED = {
    "data_conflicts": conflicts,
    "precision_loss": rounding,
    "statistics_scope": shared,
    "divisor": divisor,
    "startup": no_warmup,
    "floored_fraction": floored,
    "conditioning": singular,
    "step_size": too_large,
    "finite_numbers": overflow,
    "tails": one_long_update,
    "distribution_switch": switch,
    "exchangeability": stale_scale,
    "drift_decay": drift,
    "bias_share": stale_mean,
    "norm_trend": growing_updates,
    "norm_feedback": feedback,
    "weight_growth": growing_weight,
    "coherence": adding_up,
    "adjacent_cosine": alike,
    "interference": interfering,
    "early_warning": alarming,
    "efficacy": untaught,
    "cumulative_effect": used_up,
    "forgetting": forgotten,
    "locality": side_effects,
    "capability": damaged,
}


def behind(run, error):
    """No drift shows between batches, and the tracked mean misses by an error of its own."""
    t = run.tables["tracking"]
    t["prior_error"] += error(t["step"] + 1) / t["step"].clip(lower=1)
