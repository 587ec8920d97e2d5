"""Writing a run: whole steps only, whoever dies when."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from stablediag.errors import StoreError
from stablediag.store import Run
from stablediag.store._schema import sql_value
from tests.store.stores import INFO, assert_same, contents, new, step


def test_round_trip(tmp_path, mode):
    with new(tmp_path / "r") as writer:
        for number in range(3):
            step(writer, number)
        writer.finish()
    run = Run.open(tmp_path / "r")
    assert run.info == INFO
    assert run.spec == {"name": "demo", "seed": 0}
    assert (run.state, run.live, run.checkpoint, run.verify()) == ("complete", False, None, [])
    assert run.tables() == ["arrays", "edits", "events", "journal", "steps", "timings", "updates"]
    updates = run.table("updates")
    assert list(updates.columns) == ["step", "module", "norm", "cosine", "rank", "note"]
    assert updates["step"].tolist() == [0, 1, 2]
    assert updates["norm"].tolist() == [0.0, 1.0, 2.0]
    assert updates["cosine"].isna().all()
    assert updates["cosine"].dtype == np.float64
    assert updates["rank"].dtype == np.int64
    assert updates["note"].tolist() == [None] * 3
    assert run.table("steps")["loss"].tolist() == [1.0, 1 / 2, 1 / 3]
    assert run.arrays() == [("spectrum", 0), ("spectrum", 1), ("spectrum", 2)]
    assert run.array("spectrum", 2).tolist() == [0.0, 1.0, 2.0]
    assert run.table("events")[["step", "n", "kind"]].to_numpy().tolist() == [[i, 0, "note"] for i in range(3)]
    assert run.table("journal")["kind"].tolist() == ["started", "finished"]
    assert not (tmp_path / "r" / "run.sqlite-wal").exists()


def test_doubles_keep_every_bit(tmp_path):
    values = [0.1, 5e-324, 1.7976931348623157e308, float("inf"), float("-inf"), 1e16 + 2]
    with new(tmp_path / "r") as writer:
        for number, value in enumerate(values):
            with writer.transaction(number) as t:
                t.row("steps", {}, {"loss": np.float64(value), "edits": np.int64(2**62 + 1)})
    table = Run.open(tmp_path / "r").table("steps")
    assert table["loss"].to_numpy().tobytes() == np.array(values).tobytes()
    assert set(table["edits"]) == {2**62 + 1}


@pytest.mark.parametrize(
    "data",
    [
        np.float64(3.5),
        np.zeros((0, 3), dtype=np.float32),
        np.arange(6, dtype=np.int64).reshape(2, 3).T,
        np.arange(6, dtype=">f8")[::-2],
        np.array([True, False]),
        np.array([np.nan, np.inf, -0.0], dtype=np.float16),
    ],
)
def test_arrays_round_trip_bit_for_bit(tmp_path, data):
    with new(tmp_path / "r") as writer, writer.transaction(0) as t:
        t.array("layers.1/down proj", 0, data)
    back = Run.open(tmp_path / "r").array("layers.1/down proj", 0)
    assert back.shape == np.shape(data)
    assert back.dtype == np.asarray(data).dtype.newbyteorder("=")
    assert back.tobytes() == np.asarray(data).astype(back.dtype).tobytes()


def test_rows_of_later_steps_fill_the_same_wide_row(tmp_path):
    with new(tmp_path / "r") as writer:
        step(writer, 0)
        with writer.transaction(5) as t:
            t.row("edits", {"edit": "e0"}, {"retained": 0.25})
            t.event("late", "x")
    row = Run.open(tmp_path / "r").table("edits").iloc[0]
    assert (row["step"], row["immediate"], row["retained"]) == (0, 1.0, 0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.row("nope", {}, {}), 'no table "nope" in this run; declared: edits, steps, timings, updates'),
        (lambda t: t.row("meta", {}, {}), 'no table "meta"'),
        (lambda t: t.row("steps", {}, {"los": 1.0}), 'table "steps" has no column "los"; declared: phase, edits, loss'),
        (lambda t: t.row("steps", {}, {"step": 1}), 'has no column "step"'),
        (lambda t: t.row("updates", {}, {}), "key is (step, module), got (step)"),
        (lambda t: t.row("updates", {"module": None}, {}), "a key cannot be missing"),
        (lambda t: t.row("steps", {}, {"loss": "x"}), "steps.loss: a str (x) does not fit a column of type REAL"),
        (lambda t: t.row("steps", {}, {"edits": 1.5}), "does not fit a column of type INTEGER"),
        (lambda t: t.row("steps", {}, {"edits": float("inf")}), "does not fit a column of type INTEGER"),
        (lambda t: t.row("steps", {}, {"phase": 3}), "does not fit a column of type TEXT"),
        (lambda t: t.row("steps", {}, {"loss": np.zeros(3)}), "shape (3,) is not one value"),
        (lambda t: [t.row("steps", {}, {"loss": x}) for x in (1.0, 2.0)], "given twice"),
        (lambda t: t.array("x", 0, np.array(["a"])), "cannot be stored; give numbers"),
        (lambda t: [t.array("x", 0, np.zeros(1)) for _ in range(2)], "given twice in one transaction"),
        (lambda t: t.checkpoint(0, "state/000000"), "no such state folder"),
    ],
)
def test_programming_errors_leave_no_trace(tmp_path, call, message):
    with new(tmp_path / "r") as writer:

        def mistaken_step():
            with writer.transaction(0) as t:
                t.row("updates", {"module": "a"}, {"norm": 1.0})
                t.array("spectrum", 0, np.zeros(2))
                call(t)

        with pytest.raises(StoreError) as caught:
            mistaken_step()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        run = Run.open(tmp_path / "r")
        assert all(frame.empty for frame in contents(run).values())
        assert list((tmp_path / "r" / "arrays").iterdir()) == []
        step(writer, 0)
    assert len(Run.open(tmp_path / "r").table("updates")) == 1


def test_values_of_every_number_type_become_one_kind_of_cell():
    torch = pytest.importorskip("torch")
    tensors = (torch.tensor(2), torch.tensor(2.0, dtype=torch.bfloat16))
    for value in (2, 2.0, np.float32(2), np.int8(2), np.array(2.0), *tensors):
        assert sql_value(value, "REAL", "x") == 2.0
        assert isinstance(sql_value(value, "REAL", "x"), float)
        assert isinstance(sql_value(value, "INTEGER", "x"), int)
    assert sql_value(True, "INTEGER", "x") == 1
    assert sql_value(float("nan"), "INTEGER", "x") is None
    with pytest.raises(StoreError, match="INTEGER"):
        sql_value(2**63, "INTEGER", "x")


@pytest.mark.parametrize(
    ("columns", "keys", "message"),
    [
        ({"x": {"a": "REAL"}}, {}, "has columns but no key"),
        ({"x": {"a": "FLOAT"}}, {"x": ["step"]}, 'type "FLOAT" is not one of'),
        ({"meta": {}}, {"meta": ["step"]}, "belongs to the store"),
        ({"x y": {}}, {"x y": ["step"]}, "cannot name a table"),
        ({"x": {}}, {"x": []}, "no key columns"),
        ({"x": {"a": "REAL", "A": "REAL"}}, {"x": ["step"]}, "duplicate column name"),
    ],
)
def test_wrong_declarations_are_refused(tmp_path, columns, keys, message):
    with pytest.raises(StoreError, match=message):
        Run.create(tmp_path / "r", info=INFO, columns=columns, keys=keys)
    new(tmp_path / "r").close()


def test_create_refuses_what_is_not_empty(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("precious")
    with pytest.raises(StoreError, match="notes: not an empty directory; choose another or empty it"):
        new(tmp_path / "notes")
    new(tmp_path / "r").close()
    with pytest.raises(StoreError, match="r: not an empty directory; resume it or choose another"):
        new(tmp_path / "r")
    (tmp_path / "empty").mkdir()
    new(tmp_path / "empty").close()


def test_one_writer_at_a_time(tmp_path):
    writer = new(tmp_path / "r")
    step(writer, 0)
    run = Run.open(tmp_path / "r")
    assert (run.live, run.state) == (True, "running")
    with pytest.raises(StoreError, match=rf"another process writes this run \(pid {os.getpid()}\)"):
        Run.resume(tmp_path / "r")
    code = f"from stablediag.store import Run; Run.resume({str(tmp_path / 'r')!r})"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "another process writes this run" in other.stderr
    writer.close()
    assert (run.live, run.state) == (False, "running")
    Run.resume(tmp_path / "r").close()
    with pytest.raises(StoreError, match="writer is closed"):
        writer.journal("x")


def test_a_reader_sees_whole_steps_while_the_writer_writes(tmp_path, mode):
    with new(tmp_path / "r") as writer:
        step(writer, 0)
        run = Run.open(tmp_path / "r")
        with writer.transaction(1) as t:
            t.row("steps", {}, {"loss": 1.0})
            assert len(run.table("steps")) == 1
        assert len(run.table("steps")) == 2


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    sys.path.insert(0, {tests!r})
    from stablediag.store import _db
    _db.journal_mode = lambda path: {mode!r}
    import importlib.util
    loaded = importlib.util.spec_from_file_location("helpers", {tests!r} + "/test_run.py")
    helpers = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(helpers)
    writer = helpers.new(Path({path!r}))
    for number in range(3):
        helpers.step(writer, number)
    connection = writer._connection
    connection.execute("PRAGMA cache_size=1")
    inner = connection.execute
    class Spy:
        in_transaction = True
        def execute(self, query, *rest):
            if query.startswith("{at}"):
                # Push what is uncommitted out to the files, so that recovery has something to undo.
                for i in range(2000):
                    inner("INSERT INTO edits (edit, step) VALUES (?, 3)", (f"x{{i:05d}}" * 20,))
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(query, *rest)
    writer._connection = Spy()
    helpers.step(writer, 3)
"""


