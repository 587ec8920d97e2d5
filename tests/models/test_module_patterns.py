from __future__ import annotations

import pytest

from stablediag.errors import ModelError
from stablediag.module_patterns import collapse, expand, matches, nearest

NAMES = [f"model.layers.{i}.mlp.{kind}" for i in (0, 1, 2, 5) for kind in ("down_proj", "up_proj")]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.b", ["a.b"]),
        ("l.[1-3].x", ["l.1.x", "l.2.x", "l.3.x"]),
        ("l.[7].x", ["l.7.x"]),
        ("l.[5, 1 - 2].x", ["l.5.x", "l.1.x", "l.2.x"]),
        ("l.[0-1].e.[3-4]", ["l.0.e.3", "l.0.e.4", "l.1.e.3", "l.1.e.4"]),
    ],
)
def test_expand(pattern, expected):
    assert expand(pattern) == expected


@pytest.mark.parametrize(
    "pattern", ["", " ", "l.[1-3", "l.1]", "l.[[1]]", "l.[]", "l.[a]", "l.[2-1]", "l.[-1]", "l.[1-]"]
)
def test_malformed(pattern):
    with pytest.raises(ModelError, match="pattern"):
        expand(pattern)


def test_an_absurd_range_is_refused_before_it_is_built():
    with pytest.raises(ModelError, match="more than 100000"):
        expand("l.[0-999].[0-999]")


@pytest.mark.parametrize(
    ("simple", "name", "expected"),
    [
        ("mlp.down_proj", "model.layers.1.mlp.down_proj", True),
        ("p.down_proj", "model.layers.1.mlp.down_proj", False),
        ("layers.1", "model.layers.11", False),
        ("1.mlp", "model.layers.11.mlp", False),
        ("layers.*.mlp", "model.layers.11.mlp", True),
        ("layers.*.down_proj", "model.layers.1.mlp.down_proj", False),
        ("layers.**.down_proj", "model.layers.1.mlp.down_proj", True),
        ("*_proj", "model.layers.1.mlp.down_proj", True),
        ("mlp.down.proj", "model.mlp.downXproj", False),
    ],
)
def test_matches(simple, name, expected):
    assert matches(simple, name) is expected


def test_collapse_and_nearest():
    assert collapse([*NAMES, "lm_head"]) == [
        "model.layers.[0-2,5].mlp.down_proj",
        "model.layers.[0-2,5].mlp.up_proj",
        "lm_head",
    ]
    assert collapse([]) == []
    for pattern in ("layers.1.mlp.downproj", "layers.[1-3].mlp.dwn_proj", "down_prj", "h.*.mlp.down_proj"):
        assert nearest(pattern, NAMES) == "model.layers.[0-2,5].mlp.down_proj"
    assert nearest("zzz", NAMES) is None
