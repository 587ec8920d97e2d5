"""The layer update of MEMIT and AlphaEdit at its true size: the releases' d_k x d_k solve against the dual form.

``python -m reproduce.bench.locate --size layer --device cpu --out FILE``. Needs torch, transformers, numpy and safetensors only.
Ratios are of processor seconds on a CPU, which other load disturbs least, and of wall-clock seconds elsewhere.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reproduce.bench.report import save
from reproduce.bench.summary import Gate
from reproduce.bench.timing import Clock, Sample, interleave, machine, spread, synchronise
from stablediag.engine.weights import WeightWriter
from stablediag.maths.closed_forms import alphaedit_update, memit_update
from stablediag.maths.factor import FOLD_SHARE, Factor
from stablediag.maths.moments import KeyMoment
from stablediag.maths.update import LowRank
from stablediag.models import ResolvedModule

SCALE, L2, NULL_SHARE = 15000.0, 10.0, 0.7
# Output coordinates whose equations are checked: those of all 4096 would take longer than the benchmark.
CHECKED_OUTPUTS = 64
#: promised at size layer: released over ours, and numbers kept between steps over d_k^2
SPEED, MEMORY = 20.0, 2.0
EDITORS = ("memit", "alphaedit", "alphaedit, folded")
#: d_k, d_v, keys of the step, keys of earlier steps
SIZES = {"tiny": (96, 24, 10, 20), "layer": (14336, 4096, 100, 400)}


@dataclass(frozen=True, eq=False)
class Problem:
    """Random keys and residuals, key statistics with a known null space; everything in float32 as the releases have it."""

    keys: Tensor
    residual: Tensor
    previous: Tensor
    moment: Tensor
    basis: Tensor

    @classmethod
    def random(cls, shape: tuple[int, int, int, int], device: torch.device) -> Problem:
        """Times do not depend on the numbers; the basis is a reflected one, orthonormal without a decomposition."""
        d_k, d_v, n, m = shape
        generator = torch.Generator().manual_seed(0)
        keys, residual, previous, axis, text = (
            torch.randn(*size, generator=generator).to(device)
            for size in ((n, d_k), (n, d_v), (m, d_k), (d_k,), (64, d_k))
        )
        moment = text.T @ text / len(text)
        moment.diagonal().add_(0.01)
        axis = axis / torch.linalg.vector_norm(axis)
        rank = round(NULL_SHARE * d_k)
        basis = torch.eye(d_k, rank, device=device) - 2.0 * torch.outer(axis, axis[:rank])
        return cls(keys, residual, previous, moment, basis)


@dataclass
class _Layer:
    """A float32 weight that starts at zero, so that afterwards it is the update."""

    work: Problem
    module: nn.Linear = field(init=False)

    def __post_init__(self) -> None:
        d_k, d_v = self.work.keys.shape[1], self.work.residual.shape[1]
        self.module = nn.Linear(d_k, d_v, bias=False, device=self.work.keys.device, dtype=torch.float32)
        self.module.requires_grad_(False)

    def prepare(self) -> None:
        self.module.weight.zero_()

    def kept(self) -> Iterator[Tensor | None]:
        """What stays in memory from step to step, the weight not counted."""
        raise NotImplementedError

    def held(self) -> int:
        """Numbers kept from step to step."""
        return sum(tensor.numel() for tensor in self.kept() if tensor is not None)

    def write(self, update: LowRank) -> None:
        entry = ResolvedModule("layer", self.module, "linear", *reversed(self.module.weight.shape))
        WeightWriter({"layer": entry}).apply("layer", update)


@dataclass
class _Ours(_Layer):
    """One factor made once; a step costs n right-hand sides, and n further rows of the factor."""

    dtype: torch.dtype = torch.float64
    once: float = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        device = self.work.keys.device
        synchronise(device)
        began = time.perf_counter()
        self.factor = self.set_up()
        synchronise(device)
        self.once = time.perf_counter() - began

    def set_up(self) -> Factor:
        raise NotImplementedError

    def kept(self) -> Iterator[Tensor | None]:
        """The factor."""
        yield from (self.factor.base, self.factor.rows, self.factor.inner)


class OursMemit(_Ours):
    """MEMIT: nothing to remember."""

    def set_up(self) -> Factor:
        return KeyMoment(1, self.work.moment).factor(SCALE, dtype=self.dtype)

    def run(self, clock: Clock) -> None:
        with clock.part("solve"):
            update = memit_update(self.work.keys, self.work.residual, self.factor)
        with clock.part("apply"):
            self.write(update)


class OursAlpha(_Ours):
    """AlphaEdit in null-space coordinates, with the keys of earlier steps."""

    def set_up(self) -> Factor:
        empty = Factor.identity(self.work.basis.shape[1], L2, dtype=self.dtype, device=self.work.keys.device)
        return empty.append(self.work.previous @ self.work.basis)

    def run(self, clock: Clock) -> None:
        with clock.part("solve"):
            update = alphaedit_update(self.work.keys, self.work.residual, self.work.basis, self.factor)
        with clock.part("apply"):
            self.write(update)
        with clock.part("remember"):
            self.factor.append(self.work.keys @ self.work.basis)

    def kept(self) -> Iterator[Tensor | None]:
        """The basis as well."""
        yield self.work.basis
        yield from super().kept()


class OursFolded(OursAlpha):
    """The same when so many keys are remembered that they were folded into a factor: how a long run goes on.

    Between two folds the rows kept beside the factor grow; half as many as there is room for stand there.
    """

    fold: float = 0.0

    def set_up(self) -> Factor:
        rank = self.work.basis.shape[1]
        room = rank // FOLD_SHARE
        generator = torch.Generator().manual_seed(1)
        device = self.work.keys.device
        rows = torch.randn(2 * room + 2, rank, generator=generator).to(device)
        folded = super().set_up().append(rows[: room + 1])
        assert folded.base is not None  # more rows than there is room for
        synchronise(device)
        wall, cpu = time.perf_counter(), time.process_time()
        folded = folded.append(rows[room + 1 :])
        synchronise(device)
        self.fold = time.process_time() - cpu if device.type == "cpu" else time.perf_counter() - wall
        return folded.append(rows[: room // 2])

    @property
    def share_of_fold(self) -> float:
        """Seconds of a fold that a step answers for."""
        return self.fold * len(self.work.keys) / max(1, self.work.basis.shape[1] // FOLD_SHARE)


class ReleasedMemit(_Layer):
    """float64 LU of ``lambda C0 + K^T K``, anew at every step."""

    def run(self, clock: Clock) -> None:
        keys, residual = self.work.keys.double(), self.work.residual.double()
        with clock.part("solve"):
            system = SCALE * self.work.moment.double() + keys.T @ keys
            shift = residual.T @ torch.linalg.solve(system, keys.T).T
        with clock.part("apply"):
            self.module.weight += shift.float()

    def kept(self) -> Iterator[Tensor | None]:
        """The second moment."""
        yield self.work.moment


class ReleasedAlpha(_Layer):
    """float32 LU of ``P (K^T K + C_p) + L2 I``; projector and cache stay on the device, which favours this arm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.projector = self.work.basis @ self.work.basis.T
        self.cache = self.work.previous.T @ self.work.previous

    def run(self, clock: Clock) -> None:
        keys, residual = self.work.keys, self.work.residual
        with clock.part("solve"):
            system = self.projector @ (keys.T @ keys + self.cache)
            system.diagonal().add_(L2)
            shift = torch.linalg.solve(system, self.projector @ keys.T @ residual)
        with clock.part("apply"):
            self.module.weight += shift.T
        with clock.part("remember"):
            _ = self.cache + keys.T @ keys

    def kept(self) -> Iterator[Tensor | None]:
        """Projector and cache."""
        yield from (self.projector, self.cache)