@pytest.mark.parametrize("at", ["INSERT INTO arrays", "COMMIT"])
def test_a_killed_writer_leaves_whole_steps(tmp_path, mode, at):
    path = tmp_path / "r"
    code = textwrap.dedent(KILLED).format(tests=str(Path(__file__).parent), mode=mode, path=str(path), at=at)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    if mode == "delete":
        assert (path / "run.sqlite-journal").stat().st_size > 512
    run = Run.open(path)
    assert (run.live, run.state) == (False, "running")
    assert run.table("steps")["step"].tolist() == [0, 1, 2]
    assert len(run.table("edits")) == 3
    assert run.verify() == []
    assert (path / "arrays" / "spectrum-3.safetensors").exists()
    with Run.resume(path) as writer:
        assert not (path / "arrays" / "spectrum-3.safetensors").exists()
        step(writer, 3)
        writer.finish()
    with new(tmp_path / "whole") as writer:
        for number in range(4):
            step(writer, number)
        writer.finish()
    assert_same(Run.open(path), Run.open(tmp_path / "whole"))
    assert Run.open(path).table("journal")["kind"].tolist() == ["started", "resumed", "finished"]


def test_truncate_and_redo_equals_an_uninterrupted_run(tmp_path, mode):
    with new(tmp_path / "a") as writer:
        for number in range(6):
            step(writer, number)
        with writer.transaction(9) as t:
            t.row("edits", {"edit": "e1"}, {"retained": 0.5})
        writer.finish("interrupted")
    with Run.resume(tmp_path / "a") as writer:
        writer.truncate_after(2)
        run = Run.open(tmp_path / "a")
        assert run.table("steps")["step"].tolist() == run.table("timings")["step"].tolist() == [0, 1, 2]
        assert run.arrays() == [("spectrum", 0), ("spectrum", 1), ("spectrum", 2)]
        assert len(list((tmp_path / "a" / "arrays").iterdir())) == 3
        with writer.transaction(9) as t:
            t.row("edits", {"edit": "e1"}, {"retained": float("nan")})
        for number in range(3, 6):
            step(writer, number)
        writer.finish()
    with new(tmp_path / "b") as writer:
        for number in range(6):
            step(writer, number)
        writer.finish()
    assert_same(Run.open(tmp_path / "a"), Run.open(tmp_path / "b"))


