"""Runs of the figures of diagnosis: one spec file each with a few values changed, all on the same short stream.

Equal specs have equal digests, so that a run is made once however many figures show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from figures import needs
from figures.needs import Need, Scale
from stablediag.errors import SpecError

SETTING = "controls"
#: overrides of the spec files by scale; others get the full ones
SETTINGS: dict[str, tuple[str, ...]] = {
    "full": ("data.size=1000", "edits_per_step=50", "evaluation.subsample=500"),
    "quick": ("data.size=200", "edits_per_step=25", "warmup.size=100", "evaluation.subsample=100"),
}
#: overrides at every scale: all that can be recorded, nothing that takes long
COMMON = (
    "recorders=full",
    "evaluation.metrics=[kl]",
    "evaluation.capability=false",
    "snapshots.schedule=never",
    "calibration=null",
)
SEEDS = {"full": (0, 1, 2), "quick": (0, 1)}


@dataclass(frozen=True)
class Variant:
    """One curve or cell: a spec file, and the values in which it differs.

    Attributes
    ----------
    label : str
        Name of the runs in the figure's table; `ArmRun.arm`.
    arm : str
        Spec file under ``reproduce/specs/testbed``, without ending.
    changes : tuple of str
        Overrides, ``"editor.params.lr=1e-3"``. They win over those of the setting. A run that is named as ``@label``
        (``editor.params.match``, ``init.weights_from``, ``init.stats_from``) is the variant of that label at the same seed.
    """

    label: str
    arm: str
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variants:
    """Every variant at every seed; the quick scale may do with fewer. What is only referred to may stand in `hidden`."""

    full: tuple[Variant, ...]
    quick: tuple[Variant, ...] | None = None
    hidden: tuple[Variant, ...] = ()

    def resolve(self, scale: Scale) -> list[Need]:
        """The runs at a scale, with those that they build on after them."""
        own = replace(scale, settings={**scale.settings, SETTING: (*_setting(scale), *COMMON)}, cache={})
        shown = self.quick if scale.name == "quick" and self.quick is not None else self.full
        known = {variant.label: variant for variant in (*self.hidden, *self.full, *shown)}
        seeds = SEEDS.get(scale.name, scale.seeds)
        found = [_resolved(variant.label, known, seed, own) for seed in seeds for variant in shown]
        return needs.with_matched(found, own)


def _setting(scale: Scale) -> Sequence[str]:
    return scale.settings.get(SETTING, SETTINGS.get(scale.name, SETTINGS["full"]))


def _resolved(label: str, known: dict[str, Variant], seed: int, scale: Scale) -> Need:
    key = (label, SETTING, seed)
    if key not in scale.cache:
        if label not in known:
            raise SpecError(f"no variant {label!r}: use one of {', '.join(known)}")
        variant = known[label]
        spec = needs.loaded(variant.arm, (*scale.settings[SETTING], *scale.common, *variant.changes), seed)
        spec = needs.written_out(spec, lambda name: _resolved(name, known, seed, scale).directory)
        named = spec.model_copy(update={"name": f"{label.replace('/', '-')}-{SETTING}-seed{seed}"})
        scale.cache[key] = Need(label, SETTING, seed, named)
    return scale.cache[key]