def normal_residual(work: Problem, weight: Tensor, *, alpha: bool) -> float:
    """Relative residual of the written update in the equations of the release: float64, thin products, some outputs."""
    k, delta = work.keys.double(), weight[:CHECKED_OUTPUTS].T.double()
    right = k.T @ work.residual[:, :CHECKED_OUTPUTS].double()
    left = k.T @ (k @ delta)
    if alpha:
        previous, basis = work.previous.double(), work.basis.double()
        left += previous.T @ (previous @ delta)
        left, right = basis @ (basis.T @ left), basis @ (basis.T @ right)
        left += L2 * delta
    else:
        left += SCALE * (work.moment.double() @ delta)
    return float(torch.linalg.vector_norm(left - right) / torch.linalg.vector_norm(right))


def compare_locate(
    shape: tuple[int, int, int, int],
    device: torch.device,
    *,
    repeats: int = 3,
    released_repeats: int = 1,
    dtype: torch.dtype = torch.float64,
    progress: Any = print,
) -> dict[str, Any]:
    """Time both editors in both forms.

    Parameters
    ----------
    shape : tuple of int
        d_k, d_v, keys of the step, keys of earlier steps.
    device : torch.device
    repeats, released_repeats : int
        Rounds; the released arms may take part in fewer (minutes each at the true size on a CPU).
    dtype : torch.dtype, optional
        Of our factors.
    progress : callable, optional
        Is told of every sample.

    Returns
    -------
    dict
        JSON-ready, by editor: ``ratio`` of released over ours in the rounds that both ran, ``once`` the seconds of the
        factorisation that the run pays once, ``fold_per_step`` the seconds of folding that a step answers for (counted
        in `ratio`), ``held`` the numbers kept between steps over d_k^2, ``arms`` with their seconds, what they hold, and
        the ``residual`` of what they wrote (null where an arm remembers other keys).
    """
    work = Problem.random(shape, device)
    d_k, d_v, n, m = shape

    def seconds(sample: Sample) -> float:
        return sample.cpu_seconds if device.type == "cpu" else sample.seconds

    def editor(kinds: dict[str, type[_Ours]], released: type[_Layer]) -> dict[str, dict[str, Any]]:
        ours = {name: kind(work, dtype=dtype) for name, kind in kinds.items()}
        theirs = released(work)
        for arm in ours.values():
            arm.run(Clock(device))  # what a library sets up at its first call is no part of the comparison
        limits = {"released": released_repeats}
        series = interleave(
            ours | {"released": theirs}, repeats=repeats, device=device, limits=limits, progress=progress
        )
        found = {}
        for name, arm in ours.items():
            fold = arm.share_of_fold if isinstance(arm, OursFolded) else 0.0
            pairs = zip(series["released"].samples, series[name].samples, strict=False)
            # The folded arm remembers more keys than the released one: it is judged by its own equations elsewhere.
            measured = {
                who: series[who if who == "released" else name].summary()
                | {"held": one.held(), "residual": _residual(work, one, alpha=released is ReleasedAlpha)}
                for who, one in (("ours", arm), ("released", theirs))
            }
            found[name] = {
                "ratio": spread([seconds(one) / (seconds(two) + fold) for one, two in pairs]),
                "once": arm.once,
                "fold_per_step": fold,
                "held": arm.held() / d_k**2,
                "arms": measured,
            }
        return found

    return {
        "shape": {"d_k": d_k, "d_v": d_v, "keys": n, "earlier_keys": m},
        "dtype": str(dtype).removeprefix("torch."),
        **editor({"memit": OursMemit}, ReleasedMemit),
        **editor({"alphaedit": OursAlpha, "alphaedit, folded": OursFolded}, ReleasedAlpha),
    }


