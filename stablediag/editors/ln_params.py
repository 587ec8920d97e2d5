"""The parameters of the LN family, every switch a named option, and the presets with their provenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from stablediag.errors import NumericalError

#: parameters of controls, left out of a spec where they do nothing
_CONTROLS = ("center", "statistics", "statistics_seed", "target_apply")
#: float32 machine epsilon: what the released code adds to every divisor
RELEASED_EPS = 2.0**-23


class Match(BaseModel):
    """Update norms to be equalled: the control that separates the scale of an update from its direction.

    In the warm-up every step is matched on its own. `first` fixes one factor per module at the first target step,
    `mean` fixes it so that the mean norm over the target steps agrees (found by pilot passes whose weights are
    restored), `every` matches each step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str = Field(description="run directory, or the name of a sibling of this run's directory")
    mode: Literal["first", "mean", "every"] = "first"
    steps: PositiveInt | None = Field(None, description="target steps of a `mean` pilot; null: all")

    @staticmethod
    def factor(reference: Mapping[tuple[int, str], float], *, step: int, module: str, norm: float) -> float:
        """Factor that gives an update of this norm the norm that the reference run recorded; 0 for a zero update.

        Raises
        ------
        NumericalError
            The reference run has no norm for this step and module.
        """
        wanted = reference.get((step, module))
        if wanted is None:
            raise NumericalError(
                f"no reference norm for step {step}, module {module}: match a run of the same model, stream and warm-up"
            )
        return wanted / norm if norm > 0 else 0.0


