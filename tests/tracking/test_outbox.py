import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vaeline.io.workspace import current_workspace
from vaeline.tracking import outbox as spools
from vaeline.tracking.outbox import Progress, RunOutbox

WRITER = """
import sys
from pathlib import Path
from vaeline.tracking.outbox import RunOutbox
outbox = RunOutbox(Path(sys.argv[1]))
for number in range(200):
    outbox.append("metrics", step=number, values={"writer": float(sys.argv[2])}, filler="x" * 5000)
"""


@pytest.fixture
def spool(tmp_path: Path) -> RunOutbox:
    return RunOutbox(tmp_path / "run-1")


def steps(spool: RunOutbox, offset: int = 0) -> list[int]:
    return [event["step"] for event, _ in spool.read(offset)]


def test_what_is_appended_is_read_in_order_from_any_offset(spool: RunOutbox):
    for step in range(3):
        spool.append("metrics", step=step, values={"a": 1.0})
    offsets = [offset for _, offset in spool.read()]
    assert steps(spool) == [0, 1, 2]
    assert steps(spool, offsets[0]) == [1, 2]
    assert steps(spool, offsets[2]) == []
    assert steps(spool, offsets[2] + 1000) == []


def test_an_event_carries_its_time_in_milliseconds(spool: RunOutbox, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.time", lambda: 1234.5678)
    spool.append("end", status="FINISHED")
    assert [event["time"] for event, _ in spool.read()] == [1234567]


@pytest.mark.parametrize("torn", [b"{", b'{"kind":"metrics","step":9', b"\0" * 4096, b"x" * 200_000])
def test_a_torn_last_line_is_no_event_and_the_next_writer_cuts_it_off(spool: RunOutbox, torn: bytes):
    spool.append("metrics", step=1, values={})
    whole = spool.events.read_bytes()
    spool.events.write_bytes(whole + torn)
    assert steps(spool) == [1]
    spool.append("metrics", step=2, values={})
    assert steps(spool) == [1, 2]
    assert spool.events.read_bytes().startswith(whole + b'{"kind":"metrics"')


def test_a_torn_first_line_leaves_an_empty_log(spool: RunOutbox):
    spool.folder.mkdir()
    spool.events.write_bytes(b"x" * 70_000)
    assert steps(spool) == []
    spool.append("metrics", step=1, values={})
    assert steps(spool) == [1]


def test_a_spoilt_line_in_the_middle_costs_only_itself(spool: RunOutbox):
    for step in (1, 2, 3):
        spool.append("metrics", step=step, values={})
    lines = spool.events.read_bytes().splitlines(keepends=True)
    spool.events.write_bytes(lines[0] + b"\0\0\0\n" + b"[]\n" + lines[2])
    assert steps(spool) == [1, 3]


def test_lines_of_several_processes_never_mix(spool: RunOutbox):
    command = [sys.executable, "-c", WRITER, str(spool.folder)]
    writers = [subprocess.Popen([*command, str(number)]) for number in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    lines = [json.loads(line) for line in spool.events.read_text().splitlines()]
    for number in range(4):
        assert [e["step"] for e in lines if e["values"]["writer"] == number] == list(range(200))


def test_a_writer_is_seen_until_it_closes_and_its_death_is_told(spool: RunOutbox):
    spool.append("start", training=True)
    writer = spool.hold_as_writer()
    assert writer is not None
    assert spool.has_writer()
    assert spool.status() == "RUNNING"
    os.close(writer)
    assert not spool.has_writer()
    assert spool.status() == "KILLED"
    assert [event["kind"] for event, _ in spool.read()] == ["start", "end"]


def test_a_writer_that_was_killed_is_gone(spool: RunOutbox):
    spool.append("start", training=True)
    code = f"import os; from pathlib import Path; from vaeline.tracking.outbox import RunOutbox\n\
RunOutbox(Path({str(spool.folder)!r})).hold_as_writer(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    assert not spool.has_writer()
    assert spool.status() == "KILLED"


def test_the_same_bytes_are_kept_once(spool: RunOutbox):
    first, second = (spool.store_file(b"picture", "image.png") for _ in range(2))
    other = spool.store_file(b"other", "image.png")
    assert first == second != other
    assert (spool.folder / first).read_bytes() == b"picture"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"unknown": 1}', '{"offset": 5, "run_id": "r", "made": true}'])
def test_a_broken_progress_file_means_that_nothing_was_sent(tmp_path: Path, content: str):
    path = tmp_path / "shipped-0.json"
    path.write_text(content)
    assert Progress.load(path).offset == (5 if "offset" in content else 0)


def test_a_spool_is_sent_when_some_store_has_all_of_it(spool: RunOutbox):
    spool.append("start", training=False)
    assert not spool.is_sent()
    progress = Progress.of(spool, "sqlite:///a")
    progress.offset = spool.events.stat().st_size
    progress.write()
    Progress.of(spool, "sqlite:///b").write()
    assert spool.is_sent()
    spool.append("end", status="FINISHED")
    assert not spool.is_sent()


def test_generations_of_a_key_are_counted_and_other_keys_are_not(repository: Path):
    assert spools.latest_generation(current_workspace(), "key") is None
    for name in ("key-1", "key-2", "key-10", "key-other-30", "keys-40"):
        RunOutbox(spools.outbox_root(current_workspace()) / name).append("start", training=True)
    latest = spools.latest_generation(current_workspace(), "key")
    assert latest is not None
    assert latest.folder.name == "key-10"
    assert spools.next_generation(current_workspace(), "key").folder.name == "key-11"
    assert spools.next_generation(current_workspace(), "new").folder.name == "new-1"
