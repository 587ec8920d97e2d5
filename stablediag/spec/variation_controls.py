"""Controls of Lifelong Normalization: runs that separate what its published evidence leaves together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from stablediag.spec.models import Spec
from stablediag.spec.variation_switches import P, lacking
from stablediag.spec.variations import BASE, MATCH, Catalogue, Group, LeftOut, Variation, base_variation, value_at

_PAPER = "StableEdit, arXiv:2605.11836"
_EVERY = {"run": "@base", "mode": "every"}
_FIRST = {"run": "@base", "mode": "first"}


@dataclass(frozen=True)
class Control:
    """A variation whose changes do not depend on the spec; the fields as in `Variation`.

    `needs` as in `Switch`, and ``normaliser`` (some normalisation) and ``applied`` (target updates are written).
    """

    name: str
    what: str
    question: str
    source: str
    changes: Mapping[str, Any]
    needs: str = ""
    against: str = BASE
    groups: tuple[Group, ...] = ("quality", "geometry")


def _scaling(normaliser: str, what: str, *, center: bool) -> Control:
    """A cell of centring by scaling: one factor a module gives the first target update the base's norm."""
    name = {True: "", False: "uncentred_"}[center] + normaliser
    return Control(
        name, f"{what}, the first target update of the base's norm",
        "what is left with this part of the normalisation alone?",
        f"{_PAPER}, Table 4 removes whitening or all of it, at one rate; centring and scaling are not told apart",
        {P + "normaliser": normaliser, P + "center": center, MATCH: _FIRST}, "norms",
    )  # fmt: skip


CONTROLS: tuple[Control, ...] = (
    Control(
        "no_ln", "no normalisation, at the same rate",
        "does an unnormalised gradient at this rate edit at all?",
        f"{_PAPER}, Table 4 and Figure 4: the row without LN equals the unedited model",
        {P + "normaliser": "none"}, "normaliser",
    ),
    Control(
        "no_ln_first", "no normalisation, the first target update of the base's norm",
        "is LN more than a larger step? one factor per module, then the norms go their own way",
        f"{_PAPER}: missing beside Table 4 and Figure 4",
        {P + "normaliser": "none", MATCH: _FIRST}, "normaliser norms",
    ),
    Control(
        "no_ln_every", "no normalisation, every update of the base's norm",
        "is it the direction of the updates, or their length?",
        f"{_PAPER}: missing beside Table 4 and Figure 4",
        {P + "normaliser": "none", MATCH: _EVERY}, "normaliser norms",
    ),
    _scaling("center", "centring alone", center=True),
    _scaling("scalar", "centring and one scale", center=True),
    _scaling("diagonal", "centring and a scale per coordinate", center=True),
    _scaling("full", "centring and full whitening", center=True),
    _scaling("scalar", "one scale without centring", center=False),
    _scaling("diagonal", "a scale per coordinate without centring", center=False),
    _scaling("full", "full whitening without centring", center=False),
    Control(
        "shuffled", "the statistics' features permuted",
        "must the statistics be those of the right features, or is any spectrum as good?",
        f"{_PAPER}, Section 3: LN works because it tracks the gradients' mean and covariance",
        {P + "statistics": "shuffled", MATCH: _EVERY}, "normaliser",
    ),
    Control(
        "frozen", "the statistics of the warm-up's end throughout",
        "must the statistics follow the stream, or is one estimate enough?",
        f"{_PAPER}, Theorems 3.5 and 3.6: the running estimates track the drift",
        {P + "statistics": "frozen"}, "normaliser warmup",
    ),
    Control(
        "iid_frozen_weights", "edits drawn with replacement from the stream, no target update written",
        "how much of the falling condition number and drift surrogates is averaging alone?",
        f"{_PAPER}, Figures 7, 13 and 14: read as decaying drift and improving conditioning",
        {"data.arrange": "iid", P + "target_apply": False}, "applied", groups=("geometry",),
    ),
    Control(
        "permuted", "the same edits in another order",
        "does the order of the edits matter?",
        f"{_PAPER}, Assumption 3.4: the drift along the stream decays",
        {"data.arrange": "permuted"},
    ),
    Control(
        "bf16_master", "bfloat16 weights, updates added to a float32 copy",
        "what does the model's own precision cost?",
        f"{_PAPER}: silent; the StableEdit repository runs every model in half precision",
        {"model.dtype": "bfloat16", P + "master": "fp32"},
    ),
    Control(
        "bf16_in_place", "bfloat16 weights, updates added in place",
        "how much of the update do the weights lose, and does it show?",
        f"{_PAPER}: silent; the StableEdit repository casts every update and adds it in place",
        {"model.dtype": "bfloat16", P + "master": "model"}, against="bf16_master",
    ),
)  # fmt: skip


