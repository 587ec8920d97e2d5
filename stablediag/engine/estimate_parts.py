"""The arithmetic, the memory and the state of each family of editors, as counts of operations and bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from stablediag.editors.alphaedit import AlphaEditParams
from stablediag.editors.base import resolve_params
from stablediag.editors.ft import FTParams
from stablediag.editors.hypernet.params import HypernetParams
from stablediag.editors.ln_params import LNParams
from stablediag.editors.locate_params import LocateParams
from stablediag.editors.memit import MemitParams
from stablediag.models import ResolvedModule
from stablediag.spec import EditorSpec

Kind = Literal["model", "dense", "eigen"]


@dataclass(frozen=True, slots=True)
class Part:
    """Operations of one kind: ``model`` (passes, in the weights' type), ``dense`` (products and solves of the editor's
    statistics) or ``eigen`` (eigendecompositions, which run far below the rate of products on a GPU).
    """

    name: str
    kind: Kind
    flops: float


@dataclass(frozen=True, slots=True)
class Work:
    """How much is edited.

    Attributes
    ----------
    steps, target_steps, edits : int
        Steps in all, those of the target stream, and edits in all.
    target_edits : int
        Edits of the target stream.
    tokens, rows : int
        Tokens of prompts and answers, each edit once, and captured rows per module.
    counted : bool
        Whether tokens and rows were counted in the data, not assumed.
    """

    steps: int
    target_steps: int
    edits: int
    target_edits: int
    tokens: int
    rows: int
    counted: bool


@dataclass(frozen=True, slots=True)
class Bill:
    """What an editor costs in a whole run.

    Attributes
    ----------
    parts : list of Part
    memory : dict of str to int
        Bytes beside the model, by what they hold.
    state : int
        Bytes of its own in a checkpoint, the edited weights not counted.
    assumed : list of str
        What the numbers take for granted.
    """

    parts: list[Part] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    state: int = 0
    assumed: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Body:
    """Parameters that one token passes through, by place.

    Attributes
    ----------
    blocks : dict of int to int
        Parameters of each numbered layer.
    head : int
        Entries of the output head.
    """

    blocks: dict[int, int]
    head: int

    @classmethod
    def of(cls, model: Any) -> Body:
        """Of a model, or of its outline."""
        blocks: dict[int, int] = {}
        for name, parameter in model.named_parameters():
            number = layer_number(name)
            if number is not None:
                blocks[number] = blocks.get(number, 0) + parameter.numel()
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        return cls(blocks, head.get_parameter("weight").numel() if isinstance(head, nn.Module) else 0)

    @property
    def all(self) -> int:
        """Parameters of all layers, embeddings and head left out."""
        return sum(self.blocks.values())

    def above(self, number: int) -> int:
        """Parameters of a layer and of those above it."""
        return sum(size for own, size in self.blocks.items() if own >= number)


def layer_number(name: str) -> int | None:
    """The first number in a dotted name."""
    found = re.search(r"\.(\d+)\.", f".{name}.")
    return int(found[1]) if found else None


def bill(params: Any, modules: Sequence[ResolvedModule], body: Body, work: Work) -> Bill:
    """What an editor with these parameters costs.

    Counts multiplications and additions (two operations). A wrapped editor costs what it costs alone. Of an editor that
    is not known here one capture per step is counted, and said to be all.
    """
    wrapped = getattr(params, "editor", None)
    if isinstance(wrapped, EditorSpec):
        inner = bill(resolve_params(wrapped.name, wrapped.preset, wrapped.params), modules, body, work)
        inner.assumed.append("the wrapped editor's work; that of the wrapper is not counted")
        return inner
    if isinstance(params, LNParams):
        return _normalised(params, modules, body, work)
    if isinstance(params, HypernetParams):
        return _hypernetwork(params, modules, body, work)
    if isinstance(params, FTParams):
        return _fine_tuned(params, modules, body, work)
    if isinstance(params, LocateParams):
        return _located(params, modules, body, work)
    said = "this editor's own work is not modelled: one forward and backward pass per step stands for it"
    return Bill(parts=[_capture(modules, body, work)], assumed=[said])


def _lowest(modules: Sequence[ResolvedModule]) -> int:
    return min((layer_number(module.name) or 0 for module in modules), default=0)


def _capture(modules: Sequence[ResolvedModule], body: Body, work: Work) -> Part:
    """Forward through all layers, back to the lowest edited one without gradients of weights, head at the rows."""
    passes = 2.0 * work.tokens * (body.all + body.above(_lowest(modules)))
    return Part("forward and backward", "model", passes + 4.0 * body.head * work.rows)


def _ridge(modules: Sequence[ResolvedModule], work: Work) -> Part:
    """The n x n system of each module and step, and the update multiplied out into the weight."""
    n = work.rows / max(work.steps, 1)
    one = sum(2 * n * n * (m.d_in + m.d_out) + n**3 / 3 + 2 * n * m.d_in * m.d_out for m in modules)
    return Part("ridge solves and writing", "dense", work.steps * one)


def _scopes(modules: Sequence[ResolvedModule], layered: bool) -> list[ResolvedModule]:
    return list({m.name if layered else (m.d_in, m.d_out): m for m in modules}.values())


def _normalised(params: LNParams, modules: Sequence[ResolvedModule], body: Body, work: Work) -> Bill:
    scopes = _scopes(modules, params.stats_scope == "layer")
    made = Bill(parts=[_capture(modules, body, work), _ridge(modules, work)])
    moments = sum(8 * 4 * (m.d_in + m.d_out) for m in scopes)
    if params.normaliser == "full" or params.track_covariance:
        scatter = sum(4.0 * work.rows * m.d_out**2 for m in modules)
        made.parts.append(Part("covariance", "dense", scatter))
        moments += sum(8 * m.d_out**2 for m in scopes)
    made.memory["statistics (float64)"] = moments
    made = Bill(made.parts, made.memory, moments, made.assumed)
    if params.normaliser == "full":
        made.parts.append(Part("eigendecompositions", "eigen", work.steps * sum(9.0 * m.d_out**3 for m in scopes)))
        made.memory["whitening (float64)"] = 3 * 8 * max((m.d_out**2 for m in scopes), default=0)
        made.assumed.append("one eigendecomposition of each covariance per step, 9 d^3 operations")
    if params.lr == "calibrate":
        made.assumed.append("the search for the learning rate is not counted")
    return made


def _hypernetwork(params: HypernetParams, modules: Sequence[ResolvedModule], body: Body, work: Work) -> Bill:
    shapes = _scopes(modules, layered=False)
    sizes = [2 * params.rank * (m.d_in + m.d_out) * params.blocks for m in shapes]
    network = sum(2.0 * work.rows * 2 * params.rank * (m.d_in + m.d_out) * params.blocks for m in modules)
    moments = sum(8 * 4 * (m.d_in + m.d_out) for m in _scopes(modules, params.stats_scope == "layer"))
    return Bill(
        parts=[_capture(modules, body, work), Part("network", "dense", network), _ridge(modules, work)],
        memory={"network (float32)": 4 * sum(sizes), "statistics (float64)": moments},
        state=moments,
        assumed=["the network's training is not counted (`stablediag train`)"],
    )


def _fine_tuned(params: FTParams, modules: Sequence[ResolvedModule], body: Body, work: Work) -> Bill:
    weights = sum(m.d_in * m.d_out for m in modules)
    once = _capture(modules, body, work).flops + 2.0 * work.tokens * weights
    return Bill(
        parts=[Part("training", "model", params.epochs * once)],
        memory={"trained copy, gradient and Adam's moments (float32)": 4 * 4 * weights},
        assumed=[f"all {params.epochs} epochs; it stops earlier where the loss is small enough"],
    )


def _located(params: LocateParams, modules: Sequence[ResolvedModule], body: Body, work: Work) -> Bill:
    prefixes = params.contexts.lengths
    asked = (1 + len(prefixes)) * work.tokens + work.edits * sum(prefixes)
    essence = 6 * work.edits if params.targets.kl else 0
    ordered = sorted(modules, key=lambda module: layer_number(module.name) or 0)
    above = body.above((layer_number(ordered[-1].name) or 0) + 1)
    logits = 4.0 * body.head * work.rows * (1 + len(prefixes))
    first = 2.0 * (asked + essence) * (body.all + above) + logits
    later = (params.targets.steps - 1) * (4.0 * (asked + essence) * above + logits)
    reading = sum(2.0 * asked * (body.all - body.above((layer_number(m.name) or 0) + 1)) for m in ordered)
    n = work.edits / max(work.steps, 1)
    made = Bill(
        parts=[
            Part("optimising the targets", "model", first + later),
            Part("reading keys and outputs", "model", reading),
        ],
        assumed=[
            f"all {params.targets.steps} evaluations of the target loss behind {len(prefixes)} prefixes; it stops "
            "earlier where the loss is small enough",
        ],
    )
    if isinstance(params, MemitParams | AlphaEditParams):
        solve = sum(2 * n * m.d_in**2 + n * n * m.d_in + 2 * n * m.d_in * m.d_out for m in modules)
        made.parts.append(Part("solves and writing", "dense", work.steps * solve))
        made.assumed.append("the second moment of keys is there already (`stablediag moments`)")
        size = 8 if params.solve_dtype == "float64" else 4
        squares = sum(size * m.d_in**2 for m in modules)
        if isinstance(params, AlphaEditParams):
            made.parts.append(Part("null spaces, once", "eigen", sum(9.0 * m.d_in**3 for m in modules)))
            made.memory["null spaces and factors"] = 2 * squares
            remembered = min(squares, sum(size * work.edits * m.d_in for m in modules))
            made = Bill(made.parts, made.memory, remembered, made.assumed)
        else:
            made.parts.append(Part("factors, once", "dense", sum(m.d_in**3 / 3 for m in modules)))
            made.memory["factors"] = squares
            made.assumed.append("keys of earlier edits, where the method keeps them, are not in memory and disk")
        made.memory["second moments while they are factorised"] = max(8 * m.d_in**2 for m in modules)
    return made


def weight_bytes(model: Any, dtype: str) -> int:
    """Bytes of a model's parameters in a type."""
    width = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    return width * sum(parameter.numel() for parameter in model.parameters())
