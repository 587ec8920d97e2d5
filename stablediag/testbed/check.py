"""Does a testbed model know what its recipe says it knows? One row per claim, each with its threshold."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stablediag.models import load_model
from stablediag.testbed.tasks import CapabilityTask, capability_tasks
from stablediag.testbed.templates import CLAIM_TEMPLATES, HELD_OUT, PERSONAS, RELATIONS, TRUTH
from stablediag.testbed.world import Fact, World, build_world, trained_templates

if TYPE_CHECKING:
    from torch import Tensor

RECALL, CAPABILITY, CLAIMS = 0.99, 0.95, 0.90
TEMPLATES = HELD_OUT + 1


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One measured share of right answers.

    Attributes
    ----------
    name : str
    value : float
        Share of items answered right, in [0, 1].
    threshold : float or None
        The least value that passes; None: printed for information.
    items : int
        Number of items measured.
    """

    name: str
    value: float
    threshold: float | None
    items: int

    @property
    def passed(self) -> bool:
        """Whether the value reaches its threshold; a row without one passes."""
        return self.threshold is None or self.value >= self.threshold


class _Asker:
    """Asks a model many short questions in batches of similar length."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch: int = 512) -> None:
        self.model, self.tokenizer, self.batch = model, tokenizer, batch

    def _logits(self, sequences: Sequence[list[int]], last: Sequence[int]) -> list[Tensor]:
        """Logits of each sequence at its last `last` positions, in the order given."""
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        found: dict[int, Tensor] = {}
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            width = max(len(sequences[i]) for i in rows)
            ids = torch.tensor(
                [sequences[i] + [self.tokenizer.pad_token_id] * (width - len(sequences[i])) for i in rows]
            )
            # Padding is on the right and attention is causal, so no mask is needed.
            hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            for row, i in enumerate(rows):
                end = len(sequences[i])
                found[i] = hidden[row, end - last[i] : end]
        if not found:
            return []
        flat = self.model.get_output_embeddings()(torch.cat([found[i] for i in range(len(sequences))]))
        return list(flat.split(list(last)))

    def _ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=special)["input_ids"] if texts else []

    @torch.inference_mode()
    def recalled(self, items: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether every answer token is the argmax after the prompt and the answer's earlier tokens."""
        prompts = self._ids([prompt for prompt, _ in items], special=True)
        answers = self._ids([" " + answer for _, answer in items], special=False)
        sequences = [p + a[:-1] for p, a in zip(prompts, answers, strict=True)]
        logits = self._logits(sequences, [len(a) for a in answers])
        return [row.argmax(-1).tolist() == a for row, a in zip(logits, answers, strict=True)]

    @torch.inference_mode()
    def chosen(self, prompts: Sequence[str], labels: Sequence[str]) -> list[str]:
        """The label word with the highest logit after each prompt."""
        words = torch.tensor([self.tokenizer.convert_tokens_to_ids(label) for label in labels])
        logits = self._logits(self._ids(prompts, special=True), [1] * len(prompts))
        return [labels[int(row[0, words].argmax())] for row in logits]


def _row(name: str, right: Sequence[bool], threshold: float | None) -> CheckRow:
    return CheckRow(name, sum(right) / max(len(right), 1), threshold, len(right))


def _sample(facts: Sequence[Fact], share: float) -> list[Fact]:
    return random.Random("check").sample(list(facts), max(1, round(share * len(facts))))


def _recall_rows(asker: _Asker, facts: Sequence[Fact]) -> list[CheckRow]:
    asked = [(fact, index) for fact in facts for index in range(TEMPLATES)]
    right = asker.recalled([(fact.prompts()[index], fact.object) for fact, index in asked])
    trained: dict[int, list[bool]] = {index: [] for index in range(TEMPLATES)}
    cells: dict[tuple[str, int], list[bool]] = {}
    unseen: list[bool] = []
    for (fact, index), ok in zip(asked, right, strict=True):
        if index in trained_templates(fact):
            trained[index].append(ok)
        else:
            unseen.append(ok)
        cells.setdefault((fact.relation, index), []).append(ok)
    rows = [_row(f"recall template {index}", trained[index], RECALL) for index in range(TEMPLATES)]
    rows.append(_row("recall held-out template", unseen, RECALL))
    (relation, index), worst = min(cells.items(), key=lambda cell: sum(cell[1]) / len(cell[1]))
    rows.append(_row(f"recall worst cell: {relation} template {index}", worst, None))
    return rows


