"""Peak memory of planning and walking a stream of millions of records, on generated files of the official layouts.

``python -m reproduce.bench.stream --layout ultraeditbench --records 2000000 --out FILE`` writes records of that layout into a
temporary file, reads it as `stablediag run` does (places of records, identities, plan of the steps), parses the edits of
every step once, and reports seconds and the largest resident set of the process at each stage. Linux only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

#: records that StableEdit's largest runs edit, by layout
RECORDS = {"ultraeditbench": 2_000_000, "wikibigedit": 490_519}
EDITS_PER_STEP = 100
_WORDS = ("river", "city", "author", "bridge", "museum", "harbour", "school", "village", "painter", "company")


def ultraeditbench(i: int) -> dict[str, Any]:
    """One record in the layout of UltraEditBench."""
    name = f"{_WORDS[i % 10]} {i:07d}"
    return {
        "subject": name,
        "prompt": f"Which place is the {name} of the old register associated with?",
        "rephrase_prompt": f"With which place does the old register associate the {name}?",
        "ans": f"{_WORDS[i // 10 % 10].title()}ton {i % 9973}",
        "loc": f"Who was the first to describe the {_WORDS[(i + 3) % 10]} of number {i % 7919}?",
        "loc_ans": f"{_WORDS[i // 7 % 10].title()} Marlow",
    }


def wikibigedit(i: int) -> dict[str, Any]:
    """One record in the layout of WikiBigEdit; every fifth has a two-hop question."""
    name = f"{_WORDS[i % 10]} {i:07d}"
    two_hops = i % 5 == 0
    return {
        "tag": "update",
        "subject": name,
        "update": f"What is the country of the {name}?",
        "rephrase": f"In which country does the {name} lie?",
        "personas": f"Tell me, sailor, in which country does the {name} lie?",
        "ans": f"{_WORDS[i // 10 % 10].title()}land",
        "loc": f"What is the depth of the {_WORDS[(i + 3) % 10]} of number {i % 7919}?",
        "loc_ans": f"{i % 311} metres",
        "mhop": f"What is the capital of the country of the {name}?" if two_hops else None,
        "mhop_ans": f"{_WORDS[i // 7 % 10].title()}ville" if two_hops else None,
    }


MAKERS: dict[str, Callable[[int], dict[str, Any]]] = {"ultraeditbench": ultraeditbench, "wikibigedit": wikibigedit}


def write(path: Path, layout: str, records: int) -> None:
    """Write a JSON list of generated records, one at a time."""
    make = MAKERS[layout]
    with open(path, "w", encoding="utf-8") as handle:
        for i in range(records):
            handle.write("[\n" if i == 0 else ",\n")
            json.dump(make(i), handle)
        handle.write("\n]\n")


def measure(path: Path, layout: str, records: int) -> dict[str, Any]:
    """Seconds and peak bytes of reading, planning and walking a file of `records` records.

    Returns
    -------
    dict
        layout, records, file_bytes, steps, edits (as walked), and per stage (``imported``, ``read``, ``planned``,
        ``walked``) seconds since the one before and the largest resident set so far in bytes.
    """
    from stablediag.data.load import load_stream
    from stablediag.engine.costs import peak_bytes
    from stablediag.engine.plan import plan_steps
    from stablediag.spec import DataSpec

    stages: dict[str, dict[str, float | int | None]] = {}
    began = time.perf_counter()

    def done(stage: str) -> None:
        nonlocal began
        now = time.perf_counter()
        stages[stage] = {"seconds": round(now - began, 3), "peak_bytes": peak_bytes(torch.device("cpu"))}
        began = now

    done("imported")
    stream = load_stream(DataSpec(source=str(path), size=records, layout=layout))
    done("read")
    plan = plan_steps(stream, [], edits_per_step=EDITS_PER_STEP, placement="none")
    done("planned")
    walked = sum(len(plan[step].edits) for step in range(len(plan)))
    done("walked")
    size = path.stat().st_size
    return {
        "layout": layout,
        "records": records,
        "file_bytes": size,
        "steps": len(plan),
        "edits": walked,
        "stages": stages,
    }


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layout", choices=sorted(MAKERS), default="ultraeditbench")
    parser.add_argument("--records", type=int, help="default: as many as the published run edits")
    parser.add_argument("--out", type=Path, help="JSON file to write; it is printed in any case")
    given = parser.parse_args(arguments)
    records = given.records or RECORDS[given.layout]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{given.layout}.json"
        write(path, given.layout, records)
        found = measure(path, given.layout, records)
    text = json.dumps(found, indent=2) + "\n"
    sys.stdout.write(text)
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
