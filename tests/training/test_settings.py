import pytest

from vaeline.errors import UserError
from vaeline.training.settings import Settings, whole_number


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    assert Settings.from_environment() == Settings(checkpoint_seconds=20.0, log_every=50)
    monkeypatch.setenv("VAELINE_CHECKPOINT_SECONDS", "1.5")
    monkeypatch.setenv("VAELINE_LOG_EVERY", "7")
    assert Settings.from_environment() == Settings(checkpoint_seconds=1.5, log_every=7)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("VAELINE_CHECKPOINT_SECONDS", "number from 0"), ("VAELINE_LOG_EVERY", "whole number from 1")],
)
@pytest.mark.parametrize("value", ["-1", "soon", "nan", "inf"])
def test_a_wrong_setting_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, name: str, allowed: str, value: str):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{name}: must be a {allowed}, found '{value}'$"):
        Settings.from_environment()


@pytest.mark.parametrize("value", ["0", "2.5", "1025", "\u0663"])
def test_a_number_of_processes_is_whole_and_bounded(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("VAELINE_NPROC", value)
    with pytest.raises(UserError, match="whole number from 1 to 1024"):
        whole_number("VAELINE_NPROC", 1, most=1024)
