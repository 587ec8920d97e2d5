"""`stablediag cite`: valid BibTeX without duplicates, everything in the catalogues behind something, hostile names harmless."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from stablediag.citation_entries import PAPERS
from stablediag.citation_statistics import STATISTICS
from stablediag.citations import EDITORS, LAYOUTS, METRICS, RECORDERS, TASKS, Behind, bibtex, entry, latex, package
from stablediag.data.layouts import LAYOUTS as KNOWN_LAYOUTS
from stablediag.editors.base import REGISTRY
from stablediag.editors.catalogue import ABOUT
from stablediag.recorders.registry import RECORDERS as KNOWN_RECORDERS
from stablediag.store.run import Run
from tests.cli.command import command, refused
from tests.cli.planted import planted, provenance

REQUIRED = {
    "article": {"author", "title", "journal", "year"},
    "book": {"author", "title", "publisher", "year"},
    "inproceedings": {"author", "title", "booktitle", "year"},
    "misc": {"title", "year"},
}
WORKS = {**PAPERS, **STATISTICS}


@dataclass(frozen=True)
class Entry:
    kind: str
    key: str
    fields: Mapping[str, str]


def parsed(text: str) -> list[Entry]:
    """A strict reader of BibTeX: what is outside entries may hold no @, braces balance, fields stand once."""
    found, place = [], 0
    while (at := text.find("@", place)) >= 0:
        head = re.match(r"@([a-z]+)\{([A-Za-z0-9.-]+),\n", text[at:])
        assert head, text[at : at + 60]
        depth, end = 1, at + text[at:].index("{") + 1
        while depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        fields: dict[str, str] = {}
        for line in text[at + head.end() : end - 2].splitlines():
            field = re.fullmatch(r"  ([A-Za-z]+) = \{(.*)\},", line)
            assert field, line
            assert field[1] not in fields
            fields[field[1]] = field[2]
        found.append(Entry(head[1], head[2], fields))
        place = end
    outside = re.sub(r"@[a-z]+\{.*?\n\}", "", text, flags=re.DOTALL)
    assert all(not line or line.startswith("% ") for line in outside.splitlines()), outside
    return found


def keys(text: str) -> list[str]:
    return [one.key for one in parsed(text)]


def of(**changes):
    """BibTeX of a planted provenance."""

    class Given:
        info = provenance(**changes)

    return bibtex(Given())


# --- the constants


@pytest.mark.parametrize("key", sorted(WORKS))
def test_every_work_is_a_valid_entry(key):
    work = WORKS[key]
    (one,) = parsed(entry(work) + "\n")
    assert one.key == key == work.key
    confirmed = bool(work.authors)
    assert set(one.fields) >= REQUIRED[one.kind] - (set() if confirmed else {"author"})
    assert confirmed or one.fields["key"] == key
    assert 1900 < int(one.fields["year"]) <= 2026
    assert entry(work).isascii()
    assert not set(re.findall(r"[^\\][&%$#_]", one.fields["title"] + one.fields.get("author", "")))
    assert re.fullmatch(r"\d{4}\.\d{4,5}", one.fields.get("eprint", "0000.00000"))
    assert re.fullmatch(r"10\.\d{4,9}/\S+", one.fields.get("doi", "10.1000/x"))
    for name in one.fields.get("author", "").split(" and "):
        assert "?" not in name
        assert not re.search(r"\d", name)
    # A person who stands by an arXiv number of that year or earlier.
    if "eprint" in one.fields:
        assert 2000 + int(one.fields["eprint"][:2]) <= work.year


def test_no_work_stands_twice():
    assert len(WORKS) == len(PAPERS) + len(STATISTICS)
    told = [one for work in WORKS.values() for one in work.identifiers]
    assert len(told) == len(set(told))
    titles = [re.sub(r"\W", "", work.title.lower()) for work in WORKS.values()]
    assert len(titles) == len(set(titles))


def test_no_work_is_without_a_use():
    tables = (EDITORS, LAYOUTS, METRICS, TASKS, RECORDERS)
    used = {key for table in tables for behind in table.values() for key in behind.keys}
    assert set(WORKS) - used == {"ledoit2004well", "gorodkin2004comparing"}  # of an option, and of capability tasks
    assert used <= set(WORKS)


@pytest.mark.parametrize(
    ("table", "known"),
    [(EDITORS, set(REGISTRY)), (LAYOUTS, set(KNOWN_LAYOUTS)), (RECORDERS, set(KNOWN_RECORDERS))],
    ids=["editors", "layouts", "recorders"],
)
def test_everything_has_works_or_a_reason(table: Mapping[str, Behind], known):
    assert set(table) == known
    for name, behind in table.items():
        assert bool(behind.keys) != bool(behind.reason), name
        assert len(set(behind.keys)) == len(behind.keys)


def test_editors_cite_what_the_catalogue_names():
    for name, about in ABOUT.items():
        cited = {one for key in EDITORS[name].keys for one in WORKS[key].identifiers}
        assert set(about.papers) <= cited, name


def test_layouts_and_recorders_cite_what_their_sources_name():
    """Identifiers in the docstrings of layouts and of recorders are among the works."""
    root = Path(__file__).parents[2] / "stablediag"
    known = {one for work in WORKS.values() for one in work.identifiers}
    for folder in ("data/layouts", "recorders", "evaluation"):
        for file in sorted((root / folder).glob("*.py")):
            text = file.read_text(encoding="utf-8")
            named = set(re.findall(r"arXiv:\d{4}\.\d{4,5}", text))
            named |= {one.rstrip(".,;:)") for one in re.findall(r"doi:10\.\d+/[^\s,]+", text)}
            assert named <= known, (file.name, named - known)


def test_the_package_is_what_citation_cff_says():
    cff = yaml.safe_load((Path(__file__).parents[2] / "CITATION.cff").read_text(encoding="utf-8"))
    reference = package(cff["version"])
    assert reference.title == cff["title"]
    assert reference.authors.strip("{}") == cff["authors"][0]["name"]
    assert str(reference.year) == str(cff["date-released"])[:4]
    known = {one for work in WORKS.values() for one in work.identifiers}
    assert {one["identifiers"][0]["value"] for one in cff["references"]} <= known


def test_text_becomes_latex():
    assert latex("Székely & Péché_1") == r"Sz{\'e}kely \& P{\'e}ch{\'e}\_1"
    assert latex("100% {of} $x$ ~ ^ \\") == r"100\% (of) \$x\$ \textasciitilde  \textasciicircum  \textbackslash "
    assert latex("{A B_C}") == r"{A B\_C}"
    assert latex("Marčenko Tür ø") == r"Mar{\v c}enko T{\"u}r {\o}"
    for text in (string.printable, "日本\x00\x1b", "}} @misc{x,"):
        done = latex(text)
        assert done.isascii()
        assert done.count("{") == done.count("}")
        assert not re.search(r"\n\s*@", done)


# --- of runs


def test_a_run_is_cited_by_what_it_used():
    spec = provenance().spec
    found = of(
        spec={**spec, "editor": {"name": "memit", "params": {"nas": {"enabled": True}}},
              "evaluation": {"schedule": "end", "metrics": ["generation", "kl"]}},
        dataset={"target": {"source": "z.json", "count": 5, "layout": "zsre_malmen"}, "match": {"run_digest": "x"}},
        versions={"stablediag": "0.1.0", "recorder:conditioning": "1", "recorder:whitened_norm": "1", "recorder:quality": "2"},
    )  # fmt: skip
    assert keys(found) == [
        "stablediag", "meng2023memit", "liu2026nas", "levy2017zsre", "tan2024malmen", "mitchell2022mend", "meng2022rome",
        "wilson1927probable", "yang2025mirage", "stableedit2026", "marchenko1967distribution",
    ]  # fmt: skip
    assert "% editor memit\n@inproceedings{meng2023memit" in found
    assert "% recorder whitened_norm: " in found
    assert "% metric kl: " in found
    assert found.endswith("\n")
    assert not found.endswith("\n\n")


def test_options_wrapped_editors_segments_and_tasks():
    spec = provenance().spec
    inner = {"name": "ln", "params": {"shrinkage": 0.1}}
    found = of(
        spec={**spec, "editor": {"name": "simie", "params": {"editor": inner}},
              "evaluation": {"schedule": "end", "metrics": [], "capability": {"folder": "g", "tasks": ["sst2", "mmlu"]}}},
        dataset={"target": {"source": "a.json", "count": 5, "layout": "mquake, own", "segments": [
            {"source": "a.json", "layout": "mquake"}, {"source": "b.json", "layout": "own"}, {"source": "testbed"}]}},
    )  # fmt: skip
    assert {
        "simie2025",
        "stableedit2026",
        "ledoit2004well",
        "zhong2023mquake",
        "wang2019glue",
        "hendrycks2021mmlu",
    } <= set(keys(found))
    assert "cui2020mutual" not in found
    assert "data b.json (own): your own records" in found
    whole = of(spec={**spec, "evaluation": {"schedule": "end", "capability": {"folder": "g", "tasks": None}}})
    assert "capability task mmlu, where the folder has it" in " ".join(whole.split())
    assert "mitchell2022mend" not in of(spec={**spec, "evaluation": {"schedule": "never"}})


def test_strangers_and_old_runs_are_told_not_guessed():
    spec = {**provenance().spec, "editor": {"name": "mine:Editor"}, "model": {"path": "meta/llama"}}
    found = of(
        spec=spec, versions={"recorder:mine:Rec": "1"}, dataset={"target": {"source": "facts.json", "count": 1}, "odd": 3}
    )  # fmt: skip
    assert keys(found)[0] == "stablediag"
    for said in ("editor mine:Editor: an editor of your own", "recorder mine:Rec: a recorder of your own",
                 "data facts.json (auto): the run did not keep its layout", "model meta/llama: cite it"):  # fmt: skip
        assert said in found
    assert keys(of(spec={}, versions={}, dataset={}))[0] == "stablediag"


@pytest.mark.parametrize("name", ["}@misc{evil,\n title={x}}", "%\n@string{a=1}", "ln\x1b[31m", "é日本", '"\\'])
def test_text_of_a_run_cannot_become_an_entry(name):
    spec = {**provenance().spec, "editor": {"name": name}, "model": {"path": name}}
    found = of(
        spec=spec, versions={f"recorder:{name}": "1", "stablediag": name},
        dataset={"target": {"source": name, "count": 1, "layout": name}},
    )  # fmt: skip
    entries = parsed(found)
    assert found.isascii()
    assert found.isprintable() or set(found) - set(string.printable) == set()
    assert {one.key for one in entries[1:]} <= set(WORKS)
    assert entries[0].key.startswith("stablediag")


def test_versions_of_the_package_are_told_apart():
    assert package("0.1.0").key == package(None).key == package("not installed").key == "stablediag"
    assert package("0.2.0").key == "stablediag-0.2.0"


# --- the command


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cite")
    other = {**provenance().spec, "editor": {"name": "rome"}}
    return [planted(folder / "ln", provenance()), planted(folder / "rome", provenance(spec=other), state="running")]


def test_the_command_prints_what_the_function_gives(runs):
    done = command("cite", runs[0])
    assert (done.code, done.err) == (0, "")
    assert done.out == bibtex(Run.open(runs[0]))


def test_several_runs_and_each_work_once(runs):
    done = command("cite", *runs)
    found = keys(done.out)
    assert len(found) == len(set(found))
    assert {"stableedit2026", "meng2022rome"} <= set(found)
    assert "% metric teacher forcing; editor rome\n@inproceedings{meng2022rome" in done.out


def test_json(runs):
    found = json.loads(command("cite", runs[1], "--json").out)
    rome = next(one for one in found["entries"] if one["key"] == "meng2022rome")
    assert rome["uses"] == ["editor rome", "metric teacher forcing"]
    assert rome["identifiers"] == ["arXiv:2202.05262"]
    assert keys(rome["bibtex"] + "\n") == ["meng2022rome"]


def test_a_file_is_written_whole_and_never_replaced(runs, tmp_path):
    out = tmp_path / "refs.bib"
    assert command("cite", runs[0], "--out", out).out.strip() == str(out)
    assert out.read_text(encoding="utf-8") == command("cite", runs[0]).out
    refused("cite", runs[0], "--out", out, says=("exists", "another file"))
    refused("cite", runs[0], "--out", tmp_path / "no" / "x.bib", says=("another file",))
    refused("cite", tmp_path / "none", says=("not a run",))
