"""Patterns for module names: ``layers.[28-31].mlp.down_proj``. Strings only; `stablediag.models` applies them."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Sequence

from stablediag.errors import ModelError

_MAX_EXPANSION = 100_000
_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")


def expand(pattern: str) -> list[str]:
    """Write out the numbers in brackets: ``layers.[1-2].mlp`` gives ``layers.1.mlp`` and ``layers.2.mlp``.

    Raises
    ------
    ModelError
        An unbalanced bracket, a bad range, or more than 100 000 results.
    """
    parts = re.split(r"\[([^\[\]]*)\]", pattern)
    if not pattern.strip() or any("[" in part or "]" in part for part in parts[::2]):
        raise ModelError(f"module pattern {pattern!r} is malformed: write for example layers.[1-3].mlp.down_proj")
    choices: list[list[str]] = []
    size = 1
    for place, part in enumerate(parts):
        choices.append(_numbers(part, pattern) if place % 2 else [part])
        size *= len(choices[-1])
        if size > _MAX_EXPANSION:
            raise ModelError(f"module pattern {pattern!r} names more than {_MAX_EXPANSION} modules: narrow its ranges")
    return ["".join(choice) for choice in itertools.product(*choices)]


def matches(simple: str, name: str) -> bool:
    """Whether a pattern without brackets is a module's name or an end of it that starts at a dot.

    ``*`` stands for anything within one part of the name, ``**`` for anything.
    """
    wild = {"**": ".*", "*": "[^.]*"}
    body = "".join(wild.get(part, re.escape(part)) for part in re.split(r"(\*\*|\*)", simple))
    return re.fullmatch(rf"(?:.*\.)?{body}", name) is not None


def collapse(names: Sequence[str]) -> list[str]:
    """Kinds of modules, with the first number of each name gathered: ``model.layers.[0-3].mlp.down_proj``."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        match = _INDEX.search(name)
        kind = _INDEX.sub("#", name, count=1)
        numbers.setdefault(kind, []).extend([int(match[0])] if match else [])
    return [kind.replace("#", f"[{_ranges(found)}]", 1) if found else kind for kind, found in numbers.items()]


def nearest(pattern: str, names: Sequence[str]) -> str | None:
    """The kind of module (as `collapse` writes it) whose name inside its layer is most like the pattern's."""
    kinds = {re.sub(r"^.*\]\.", "", kind): kind for kind in collapse(names)}
    wanted = re.sub(r"^.*(?:\]|\d|\*)\.", "", pattern)
    found = difflib.get_close_matches(wanted, kinds, n=1, cutoff=0.5)
    if not found:
        # A bare last part such as "downproj" is far from "mlp.down_proj" by length alone.
        tails = {kind.rpartition(".")[2]: kind for kind in kinds.values()}
        close = difflib.get_close_matches(wanted.rpartition(".")[2], tails, n=1, cutoff=0.6)
        return tails[close[0]] if close else None
    return kinds[found[0]]


def _numbers(text: str, pattern: str) -> list[str]:
    numbers: list[str] = []
    for item in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*", item)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ModelError(f"module pattern {pattern!r} has a bad range [{text}]: write [1-3], [1,3] or [0-2,5]")
        numbers += [str(number) for number in range(first, last + 1)]
    return numbers


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)
