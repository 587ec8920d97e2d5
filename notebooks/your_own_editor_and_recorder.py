# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own editor and your own recorder
#
# **Why does a plain gradient step disturb facts that nobody edited, and can it be told not to?** A hypothesis of one's
# own usually needs a number that nobody records and an editor that nobody has. Both are written here, in a few lines
# each, checked by the public suites, and run against StableEdit.
#
# The hypothesis: the keys of all facts share a direction. What is written along it answers to every question.

# %%
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field

import stablediag
from stablediag import BaseEditor, LowRank, check_editor, check_recorder, plots
from stablediag.editors.base import Proposal
from stablediag.recorders.base import BaseRecorder, Row

QUICK = bool(os.environ.get("STABLEDIAG_QUICK"))
EDITS, LENGTHS = (200, (0.05, 0.2)) if QUICK else (600, (0.05, 0.1, 0.2, 0.4))
runs = Path(tempfile.mkdtemp(prefix="stablediag-"))
pd.set_option("display.precision", 3)

# %% [markdown]
# ## A recorder: is there a shared direction?
#
# A recorder returns rows and changes nothing. This one keeps the sum of all keys so far and says, for every step and
# module, how much of the new keys' squared length lies along it. What must survive an interruption goes into
# `state_dict`.


# %%
@dataclass
class SharedKey(BaseRecorder):
    """Share of the squared length of a step's keys that lies along the mean of all earlier keys."""

    name = "shared_key"
    columns: dict = field(default_factory=lambda: {"updates": {"shared_key": "REAL"}}, init=False)
    sums: dict = field(default_factory=dict, init=False, repr=False)

    def on_step(self, step):
        for module, capture in step.captures.items():
            keys = capture.keys.double()
            before = self.sums.get(module)
            if before is not None and len(keys):
                along = (keys @ (before / before.norm())).square().sum()
                yield Row(
                    "updates", {"step": step.step, "module": module}, {"shared_key": float(along / keys.square().sum())}
                )
            self.sums[module] = keys.sum(dim=0) + (0 if before is None else before)

    def state_dict(self):
        return dict(self.sums), {}

    def load_state_dict(self, tensors, meta):
        self.sums = dict(tensors)


items = check_recorder(SharedKey())
len(items), items[0]

# %% [markdown]
# The suite takes the recorder through a small run, stops it at every step, loads its state into a fresh one, and
# compares. A recorder that forgets its state is caught:


# %%
class Forgetful(SharedKey):
    def state_dict(self):
        return {}, {}

    def load_state_dict(self, tensors, meta):
        self.sums = {}


try:
    check_recorder(Forgetful())
except AssertionError as error:
    print(error)

# %% [markdown]
# ## An editor: a gradient step that leaves the shared direction alone
#
# An editor yields proposals in `step`; the session writes them; the editor's own state changes in `commit` alone, so
# that a proposal which is not written leaves no trace. Every step has the same length, a share of the weight's norm.


# %%
class Params(BaseModel):
    model_config = ConfigDict(extra="forbid")
    length: float = Field(0.02, gt=0, description="length of an update over that of the weight as loaded")
    project: bool = Field(True, description="leave the direction of the mean key alone")


class SharedKeyEditor(BaseEditor):
    """A gradient step of fixed length, orthogonal to the mean of all keys so far."""

    Params = Params
    presets = {"plain": {"project": False}}

    def __init__(self, params, modules):
        super().__init__(params, modules)
        self.extra_columns = {"gradient_norm": "REAL"}
        self.sums, self.pending = {}, {}

    def step(self, view, batch, captures):
        self.pending = dict(self.sums)
        for name in self.modules if batch.edits else ():
            keys = captures[name].keys
            total = keys.double().sum(dim=0) + self.sums.get(name, 0)
            self.pending[name] = total
            if self.params.project:
                shared = (total / total.norm().clamp_min(1e-12)).to(keys)
                keys = keys - torch.outer(keys @ shared, shared)
            gradient = LowRank(keys.T, captures[name].grads)
            norm = float(gradient.norm())
            size = self.params.length * view.initial_norm(name)
            yield Proposal(name, gradient.scaled(-size / max(norm, 1e-12)), extra={"gradient_norm": norm})

    def commit(self, view, applied):
        self.sums = self.pending

    def state_dict(self):
        return dict(self.sums), {}

    def load_state_dict(self, tensors, meta):
        self.sums = dict(tensors)


proposals = check_editor(SharedKeyEditor)
print(f"{len(proposals)} proposals, all rules kept")

# %% [markdown]
# An editor that changes its state too early is caught as well:


# %%
class Hasty(SharedKeyEditor):
    def step(self, view, batch, captures):
        yield from super().step(view, batch, captures)
        self.sums = self.pending


try:
    check_editor(Hasty)
except AssertionError as error:
    print(error)

# %% [markdown]
# ## Run both beside StableEdit
#
# In a spec, an editor or recorder of one's own is `package.module:Class`. A notebook's own classes are in `__main__`;
# for runs that are resumed or repeated, put them into a file. How far an editor goes is its own choice, so each is run
# at several lengths: one length would compare the lengths.


