"""The arithmetic of the released StableEdit and ULTRAEDIT editors, restated from their description.

What is left out favours the released side: rows stay in memory instead of going through files, the unused d_in x d_in
buffer is not allocated, scalars are read back only for the cosine, and the decomposition runs on one CPU thread (with
more it can be many times slower on a shared machine).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reproduce.bench.ours import Stats
from reproduce.bench.timing import Clock
from reproduce.bench.workload import RELEASED_EPS, Recipe, Workload
from stablediag.engine.weights import WeightWriter
from stablediag.maths._threads import single_thread
from stablediag.tokens import IGNORE
from stablediag.types import Capture

# Rows that are normalised at a time, the last chunk padded with zeros.
CHUNK = 512

Rows = tuple[Tensor, Tensor]


class Normaliser:
    """Count, mean and squared deviations of ``[key; gradient]``, and the scatter of the gradients, block by block.

    Parameters
    ----------
    start : Stats
        Where the statistics stand.
    recipe : Recipe
    dtype : torch.dtype
        Of the buffers and of all arithmetic. Released: float32.
    """

    def __init__(self, start: Stats, recipe: Recipe, *, dtype: torch.dtype = torch.float32) -> None:
        self.recipe, self.dtype = recipe, dtype
        self.d_in, self.d_out = start.keys.d, start.grads.d
        device = start.keys.mean.device
        self.count = torch.tensor(start.grads.nu, dtype=dtype, device=device)
        self.mean = torch.cat([start.keys.mean, start.grads.mean]).to(dtype)
        self.squares = torch.cat([start.keys.scale, start.grads.scale]).to(dtype)
        self.scatter = None if start.niw is None else start.niw.scale.to(dtype, copy=True)

    def add(self, keys: Tensor, grads: Tensor) -> None:
        """Take in the rows of one mini-batch of one module."""
        x = torch.cat([keys, grads], dim=-1).to(self.dtype)
        n = x.shape[0]
        mean = x.mean(dim=0)
        variance = x.var(dim=0, correction=1 if self.recipe.block_var == "sample" else 0)
        total = self.count + n
        delta = mean - self.mean
        weight = self.count * n / total
        self.squares = self.squares + n * variance + weight * delta.square()
        if self.scatter is not None:
            centred = x[:, self.d_in :] - mean[self.d_in :]
            jump = delta[self.d_in :]
            self.scatter = self.scatter + centred.T @ centred + weight * torch.outer(jump, jump)
        self.mean = self.mean + n / total * delta
        self.count = total

    def root(self) -> Tensor | None:
        """Inverse root of the covariance of the gradients, or None while it does not exist."""
        if self.scatter is None or float(self.count) <= self.d_out + 1:
            return None
        covariance = self.scatter / (self.count - self.d_out - 1 + RELEASED_EPS)
        with single_thread(covariance.device):
            values, vectors = torch.linalg.eigh(covariance)
        inverse = values.clamp_min(self.recipe.floor).rsqrt()
        return vectors @ torch.diag(inverse) @ vectors.T

    def normalised(self, rows: Rows, clock: Clock) -> Rows:
        """Normalised keys and gradients of one module, in zero-padded chunks that each rebuild the root."""
        keys, grads = (part.to(self.dtype) for part in rows)
        found: list[Rows] = []
        for start in range(0, len(keys), CHUNK):
            count = min(CHUNK, len(keys) - start)
            x = torch.zeros(CHUNK, self.d_in + self.d_out, dtype=self.dtype, device=keys.device)
            x[:count] = torch.cat([keys[start : start + count], grads[start : start + count]], dim=-1)
            with clock.part("root"):
                root = self.root()
            with clock.part("ridge"):
                std = (self.squares / (self.count - 1 + RELEASED_EPS)).sqrt()
                scaled = (x - self.mean) / (std + RELEASED_EPS)
                values = scaled[:, self.d_in :] if root is None else (x - self.mean)[:, self.d_in :] @ root
                found.append((scaled[:count, : self.d_in], values[:count]))
        return torch.cat([part[0] for part in found]), torch.cat([part[1] for part in found])


def normal_equations(keys: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """The ridge regression in its primal form: a d_in x d_in system, solved by LU."""
    system = keys.T @ keys + ridge * torch.eye(keys.shape[1], dtype=keys.dtype, device=keys.device)
    return torch.linalg.solve(system, keys.T @ targets)


def module_shift(normaliser: Normaliser, rows: Rows, recipe: Recipe, clock: Clock) -> Tensor:
    """The dense update [d_in, d_out] of one module."""
    keys, values = normaliser.normalised(rows, clock)
    with clock.part("ridge"):
        targets = -recipe.lr * keys.square().sum(dim=1, keepdim=True) * values
        return normal_equations(rows[0].to(normaliser.dtype), targets, recipe.ridge)


def shifts_of(
    captures: Mapping[str, Capture], start: Stats, recipe: Recipe, *, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The updates that this arithmetic makes of given rows; in float64, a reference for both arms."""
    normaliser = Normaliser(start, recipe, dtype=dtype)
    blocks = next(iter(captures.values())).block_ids
    for block in blocks.unique().tolist():
        for rows in captures.values():
            normaliser.add(rows.keys[blocks == block], rows.grads[blocks == block])
    clock = Clock(blocks.device)
    return {name: module_shift(normaliser, (c.keys, c.grads), recipe, clock) for name, c in captures.items()}


