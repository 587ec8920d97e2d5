"""The page on the theorems speaks of every claim about the papers."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthetic.claims import registry

PAGE = (Path(__file__).parents[2] / "docs" / "theorems.md").read_text(encoding="utf-8").lower()


@pytest.mark.parametrize("claim", registry())
def test_page_states_the_claim(claim: str):
    kind, _, number = claim.partition("-")
    heading = f"**{kind} {number.lower()}**" if kind in ("theorem", "corollary", "remark", "lemma") else f"**{claim}**"
    assert heading in PAGE or f"`{claim}`" in PAGE