# %%
def spec(editor: dict) -> stablediag.Spec:
    return stablediag.Spec.from_mapping(
        {
            "model": "testbed",
            "data": {"stream": "new", "size": EDITS},
            "edits_per_step": 25,
            "editor": editor,
            "evaluation": {"schedule": "end", "subsample": 500},
            "recorders": ["update_norm", "__main__:SharedKey"],
            "threads": 1,
        }
    )


arms = {"plain gradient": {"project": False}, "without the shared direction": {"project": True}}
done = {}
for arm, params in arms.items():
    for length in LENGTHS:
        editor = {"name": "__main__:SharedKeyEditor", "params": {"length": length, **params}}
        done[arm, length] = stablediag.run(spec(editor), runs / f"{arm}-{length}".replace(" ", "-"), progress=False)
for rate in (1.3e-2, 5.2e-2) if QUICK else (1.3e-2, 2.6e-2, 5.2e-2):
    editor = {"preset": "no_warmup", "params": {"lr": rate}}
    done["StableEdit, no warm-up", rate] = stablediag.run(spec(editor), runs / f"ln-{rate}", progress=False)

# %% [markdown]
# ## What the recorder saw

# %%
first = done["plain gradient", LENGTHS[0]]
shared = first.table("updates").pivot(index="step", columns="module", values="shared_key").astype(float)
dimensions = next(iter(first.info.model["modules"].values()))[0]
with plots.style():
    figure, ax = plt.subplots(figsize=(4.6, 3.1), layout="constrained")
    for module, color, line in zip(shared, ("#0072B2", "#D55E00", "#009E73"), ("-", "--", "-."), strict=True):
        ax.plot(
            25 * (shared.index + 1), shared[module], color=color, linestyle=line, label=module.replace("model.", "")
        )
    ax.axhline(1 / dimensions, color="0.5", linewidth=0.8, linestyle=":", label="a random direction")
    ax.set(xlabel="edits written", ylabel="share along the mean key", yscale="log", ylim=(1e-3, 1))
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
plt.show()
print(shared.mean().round(3).to_dict())

# %% [markdown]
# ## What the editor gained

# %%
rows = []
for (arm, size), run in done.items():
    quality = run.table("quality").query("step >= 0 and kind == 'token'").set_index("metric")["value"].astype(float)
    rows.append({"arm": arm, "size": size, **quality[["efficacy", "generalization", "specificity"]]})
unedited = first.table("quality").query("step == -1 and kind == 'token'").set_index("metric")["value"].astype(float)
table = pd.DataFrame(rows)
table

# %%
looks = {
    "plain gradient": ("#D55E00", "--", "s"),
    "without the shared direction": ("#009E73", "-.", "^"),
    "StableEdit, no warm-up": ("#0072B2", "-", "o"),
}
with plots.style():
    figure, ax = plt.subplots(figsize=(4.6, 3.3), layout="constrained")
    for arm, (color, line, marker) in looks.items():
        part = table[table["arm"] == arm]
        ax.plot(
            100 * part["specificity"], 100 * part["efficacy"], color=color, linestyle=line, marker=marker, label=arm
        )
    ax.plot(100 * unedited["specificity"], 100 * unedited["efficacy"], "k|", markersize=10, label="unedited model")
    ax.set(xlabel="specificity (%)", ylabel="efficacy (%)", xlim=(None, 102), ylim=(0, 102))
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
plt.show()

# %% [markdown]
# The same edits were taught to both editors, so their answers are compared edit by edit. At equal length:

# %%
effects = []
for length in LENGTHS:
    found = stablediag.compare_runs(
        [done["plain gradient", length]], [done["without the shared direction", length]]
    ).metrics
    keep = found[found["metric"].isin(["efficacy", "generalization", "specificity", "retention"])]
    effects.append(
        keep.assign(length=length)[["length", "metric", "reference", "value", "effect", "low", "high", "over"]]
    )
pd.concat(effects, ignore_index=True)

# %% [markdown]
# ## What to conclude
#
# * **There is a shared direction,** and it is a thin one: 1 to 5 % of the keys' squared length, 6 to 24 times as much
#   as along a random direction.
# * **The hypothesis is not confirmed.** Facts that nobody edited answer no better when the direction is left alone: at
#   no length does the interval of specificity leave zero.
# * **Something else came out.** At the two long steps the edits themselves hold better: at length 0.2 retention gains 7
#   points [4, 10], at 0.4 it gains 13 [8, 18]. The shared direction seems to be a channel between edits, more than from
#   edits to other facts. It was found after the fact, on one seed: a hypothesis for the next run, not a result.
# * **Beside StableEdit** both fall short where steps are gentle: at the same specificity (99.5 %) it has an efficacy of
#   70 %, the gradient steps have 52 and 53. Where steps are so long that other facts are lost, the editor from here is
#   level with it.
#
# Numbers of the full run: one seed, intervals over edits.

# %%
assert (shared.mean() > 2 / dimensions).all()
assert table["efficacy"].max() > unedited["efficacy"] + 0.3
assert all(run.state == "complete" for run in done.values())
