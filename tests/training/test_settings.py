import pytest

from vaeline.errors import UserError
from vaeline.training.settings import Settings


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    assert Settings.from_environment() == Settings(checkpoint_seconds=20.0, log_every=50)
    monkeypatch.setenv("VAELINE_CHECKPOINT_SECONDS", "1.5")
    monkeypatch.setenv("VAELINE_LOG_EVERY", "7")
    assert Settings.from_environment() == Settings(checkpoint_seconds=1.5, log_every=7)


@pytest.mark.parametrize("name", ["VAELINE_CHECKPOINT_SECONDS", "VAELINE_LOG_EVERY"])
@pytest.mark.parametrize("value", ["-1", "soon", "nan", "inf"])
def test_a_wrong_setting_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{name}: must be a number from [01], found '{value}'$"):
        Settings.from_environment()


def test_a_part_of_a_step_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VAELINE_LOG_EVERY", "2.5")
    with pytest.raises(UserError, match="whole number of steps"):
        Settings.from_environment()
