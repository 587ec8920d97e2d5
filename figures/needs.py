"""Which runs a figure needs: arms (spec files) in settings (horizons and streams), at one of two scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stablediag.editors.base import resolve_params
from stablediag.errors import SpecError
from stablediag.spec import Spec, load

SPECS = Path(__file__).resolve().parent.parent / "reproduce" / "specs" / "testbed"
#: settings that `Needs.settings` may name as a group
STREAMS = "streams"


@dataclass(frozen=True)
class Scale:
    """What a setting means: seeds, and overrides of the spec files.

    Attributes
    ----------
    seeds : tuple of int
        Of the horizons; `stream_seeds` of the streams.
    common : tuple of str
        Overrides of every run.
    settings : mapping of str to tuple of str
        Overrides by setting. A setting whose name begins with ``stream:`` belongs to the group `STREAMS`.
    """

    name: str
    seeds: tuple[int, ...]
    stream_seeds: tuple[int, ...]
    settings: Mapping[str, tuple[str, ...]]
    common: tuple[str, ...] = ()
    cache: dict[tuple[str, str, int], Need] = field(default_factory=dict, repr=False, compare=False)

    def expand(self, names: Sequence[str]) -> list[str]:
        """Settings by name, groups replaced by their members."""
        found = []
        for name in names:
            found += [s for s in self.settings if s.startswith("stream:")] if name == STREAMS else [name]
        return found


@dataclass(frozen=True)
class Need:
    """One run that a figure needs; `spec` is resolved, editor parameters and matched run included.

    `alone` runs get a process of their own each: what a process had at its peak never falls, so that in one that has made
    another run before, the peak would be that run's.
    """

    arm: str
    setting: str
    seed: int
    spec: Spec
    alone: bool = False

    @cached_property
    def digest(self) -> str:
        """Digest of the resolved spec; its first 16 characters name the run's directory."""
        return self.spec.digest()

    @property
    def directory(self) -> str:
        """Name of the run's directory under the root of the testbed runs."""
        return self.digest[:16]

    @property
    def after(self) -> tuple[str, ...]:
        """Directory names of the runs that this one takes norms, weights or statistics from."""
        match, init = self.spec.editor.params.get("match"), self.spec.init
        named = [] if match is None else [str(match["run"])]
        named += [] if init is None else [one for one in (init.weights_from, init.stats_from) if one is not None]
        return tuple(dict.fromkeys(one.partition("@")[0] for one in named))

    @property
    def label(self) -> str:
        """Arm, setting and seed on one line."""
        return f"{self.arm}, {self.setting}, seed {self.seed}"


@dataclass(frozen=True)
class Needs:
    """Every arm in every setting at every seed of the scale."""

    arms: tuple[str, ...]
    settings: tuple[str, ...]

    def resolve(self, scale: Scale) -> list[Need]:
        """The runs at a scale, with those that they match after them."""
        found = []
        for setting in scale.expand(self.settings):
            for seed in scale.stream_seeds if setting.startswith("stream:") else scale.seeds:
                found += [resolve(arm, setting, seed, scale) for arm in self.arms]
        return with_matched(found, scale)


def resolve(arm: str, setting: str, seed: int, scale: Scale) -> Need:
    """One run's spec: the arm's file, the scale's overrides, the editor's parameters in full.

    Overrides of the warm-up leave an arm without a warm-up as it is.

    A spec file names the run that it matches by its arm, as ``@arm``: here that becomes the directory of that arm's run
    in the same setting at the same seed. With the parameters written out, a change of a preset changes the digest.

    Raises
    ------
    SpecError
        The file, an override or a parameter is wrong.
    """
    key = (arm, setting, seed)
    if key in scale.cache:
        return scale.cache[key]
    if setting not in scale.settings:
        raise SpecError(f"no setting {setting!r} at scale {scale.name}: use one of {', '.join(scale.settings)}")
    spec = loaded(arm, (*scale.settings[setting], *scale.common), seed)
    spec = written_out(spec, lambda name: resolve(name, setting, seed, scale).directory)
    need = Need(arm, setting, seed, spec.model_copy(update={"name": f"{arm}-{setting.replace(':', '-')}-seed{seed}"}))
    scale.cache[key] = need
    return need


def loaded(arm: str, changes: Sequence[str], seed: int) -> Spec:
    """An arm's file with overrides; those of the warm-up are left out where the arm has none."""
    file = SPECS / f"{arm}.yaml"
    if load(file, [f"data.seed={seed}"]).warmup.size == 0:
        changes = [change for change in changes if not change.startswith("warmup.")]
    return load(file, [*changes, f"data.seed={seed}"])


def written_out(spec: Spec, directory: Callable[[str], str]) -> Spec:
    """The spec with the editor's parameters in full, and with directories for the runs that it names as ``@name``."""

    def found(named: Any) -> Any:
        return directory(named[1:]) if isinstance(named, str) and named.startswith("@") else named

    params = dict(spec.editor.params)
    match = params.get("match")
    if isinstance(match, Mapping) and "run" in match:
        params["match"] = {**match, "run": found(match["run"])}
    full = resolve_params(spec.editor.name, spec.editor.preset, params).model_dump()
    init = spec.init
    if init is not None:
        init = init.model_copy(update={key: found(value) for key, value in init.model_dump().items()})
    return spec.with_editor_params(full).model_copy(update={"init": init})


def with_matched(needs: Sequence[Need], scale: Scale) -> list[Need]:
    """The needs and, transitively, the runs that they take something from; each once."""
    known = {need.directory: need for need in scale.cache.values()}
    found: dict[str, Need] = {}
    queue = list(needs)
    while queue:
        need = queue.pop(0)
        if need.directory in found:
            continue
        found[need.directory] = need
        queue += [known[directory] for directory in need.after if directory in known]
    return list(found.values())
