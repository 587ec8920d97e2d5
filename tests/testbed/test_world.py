"""The world: determinism, counts, roles."""

from __future__ import annotations

from collections import Counter

from stablediag.testbed.templates import HELD_OUT, PERSON_RELATIONS, RELATIONS
from stablediag.testbed.world import build_world, trained_templates


def test_world_follows_from_its_seed():
    build_world.cache_clear()
    first = build_world(3)
    build_world.cache_clear()
    assert build_world(3) == first
    assert build_world(4).facts != first.facts


def test_counts():
    world = build_world()
    known, unknown = world.select(family="person", known=True), world.select(family="person", known=False)
    assert len(known) >= 5000
    assert len(unknown) >= 11000
    assert len(PERSON_RELATIONS) >= 10
    for relation in RELATIONS.values():
        answers = world.objects[relation.name]
        assert 20 <= len(answers) == len(set(answers)) <= 80
        assert len(relation.templates) == HELD_OUT + 1 == 5
        assert 0.3 <= sum(" " in answer for answer in answers) / len(answers) <= 0.36
    assert len({fact.subject for fact in known}) == len({fact.subject for fact in unknown})


def test_facts_are_unique_and_no_pool_is_small():
    world = build_world()
    assert len({fact.key for fact in world.facts}) == len(world.facts)
    pools = Counter((fact.family, fact.known, fact.pool) for fact in world.facts)
    assert pools["person", False, "target"] >= 8000
    assert pools["person", False, "warmup"] >= 2200
    assert pools["person", False, "calibration"] >= 200
    assert pools["person", True, "target"] >= 2500
    assert pools["person", True, "snapshot"] >= 1000
    assert pools["person", True, "locality"] >= 1000


def test_training_withholds_the_last_template_from_most_facts():
    known = build_world().select(known=True)
    withheld = [fact for fact in known if HELD_OUT not in trained_templates(fact)]
    assert 0.57 < len(withheld) / len(known) < 0.63
    assert all(set(trained_templates(fact)) >= set(range(HELD_OUT)) for fact in known)
    asked_by_persona = sum(fact.persona is not None for fact in known) / len(known)
    assert 0.27 < asked_by_persona < 0.33


def test_tables_cover_every_answer():
    world = build_world()
    for fact in world.facts:
        value = world.second_hop(fact)
        assert (value is None) == (RELATIONS[fact.relation].table is None) == (not fact.two_hop_prompts())
