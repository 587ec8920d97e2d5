"""What to cite for a run: the works behind its editor, data, metrics and recorders, as BibTeX.

Which work stands behind what is a table here (`EDITORS`, `LAYOUTS`, `METRICS`, `TASKS`, `RECORDERS`); the works themselves are
in `stablediag.citation_entries` and `stablediag.citation_statistics`. Whatever has no work behind it says why instead.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from stablediag.citation_entries import PAPERS, Reference
from stablediag.citation_statistics import STATISTICS

if TYPE_CHECKING:
    from stablediag.types import RunInfo


@dataclass(frozen=True)
class Behind:
    """The works behind something, by key, or why there are none.

    Attributes
    ----------
    keys : tuple of str
    reason : str
        One line, where `keys` is empty.
    """

    keys: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Cited:
    """A reference, and what of the run it is cited for."""

    reference: Reference
    uses: tuple[str, ...]


def _works(*keys: str) -> Behind:
    return Behind(keys)


def _own(reason: str) -> Behind:
    return Behind((), reason)


#: editor -> works, the method's own first
EDITORS: Mapping[str, Behind] = {
    "ln": _works("stableedit2026", "gu2025ultraedit"),
    "rledit": _works("li2025rledit"),
    "malmen": _works("tan2024malmen"),
    "mend": _works("mitchell2022mend", "li2025rledit"),
    "mend_original": _works("mitchell2022mend"),
    "ft": _works("meng2022rome", "meng2023memit"),
    "rome": _works("meng2022rome"),
    "memit": _works("meng2023memit"),
    "memit_seq": _works("fang2025alphaedit", "meng2023memit"),
    "alphaedit": _works("fang2025alphaedit"),
    "encore": _works("gupta2025encore", "meng2023memit"),
    "lyaplock": _works("wang2025lyaplock", "meng2023memit"),
    "nse": _works("jiang2024nse", "meng2023memit"),
    "rect": _works("gu2024rect", "meng2023memit"),
    "prune": _works("ma2025prune", "meng2023memit"),
    "simie": _works("simie2025"),
    "memoir": _works("wang2025memoir"),
}
NAS = _works("liu2026nas")
SHRINKAGE = _works("ledoit2004well")

#: layout of a dataset file -> works
LAYOUTS: Mapping[str, Behind] = {
    "own": _own("your own records: cite where they come from"),
    "zsre_mend": _works("levy2017zsre", "mitchell2022mend", "yao2023editing"),
    "zsre_malmen": _works("levy2017zsre", "tan2024malmen"),
    "zsre_normalised": _works("levy2017zsre"),
    "counterfact": _works("meng2022rome", "meng2023memit"),
    "counterfact_flat": _works("meng2022rome"),
    "fever": _works("thorne2018fever", "tan2024malmen"),
    "fever_kilt": _works("thorne2018fever", "decao2021editing", "petroni2021kilt"),
    "wikibigedit": _works("thede2025wikibigedit"),
    "ultraeditbench": _works("gu2025ultraedit"),
    "medcf": _works("xu2024medlasa"),
    "mquake": _works("zhong2023mquake"),
    "knowedit": _works("zhang2024knowedit"),
    "knowedit_wikibio": _works("zhang2024knowedit"),
    "knowedit_sanitation": _works("zhang2024knowedit"),
    "selfcheck": _works("manakul2023selfcheckgpt", "hartvigsen2023grace"),
    "temporal": _works("wang2024wise"),
    "known": _works("meng2022rome"),
    "nq": _works("kwiatkowski2019nq"),
    "glue": _works("wang2019glue"),
    "index": _works("thede2025wikibigedit"),
    "easyedit_log": _works("wang2024easyedit"),
}

#: metric of `evaluation.metrics`, or what every evaluation does -> works
METRICS: Mapping[str, Behind] = {
    "teacher forcing": _works("mitchell2022mend", "meng2022rome"),
    "intervals": _works("wilson1927probable"),
    "generation": _works("yang2025mirage"),
    "probability": _works("meng2022rome", "meng2023memit"),
    "kl": _own("a divergence between two models' answers, computed directly"),
}
#: capability task by the name of its file -> works; every other one of a folder is taken for GLUE's
TASKS: Mapping[str, Behind] = {"mmlu": _works("hendrycks2021mmlu"), "dialogue": _works("cui2020mutual")}
GLUE = _works("wang2019glue")
CORRELATION = _works("gorodkin2004comparing")

_ENERGY = ("chen2010two", "bai1996effect")
#: recorder -> works behind what it measures, or behind the statistics of what it stores
RECORDERS: Mapping[str, Behind] = {
    "update_norm": _works("stableedit2026"),
    "adjacent_cosine": _works("stableedit2026"),
    "realised_update": _works("micikevicius2018mixed"),
    "conditioning": _works("stableedit2026", "marchenko1967distribution"),
    "drift_surrogates": _works("stableedit2026"),
    "whitened_norm": _own("the mean whitened energy over its exact expectation, derived in this project"),
    "prequential": _works("dawid1984prequential", *_ENERGY),
    "variogram": _works("matheron1963principles"),
    "coherence": _works("stableedit2026"),
    "leverage": _own("moments and leverages of the rows, computed directly"),
    "spectra": _works(
        "marchenko1967distribution",
        "baik2005phase",
        "kritchman2008determining",
        "johnstone2001distribution",
        "himeno2014estimations",
    ),
    "interference": _works("stableedit2026", "vitter1985random"),
    "paired_probes": _works("stableedit2026"),
    "quality": _own("its questions are cited one by one: see the metrics"),
    "hidden_states": _works(
        *("mcinnes2018umap", "kornblith2019similarity", "song2012feature", "szekely2014partial"),
        *("szekely2013energy", "dowson1982frechet"),
    ),
    "value_norms": _works("liu2026nas"),
    "value_states": _works("liu2026nas"),
    "alarm": _works(
        *("shafer2019game", "ville1939etude", "delapena1999general", "shin2022edetectors", "page1954continuous"),
        *("paulson1942approximate", "brown1975techniques", "himeno2014estimations"),
    ),
}


class HasInfo(Protocol):
    """Anything with the provenance of a run, such as `stablediag.store.run.Run`."""

    @property
    def info(self) -> RunInfo:
        """Where the run comes from."""
        ...


def citations(runs: Sequence[HasInfo]) -> tuple[list[Cited], list[str]]:
    """What runs are to be cited by.

    Parameters
    ----------
    runs : sequence of Run
        Finished or not; only their provenance is read.

    Returns
    -------
    list of Cited
        Each work once, this package first, then in the order of use: editor, data, metrics, recorders.
    list of str
        What has no work behind it, or none that can be known, with the reason: one line each.
    """
    found: dict[str, tuple[Reference, dict[str, None]]] = {}
    untold: dict[str, None] = {}
    for run in runs:
        reference = package(run.info.versions.get("stablediag"))
        found.setdefault(reference.key, (reference, {}))[1]["this package"] = None
    for run in runs:
        for use, behind in _uses(run.info):
            for key in behind.keys:
                found.setdefault(key, (_reference(key), {}))[1][use] = None
            if not behind.keys:
                untold[f"{use}: {behind.reason}"] = None
    return [Cited(reference, tuple(uses)) for reference, uses in found.values()], list(untold)


def bibtex(run: HasInfo) -> str:
    """BibTeX of everything a run is to be cited by; see `citations`.

    Parameters
    ----------
    run : Run

    Returns
    -------
    str
        Pure ASCII, entries sorted by use, a comment above each, one newline at the end.
    """
    return bibtex_of([run])


def bibtex_of(runs: Sequence[HasInfo]) -> str:
    """The same of several runs, each work once."""
    cited, untold = citations(runs)
    parts = [f"{_comment(_together(one.uses))}\n{entry(one.reference)}" for one in cited]
    parts += ["\n".join(map(_comment, ["Without a reference here:", *untold]))] if untold else []
    return "\n\n".join(parts) + "\n"


def entry(reference: Reference) -> str:
    """One work as a BibTeX entry; without authors it is sorted by its key."""
    fields = {"title": f"{{{latex(reference.title)}}}"}
    if reference.authors:
        fields["author"] = latex(reference.authors)
    else:
        fields["key"] = latex(reference.key)
    fields["year"] = str(reference.year)
    # Identifiers are read by programs as they are: underscores and braces of LaTeX would break them.
    raw = ("doi", "eprint", "url")
    fields |= {name: value if name in raw else latex(value) for name, value in reference.details.items()}
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@{reference.kind}{{{reference.key},", *lines, "}"])


def package(version: str | None = None) -> Reference:
    """This package, as CITATION.cff has it."""
    known = version if version and version != "not installed" else None
    details = {"note": f"Version {known}"} if known else {}
    title = "stablediag: theory verification and diagnostics for lifelong model editing"
    key = "stablediag" if known in (None, "0.1.0") else f"stablediag-{_plain_key(known)}"
    return Reference(key, "misc", title, "{The stablediag authors}", 2026, details)


def latex(text: str) -> str:
    r"""Text as BibTeX takes it: ASCII, accents as commands, nothing that LaTeX would read as one.

    A pair of braces around a whole name (``{The stablediag authors}``) stays.
    """
    if text.startswith("{") and text.endswith("}") and not {"{", "}"} & set(text[1:-1]):
        return f"{{{latex(text[1:-1])}}}"
    return "".join(_character(one) for one in unicodedata.normalize("NFC", text))


_ESCAPED: Mapping[str, str] = {
    **{one: f"\\{one}" for one in "&%$#_"},
    # A brace, even an escaped one, counts for the nesting of an entry.
    "{": "(", "}": ")", "\\": r"\textbackslash ", "~": r"\textasciitilde ", "^": r"\textasciicircum ",
    "ß": r"{\ss}", "ø": r"{\o}", "Ø": r"{\O}", "ł": r"{\l}", "Ł": r"{\L}", "æ": r"{\ae}", "ı": r"{\i}",
    "–": "--", "—": "---", "‘": "`", "’": "'", "“": "``", "”": "''", '"': "''",
}  # fmt: skip
_ACCENTS: Mapping[str, str] = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030c": "v ", "\u0327": "c ", "\u030a": "r ",
}  # fmt: skip


def _character(one: str) -> str:
    if one in _ESCAPED:
        return _ESCAPED[one]
    if one.isascii():
        return one if one.isprintable() else " "
    parts = unicodedata.normalize("NFD", one)
    letter, marks = parts[0], parts[1:]
    if len(marks) == 1 and marks in _ACCENTS and letter.isascii():
        return f"{{\\{_ACCENTS[marks]}{letter}}}"
    return "?"


def _together(uses: Sequence[str]) -> str:
    """``recorder a, b; editor c`` of ``recorder a``, ``editor c`` and ``recorder b``."""
    kinds: dict[str, list[str]] = {}
    for use in uses:
        kind, _, name = use.partition(" ")
        kinds.setdefault(kind, []).append(name)
    return "; ".join(f"{kind} {', '.join(names)}" for kind, names in kinds.items())


def _comment(text: str) -> str:
    """A line outside the entries: BibTeX skips it unless it holds an @."""
    clean = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return f"% {clean.replace('@', '(at)').encode('ascii', 'replace').decode('ascii')}"


def _plain_key(text: str) -> str:
    return "".join(one if one.isascii() and (one.isalnum() or one in ".-") else "-" for one in text)


def _reference(key: str) -> Reference:
    return PAPERS[key] if key in PAPERS else STATISTICS[key]


def _uses(info: RunInfo) -> Iterator[tuple[str, Behind]]:
    """Everything a run used, and what is behind it."""
    yield from _editor(_mapping(info.spec.get("editor")))
    yield from _datasets(info)
    yield from _evaluation(_mapping(info.spec.get("evaluation")))
    yield from _recorders(info)
    path = str(_mapping(info.spec.get("model")).get("path", ""))
    if path and path != "testbed":
        yield f"model {path}", _own("cite it as its publishers ask")


def _editor(editor: Mapping[str, Any]) -> Iterator[tuple[str, Behind]]:
    name, params = str(editor.get("name", "")), _mapping(editor.get("params"))
    own = _own("an editor of your own: cite its authors")
    yield f"editor {name}", EDITORS.get(name, own)
    if _mapping(params.get("nas")).get("enabled"):
        yield f"norm anchors of editor {name}", NAS
    if params.get("shrinkage"):
        yield f"shrinkage of editor {name}", SHRINKAGE
    if isinstance(params.get("editor"), Mapping):
        yield from _editor(params["editor"])


def _datasets(info: RunInfo) -> Iterator[tuple[str, Behind]]:
    spec = info.spec
    for stream, found in info.dataset.items():
        if not isinstance(found, Mapping) or "count" not in found:
            continue  # a matched run, a file of statistics
        given = {"target": spec.get("data"), "warmup": _mapping(spec.get("warmup")).get("data")}.get(stream)
        for part in found.get("segments") or [found]:
            source = str(part.get("source", ""))
            if source == "testbed":
                continue  # part of this package
            names = str(part.get("layout") or _mapping(given).get("layout") or "auto")
            for name in names.split(", "):
                unknown = _own("the run did not keep its layout: cite where the file comes from")
                yield f"data {source} ({name})", LAYOUTS.get(name, unknown)


def _evaluation(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, Behind]]:
    if not evaluation or evaluation.get("schedule") == "never":
        return
    wanted = ["teacher forcing", "intervals", *map(str, evaluation.get("metrics") or [])]
    for name in wanted:
        yield f"metric {name}", METRICS.get(name, _own("a metric that this version does not know"))
    capability = evaluation.get("capability")
    if not capability:
        return
    yield "correlation of capability tasks", CORRELATION
    if isinstance(capability, Mapping):
        tasks = capability.get("tasks")
        for task in map(str, tasks or [*TASKS, "the others"]):
            in_doubt = "" if tasks else ", where the folder has it"
            yield f"capability task {task}{in_doubt}", TASKS.get(task, GLUE)


def _recorders(info: RunInfo) -> Iterator[tuple[str, Behind]]:
    names = [key.partition(":")[2] for key in info.versions if key.startswith("recorder:")]
    own = _own("a recorder of your own: cite what it computes")
    for name in _in_order(names, RECORDERS):
        if name != "quality":
            yield f"recorder {name}", RECORDERS.get(name, own)


def _in_order(names: Iterable[str], order: Iterable[str]) -> list[str]:
    ranks = {name: rank for rank, name in enumerate(order)}
    return sorted(names, key=lambda name: ranks.get(name, len(ranks)))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
