import logging

import pytest

from vaeline.training import progress
from vaeline.training.progress import Bar, Lines, open_progress


def test_within_an_epoch_there_is_a_line_at_most_each_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with caplog.at_level(logging.INFO), Lines(steps=7820) as lines:
        for step in range(1, 31):  # one a second
            now += 1
            lines.moved(step, 31234.5)
        lines.line("epoch 1/20: ELBO -230.00")
    assert caplog.messages == [
        "step 11 of 7,820, 31,234 images/s",
        "step 22 of 7,820, 31,234 images/s",
        "epoch 1/20: ELBO -230.00",
    ]


def test_where_there_is_no_terminal_there_is_no_bar():
    assert isinstance(open_progress(10), Lines)


def test_on_a_terminal_there_is_a_bar_with_images_a_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with open_progress(10) as bar:
        assert isinstance(bar, Bar)
        bar.moved(4, 31000.0)
        bar.line("epoch 1/2: [no markup]")
    shown = capsys.readouterr().err
    assert "31,000 images/s" in shown
    assert "epoch 1/2: [no markup]" in shown
