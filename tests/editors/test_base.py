"""Editors by name, and what their parameters come from."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from stablediag.editors.base import editor_class, resolve_params
from stablediag.editors.ln import LNEditor
from stablediag.errors import SpecError


class OwnParams(BaseModel):
    """Parameters of a third party's editor."""

    strength: float = 1.0
    reference: str | None = None


class OwnEditor:
    """A third party's editor, found as module:Class."""

    Params = OwnParams
    presets = {"strong": {"strength": 9.0}, "matched": {}}  # noqa: RUF012
    preset_needs = {"matched": ("reference",)}  # noqa: RUF012


@pytest.fixture
def own(monkeypatch):
    import sys
    import types

    module = types.ModuleType("own_editors")
    module.OwnEditor = OwnEditor
    monkeypatch.setitem(sys.modules, "own_editors", module)
    return "own_editors:OwnEditor"


def test_names(own):
    assert editor_class("ln") is LNEditor
    assert editor_class(own) is OwnEditor
    for name, says in (("bogus", "unknown editor 'bogus': use one of ln"), ("own_editors:No", "cannot be imported")):
        with pytest.raises(SpecError, match=says):
            editor_class(name)


def test_own_values_win_over_the_preset_and_the_preset_over_the_defaults(own):
    assert resolve_params(own, None, {}).strength == 1.0
    assert resolve_params(own, "strong", {}).strength == 9.0
    assert resolve_params(own, "strong", {"strength": 2}).strength == 2.0
    assert resolve_params("ln", "no_h_norm", {"ridge": 3}).coefficient == "none"


def test_a_preset_may_need_a_parameter(own):
    assert resolve_params(own, "matched", {"reference": "x"}).reference == "x"
    for params in ({}, {"reference": None}):
        with pytest.raises(SpecError, match=r"'matched' .* needs editor.params.reference"):
            resolve_params(own, "matched", params)
    assert resolve_params("ln", "no_ln_matched", {"match": {"run": "r"}}).match.run == "r"
    with pytest.raises(SpecError, match=r"'no_ln_matched' .* needs editor.params.match"):
        resolve_params("ln", "no_ln_matched", {})
