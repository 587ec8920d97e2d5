"""From runs to long tables: the joins that several figures share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stablediag.stats import spectra
from stablediag.store.run import Run
from stablediag.store.state import load_state


@dataclass(frozen=True)
class ArmRun:
    """A complete run and its place in the comparison."""

    arm: str
    setting: str
    seed: int
    run: Run


def chosen(runs: Sequence[ArmRun], arms: Sequence[str]) -> list[ArmRun]:
    """The runs of these arms only."""
    return [one for one in runs if one.arm in arms]


def steps(one: ArmRun) -> pd.DataFrame:
    """Table `steps` of a run with its number of target edits so far (`edits_done`, 0 in a warm-up before it)."""
    table = one.run.table("steps").sort_values("step", ignore_index=True)
    return table.assign(edits_done=table["edits"].where(table["phase"] == "target", 0).cumsum())


def per_module(runs: Sequence[ArmRun], table: str, columns: Sequence[str]) -> pd.DataFrame:
    """Rows of `updates` or `tracking` at the target steps, one per run, step and module.

    Returns
    -------
    DataFrame
        Columns setting, arm, seed, target_step (from 1), edits, module, and `columns` (NaN where the run has none).
    """
    parts = []
    for one in runs:
        found = one.run.table(table).merge(steps(one)[["step", "phase", "target_step", "edits_done"]], on="step")
        found = found[found["phase"] == "target"]
        part = found[["module"]].assign(
            setting=one.setting,
            arm=one.arm,
            seed=one.seed,
            target_step=found["target_step"].astype(int) + 1,
            edits=found["edits_done"].astype(int),
            **{name: found[name].astype(float) if name in found else np.nan for name in columns},
        )
        parts.append(part)
    order = ["setting", "arm", "seed", "target_step", "edits", "module", *columns]
    return pd.concat(parts, ignore_index=True)[order] if parts else pd.DataFrame(columns=order)


def over_modules(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Mean, least and greatest value over the modules of each run and step: `x`, `x_min`, `x_max`; missing where all are."""
    keys = ["setting", "arm", "seed", "target_step", "edits"]
    grouped = frame.groupby(keys, sort=False)[list(columns)]
    parts = [grouped.mean(), grouped.min().add_suffix("_min"), grouped.max().add_suffix("_max")]
    return pd.concat(parts, axis=1).reset_index()


def final_spectra(one: ArmRun) -> dict[str, np.ndarray]:
    """Spectrum of the value gradients' covariance by scope, as the end of the run tells it (float64, shape [d]).

    It comes from the editor's state in the last checkpoint: eigenvalues of the unbiased estimate, shrunk to undo the spread
    that the finite number of rows adds. Scopes without a covariance are left out.
    """
    pointer = one.run.checkpoint
    if pointer is None:
        return {}
    tensors, _ = load_state(pointer[1])
    found = {}
    # Sorted, because the order in which a tensor file is read is not fixed.
    for name, scale in sorted(tensors.items()):
        if name.startswith("editor/") and name.endswith("/niw/scale"):
            scope = name.removeprefix("editor/").removesuffix("/niw/scale")
            rows = float(tensors[name.removesuffix("scale") + "nu"])
            if rows > len(scale) + 1:
                eigenvalues = np.linalg.eigvalsh(scale.double().numpy() / (rows - 1))
                found[scope] = spectra.shrunk_spectrum(eigenvalues, rows)
    return found


def width(one: ArmRun) -> int:
    """Largest output width of the edited modules: the dimension d of the value gradients."""
    return max(shape[1] for shape in one.run.info.model["modules"].values())
