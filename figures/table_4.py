"""Table 4: which component does what, with the controls that the paper lacks."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from figures.frames import ArmRun, chosen, steps
from figures.needs import Needs
from figures.verdict import Verdict, judge
from stablediag import plots
from stablediag.stats import compare

TITLE = "Component ablation of StableEdit"
ARMS = (
    "stableedit", "no_warmup", "stats_only_warmup", "no_whitening", "no_h_norm", "ultraedit", "no_ln", "no_ln_first",
    "no_ln_every",
)  # fmt: skip
NEEDS = Needs(arms=ARMS, settings=("healthy", "stress"))
ROWS = {"healthy": "healthy horizon", "stress": "stress horizon"}
#: metric -> (heading, kind in the table `quality`)
QUALITY = {
    "efficacy": ("efficacy, retained", "token"),
    "generalization": ("generalization", "token"),
    "specificity": ("specificity, gold", "token"),
    "specificity_agreement": ("specificity, agreement", "token"),
    "capability_mean": ("capability", "exact"),
}
HEADINGS = {"immediate": "efficacy, immediate"} | {name: heading for name, (heading, _) in QUALITY.items()}
NORMS = {"norm_first": "first norm", "norm_last": "last norm"}


def prepare(runs: Sequence[ArmRun]) -> pd.DataFrame:
    """Metrics at the end of every run, and those of the unedited model: columns setting, arm, seed, metric, value."""
    parts = []
    for one in chosen(runs, ARMS):
        parts.append(_at_end(one))
        if one.arm == ARMS[0]:
            parts.append(_quality(one, "unedited", first=True))
    return pd.concat(parts, ignore_index=True)


def _at_end(one: ArmRun) -> pd.DataFrame:
    table = one.run.table("updates").merge(steps(one)[["step", "phase"]], on="step")
    norms = table[table["phase"] == "target"].groupby("step")["norm"].mean()
    further = {
        "immediate": one.run.table("edits")["immediate"].mean(),
        "norm_first": norms.iloc[0],
        "norm_last": norms.iloc[-1],
    }
    rows = [{**_place(one, one.arm), "metric": name, "value": float(value)} for name, value in further.items()]
    return pd.concat([_quality(one, one.arm, first=False), pd.DataFrame(rows)], ignore_index=True)


def _quality(one: ArmRun, arm: str, *, first: bool) -> pd.DataFrame:
    table = one.run.table("quality")
    table = table[table["step"] == (table["step"].min() if first else table["step"].max())]
    rows = []
    for metric, (_, kind) in QUALITY.items():
        value = table.loc[(table["metric"] == metric) & (table["kind"] == kind), "value"]
        if len(value):
            rows.append({**_place(one, arm), "metric": metric, "value": float(value.iloc[0])})
    return pd.DataFrame(rows)


def _place(one: ArmRun, arm: str) -> dict[str, object]:
    return {"setting": one.setting, "arm": arm, "seed": one.seed}


def draw(frame: pd.DataFrame) -> Figure:
    """One row of panels per horizon, one column per metric, one line per arm; columns share their axis."""
    shown = [metric for metric in HEADINGS if metric != "specificity_agreement"]
    figure, axes = plots.canvas(len(ROWS), len(shown), height=4.4, sharex="col")
    for row, (setting, title) in enumerate(ROWS.items()):
        part = frame[frame["setting"] == setting]
        for column, metric in enumerate(shown):
            ax = axes[row, column]
            mine = compare.summary(part[part["metric"] == metric], value="value", by=["arm"])
            missing = [arm for arm in dict.fromkeys(part["arm"]) if arm not in set(mine["arm"])]
            gaps = pd.DataFrame({"arm": missing, "mean": float("nan"), "low": float("nan"), "high": float("nan")})
            plots.dots(pd.concat([mine, gaps]) if missing else mine, ax)
            if row == 0:
                ax.set_title(HEADINGS[metric].replace(", ", ",\n"), fontsize=7)
            ax.tick_params(labelbottom=True, labelleft=column == 0)
        axes[row, 0].set_ylabel(title)
        axes[row, 0].tick_params(axis="y", labelsize=6.5)
    for ax in axes[0]:
        # A share has no values beyond 1, though an interval around it may.
        low, high = ax.get_xlim()
        ax.set_xlim(max(low, -0.04), min(high, 1.04))
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    figure.supxlabel("share of answer tokens (capability: share of items)", fontsize=7)
    return figure


def markdown(frame: pd.DataFrame) -> str:
    """Mean and half of the 95 % interval over seeds, one table per horizon."""
    columns = HEADINGS | NORMS
    lines = [f"# {TITLE}", ""]
    for setting, title in ROWS.items():
        part = frame[frame["setting"] == setting]
        lines += [f"## {title}, {part['seed'].nunique()} seeds", ""]
        lines += ["| editor | " + " | ".join(columns.values()) + " |", "|" + "---|" * (1 + len(columns))]
        for arm in plots.ordered(part["arm"].tolist()):
            mine = part[part["arm"] == arm]
            cells = [_cell(mine.loc[mine["metric"] == metric, "value"]) for metric in columns]
            lines.append(f"| {plots.look(arm).label} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(values: pd.Series) -> str:
    interval = compare.t_interval(values)
    if interval.n == 0:
        return "-"
    return f"{interval.mean:.3f}" if interval.n < 2 else f"{interval.mean:.3f} ± {interval.half:.3f}"


#: (claim, metric, arm that should be higher, arm that should be lower)
CLAIMS = (
    ("warm-up helps: full above no warm-up", "efficacy", "stableedit", "no_warmup"),
    ("warm-up helps: full above no warm-up", "specificity", "stableedit", "no_warmup"),
    ("whitening helps: full above no whitening", "efficacy", "stableedit", "no_whitening"),
    ("whitening helps: full above no whitening", "specificity", "stableedit", "no_whitening"),
    ("StableEdit above ULTRAEDIT", "efficacy", "stableedit", "ultraedit"),
    ("StableEdit above ULTRAEDIT", "specificity", "stableedit", "ultraedit"),
    ("warm-up edits do better than a statistics-only warm-up", "efficacy", "stableedit", "stats_only_warmup"),
    ("warm-up edits do better than a statistics-only warm-up", "specificity", "stableedit", "stats_only_warmup"),
    ("no LN is far below full (same rate)", "efficacy", "stableedit", "no_ln"),
    (
        "no LN at the same rate is a collapse: specificity falls below the unedited model's",
        "specificity",
        "unedited",
        "no_ln",
    ),
    ("no LN is below full at a norm matched at step 1", "efficacy", "stableedit", "no_ln_first"),
    ("no LN is below full at a norm matched at step 1", "specificity", "stableedit", "no_ln_first"),
    ("no LN is below full at a norm matched at every step", "efficacy", "stableedit", "no_ln_every"),
    ("no LN is below full at a norm matched at every step", "specificity", "stableedit", "no_ln_every"),
)


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    """Paired differences over seeds for each of `CLAIMS`, by horizon."""
    found = []
    for setting, title in ROWS.items():
        part = frame[frame["setting"] == setting]
        for claim, metric, higher, lower in CLAIMS:
            gap = compare.paired(part[part["metric"] == metric], value="value", arm="arm", first=higher, second=lower)
            found.append(judge(f"{title}, {HEADINGS[metric]}: {claim}", gap, name="difference", shown_above=0.0))
    return found