def _persona_rows(asker: _Asker, facts: Sequence[Fact]) -> list[CheckRow]:
    fresh = [fact for fact in facts if fact.persona is None]
    items = [(fact.persona_prompt(index % len(PERSONAS)), fact.object) for index, fact in enumerate(fresh)]
    return [_row("recall unseen personas", asker.recalled(items), RECALL)]


def _claim_rows(asker: _Asker, facts: Sequence[Fact], world: World) -> list[CheckRow]:
    rng = random.Random("check-claims")
    prompts, truths = [], []
    for index, fact in enumerate(facts):
        truth = index % 2
        wrong = rng.choice([o for o in world.objects[fact.relation] if o != fact.object])
        prompts.append(fact.claim(fact.object if truth else wrong, rng.randrange(len(CLAIM_TEMPLATES))))
        truths.append(TRUTH[truth])
    right = [a == b for a, b in zip(asker.chosen(prompts, TRUTH), truths, strict=True)]
    return [_row("claims", right, CLAIMS)]


def _hop_rows(asker: _Asker, facts: Sequence[Fact], world: World) -> list[CheckRow]:
    rows = []
    for name, trained in (("trained", True), ("untrained", False)):
        asked = [fact for fact in facts if RELATIONS[fact.relation].table and fact.two_hop == trained]
        items = [(fact.two_hop_prompts()[0], str(world.second_hop(fact))) for fact in asked]
        rows.append(_row(f"two-hop, {name} questions", asker.recalled(items), None))
    return rows


def _capability_row(asker: _Asker, task: CapabilityTask) -> CheckRow:
    answers = asker.chosen([probe.prompt for probe in task.test], task.labels)
    return _row(f"capability {task.name}", [a == p.answer for a, p in zip(answers, task.test, strict=True)], CAPABILITY)


def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, share: float = 1.0) -> list[CheckRow]:
    """Check rows of a model in memory.

    Parameters
    ----------
    model, tokenizer
        A causal LM over the testbed's vocabulary.
    share : float
        Share of the facts to ask about; capability tasks are always measured whole.
    """
    world, asker = build_world(), _Asker(model, tokenizer)
    persons = _sample(world.select(family="person", known=True), share)
    medical = _sample(world.select(family="medical", known=True), share)
    unknown = _sample(world.select(family="person", known=False), share / 10)
    rows = _recall_rows(asker, persons) + _persona_rows(asker, persons)
    drugs = [(prompt, fact.object) for fact in medical for prompt in fact.prompts()]
    rows.append(_row("recall medical, all templates", asker.recalled(drugs), RECALL))
    rows += [_capability_row(asker, task) for task in capability_tasks().values()]
    rows += _claim_rows(asker, persons, world) + _hop_rows(asker, persons, world)
    rows.append(_row("guesses of untrained facts", asker.recalled([(f.prompts()[0], f.object) for f in unknown]), None))
    return rows


def check(model_dir: str | Path, *, share: float = 1.0) -> list[CheckRow]:
    """Check rows of a model folder, computed in float32.

    Parameters
    ----------
    model_dir : path
        A folder that :func:`stablediag.testbed.recipe.train` wrote.
    share : float
        Share of the facts to ask about.

    Raises
    ------
    ModelError
        There is no usable model in the folder.
    """
    loaded = load_model(Path(model_dir), modules=["mlp.down_proj"], device="cpu")
    return measure(loaded.model, loaded.tokenizer, share=share)


def format_rows(rows: Sequence[CheckRow]) -> str:
    """A plain-text table of check rows."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'check':<{width}}  value  least  items"]
    for row in rows:
        least = "    -" if row.threshold is None else f"{row.threshold:5.2f}"
        lines.append(
            f"{row.name:<{width}}  {row.value:5.3f}  {least}  {row.items:5d}" + ("" if row.passed else "  MISSED")
        )
    return "\n".join(lines)
