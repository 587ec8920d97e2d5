"""Claims about adapting to drift: warm-up, forgetting, the trackable horizon, and judging the error without the truth."""

from __future__ import annotations

from synthetic.claims import Claim
from synthetic.claims import _adaptation_forgetting as forgetting
from synthetic.claims import _adaptation_lag as lag
from synthetic.claims import _adaptation_prequential as prequential
from synthetic.claims import _adaptation_surrogate as surrogate
from synthetic.claims import _adaptation_warmup as warmup

CLAIMS: tuple[Claim, ...] = (warmup.CLAIM, forgetting.CLAIM, *lag.CLAIMS, prequential.CLAIM, surrogate.CLAIM)
