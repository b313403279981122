import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vaeline.errors import UserError
from vaeline.io.workspace import Workspace
from vaeline.tracking.outbox import Outbox, RunOutbox

OPEN = """
import os, sys
from pathlib import Path
from vaeline.io.workspace import Workspace
from vaeline.tracking.outbox import Outbox
outbox = Outbox(Workspace(Path(sys.argv[1]), Path(sys.argv[1])))
(run,) = outbox.runs()
"""
WRITER = f"""{OPEN}
for step in range(200):
    run.append("metrics", step=step, values={{"writer": float(sys.argv[2])}})
"""
KILLED = f"""{OPEN}
run.hold("writer", shared=True)
with outbox.transaction():
    run.append("tags")
    os.kill(os.getpid(), 9)
"""


def outbox_in(folder: Path) -> Outbox:
    return Outbox(Workspace(folder, folder))


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return outbox_in(tmp_path)


@pytest.fixture
def run(outbox: Outbox) -> RunOutbox:
    return outbox.create("run")


def steps(run: RunOutbox, after: int = 0) -> list[int]:
    return [event["step"] for _, event in run.read(after)]


def test_events_are_read_in_order_from_any_number_on_with_their_time(run: RunOutbox, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.time", lambda: 1234.5678)
    for step in range(3):
        run.append("metrics", step=step, values={"a": 1.0})
    numbers = [number for number, _ in run.read()]
    assert run.read(limit=1) == [(numbers[0], {"kind": "metrics", "time": 1234567, "step": 0, "values": {"a": 1.0}})]
    assert [steps(run, after) for after in (0, *numbers)] == [[0, 1, 2], [1, 2], [2], []]


def test_events_of_several_processes_are_all_there_each_in_its_order(tmp_path: Path, run: RunOutbox):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(number)]) for number in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    for number in range(4):
        assert [e["step"] for _, e in run.read() if e["values"]["writer"] == number] == list(range(200))


def test_a_log_cut_anywhere_by_a_kill_or_a_power_failure_holds_the_first_events(tmp_path: Path, run: RunOutbox):
    run.outbox.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for step in range(4):
        run.append("image", bytes([step]) * 5000, step=step)
    log = run.outbox.folder / "outbox.db-wal"
    seen = set()
    for cut in range(0, log.stat().st_size + 1, 1777):
        copy = outbox_in(tmp_path / f"cut-{cut}")
        copy.folder.mkdir(parents=True)
        shutil.copy(run.outbox.path, copy.folder)
        (copy.folder / log.name).write_bytes(log.read_bytes()[:cut])
        (found,) = copy.runs()
        assert steps(found) == list(range(len(found.read())))
        assert all(found.file(event["digest"]) == bytes([event["step"]]) * 5000 for _, event in found.read())
        found.append("image", b"more", step=9)
        seen.add(len(found.read()) - 1)
    assert {0, 1, 3} <= seen


def test_what_is_flushed_is_synced(run: RunOutbox, monkeypatch: pytest.MonkeyPatch):
    """Mistake 16: a checkpoint follows, which must not know more than the outbox."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    run.append("end", status="FINISHED")
    assert synced == [], "an event costs no sync"
    run.outbox.flush()
    assert synced == [run.outbox.folder / "outbox.db-wal", run.outbox.folder]


def test_a_full_disk_is_an_os_error_that_leaves_what_was_there(run: RunOutbox):
    run.append("metrics", step=1)
    run.outbox.execute("PRAGMA max_page_count = 1")  # sqlite then has what it has on a full disk
    with pytest.raises(OSError, match="No space left"):
        run.append("image", bytes(100_000), step=2)
    assert steps(run) == [1]
    run.outbox.execute("PRAGMA max_page_count = 1000000")
    run.append("metrics", step=3)
    assert steps(run) == [1, 3]


def test_a_database_that_is_spoilt_is_one_clear_line(tmp_path: Path, run: RunOutbox):
    run.outbox.close()
    run.outbox.path.write_bytes(b"x" * 8192)
    with pytest.raises(UserError, match=r"outbox\.db: file is not a database; where that stays, move it away"):
        outbox_in(tmp_path).runs()


def test_a_writer_is_seen_until_it_ends_and_its_missing_end_is_added(tmp_path: Path, run: RunOutbox):
    run.append("start", training=True)
    writer = run.hold("writer", shared=True)
    assert writer is not None
    assert run.has_writer()
    assert run.status() == "RUNNING"
    os.close(writer)
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert not run.has_writer(), "it was killed in a transaction"
    assert run.status() == "KILLED"
    assert [event["kind"] for _, event in run.read()] == ["start", "end"]


def test_a_run_is_sent_when_some_store_has_all_of_it_and_the_same_bytes_are_kept_once(run: RunOutbox):
    assert run.progress("sqlite:///a") == (0, None, False)
    for content in (b"picture", b"picture", b"other"):
        run.append("image", content)
    (_, first), (_, second), (last, other) = run.read()
    assert first["digest"] == second["digest"] != other["digest"]
    assert (run.file(first["digest"]), run.file(other["digest"])) == (b"picture", b"other")
    assert run.outbox.execute("SELECT count(*) FROM files") == [(2,)]
    assert not run.is_sent()
    run.set_progress("sqlite:///a", last, "abc", True)
    run.set_progress("sqlite:///b", 0, None, False)
    assert run.progress("sqlite:///a") == (last, "abc", True)
    assert run.is_sent()
    run.append("end", status="FINISHED")
    assert not run.is_sent()


def test_runs_of_a_key_are_numbered_and_other_keys_are_not_counted(outbox: Outbox):
    assert outbox.latest("key", "key") is None
    assert not outbox.path.exists(), "a question makes no database"
    names = [outbox.create(key).name for key in ("key", "other", "key", "keys", "key")]
    assert names == ["key-1", "other-1", "key-2", "keys-1", "key-3"]
    assert outbox.latest("key", "key") == outbox.runs()[-1]


@pytest.mark.parametrize("held", [None, "writer", "uploader"])
def test_pruning_deletes_what_is_old_and_sent_and_nothing_that_a_process_uses(outbox: Outbox, held: str | None):
    """Mistake 16: what is unsent or in use stays."""
    runs = [outbox.create(key) for key in ("old", "unsent", "new")]
    for run in runs:
        run.append("image", b"picture")
        run.log.write_text("log")
        run.set_progress("store", run.read()[-1][0] if run.name != "unsent-1" else 0, "abc", True)
    old, unsent, new = runs
    for run in (old, unsent):
        outbox.execute("UPDATE events SET time = 0 WHERE run = ?", run.id)
    lock = old.hold(held) if held else None
    assert [run.prune(time.time() - 60) for run in runs] == [held is None, False, False]
    assert outbox.runs() == ([old, unsent, new] if held else [unsent, new])
    assert old.log.exists() == bool(held)
    assert outbox.execute("SELECT count(*) FROM files") == [(3 if held else 2,)]
    if lock is not None:
        os.close(lock)


def test_a_reader_of_another_process_sees_only_what_is_committed(tmp_path: Path, run: RunOutbox):
    with run.outbox.transaction():
        run.append("tags")
        assert outbox_in(tmp_path).runs()[0].read() == []
    assert len(outbox_in(tmp_path).runs()[0].read()) == 1
    with pytest.raises(sqlite3.IntegrityError), run.outbox.transaction():
        run.append("tags")
        raise sqlite3.IntegrityError
    assert len(run.read()) == 1
