"""Argument checks shared by the formulas: one line that names the argument and the condition."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def _refuse(name: str, values: Floats, bad: NDArray[np.bool_], condition: str) -> None:
    if np.any(bad):
        raise ValueError(f"{name}: must be {condition}, got {values[bad].flat[0]:g}")


def positive(name: str, value: ArrayLike) -> Floats:
    """`value` as float64, finite and above zero."""
    x = np.asarray(value, dtype=np.float64)
    _refuse(name, x, ~(np.isfinite(x) & (x > 0)), "positive and finite")
    return x


def nonnegative(name: str, value: ArrayLike) -> Floats:
    """`value` as float64, finite and not below zero."""
    x = np.asarray(value, dtype=np.float64)
    _refuse(name, x, ~(np.isfinite(x) & (x >= 0)), "finite and at least 0")
    return x


def finite(name: str, value: ArrayLike) -> Floats:
    """`value` as float64, without NaN or infinity."""
    x = np.asarray(value, dtype=np.float64)
    _refuse(name, x, ~np.isfinite(x), "finite")
    return x


def count(name: str, value: ArrayLike) -> Floats:
    """`value` as float64, finite and at least one."""
    x = np.asarray(value, dtype=np.float64)
    _refuse(name, x, ~(np.isfinite(x) & (x >= 1)), "at least 1")
    return x


def fraction(name: str, value: ArrayLike) -> Floats:
    """`value` as float64 in (0, 1]."""
    x = np.asarray(value, dtype=np.float64)
    _refuse(name, x, ~((x > 0) & (x <= 1)), "in (0, 1]")
    return x


def below(name: str, value: ArrayLike, limit: float) -> Floats:
    """`value` as float64, finite and below `limit`."""
    x = finite(name, value)
    _refuse(name, x, x >= limit, f"below {limit:g}")
    return x


def series(name: str, value: ArrayLike, steps: int | None = None) -> Floats:
    """Non-negative `value` with time in the last dimension, of `steps` steps if given."""
    x = nonnegative(name, value)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name}: must have shape [..., T] with at least one step, got {list(x.shape)}")
    if steps is not None and x.shape[-1] != steps:
        raise ValueError(f"{name}: must have {steps} steps in the last dimension, got {x.shape[-1]}")
    return x


def square(name: str, value: ArrayLike, d: int) -> Floats:
    """`value` as float64 of shape [..., d, d]."""
    x = finite(name, value)
    if x.shape[-2:] != (d, d):
        raise ValueError(f"{name}: must have shape [..., {d}, {d}], got {list(x.shape)}")
    return x


def rows_for_inverse(rows: ArrayLike, d: ArrayLike, *, beyond: int = 1, name: str = "N") -> tuple[Floats, Floats]:
    """Pooled rows and dimension as float64, broadcast, with N > d + `beyond`."""
    n, dim = np.broadcast_arrays(count(name, rows), count("d", d))
    short = n <= dim + beyond
    if np.any(short):
        got, need = n[short].flat[0], dim[short].flat[0] + beyond
        lacking = "inverse" if beyond == 1 else "mean of the inverse"
        raise ValueError(f"{name}: {got:g} <= d + {beyond} = {need:g}: no {lacking} exists; take more rows")
    return n, dim


def one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    """`value`, if known."""
    if value not in known:
        raise ValueError(f"{name}: unknown {value!r}; use one of {', '.join(known)}")
    return value
