"""The posterior behind Lifelong Normalization: its recursion, and its means as estimates."""

from __future__ import annotations

from synthetic.claims import _posterior_estimates, _posterior_recursion

CLAIMS = (_posterior_recursion.CLAIM, _posterior_estimates.CLAIM)
