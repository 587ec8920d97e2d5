"""A read-only view of the model under edit, as editors and recorders see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from stablediag.engine.capture import CaptureNeeds, capture
from stablediag.engine.weights import WeightWriter
from stablediag.maths.update import UpdateT
from stablediag.models import LoadedModel, ResolvedModule
from stablediag.tokens import TokenBatch, encode
from stablediag.types import Capture, Edit

#: padded tokens per chunk on the CPU, where small chunks stay in cache, and on a GPU, where launches cost
TOKEN_BUDGET = {False: 512, True: 4096}


class ModelView:
    """What may be asked of the model; nothing here changes it for good.

    Parameters
    ----------
    loaded : LoadedModel
        Model, tokenizer and resolved modules.
    writer : WeightWriter
        The only writer of the weights; the view uses it to patch and restore them.
    token_budget : int, optional
        Padded tokens per computational chunk of a capture; by default what suits the device.
    """

    def __init__(self, loaded: LoadedModel, writer: WeightWriter, *, token_budget: int | None = None) -> None:
        self._loaded = loaded
        self._writer = writer
        self._token_budget = token_budget or TOKEN_BUDGET[loaded.device.type == "cuda"]
        self._initial_norms = {name: writer.norm(name) for name in loaded.modules}

    @property
    def model(self) -> Any:
        """The transformers model. Editors and recorders must not write to it."""
        return self._loaded.model

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._loaded.tokenizer

    @property
    def info(self) -> Mapping[str, Any]:
        """Provenance of the model, as loaded; see `LoadedModel`."""
        return self._loaded.info

    @property
    def token_budget(self) -> int:
        """Padded tokens per computational chunk."""
        return self._token_budget

    @property
    def modules(self) -> Mapping[str, ResolvedModule]:
        """The edited modules by name."""
        return self._loaded.modules

    def weight(self, name: str) -> Tensor:
        """The module's current weight in canonical orientation [d_in, d_out], detached, not copied."""
        module = self.modules[name]
        weight = module.module.get_parameter("weight").detach()
        return weight if module.layout == "conv1d" else weight.T

    def weight_norm(self, name: str) -> float:
        """Frobenius norm of the module's current weight, accumulated in float64."""
        return self._writer.norm(name)

    def initial_norm(self, name: str) -> float:
        """Frobenius norm of the module's weight as loaded, before any edit."""
        return self._initial_norms[name]

    def set_initial_norms(self, norms: Mapping[str, float]) -> None:
        """Take over the norms that a run recorded at its start (when it is resumed)."""
        self._initial_norms = dict(norms)

    @property
    def initial_norms(self) -> Mapping[str, float]:
        """Frobenius norms of all edited weights as loaded, before any edit."""
        return dict(self._initial_norms)

    def capture(self, tokens: TokenBatch, needs: CaptureNeeds) -> dict[str, Capture]:
        """Keys and value gradients of the edited modules under the current weights."""
        return capture(self.model, self.modules, tokens, needs, token_budget=self._token_budget)

    def capture_edits(
        self, edits: Sequence[Edit], needs: CaptureNeeds | None, *, minibatch: int | None
    ) -> dict[str, Capture]:
        """Captures of one step's edits, in length-sorted mini-batches where the loss has them; none without needs."""
        if needs is None:
            return {}
        return self.capture(encode(edits, self.tokenizer, minibatch=minibatch, sort=minibatch is not None), needs)

    @contextmanager
    def patched(self, updates: Mapping[str, UpdateT]) -> Iterator[None]:
        """The model with these updates added, restored bit for bit afterwards."""
        with self._writer.temporarily(updates), torch.no_grad():
            yield
