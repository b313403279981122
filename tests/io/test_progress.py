import logging
import os
import pty
import subprocess
import sys

import pytest

from vaeline.io.progress import progress


def test_elsewhere_than_on_a_terminal_a_line_comes_at_every_quarter(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), progress("images.gz", 8_000_000) as advance:
        for _ in range(16):
            advance(500_000)
    assert caplog.messages == [f"images.gz: {share} % of 8.0 MB" for share in (25, 50, 75, 100)]


def test_a_small_transfer_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), progress("labels.gz", 5_000) as advance:
        advance(5_000)
    assert not caplog.messages


def test_on_a_terminal_a_bar_moves() -> None:
    code = (
        "import time; from vaeline.io.progress import progress\n"
        "with progress('images.gz', 8_000_000) as advance:\n"
        "    for _ in range(4): advance(2_000_000); time.sleep(0.15)"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        try:
            while block := os.read(ours, 4096):
                shown += block
        except OSError:
            pass  # how Linux says that the other end was closed
        os.close(ours)
    assert process.returncode == 0
    assert b"images.gz" in shown and "━".encode() in shown and b"8.0 MB" in shown