class Calibration(BaseModel):
    """How `lr: calibrate` searches: smallest learning rate that reaches an immediate efficacy on held-out edits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    efficacy: float = Field(0.9, gt=0, lt=1)
    edits: PositiveInt = 100
    tolerance: float = Field(0.05, gt=0, description="relative width of the final bracket of lr")


class LNParams(BaseModel):
    """Every switch of the LN family. Defaults are the preset `paper`.

    Attributes
    ----------
    lr : float or "calibrate"
        Editor learning rate (gamma). It multiplies ``||h~||^2``, about d_in, so it does not transfer between widths.
    ridge : float
        Ridge strength (lambda).
    normaliser : str
        Value gradients: ``full`` whitening, ``diagonal``, one ``scalar``, ``center`` only, or ``none``.
    coefficient : str
        Hidden-state scalar: ``standardised`` keys (||h~||^2), ``raw`` keys (||h||^2, the option raw_h), or ``none`` (1).
    stats_scope : str
        One set of statistics per ``layer`` (paper) or per weight ``shape`` (released code).
    stats_order : str
        Normalise with statistics that include the step's rows (``after``) or not (``before``; the very first step
        has nothing before it and uses ``after``).
    block_var : str
        Variance inside a mini-batch: ``population`` (exact pooling) or ``sample`` (ULTRAEDIT's release).
    prior, prior_kind : float, str
        eps0 of ``Psi_0 = eps0 I``: ``relative`` to trace/d of the first step's scatter, ``absolute``, or ``none``.
    floor, floor_kind : float, str
        Eigenvalue floor of the covariance: ``relative`` to trace/d, ``absolute`` (released: 1e-6), or ``none``.
    shrinkage : float
        Linear shrinkage of the covariance towards its scaled identity, in [0, 1].
    pre_threshold : str
        While nu <= d + 1 the posterior mean does not exist: fall back to ``diagonal``, ``shrink``, or raise (``error``).
    eps : float
        Added to divisors (released: float32 epsilon).
    warmup_norm : str
        In the warm-up: the ``same`` normaliser (paper) or always ``diagonal`` (released).
    warmup_apply : bool
        Whether warm-up updates are written, or only the statistics kept.
    forget : float
        Forgetting factor rho of the statistics, in (0, 1].
    loss, minibatch, tokens : str, int, str
        ``paper``: sum per edit; ``released``: mean over the answer tokens of a length-sorted mini-batch.
    master : str
        Weights accumulate in an ``fp32`` master copy or in the ``model``'s dtype.
    solve_dtype : str or null
        Arithmetic of the ridge solve; null: float64 up to 4,096 rows (see `stablediag.maths.ridge.dual_ridge`).
    track_covariance : bool
        Keep Psi for the recorders although the normaliser does not need it.
    center : bool
        Subtract the running mean from value gradients; false scales them about the origin, S v instead of S (v - m) (a
        control). Keys keep their mean.
    statistics : str
        What normalises gradients and keys: the ``running`` statistics; those ``frozen`` behind the last warm-up step, from the
        target step after it on; or running ones ``shuffled`` over the features, by one permutation per scope for gradients and
        one for keys: the right scales in the wrong places (controls). Recorders see the running ones, except `conditioning`:
        its spectrum is the one that normalises, with its count ``nu``. Both change the length of the updates, shuffling under
        full whitening by orders of magnitude: match norms (`match`) before comparing quality.
    statistics_seed : int
        Of the permutations.
    target_apply : bool
        Whether target updates are written; false edits nothing, and shows what estimates alone do (a control). The table
        ``updates`` lists what was written, so that it has no row of these steps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    lr: Annotated[float, Field(gt=0)] | Literal["calibrate"] = "calibrate"
    ridge: float = Field(10.0, ge=0)
    normaliser: Literal["full", "diagonal", "scalar", "center", "none"] = "full"
    coefficient: Literal["standardised", "raw", "none"] = "standardised"
    stats_scope: Literal["layer", "shape"] = "layer"
    stats_order: Literal["after", "before"] = "after"
    block_var: Literal["population", "sample"] = "population"
    prior: float = Field(1e-3, ge=0)
    prior_kind: Literal["relative", "absolute", "none"] = "relative"
    floor: float = Field(1e-12, ge=0)
    floor_kind: Literal["relative", "absolute", "none"] = "relative"
    shrinkage: float = Field(0.0, ge=0, le=1)
    pre_threshold: Literal["diagonal", "shrink", "error"] = "diagonal"
    eps: float = Field(0.0, ge=0)
    warmup_norm: Literal["same", "diagonal"] = "same"
    warmup_apply: bool = True
    forget: float = Field(1.0, gt=0, le=1)
    loss: Literal["paper", "released"] = "paper"
    minibatch: PositiveInt | None = None
    tokens: Literal["answer", "all", "last_prompt"] = "answer"
    master: Literal["fp32", "model"] = "fp32"
    solve_dtype: Literal["float32", "float64"] | None = None
    track_covariance: bool = False
    center: bool = True
    statistics: Literal["running", "frozen", "shuffled"] = "running"
    statistics_seed: int = Field(0, ge=0)
    target_apply: bool = True
    match: Match | None = None
    calibration: Calibration = Field(default_factory=lambda: Calibration.model_validate({}))

    @model_serializer(mode="wrap")
    def _controls_if_used(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Controls only where they differ from their defaults, so that specs older than them keep their digests."""
        values: dict[str, Any] = handler(self)
        defaults = {name: type(self).model_fields[name].default for name in _CONTROLS}
        return {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.normaliser == "center" and not self.center:
            raise ValueError("normaliser center with center false does nothing: choose normaliser none")
        if self.match is not None and self.match.mode == "mean" and not self.target_apply:
            raise ValueError("match mode mean needs updates that are written: set target_apply true, or mode every")
        if self.loss == "released" and self.minibatch is None:
            raise ValueError("loss released is a mean over mini-batches: give minibatch (the releases use 10)")
        if self.match is not None and self.lr == "calibrate":
            raise ValueError("match sets the size of every update: give lr a number, such as 1.0, not calibrate")
        return self


_RELEASED: dict[str, Any] = {
    "stats_scope": "shape",
    "prior_kind": "none",
    "floor": 1e-6,
    "floor_kind": "absolute",
    "eps": RELEASED_EPS,
    "warmup_norm": "diagonal",
    "loss": "released",
    "minibatch": 10,
    "master": "model",
}

#: name -> values that differ from `LNParams`' defaults. Provenance:
#: paper: arXiv:2605.11836, Algorithm 1, Section 4.1 (ridge 10) and Appendix B, with a relative prior where it is silent.
#: released: the public StableEdit repository as it behaves once it imports (ridge 10 from its launch script).
#: ultraedit: the public ULTRAEDIT repository (identity ridge, sample variance, no whitening, no warm-up).
#: no_warmup, no_whitening, no_ln: Table 4; no_h_norm: Table 15; stats_only_warmup: Table 13.
#: no_ln_matched: not in the paper; needs `match`.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "released": _RELEASED,
    "ultraedit": {
        **{k: v for k, v in _RELEASED.items() if k not in ("floor", "floor_kind")},
        "normaliser": "diagonal",
        "block_var": "sample",
        "ridge": 1.0,
    },
    "no_warmup": {},
    "no_whitening": {"normaliser": "diagonal"},
    "no_ln": {"normaliser": "none"},
    "no_ln_matched": {"normaliser": "none", "lr": 1.0},
    "no_h_norm": {"coefficient": "none"},
    "stats_only_warmup": {"warmup_apply": False},
}
