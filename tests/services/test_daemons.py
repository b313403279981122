"""Processes that outlive the command that started them, and are found again, and only they."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from pipeline.services import daemons, flow_run_processes
from pipeline.services.child_processes import Identity

SLEEP = ["sh", "-c", "sleep 300 & echo $!; wait"]


def child_of(name: str) -> psutil.Process:
    """What the daemon's shell started."""
    deadline = time.monotonic() + 20
    while not (text := daemons.log_of(name).read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return psutil.Process(int(text))


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_daemon_is_found_by_a_later_process_and_ended_with_its_children(toy: Path):
    code = "from pipeline.services import daemons; from pathlib import Path; "
    code += f"daemons.start('d', {SLEEP}, {{}}, 'a', Path.cwd())"
    subprocess.run([sys.executable, "-c", code], check=True)
    found = daemons.running("d")
    assert found is not None
    assert os.getsid(found.pid) == found.pid, "a closed terminal does not reach it"
    child = child_of("d")
    assert found.end(10)
    assert gone(child)
    assert daemons.find("d") is None


def test_what_a_killed_daemon_left_is_found_and_ended(toy: Path):
    process = daemons.start("d", SLEEP, {}, "", toy)
    child = child_of("d")
    process.kill()
    process.wait()
    found = daemons.find("d")
    assert found
    assert not found.lives
    assert found.end(10)
    assert gone(child)


def test_a_number_used_again_is_not_taken_for_the_daemon(toy: Path):
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as stranger:
        identity = Identity.of(stranger.pid)
        assert identity
        for found in (
            daemons.Daemon("d", stranger.pid, "earlier", ""),
            replace(daemons.Daemon("d", **asdict(identity), address=""), started=identity.started + "0"),
        ):
            assert not found.lives
            assert not found.end(10)
        assert stranger.poll() is None
        stranger.kill()


def test_a_spoilt_note_counts_as_none(toy: Path):
    (toy / ".vaeline").mkdir()
    (toy / ".vaeline" / "d.json").write_text("{")
    assert daemons.find("d") is None


def test_a_flow_runs_process_that_ended_without_a_word_is_noticed(toy: Path):
    code = "from pipeline.services import flow_run_processes; flow_run_processes.note('one')"
    subprocess.run([sys.executable, "-c", code], check=True)
    flow_run_processes.note("two")
    assert list(flow_run_processes.ended()) == ["one"]
    flow_run_processes.forget("one")
    assert list(flow_run_processes.ended()) == []


def test_what_a_killed_worker_left_is_seen_out_first(toy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(flow_run_processes, "PATIENCE_S", 0.2)
    with subprocess.Popen(["sleep", "300"]) as left:
        identity = Identity.of(left.pid)
        assert identity
        attempt = flow_run_processes.Attempt(identity, worker=Identity(1, "earlier"))
        (toy / ".vaeline" / "flow-runs").mkdir(parents=True)
        (toy / ".vaeline" / "flow-runs" / "one.json").write_text(json.dumps(asdict(attempt)))
        assert list(flow_run_processes.ended()) == ["one"]
        assert left.wait(10) == -signal.SIGKILL