def test_a_registered_array_is_never_overwritten(tmp_path):
    with new(tmp_path / "r") as writer:
        step(writer, 0)
        with pytest.raises(StoreError, match="already in"), writer.transaction(0) as t:
            t.array("spectrum", 0, np.zeros(9))
    assert Run.open(tmp_path / "r").array("spectrum", 0).tolist() == [0.0]
    assert Run.open(tmp_path / "r").verify() == []


def test_checkpoint_pointer_moves_with_its_step(tmp_path):
    with new(tmp_path / "r") as writer:
        assert writer.checkpoint() is None
        for number in (1, 2):
            state = tmp_path / "r" / "state" / f"{number:06d}"
            state.mkdir(parents=True)
            with writer.transaction(number) as t:
                t.row("steps", {}, {"loss": 0.0})
                t.checkpoint(number, state if number == 1 else f"state/{number:06d}")
        assert writer.checkpoint() == (2, tmp_path / "r" / "state" / "000002")
        with pytest.raises(StoreError), writer.transaction(3) as t:
            t.row("nope", {}, t.checkpoint(3, tmp_path / "r" / "state" / "000001") or {})
    run = Run.open(tmp_path / "r")
    assert run.checkpoint == (2, tmp_path / "r" / "state" / "000002")
    (tmp_path / "r").rename(tmp_path / "moved")
    moved = Run.open(tmp_path / "moved")
    assert moved.checkpoint == (2, tmp_path / "moved" / "state" / "000002")
    assert "cannot be read" in moved.verify()[0]
    (tmp_path / "moved" / "state" / "000002").rmdir()
    assert "checkpoint of step 2 is missing" in moved.verify()[0]