_WEIGHTS, _STATS = {"weights_from": "@early"}, {"stats_from": "@early"}
#: carry-over: name, what, question, where the late half starts from
_LATE: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    ("late_both", "the late half after the early one", "do earlier edits help later ones?", _WEIGHTS | _STATS),
    ("late_statistics", "the late half with the early one's statistics, on unedited weights",
     "is it what the statistics have learnt?", _STATS),
    ("late_weights", "the late half on the early one's weights, with empty statistics",
     "is it what the weights have been taught?", _WEIGHTS),
)  # fmt: skip


def controls(spec: Spec) -> Catalogue:
    """The controls of a spec whose editor parameters are written out (`stablediag.engine.prepare.resolve`)."""
    found, dropped = [base_variation()], []
    covariance = value_at(spec, P + "normaliser") == "full" or value_at(spec, P + "track_covariance")
    for control in CONTROLS:
        lack = lacking(spec, control.needs) or _lacking_more(spec, control)
        if lack:
            dropped.append(LeftOut(control.name, control.what, lack))
            continue
        changes = dict(control.changes)
        if covariance and changes.get(P + "normaliser", "full") != "full":
            # Its condition number is then recorded as the base's is.
            changes[P + "track_covariance"] = True
        fields = (control.what, control.question, control.source, changes, control.against, control.groups)
        found.append(Variation(control.name, *fields))
    lack = _no_halves(spec)
    if lack:
        dropped += [LeftOut(name, what, lack) for name, what, _, _ in _LATE]
    else:
        found += _carry_over(spec)
    known = {one.name for one in found}
    # Where the spec itself is what a control is compared with, that control has been left out.
    found = [replace(one, against=BASE) if one.against not in (None, *known) else one for one in found]
    return Catalogue(tuple(found), tuple(dropped))


def _lacking_more(spec: Spec, control: Control) -> str:
    """Why a control would be the base again, or could not be made."""
    if "applied" in control.needs.split() and value_at(spec, P + "target_apply") is False:
        return "the spec writes no target update already"
    own = {path: value for path, value in control.changes.items() if path != MATCH}
    defaults = {P + "center": True, P + "statistics": "running", P + "target_apply": True}
    present = {path: value_at(spec, path) for path in own}
    here = {path: defaults.get(path) if value is None else value for path, value in present.items()}
    return "the spec has it already" if here == own else ""


def _no_halves(spec: Spec) -> str:
    if spec.init is not None:
        return "the spec starts from another run already (init)"
    if spec.data.then:
        return "the stream has several segments, which have no early and late half of one kind"
    if spec.data.size < 2 * spec.edits_per_step:
        return "the stream has fewer than two steps"
    if value_at(spec, P + "target_apply") is False:
        return "the spec writes no target update"
    return ""


def _carry_over(spec: Spec) -> Iterator[Variation]:
    """The late half of the stream on its own, and with what the early half leaves behind; warm-ups are the same throughout."""
    size, group = spec.data.size, spec.edits_per_step
    early = size // group // 2 * group
    warmup = spec.warmup_data
    # Its own place in the file: that of a half would reach into the other half.
    same = {} if warmup is None else {"warmup.data": warmup.model_dump(mode="json")}
    late = {**same, "data.offset": spec.data.offset + early, "data.size": size - early}
    source = f"{_PAPER}, Figure 1(b): later edits gain from earlier ones, which change both"
    yield Variation("early", "the early half of the stream", "what the late half starts from", source,
                    {**same, "data.size": early}, None)  # fmt: skip
    yield Variation("late", "the late half alone", "what the next three are compared with", source, late, None)
    for name, what, question, start in _LATE:
        yield Variation(name, what, question, source, {**late, "init": start}, "late")
