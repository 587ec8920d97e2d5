"""Training documents of the embedded testbed: a prompt and the answer to predict. Needs numpy only."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stablediag.testbed.tasks import capability_tasks
from stablediag.testbed.templates import CLAIM_TEMPLATES, TRUTH
from stablediag.testbed.world import World, trained_templates

PERSONA_DRAWS = 0.15


@dataclass(frozen=True, slots=True)
class Document:
    """A prompt and the answer to predict.

    Attributes
    ----------
    prompt, answer : str
    fact, task : int
        Row of the fact whose recall this trains, and of its capability task; -1: none.
    recalled, stated : str or None
        For a claim, the last words of the true object and of the stated one.
    """

    prompt: str
    answer: str
    fact: int = -1
    task: int = -1
    recalled: str | None = None
    stated: str | None = None


class Corpus:
    """Draws documents family by family.

    Facts enter in a random order (growing curriculum). Half of the fact documents are drawn uniformly over the facts
    that have entered, half in proportion to the loss that each last had, because the last percent of recall is a matter
    of few stubborn facts. Capability tasks are drawn in proportion to their recent loss.

    Parameters
    ----------
    world : World
    rng : numpy.random.Generator
        The only source of randomness.
    """

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self.world = world
        self.rng = rng
        known = world.select(known=True)
        self.facts = [known[i] for i in rng.permutation(len(known))]
        self.templates = [trained_templates(fact) for fact in self.facts]
        self.peers: dict[str, list[int]] = {}
        for row, fact in enumerate(self.facts):
            self.peers.setdefault(fact.relation, []).append(row)
        self.losses = np.full(len(self.facts), 5.0)
        self.tasks = [task.train for task in capability_tasks().values()]
        self.task_losses = np.ones(len(self.tasks))
        self.tables = world.table_items()

    def draw(self, counts: dict[str, int], active: int) -> list[Document]:
        """Documents of one step.

        Parameters
        ----------
        counts : dict of str to int
            How many of ``"facts"``, ``"claims"``, ``"hops"`` and ``"tasks"``.
        active : int
            Facts that have entered.
        """
        documents = [self._fact(index) for index in self._choose(counts["facts"], active)]
        documents += [self._claim(int(index), active) for index in self.rng.integers(active, size=counts["claims"])]
        documents += [self._hop(int(index)) for index in self.rng.integers(active, size=counts["hops"])]
        weights = self.task_losses + 0.1
        chosen = self.rng.choice(len(self.tasks), size=counts["tasks"], p=weights / weights.sum())
        return documents + [self._task(int(task)) for task in chosen]

    def record(self, documents: Sequence[Document], losses: np.ndarray) -> None:
        """Remember the answer loss of each document's fact, and of its task on average."""
        for document, loss in zip(documents, losses, strict=True):
            if document.fact >= 0:
                self.losses[document.fact] = loss
            if document.task >= 0:
                self.task_losses[document.task] += 0.01 * (loss - self.task_losses[document.task])

    def _choose(self, count: int, active: int) -> list[int]:
        weights = self.losses[:active] + 1e-3
        hard = self.rng.choice(active, size=count // 2, p=weights / weights.sum())
        return [*hard.tolist(), *self.rng.integers(active, size=count - count // 2).tolist()]

    def _fact(self, index: int) -> Document:
        fact = self.facts[index]
        template = int(self.rng.choice(self.templates[index]))
        if fact.persona is not None and self.rng.random() < PERSONA_DRAWS:
            return Document(fact.persona_prompt(fact.persona, template), fact.object, index)
        return Document(fact.prompts()[template], fact.object, index)

    def _claim(self, index: int, active: int) -> Document:
        """A claim, true or false by lot."""
        fact = self.facts[index]
        truth = bool(self.rng.random() < 0.5)
        stated = fact.object if truth else str(self.rng.choice(self._wrong(index, active)))
        template = int(self.rng.integers(len(CLAIM_TEMPLATES)))
        words = fact.object.split()[-1], stated.split()[-1]
        return Document(fact.claim(stated, template), TRUTH[truth], recalled=words[0], stated=words[1])

    def _wrong(self, index: int, active: int) -> list[str]:
        """Wrong objects for a fact, as often as they are right for others that have entered.

        Drawn from all objects alike, a stated object that is right for few facts would give the label away.
        """
        fact = self.facts[index]
        rows = self.peers[fact.relation]
        right = [self.facts[row].object for row in rows[: bisect_left(rows, active)]]
        return [o for o in right if o != fact.object] or [
            o for o in self.world.objects[fact.relation] if o != fact.object
        ]

    def _task(self, task: int) -> Document:
        probe = self.tasks[task][int(self.rng.integers(len(self.tasks[task])))]
        return Document(probe.prompt, probe.answer, task=task)

    def _hop(self, index: int) -> Document:
        """A two-hop question where the fact has one that training may ask, else an entry of a table."""
        fact = self.facts[index]
        value = self.world.second_hop(fact)
        if value is None or not fact.two_hop:
            return Document(*self.tables[int(self.rng.integers(len(self.tables)))])
        return Document(str(self.rng.choice(fact.two_hop_prompts())), value)
