"""`vaeline models`, `history`, `promote`, `rollback` on a real registry: their output and their errors."""

import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from command_line import vaeline
from pipeline.commands.registry import app
from vaeline.errors import UserError

if TYPE_CHECKING:
    from registry_fixture import FilledRegistry

NAME = "vaeline-fashion-mnist"


def row(text: str, *start: str) -> list[str]:
    """The cells of the table's row that starts so."""
    (found,) = [line.split() for line in text.splitlines() if line.split()[: len(start)] == list(start)]
    return found


@pytest.fixture
def decided(filled: "FilledRegistry", monkeypatch: pytest.MonkeyPatch) -> "FilledRegistry":
    """Version 2 is champion, 3 was before and is rolled back, 1 is challenger."""
    for number in (2, 1, 3):
        filled.run_gate(number)
    vaeline("rollback", NAME, "--reason", "it [hallucinates]")
    return filled


def test_models_shows_the_champion_and_what_each_measures(decided: "FilledRegistry"):
    text = vaeline("models", width=80)
    assert text.splitlines()[0].strip() == NAME
    assert max(map(len, text.splitlines())) <= 80
    tags = decided.tags(2)
    assert row(text, "2", "champion")[2:7] == ["-11.00", "–", tags["vaeline.active_units"], "–", "promoted"]
    assert row(text, "1", "challenger")[6] == "rejected"
    assert row(text, "3")[5] == "promoted"
    assert row(text, "4")[5] == "–"
    assert vaeline("models", NAME, width=120) == text


@pytest.mark.parametrize("width", [80, 120])
def test_history_tells_who_was_champion_and_why(decided: "FilledRegistry", width: int):
    text = vaeline("history", NAME, width=width)
    assert max(map(len, text.splitlines())) <= width
    words = re.sub(r"\s+", " ", text)
    places = [words.index(what) for what in ("promoted 2", "rejected 1", "promoted 3", "back to 2")]
    assert places == sorted(places)
    assert "[hallucinates]" in words


def test_each_is_there_for_machines_with_the_same_numbers_and_iso_times(decided: "FilledRegistry"):
    (model,) = json.loads(vaeline("models", "--json"))
    version = model["versions"][2]
    assert (model["name"], version["version"], version["aliases"], version["decision"]) == (
        *(NAME, 2, ["champion"], "promoted"),
    )
    assert (version["test_elbo"], version["test_nll"]) == (-11.0, None)
    entries = json.loads(vaeline("history", NAME, "--json"))["entries"]
    assert [(e["action"], e["version"], e["before"]) for e in entries] == [
        *(("promote", 2, None), ("reject", 1, 2), ("promote", 3, 2), ("rollback", 2, 3))
    ]
    assert entries[3]["reason"] == "it [hallucinates]"
    for moment in (version["created"], entries[0]["time"]):
        assert datetime.fromisoformat(moment).utcoffset() == timedelta(0)
    found = json.loads(vaeline("verify", f"models:/{NAME}@champion", "--json"))
    assert (found["version"], found["model_digest"]) == (2, version["model_digest"])


def test_markup_and_what_a_terminal_obeys_in_names_and_tags_is_text(decided: "FilledRegistry"):
    hostile, client = "[bold]a[/]\x1b[2J\x9b2J\r\nb :smile:", decided.client
    shown = "[bold]a[/]\ufffd[2J\ufffd2J\ufffd\ufffdb :smile:"
    client.set_model_version_tag(NAME, "1", "vaeline.decision", hostile)
    client.set_model_version_tag(NAME, "1", "vaeline.test_elbo", "nan")
    client.create_registered_model("o'brien [red]x")
    client.set_tag(client.get_model_version(NAME, "1").run_id, "vaeline.dvc_experiment", hostile)
    for text in (vaeline("models", width=200), vaeline("trace", f"models:/{NAME}/1")):
        assert shown in text
        assert text.replace("\n", "").isprintable()
    assert "o'brien [red]x" in vaeline("models")
    vaeline("promote", NAME, "1", "--force", "--reason", hostile)
    assert shown in re.sub(r"\s*\n\s*", " ", vaeline("history", NAME, width=200))


def test_promote_asks_the_gate_and_force_overrules_it_for_a_reason(decided: "FilledRegistry"):
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("minimum_active_units: 2", "minimum_active_units: 0"))
    with pytest.raises(UserError, match=r"version 1: rejected by the gate: gain -.*--force --reason TEXT overrules"):
        vaeline("promote", NAME, "1")
    assert decided.aliases()["champion"] == "2"
    assert f"{NAME} version 3 is champion: gain +" in vaeline("promote", NAME, "3")
    assert f"{NAME} version 3 is the champion already" in vaeline("promote", NAME, "3")
    output = vaeline("promote", NAME, "1", "--force", "--reason", "a demo for old times")
    assert output == f"{NAME} version 1 is champion: forced: a demo for old times\n"
    assert decided.aliases()["champion"] == "1"
    assert decided.tags(1)["vaeline.decision"] == "promoted"
    assert "promoted 1 after 3, forced" in re.sub(r"\s+", " ", vaeline("history", NAME, width=200))
    assert vaeline("rollback", NAME) == f"{NAME} version 3 is champion again, version 1 is not any more\n"


def test_a_version_of_other_data_is_not_decided_and_the_way_out_is_told(decided: "FilledRegistry"):
    manifest = Path("data/prepared/manifest.json")
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(UserError, match=r"version 4: its data is \w{12}, data/prepared is \w{12}.*--force --reason"):
        vaeline("promote", NAME, "4")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("1", "--force"), "go together"),
        (("1", "--reason", "why"), "go together"),
        (("1", "--force", "--reason", " "), "go together"),
        (("1234567890",), "less than or equal"),
    ],
)
def test_force_and_reason_go_together_and_a_version_has_a_number(arguments: tuple[str, ...], words: str):
    done = CliRunner().invoke(app, ["promote", NAME, *arguments])
    assert (done.exit_code, words in done.output) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("models", "digits"), rf"no model is registered as 'digits' in sqlite:.*; registered: {NAME}"),
        (("history", "o'brien"), rf"no model is registered as \"o'brien\" in sqlite:.*; registered: {NAME}"),
        (("rollback", "digits"), rf"no model is registered as 'digits' in sqlite:.*; registered: {NAME}"),
        (("compare", "0" * 32, "x"), "MLFLOW_TRACKING_URI: .*mlflow.db answers: Run .* not found"),
        (("promote", NAME, "9"), f"{NAME} has no version 9; it has: 1, 2, 3, 4"),
        (("promote", NAME, "9", "--force", "--reason", "x"), f"{NAME} has no version 9; it has: 1, 2, 3, 4"),
        (("rollback", NAME), f"{NAME}: no version is champion and no previous champion is left: nothing to go back to"),
    ],
)
def test_wrong_names_and_versions_are_told_with_those_there_are(
    filled: "FilledRegistry", arguments: tuple[str, ...], words: str
):
    with pytest.raises(UserError, match=f"^{words}$"):
        vaeline(*arguments)


def test_an_empty_registry_says_how_to_fill_it(store: Any, repository: Any):
    (repository / "dvc.yaml").write_text("stages: {}")
    assert vaeline("models") == "no model is registered yet; `vaeline run` registers the first\n"


def test_a_model_without_decisions_is_reported(filled: "FilledRegistry"):
    assert vaeline("history", NAME) == f"{NAME}: nothing has been decided yet\n"