@dataclass
class ReleasedArm:
    """Mini-batches with labels and full logits, weight gradients, per-block statistics, dense solve, dense shift.

    Attributes
    ----------
    extra_padding : int
        Padding columns added to every mini-batch: they change no result but its rounding.
    """

    work: Workload
    writer: WeightWriter
    recipe: Recipe
    start: Stats
    saved: Mapping[str, Tensor]
    extra_padding: int = 0
    previous: dict[str, Tensor] = field(default_factory=dict, init=False)
    shifts: dict[str, Tensor] = field(default_factory=dict, init=False)
    cosines: dict[str, float] = field(default_factory=dict, init=False)

    def prepare(self) -> None:
        """Put weights and statistics back; the previous update and the accumulated gradients stay, as they do there."""
        self.shifts = {}
        self.writer.restore(dict(self.saved))
        self._normaliser = Normaliser(self.start, self.recipe)

    def forget(self) -> None:
        """Free what is kept between steps."""
        self.shifts, self.previous = {}, {}
        for entry in self.work.modules.values():
            entry.module.weight.grad = None  # type: ignore[union-attr]

    def run(self, clock: Clock) -> None:
        """One step."""
        tokens, modules = self.work.tokens, self.work.modules
        rows: dict[str, list[Rows]] = {name: [] for name in modules}
        with _trainable(self.work):
            for block in dict.fromkeys(tokens.block_ids):
                chosen = [i for i, b in enumerate(tokens.block_ids) if b == block]
                with clock.part("capture"):
                    found = self._capture(chosen)
                with clock.part("statistics"):
                    for name, part in found.items():
                        self._normaliser.add(*part)
                        rows[name].append(part)
        for name, parts in rows.items():
            joined = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
            self.shifts[name] = module_shift(self._normaliser, joined, self.recipe, clock)
        with clock.part("apply"):
            for name, shift in self.shifts.items():
                if self.recipe.kind == "full":
                    self._compare(name, shift)
                weight = modules[name].module.weight
                assert isinstance(weight, Tensor)
                with torch.no_grad():
                    weight += shift.T.to(weight.dtype)

    def _compare(self, name: str, shift: Tensor) -> None:
        """Norm and cosine with the previous shift, of which a dense copy is kept."""
        norm = float(shift.norm())
        before = self.previous.get(name)
        if before is not None:
            self.cosines[name] = float((shift * before).sum()) / (norm * float(before.norm()))
        self.previous[name] = shift.clone()

    def _capture(self, chosen: Sequence[int]) -> dict[str, Rows]:
        work = self.work
        ids, mask, labels = (tensor.to(work.device) for tensor in work.tokens.padded(chosen))
        if self.extra_padding:
            ids, mask = (F.pad(tensor, (0, self.extra_padding)) for tensor in (ids, mask))
            labels = F.pad(labels, (0, self.extra_padding), value=IGNORE)
        valid = labels != IGNORE
        keys: dict[str, Tensor] = {}
        grads: dict[str, Tensor] = {}
        handles = []
        for name, entry in work.modules.items():

            def on_forward(_: Any, args: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                keys[name] = args[0][valid].detach().float()

            def on_backward(_: Any, into: Any, out: tuple[Tensor, ...], name: str = name) -> None:
                grads[name] = out[0][valid].detach().float()

            handles += [
                entry.module.register_forward_hook(on_forward),
                entry.module.register_full_backward_hook(on_backward),
            ]
        try:
            # With labels the model computes a loss of its own, which is not used.
            logits = work.model(input_ids=ids, attention_mask=mask, labels=labels).logits
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the lowest module's inputs need no gradient; torch mentions it
                F.cross_entropy(logits[valid], labels[valid]).backward()
        finally:
            for handle in handles:
                handle.remove()
        return {name: (keys[name], grads[name]) for name in work.modules}


@contextmanager
def _trainable(work: Workload) -> Iterator[None]:
    """Edited weights require a gradient, which is accumulated and never read."""
    weights = [entry.module.weight for entry in work.modules.values()]
    for weight in weights:
        weight.requires_grad_(True)  # type: ignore[operator]
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(False)  # type: ignore[operator]
