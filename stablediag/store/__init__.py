"""Where a run lives: one SQLite database, arrays and checkpoints in safetensors, and nothing pickled.

`run` reads, `writer` writes, `export` converts; `state` holds the checkpoints and alone needs torch, so it is
imported by name.
"""

from stablediag.store.export import export
from stablediag.store.run import Run, list_runs
from stablediag.store.writer import RunWriter, Transaction

__all__ = ["Run", "RunWriter", "Transaction", "export", "list_runs"]
