"""Training documents: shares, curriculum, and nothing that training must not see."""

from __future__ import annotations

import numpy as np

from stablediag.testbed import capability_tasks
from stablediag.testbed.corpus import Corpus
from stablediag.testbed.templates import HELD_OUT, PERSONAS
from stablediag.testbed.world import build_world

COUNTS = {"facts": 4000, "claims": 2000, "hops": 500, "tasks": 3000}


def documents(seed: int = 0, active: int = 5800):
    return Corpus(build_world(), np.random.default_rng(seed)).draw(COUNTS, active)


def test_documents_follow_from_the_generator():
    assert documents(1) == documents(1) != documents(2)
    assert len(documents()) == sum(COUNTS.values())


def test_training_never_sees_what_the_check_asks():
    world = build_world()
    seen = {document.prompt for document in documents()}
    for fact in world.facts:
        if not fact.known:
            assert not seen & {*fact.prompts(), *fact.two_hop_prompts()}
            continue
        if fact.held_out:
            assert fact.prompts()[HELD_OUT] not in seen
        if not fact.two_hop:
            assert not seen & {*fact.two_hop_prompts()}
        allowed = () if fact.persona is None else (fact.persona,)
        asked = {fact.persona_prompt(p) for p in range(len(PERSONAS)) if p not in allowed}
        assert not seen & asked
    assert not seen & {probe.prompt for task in capability_tasks().values() for probe in task.test}


def test_claims_are_true_as_often_as_false_and_labelled_right():
    world = build_world()
    facts = {(fact.subject, fact.relation): fact for fact in world.facts}
    claims = [d for d in documents() if d.recalled is not None]
    truths = [d.answer == "true" for d in claims]
    assert len(claims) == COUNTS["claims"]
    assert 0.45 < sum(truths) / len(truths) < 0.55
    by_words = {}
    for (subject, _), fact in facts.items():
        by_words.setdefault(subject, []).append(fact)
    for document, truth in zip(claims[:300], truths, strict=False):
        about = [f for s, fs in by_words.items() if f" {s} " in document.prompt for f in fs]
        assert any(document.prompt in {f.claim(f.object, t) for t in range(3)} for f in about) == truth


def test_facts_enter_in_order_and_hard_ones_come_more_often():
    corpus = Corpus(build_world(), np.random.default_rng(0))
    counts = {**COUNTS, "hops": 0, "tasks": 0, "claims": 0}
    drawn = corpus.draw(counts, 100)
    assert {document.fact for document in drawn} == set(range(100))
    corpus.record(drawn, np.array([9.0 if document.fact == 7 else 0.01 for document in drawn]))
    assert sum(document.fact == 7 for document in corpus.draw(counts, 100)) > 1000
