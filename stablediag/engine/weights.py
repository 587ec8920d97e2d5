"""The only writer of model weights: apply, measure, snapshot, restore, undo."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stablediag.errors import ModelError, SpecError
from stablediag.maths.update import Dense, UpdateT
from stablediag.models import ResolvedModule

# Rows are handled in blocks of about this many entries, so that no second dense matrix is made; on a CPU in smaller
# ones, which stay in its cache.
_BLOCK_ENTRIES = 1 << 22

Master = Literal["fp32", "model"]


@dataclass(frozen=True, slots=True)
class Realised:
    """What became of an intended change after rounding to the stored weights.

    Attributes
    ----------
    norm_ratio : float
        Frobenius norm of the realised change over that of the intended one; nan for a zero update.
    cosine : float
        Cosine between the two; nan where one of them is zero.
    unchanged_fraction : float
        Share of the entries with a non-zero intended change whose stored value did not change; 0 for a zero update.
    """

    norm_ratio: float
    cosine: float
    unchanged_fraction: float


class WeightWriter:
    """Writes updates into the weights of the edited modules, in place and outside autograd.

    Parameters
    ----------
    modules : Mapping of str to ResolvedModule
        The edited modules.
    master : {"fp32", "model"}
        ``fp32``: modules with weights narrower than float32 keep a float32 copy that receives the updates, and the
        stored weight is its rounding. ``model``: the update is rounded to the weight's type and added to the weight,
        as the released editors do; small changes of a bfloat16 weight are then lost.
    keeps : callable
        Which updates `write` is to keep multiplied out, because somebody will look at them; none by default.

    Raises
    ------
    SpecError
        `master` is neither of the two.
    """

    def __init__(
        self,
        modules: Mapping[str, ResolvedModule],
        *,
        master: Master = "fp32",
        keeps: Callable[[UpdateT], bool] = lambda update: False,
    ) -> None:
        if master not in ("fp32", "model"):
            raise SpecError(f"unknown master {master!r}: use fp32 or model")
        self._modules = dict(modules)
        self._keeps = keeps
        self._masters: dict[str, Tensor] = {}
        for name in self._modules:
            weight = self._weight(name)
            if master == "fp32" and not _wide(weight):
                self._masters[name] = weight.detach().to(torch.float32)

    @torch.no_grad()
    def apply(self, name: str, update: UpdateT, *, measure: bool = False) -> Realised | None:
        """Add an update to a module's weight.

        Parameters
        ----------
        name : str
            Module name.
        update : LowRank or Dense, shape [d_in, d_out]
            The change of ``Theta``; it is transposed for modules that store ``Theta^T``.
        measure : bool
            Compare the stored weight before and after with the intended change. The weights do not depend on it.

        Returns
        -------
        Realised or None
            None unless measured.

        Raises
        ------
        ModelError
            Unknown module, or an update of the wrong shape.
        """
        return self.write(name, update, measure=measure)[0]

    @torch.no_grad()
    def write(self, name: str, update: UpdateT, *, measure: bool = False) -> tuple[Realised | None, Tensor | None]:
        """`apply`, and what was added besides.

        Parameters
        ----------
        name, update, measure
            As in `apply`.

        Returns
        -------
        Realised or None
            None unless measured.
        Tensor or None, shape [d_in, d_out], at least float32
            The update multiplied out, in the memory layout of the weight; None unless it is kept.

        Raises
        ------
        ModelError
            As `apply`.
        """
        entry = self._entry(name)
        if tuple(update.shape) != (entry.d_in, entry.d_out):
            raise ModelError(
                f"the update of module {name} has shape {list(update.shape)}, "
                f"the module is [{entry.d_in}, {entry.d_out}]: check the editor"
            )
        weight = self._weight(name)
        master = self._masters.get(name)
        left, right = _stored_factors(update, entry, weight if master is None else master)
        sums = torch.zeros(5, dtype=torch.float64, device=weight.device)
        keep, kept = self._keeps(update), []
        for rows in _row_blocks(weight):
            before = weight[rows].clone() if measure else None
            intended = _block(left[rows], right, weight.device)
            if keep:
                kept.append(intended)
            # For a narrow target the change is rounded to its type and then added, as the released editors do.
            target = weight if master is None else master
            target[rows].add_(intended.to(target.dtype))
            if master is not None:
                weight[rows].copy_(master[rows])
            if before is not None:
                sums += _compare(before, weight[rows], intended)
        change = None
        if keep:
            change = kept[0] if len(kept) == 1 else torch.cat(kept)
            change = change.mT if entry.layout == "linear" else change
        return _realised(sums) if measure else None, change

    @torch.no_grad()
    def norm(self, name: str) -> float:
        """Frobenius norm of a module's stored weight, accumulated in float64 (float32 norms are off by up to 0.5 %)."""
        weight = self._weight(name)
        parts = (torch.linalg.vector_norm(weight[rows], dtype=torch.float64) for rows in _row_blocks(weight))
        return math.sqrt(sum(float(part) ** 2 for part in parts))

    def state_dict(self) -> dict[str, Tensor]:
        """Live tensors ``<module>.weight`` and ``<module>.master``, not copies: store them before the next update."""
        state = {f"{name}.weight": self._weight(name).detach() for name in self._modules}
        return state | {f"{name}.master": master for name, master in self._masters.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Write a stored state back, bit for bit.

        Raises
        ------
        ModelError
            Names, shapes or types differ from this writer's; nothing is written then.
        """
        own = self.state_dict()
        if set(own) != set(state):
            odd = sorted(set(own) ^ set(state))[0]
            raise ModelError(f"stored weights do not fit this model at {odd}: resume with the same modules and master")
        for key, tensor in own.items():
            if tensor.shape != state[key].shape or tensor.dtype != state[key].dtype:
                raise ModelError(
                    f"stored {key} is {list(state[key].shape)} {state[key].dtype}, "
                    f"the model's is {list(tensor.shape)} {tensor.dtype}: use the model of the run"
                )
        for key, tensor in own.items():
            tensor.copy_(state[key])

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of all weights and masters, for `restore`."""
        return {key: tensor.clone() for key, tensor in self.state_dict().items()}

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        """Put a snapshot back, bit for bit."""
        self.load_state_dict(snapshot)

    @contextmanager
    def temporarily(self, updates: Mapping[str, UpdateT]) -> Iterator[None]:
        """Apply updates inside a ``with`` block and take them back, bit for bit, also after an exception."""
        for name in updates:
            self._entry(name)
        own = self.state_dict()
        keys = [key for key in own if key.rpartition(".")[0] in updates]
        saved = {key: own[key].clone() for key in keys}
        try:
            for name, update in updates.items():
                self.apply(name, update)
            yield
        finally:
            with torch.no_grad():
                for key, tensor in saved.items():
                    own[key].copy_(tensor)

    def _entry(self, name: str) -> ResolvedModule:
        if name not in self._modules:
            raise ModelError(f"module {name} is not an edited module: the run edits {', '.join(self._modules)}")
        return self._modules[name]

    def _weight(self, name: str) -> Tensor:
        weight = self._modules[name].module.weight
        assert isinstance(weight, Tensor)
        return weight


def _row_blocks(weight: Tensor) -> Iterator[slice]:
    entries = _BLOCK_ENTRIES if weight.is_cuda else _BLOCK_ENTRIES // 2
    step = max(1, entries // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], step):
        yield slice(start, start + step)


def _stored_factors(update: UpdateT, entry: ResolvedModule, target: Tensor) -> tuple[Tensor, Tensor | None]:
    """Factors (left, right) of the change in the layout of the stored weight; a dense change has no right factor."""
    if isinstance(update, Dense):
        return (update.matrix.T if entry.layout == "linear" else update.matrix), None
    left, right = (update.right.T, update.left.T) if entry.layout == "linear" else (update.left, update.right)
    dtype = target.dtype if _wide(target) else torch.promote_types(left.dtype, torch.float32)
    return left.to(device=target.device, dtype=dtype), right.to(device=target.device, dtype=dtype)


def _wide(tensor: Tensor) -> bool:
    return torch.finfo(tensor.dtype).bits >= 32


def _block(left: Tensor, right: Tensor | None, device: torch.device) -> Tensor:
    """One block of rows of the intended change, at least float32."""
    if right is not None:
        return left @ right
    return left.to(device=device, dtype=torch.promote_types(left.dtype, torch.float32))


def _compare(before: Tensor, after: Tensor, intended: Tensor) -> Tensor:
    """Float64 sums: intended^2, realised^2, intended x realised, intended non-zero, of these unchanged."""
    realised = _at_least_single(after) - _at_least_single(before)
    wanted = intended != 0
    return torch.stack(
        [
            intended.square().sum(dtype=torch.float64),
            realised.square().sum(dtype=torch.float64),
            (intended * realised).sum(dtype=torch.float64),
            wanted.sum().double(),
            (wanted & (realised == 0)).sum().double(),
        ]
    )


def _at_least_single(tensor: Tensor) -> Tensor:
    return tensor if _wide(tensor) else tensor.float()


def _realised(sums: Tensor) -> Realised:
    intended, realised, inner, wanted, unchanged = sums.tolist()
    return Realised(
        norm_ratio=math.sqrt(realised / intended) if intended > 0 else math.nan,
        cosine=inner / math.sqrt(intended * realised) if intended > 0 and realised > 0 else math.nan,
        unchanged_fraction=unchanged / wanted if wanted > 0 else 0.0,
    )
