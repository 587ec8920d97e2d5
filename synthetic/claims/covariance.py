"""Claims about the running covariance: its error and bounds, its exact mean, forgetting, start-up, and pure noise."""

from __future__ import annotations

from synthetic.claims import Claim
from synthetic.claims import _covariance_audits as audits
from synthetic.claims import _covariance_error as error
from synthetic.claims import _covariance_forgetting as forgetting
from synthetic.claims import _covariance_inverse as inverse
from synthetic.claims import _covariance_moments as moments
from synthetic.claims import _covariance_noise as noise

CLAIMS: tuple[Claim, ...] = (
    error.CLAIM,
    *moments.CLAIMS,
    forgetting.CLAIM,
    *audits.CLAIMS,
    inverse.CLAIM,
    noise.CLAIM,
)
