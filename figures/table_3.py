"""Table 3: time per edit, as ratios to ULTRAEDIT on the same machine, split into its parts."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from figures.frames import ArmRun, chosen
from figures.needs import Needs
from figures.verdict import Verdict, judge
from stablediag import plots
from stablediag.stats import compare

TITLE = "Time per edit relative to ULTRAEDIT"
ARMS = ("stableedit", "no_warmup", "ultraedit", "no_ln")
NEEDS = Needs(arms=ARMS, settings=("stress",))
BASE = "ultraedit"
#: part -> columns of the table `timings` that it adds up
PARTS = {
    "model pass": ("seconds_capture",),
    "statistics, solve, write": ("seconds_editor",),
    "method": ("seconds_capture", "seconds_editor"),
    "recording": ("seconds_record",),
}
#: what the paper reports for StableEdit over ULTRAEDIT (0.10 s over 0.07 s)
PAPER_RATIO = 1.43


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """Median milliseconds per edit over the target steps, by run and part, and their ratio to ULTRAEDIT of the same seed."""
    rows = []
    for one in chosen(runs, ARMS):
        table = one.run.table("timings").merge(one.run.table("steps")[["step", "phase", "edits"]], on="step")
        # The first step also pays for lazy initialisation.
        table = table[(table["phase"] == "target") & (table["edits"] > 0)].iloc[1:]
        machine = f"{one.run.info.device}, {one.run.spec['threads']} thread"
        for part, columns in PARTS.items():
            seconds = table[list(columns)].sum(axis=1) / table["edits"]
            place = {"setting": one.setting, "arm": one.arm, "seed": one.seed, "machine": machine}
            rows.append({**place, "part": part, "ms_per_edit": 1000 * float(seconds.median())})
    frame = pd.DataFrame(rows)
    base = frame[frame["arm"] == BASE].set_index(["setting", "seed", "part"])["ms_per_edit"]
    keys = pd.MultiIndex.from_frame(frame[["setting", "seed", "part"]])
    return frame.assign(ratio=frame["ms_per_edit"].to_numpy() / base.reindex(keys).to_numpy())


def draw(frame: pd.DataFrame) -> Figure:
    """Ratio of the whole method on the left, milliseconds of its parts on the right."""
    shown = ("method", "model pass", "statistics, solve, write", "recording")
    figure, axes = plots.canvas(1, len(shown), height=1.9)
    for ax, part in zip(axes[0], shown, strict=True):
        value = "ratio" if part == "method" else "ms_per_edit"
        plots.dots(compare.summary(frame[frame["part"] == part], value=value, by=["arm"]), ax)
        ax.set_title("whole method" if part == "method" else part, fontsize=7)
        ax.set_xlabel("time / ULTRAEDIT's" if part == "method" else "ms per edit")
        if part == "method":
            ax.axvline(1.0, color=plots.GREY, linewidth=0.8, zorder=1)
        else:
            ax.set_xlim(0, 1.08 * ax.get_xlim()[1])
        if ax is not axes[0, 0]:
            ax.tick_params(labelleft=False)
    return figure


def markdown(frame: pd.DataFrame) -> str:
    """Mean and 95 % interval over seeds, by arm."""
    lines = [
        f"# {TITLE}",
        "",
        f"Median over the steps of {', '.join(sorted(set(frame['machine'])))}.",
        "",
    ]
    lines += ["| editor | method / ULTRAEDIT | " + " | ".join(f"{part} (ms per edit)" for part in PARTS) + " |"]
    lines += ["|" + "---|" * (2 + len(PARTS))]
    for arm in plots.ordered(frame["arm"].tolist()):
        mine = frame[frame["arm"] == arm]
        cells = [_cell(mine.loc[mine["part"] == "method", "ratio"])]
        cells += [_cell(mine.loc[mine["part"] == part, "ms_per_edit"]) for part in PARTS]
        lines.append(f"| {plots.look(arm).label} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Runs of one seed are not made at the same moment: what else the machine did is part of the intervals.",
        "ULTRAEDIT and no LN also keep the covariance here, for the recorders; the methods themselves need none.",
    ]
    lines += ["Other baselines of the paper's table are not part of this package yet and were not run.", ""]
    return "\n".join(lines)


def _cell(values: pd.Series) -> str:
    interval = compare.t_interval(values)
    return f"{interval.mean:.3g}" if interval.n < 2 else f"{interval.mean:.3g} ± {interval.half:.2g}"


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Is full whitening slower than ULTRAEDIT, as the paper's table says?"""
    method = frame[frame["part"] == "method"]
    gap = compare.ratio(method, value="ms_per_edit", arm="arm", first="stableedit", second=BASE)
    claim = f"StableEdit costs more per edit than ULTRAEDIT (paper: {PAPER_RATIO} times)"
    return [judge(claim, gap, name="ratio of medians", shown_above=1.0)]
