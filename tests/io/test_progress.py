import logging
import sys
import time

import pytest

from vaeline.io import progress as module
from vaeline.io.progress import Progress, heartbeat


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_elsewhere_than_on_a_terminal_a_log_line_comes_at_most_each_ten_seconds(
    clock: list[float], caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO), Progress("training", 7820, "steps", done=1000) as reporter:
        for step in range(1001, 1031):  # one a second
            clock[0] += 1
            reporter.update(step, "31,234 images/s")
        reporter.line("epoch 1/20: ELBO -230.00")
    assert caplog.messages == [
        "training: 1,011 of 7,820 steps, 31,234 images/s, 1:53:29 left",
        "training: 1,022 of 7,820 steps, 31,234 images/s, 1:53:18 left",
        "epoch 1/20: ELBO -230.00",
    ]


def test_bytes_are_shown_in_megabytes_and_quick_or_quiet_tasks_not_at_all(
    clock: list[float], caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO), Progress("images.gz", 8_000_000, "bytes") as reporter:
        clock[0] += 9
        reporter.update(1_000_000)
        clock[0] += 3
        reporter.update(4_000_000)
    with Progress("training", 2**63, "steps") as reporter:
        clock[0] += 1
        assert reporter._status(1, "").endswith(" left")
    with caplog.at_level(logging.INFO), Progress("images.gz", 10, "bytes", quiet=True) as reporter:
        clock[0] += 100
        reporter.update(4)
        reporter.line("epoch 1")
    assert caplog.messages == ["images.gz: 4.0 of 8.0 MB, 0:00:12 left"]


def test_on_a_terminal_a_bar_moves_below_the_lines(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("training", 10, "steps") as reporter:
        clock[0] += 6
        reporter.update(4, "31,000 images/s")
        reporter.line("epoch 1/2: [no markup]")
    shown = capsys.readouterr().err
    assert "━" in shown
    assert "4 of 10 steps, 31,000 images/s, 0:00:09 left" in shown
    assert "epoch 1/2: [no markup]" in shown


def test_a_task_that_reports_nothing_is_heard_of_and_one_that_reports_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(module, "QUIET_S", 0.2)
    with caplog.at_level(logging.INFO), heartbeat("register"), Progress("images", 10, "images", quiet=True) as reporter:
        for _ in range(40):
            reporter.update(1)
            time.sleep(0.01)
        assert caplog.messages == []
        time.sleep(0.5)
    assert set(caplog.messages) == {"register: at work for 0:00:01"}
    time.sleep(0.3)
    assert len(caplog.messages) in (1, 2), "none after its end"