def _residual(work: Problem, arm: _Layer, *, alpha: bool) -> float | None:
    return None if isinstance(arm, OursFolded) else normal_residual(work, arm.module.weight, alpha=alpha)


def judged(result: dict[str, Any]) -> dict[str, Any]:
    """The promises, with what was measured."""
    speed = {f"{name}, ratio": Gate("ratio", ">=", SPEED).check(result[name]["ratio"]["median"]) for name in EDITORS}
    return speed | {f"{name}, held": Gate("held", "<=", MEMORY).check(result[name]["held"]) for name in EDITORS}


def report(result: dict[str, Any]) -> str:
    """The result as text."""
    s = result["shape"]
    lines = [
        f"layer update, d_k {s['d_k']}, d_v {s['d_v']}, {s['keys']} keys ({s['earlier_keys']} earlier ones in AlphaEdit), "
        f"factors in {result['dtype']}"
    ]
    for name in EDITORS:
        found = result[name]
        for arm, one in found["arms"].items():
            parts = ", ".join(f"{part} {seconds:.3f}" for part, seconds in one["parts"].items())
            left = "" if one["residual"] is None else f", residual {one['residual']:.1e}"
            seconds, cpu = one["seconds"]["median"], one["cpu_seconds"]["median"]
            lines.append(f"{name:<18} {arm:<9} {seconds:>9.3f} s, CPU {cpu:.3f} s ({parts}){left}")
        lines.append(
            f"{name:<18} ratio {found['ratio']['median']:.1f}, factorised once in {found['once']:.3f} s, "
            f"folds {found['fold_per_step']:.3f} s a step, keeps {found['held']:.2f} d_k^2 numbers"
        )
    for name, gate in result.get("gates", {}).items():
        verdict = "met   " if gate["met"] else "MISSED"
        lines.append(f"{verdict} {name} {gate['value']:.2f} {gate['sense']} {gate['bound']:g}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m reproduce.bench.locate", description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64", help="of our factors")
    parser.add_argument(
        "--repeats", type=int, default=3, help="rounds of our arms; on a CPU the released ones run once"
    )
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device: use --device cpu")
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    device = torch.device(options.device)
    described = machine(device)
    result = compare_locate(
        SIZES[options.size],
        device,
        repeats=options.repeats,
        released_repeats=1 if options.device == "cpu" else options.repeats,
        dtype=getattr(torch, options.dtype),
    )
    result["gates"] = judged(result) if options.size == "layer" else {}
    print(report(result))
    save({"machine": described} | result, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
