"""Where StableEdit as printed and StableEdit as released differ: one switch each, turned on its own.

A switch turns whatever the spec has: from the paper's choice to the other one, and back where the spec has the other one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stablediag.spec.models import Spec
from stablediag.spec.variations import MATCH, Catalogue, LeftOut, Variation, base_variation, value_at

P = "editor.params."
_PAPER = "StableEdit, arXiv:2605.11836"
_CODE = "the StableEdit repository"


@dataclass(frozen=True)
class Switch:
    """Two settings of the same thing.

    Attributes
    ----------
    name, question, source : str
    paper, other : mapping of str to Any
        Dotted path -> value: as printed (or as the preset `paper` has it where the paper is silent), and otherwise.
    said, otherwise : str
        Both in words.
    released : bool
        Whether `other` is what the repository does.
    needs : str
        ``whitening``, ``statistics``, ``warmup`` or ``norms`` (the spec's recorders keep them), several separated by blanks:
        what the spec must have.
    tells : tuple of str
        Paths of `other` that tell whether the spec stands there; all of them without.
    """

    name: str
    said: str
    otherwise: str
    question: str
    source: str
    paper: Mapping[str, Any]
    other: Mapping[str, Any]
    released: bool = True
    needs: str = ""
    tells: tuple[str, ...] = ()

    def turned(self, spec: Spec) -> bool:
        """Whether the spec has the other setting."""
        return all(value_at(spec, path) == self.other[path] for path in self.tells or self.other)


SWITCHES: tuple[Switch, ...] = (
    Switch(
        "stats_scope", "statistics per layer", "statistics per weight shape",
        "does it matter that layers of one shape share their statistics?",
        f"{_PAPER}, Algorithm 1: each editable layer has its own; {_CODE}: one normaliser per weight shape",
        {P + "stats_scope": "layer"}, {P + "stats_scope": "shape"}, needs="statistics",
    ),
    Switch(
        "prior", "a prior scatter eps0 I", "no prior scatter",
        "does the prior scatter matter once there are statistics?",
        f"{_PAPER}, Algorithm 1: Psi starts at eps0 I (eps0 is not given); {_CODE}: Psi starts at zero",
        {P + "prior_kind": "relative", P + "prior": 1e-3}, {P + "prior_kind": "none"}, needs="whitening",
    ),
    Switch(
        "floor", "a relative floor of eigenvalues, 1e-12", "an absolute floor, 1e-6",
        "does an absolute floor decide which directions are whitened?",
        f"{_PAPER}, Algorithm 1: a floor without a value; {_CODE}: 1e-6, whatever the scale of the gradients",
        {P + "floor_kind": "relative", P + "floor": 1e-12}, {P + "floor_kind": "absolute", P + "floor": 1e-6},
        needs="whitening",
    ),
    Switch(
        "warmup_norm", "full whitening in the warm-up as well", "diagonal normalisation in the warm-up",
        "does it matter how warm-up edits are normalised?",
        f"{_PAPER}, Algorithm 1: both phases share the update; {_CODE}: the warm-up is always diagonal",
        {P + "warmup_norm": "same"}, {P + "warmup_norm": "diagonal"}, needs="whitening warmup",
    ),
    Switch(
        "pre_threshold", "diagonal until the posterior mean exists", "a shrunken covariance until then",
        "does it matter what stands in while there are fewer than d + 2 rows?",
        f"{_PAPER}, Corollary 3.3: needs nu > d + 1 and leaves open what comes before; {_CODE}: diagonal",
        {P + "pre_threshold": "diagonal"}, {P + "pre_threshold": "shrink"}, released=False, needs="whitening",
    ),
    Switch(
        "tokens", "a row per answer token", "a row per edit, the last token of the prompt",
        "does it matter that an edit of many tokens counts as many samples?",
        f"{_PAPER}, Section 3: one gradient per edit; {_CODE}: every answer token is a row",
        {P + "tokens": "answer"}, {P + "tokens": "last_prompt"}, released=False,
    ),
    Switch(
        "loss", "loss summed per edit", "mean over the tokens of a mini-batch of 10 edits",
        "does it matter that gradients depend on the edits they share a mini-batch with?",
        f"{_PAPER}, Section 3: the gradient of the edit's own loss; {_CODE}: a token mean over mini-batches of 10",
        {P + "loss": "paper", P + "minibatch": None}, {P + "loss": "released", P + "minibatch": 10},
        tells=(P + "loss",),
    ),
    Switch(
        "key_norm", "updates scaled by the standardised key's squared norm", "the same scale for every key",
        "does the key norm matter, apart from the size that it gives the step?",
        f"{_PAPER}, Table 15; its retuned rate is not given: here one factor per module gives the first target update the "
        "base's norm",
        {P + "coefficient": "standardised"}, {P + "coefficient": "none"}, released=False, needs="norms",
    ),
    Switch(
        "ridge", "ridge 10", "ridge 1",
        "does a ridge ten times weaker matter?",
        f"{_PAPER}, Section 4.1: 10; {_CODE}: 1 in its configuration, 10 in its launch script",
        {P + "ridge": 10.0}, {P + "ridge": 1.0}, released=False,
    ),
    Switch(
        "stats_order", "statistics that hold the step's own rows", "statistics of earlier steps alone",
        "does normalising with statistics that have seen the rows themselves matter?",
        f"{_PAPER}, Algorithm 1, and {_CODE}: update, then whiten; an estimate that is independent of what it normalises "
        "is of earlier rows",
        {P + "stats_order": "after"}, {P + "stats_order": "before"}, released=False, needs="statistics",
    ),
    Switch(
        "block_var", "the rows' scatter about their mean", "scatter inflated by n/(n-1) in every block",
        "does the sample variance of small blocks matter?",
        f"{_PAPER}, Section 3: up to standard corrections; {_CODE}: population variance; the ULTRAEDIT repository "
        "(arXiv:2505.14679): sample variance",
        {P + "block_var": "population"}, {P + "block_var": "sample"}, released=False, needs="statistics",
    ),
    Switch(
        "eps", "nothing added to divisors", "float32 epsilon added to divisors",
        "does the guard of divisors matter?",
        f"{_PAPER}, Algorithm 1: none; {_CODE}: float32 epsilon",
        {P + "eps": 0.0}, {P + "eps": 2.0**-23}, needs="statistics",
    ),
    Switch(
        "weights", "updates added in float32", "bfloat16 weights, updates added in place",
        "how much of the update do the weights lose, and does it show?",
        f"{_PAPER}: silent; {_CODE}: half precision in every model configuration, updates cast and added in place",
        {P + "master": "fp32"}, {"model.dtype": "bfloat16", P + "master": "model"},
    ),
    Switch(
        "solve_dtype", "ridge solved in float64", "ridge solved in float32",
        "does the arithmetic of the solve matter?",
        f"{_PAPER}: silent; {_CODE}: float32",
        {P + "solve_dtype": None}, {P + "solve_dtype": "float32"},
    ),
    Switch(
        "warmup_apply", "warm-up edits written", "warm-up for statistics alone",
        "is it the statistics of the warm-up that help, or the edits that it makes?",
        f"{_PAPER}, Algorithm 1: warm-up edits change the weights; its Table 13: statistics alone",
        {P + "warmup_apply": True}, {P + "warmup_apply": False}, released=False, needs="warmup",
    ),
)  # fmt: skip


def switches(spec: Spec) -> Catalogue:
    """The switches of a spec whose editor parameters are written out (`stablediag.engine.prepare.resolve`).

    Beside one variation a switch there are ``released`` and ``paper``: all that the repository does otherwise at once, and
    all back at once, of what the spec does not have already.
    """
    found, dropped = [base_variation()], []
    for switch in SWITCHES:
        lack = lacking(spec, switch.needs)
        what = _turned_to(switch, spec)
        if lack:
            dropped.append(LeftOut(switch.name, what, lack))
            continue
        changes = dict(switch.paper if switch.turned(spec) else switch.other)
        if switch.name == "key_norm":
            changes[MATCH] = {"run": "@base", "mode": "first"}
        found.append(Variation(switch.name, what, switch.question, switch.source, changes))
    for name, together in (("released", [s for s in SWITCHES if s.released]), ("paper", list(SWITCHES))):
        back = name == "paper"
        differing = [s for s in together if s.turned(spec) == back and not lacking(spec, s.needs)]
        said = "the repository's choices" if name == "released" else "the paper's choices"
        if len(differing) < 2:
            reason = f"the spec has {said} already" + (f" but for {differing[0].name}" if differing else "")
            dropped.append(LeftOut(name, f"{said}, all at once", reason))
            continue
        changes = {}
        for switch in differing:
            changes |= switch.paper if back else switch.other
        what = f"{said} at once: {', '.join(s.name for s in differing)}"
        question = "do the differences add up?"
        found.append(Variation(name, what, question, f"{_PAPER}, Algorithm 1; {_CODE}", changes))
    return Catalogue(tuple(found), tuple(dropped))


def lacking(spec: Spec, needs: str) -> str:
    """What a spec lacks of what `Switch.needs` and `Control.needs` name; empty where it has all of it."""
    normaliser, coefficient = value_at(spec, P + "normaliser"), value_at(spec, P + "coefficient")
    for need in needs.split():
        if need == "warmup" and spec.warmup.size == 0:
            return "the spec has no warm-up"
        if need == "whitening" and normaliser != "full":
            return f"no covariance is inverted: normaliser {normaliser}"
        if need == "normaliser" and normaliser == "none":
            return "value gradients are not normalised: normaliser none"
        if need == "norms" and not keeps_norms(spec):
            return "the spec's recorders keep no update norms to be matched: use light, standard or full"
        if need == "statistics" and normaliser == "none" and coefficient != "standardised":
            return "no statistics are used: normaliser none and raw keys"
    return ""


def keeps_norms(spec: Spec) -> bool:
    """Whether the spec's recorders keep the norm of every update."""
    if isinstance(spec.recorders, str):
        return spec.recorders != "none"
    return any(recorder.name == "update_norm" and recorder.schedule is None for recorder in spec.recorders)


def _turned_to(switch: Switch, spec: Spec) -> str:
    here, there = switch.said, switch.otherwise
    if switch.turned(spec):
        here, there = there, here
    return f"{there} instead of {here}"
