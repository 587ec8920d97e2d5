"""The mathematics: torch only, any dtype and device, leading batch dimensions, no input or output."""

from stablediag.maths.ln import key_coefficient, ln_update
from stablediag.maths.niw import NIW, DiagNIW
from stablediag.maths.ridge import dual_ridge, gram
from stablediag.maths.spectral import covariance_shift, covariance_shifts, symmetric_norm
from stablediag.maths.update import Dense, LowRank, Update, UpdateT, concat
from stablediag.maths.whiten import (
    Condition,
    Floor,
    Whitener,
    center_whitener,
    diagonal_whitener,
    full_whitener,
    gradient_whitener,
    identity_whitener,
    scalar_whitener,
)

__all__ = [
    "NIW",
    "Condition",
    "Dense",
    "DiagNIW",
    "Floor",
    "LowRank",
    "Update",
    "UpdateT",
    "Whitener",
    "center_whitener",
    "concat",
    "covariance_shift",
    "covariance_shifts",
    "diagonal_whitener",
    "dual_ridge",
    "full_whitener",
    "gradient_whitener",
    "gram",
    "identity_whitener",
    "key_coefficient",
    "ln_update",
    "scalar_whitener",
    "symmetric_norm",
]
