"""The statistics behind the updates: how well conditioned the covariance is, and how fast it moves.

Rows are keyed by step and scope: a module's name, or the name that several modules share with their statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stablediag.editors.base import Tracked
from stablediag.maths._threads import single_thread
from stablediag.maths.niw import NIW
from stablediag.maths.spectral import covariance_shift
from stablediag.maths.whiten import Whitener
from stablediag.recorders.base import BaseRecorder, Item, Row, Schedule, SqlType, StepView, log_spaced
from stablediag.recorders.updates import number


def tracked_scopes(step: StepView) -> Iterator[tuple[str, Tracked, Whitener | None, list[str]]]:
    """Every statistic of the step: scope, how it moved, what it was turned into, and the modules that share it."""
    proposals = [applied.proposal for applied in step.applied]
    for proposal in proposals:
        whitener = proposal.whitener
        modules = [p.module for p in proposals if p.whitener is whitener] if whitener is not None else [proposal.module]
        for scope, tracked in proposal.tracked.items():
            yield scope, tracked, whitener, modules


@dataclass
class Conditioning(BaseRecorder):
    r"""Spectrum of the tracked covariance of the value gradients.

    Columns: ``nu`` rows behind the spectrum; ``whitening_active`` whether the full inverse root is in use; ``condition_raw`` and
    ``condition_floored`` before and after shrinkage and floor (infinite when singular); ``eig_max``, ``eig_min`` of
    the raw estimate; ``floored_fraction`` of the directions; ``d_eff``, the participation ratio
    :math:`(\mathrm{tr}\,\Sigma)^2/\mathrm{tr}\,\Sigma^2`, and ``d_eff_white``, the same of the normalised
    gradients as the whitener's own covariance has them (not of those under ``frozen`` or ``shuffled`` statistics).

    All but the first two are null until ``nu > d + 1``, and where no covariance is kept. The eigenvalues are those of
    the editor's whitener, hence of older statistics where these normalise (under ``frozen`` ones they stay as they are);
    where it has none, the statistic's own are computed.

    Parameters
    ----------
    decompose : Schedule
        Steps at which an eigendecomposition may be spent on a statistic that the editor did not decompose.

    Notes
    -----
    StableEdit (arXiv:2605.11836), Figure 7. Pure noise alone makes the condition number fall with ``nu``
    (Marchenko and Pastur 1967): compare before calling a decrease a finding.
    """

    decompose: Schedule = field(default_factory=lambda: log_spaced(40))
    name = "conditioning"
    columns: Mapping[str, Mapping[str, SqlType]] = field(
        default_factory=lambda: {
            "tracking": {
                "nu": "REAL",
                "whitening_active": "INTEGER",
                "condition_raw": "REAL",
                "condition_floored": "REAL",
                "eig_max": "REAL",
                "eig_min": "REAL",
                "floored_fraction": "REAL",
                "d_eff": "REAL",
                "d_eff_white": "REAL",
            }
        },
        init=False,
    )

    def on_step(self, step: StepView) -> Iterable[Item]:
        """One row per scope."""
        for scope, tracked, whitener, _ in tracked_scopes(step):
            active = whitener is not None and whitener.active
            values: dict[str, float | int | None] = dict.fromkeys(self.columns["tracking"])
            values |= {"nu": tracked.whitener_nu, "whitening_active": int(active)}
            if isinstance(tracked.after, NIW) and tracked.after.exists:
                if whitener is not None and active:
                    values |= _whitened_spectrum(whitener)
                elif self.decompose(step.step, step.total):
                    values |= _own_spectrum(tracked.after) | {"nu": float(tracked.after.nu)}
            yield Row("tracking", {"step": step.step, "module": scope}, values)


def _own_spectrum(niw: NIW) -> dict[str, float | None]:
    with single_thread(niw.scale.device):
        return _raw(torch.linalg.eigvalsh(niw.cov))


def _whitened_spectrum(whitener: Whitener) -> dict[str, float | None]:
    assert whitener.eigenvalues is not None
    assert whitener.inverted is not None
    kept = whitener.eigenvalues.clamp_min(0.0)
    gained = torch.where(whitener.inverted > 0, kept / whitener.inverted, 0.0)
    return _raw(whitener.eigenvalues) | {
        "condition_floored": number(whitener.condition().floored),
        "floored_fraction": number(whitener.floored_fraction),
        "d_eff_white": number(_participation(gained)),
    }


def _raw(eigenvalues: Tensor) -> dict[str, float | None]:
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    return {
        "condition_raw": number(largest / smallest) if smallest > 0 else float("inf"),
        "eig_max": number(largest),
        "eig_min": number(smallest),
        "d_eff": number(_participation(eigenvalues.clamp_min(0.0))),
    }


def _participation(eigenvalues: Tensor) -> Tensor:
    return eigenvalues.sum().square() / eigenvalues.square().sum()


@dataclass
class DriftSurrogates(BaseRecorder):
    r"""How far the tracked mean and covariance moved in one step.

    ``mean_shift`` :math:`= \|m_t - m_{t-1}\|_2` (null at the first step, where there is nothing before) and
    ``cov_shift`` :math:`= \|\hat\Sigma_t - \hat\Sigma_{t-1}\|_2`, spectral, from the step's own factor: no second
    covariance is kept or formed. Null while ``nu <= d + 1`` before the step, under forgetting, with sample variances,
    and where no covariance is kept.

    Notes
    -----
    StableEdit (arXiv:2605.11836), Figures 13 and 14. Both decay like rows over ``nu`` on a stationary stream too, so a
    decay alone does not support the assumption that the drift can be tracked.
    """

    name = "drift_surrogates"
    columns: Mapping[str, Mapping[str, SqlType]] = field(
        default_factory=lambda: {"tracking": {"mean_shift": "REAL", "cov_shift": "REAL"}}, init=False
    )

    def on_step(self, step: StepView) -> Iterable[Item]:
        """One row per scope."""
        for scope, tracked, _, _ in tracked_scopes(step):
            shift: float | None = None
            if tracked.before_nu > 0:
                moved = tracked.after.mean.double() - tracked.before_mean.double().to(tracked.after.mean.device)
                shift = number(torch.linalg.vector_norm(moved))
            values = {"mean_shift": shift, "cov_shift": _cov_shift(tracked)}
            yield Row("tracking", {"step": step.step, "module": scope}, values)


def _cov_shift(tracked: Tracked) -> float | None:
    if not isinstance(tracked.after, NIW) or tracked.factor is None:
        return None
    return number(covariance_shift(tracked.after, tracked.before_nu, tracked.factor))


@dataclass
class WhitenedNorm(BaseRecorder):
    r"""The first alarm: mean squared norm of the step's whitened gradients over its value for exchangeable gradients.

    ``whitened_index`` :math:`I_t = \mathrm{mean}_i \|\tilde v_i\|^2 / (d (1 - (d+1)/\nu))` is 1 in expectation when the
    step's gradients are exchangeable with all the earlier ones and the statistics include them. Below 1 the gradients
    shrink (stale scale), above 1 they grow or their mean has moved. Null without full whitening, under forgetting, and
    where the statistics do not include the step.
    """

    name = "whitened_norm"
    columns: Mapping[str, Mapping[str, SqlType]] = field(
        default_factory=lambda: {"tracking": {"whitened_index": "REAL"}}, init=False
    )

    def on_step(self, step: StepView) -> Iterable[Item]:
        """One row per scope."""
        for scope, tracked, whitener, modules in tracked_scopes(step):
            index: float | None = None
            present = [step.captures[name] for name in modules if name in step.captures]
            d, nu = tracked.after.d, float(tracked.after.nu)
            if whitener is not None and whitener.active and tracked.in_sample and present and nu > d + 1:
                energy = sum(
                    float(whitener.apply(c.grads.to(whitener.mean.device)).double().square().sum()) for c in present
                )
                index = number(energy / sum(c.rows for c in present) / (d * (1 - (d + 1) / nu)))
            yield Row("tracking", {"step": step.step, "module": scope}, {"whitened_index": index})
