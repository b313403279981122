"""What MLflow deletes and restores: run, experiment, version, model, alias; what `register` and commands do then."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_line import vaeline
from pipeline.stages import register as stage
from registry_fixture import NAME
from vaeline.errors import UserError
from vaeline.io.workspace import current_workspace
from vaeline.registry import load
from vaeline.registry.versions import find_versions
from vaeline.tracking.connection import connect

CHAMPION = f"models:/{NAME}@champion"
STILL_THERE: dict[str, list[Callable[[Any, Any], object]]] = {  # one after the other, with the run
    "run": [
        lambda client, run: client.delete_run(run.run_id),
        lambda client, run: client.restore_run(run.run_id),
        lambda client, run: client.delete_run(run.run_id),
    ],
    "experiment": [lambda client, run: client.delete_experiment(run.experiment_id)],  # which `register` restores
}
GONE: dict[str, Callable[[Any], object]] = {
    "has no (alias|version)|nothing to go back": lambda client: client.delete_model_version(NAME, "1"),
    "no model is registered as": lambda client: client.delete_registered_model(NAME),
    "has no alias": lambda client: client.delete_registered_model_alias(NAME, "champion"),
}


pytestmark = pytest.mark.usefixtures("registered")


@pytest.mark.parametrize("what", STILL_THERE)
def test_a_model_whose_run_or_experiment_is_deleted_is_registered_read_and_traced(what: str):
    """Its run is made again; the version stays bound to the deleted one, which MLflow still reads."""
    client, first = connect(current_workspace()), Path("reports/registration.json").read_bytes()
    run = client.get_run(client.get_model_version(NAME, "1").run_id).info
    for change in STILL_THERE[what]:
        change(client, run)
        stage.main()
        assert Path("reports/registration.json").read_bytes() == first
        assert [int(version.version) for version in find_versions(client, NAME)] == [1]
        assert load.verify(CHAMPION)["version"] == 1
        assert run.run_id in vaeline("trace", CHAMPION)
        assert "is the champion already" in vaeline("promote", NAME, "1")
        assert "champion" in vaeline("models")
    client.delete_registered_model(NAME)
    stage.main()
    assert client.get_run(client.get_model_version(NAME, "1").run_id).info.lifecycle_stage == "active"


@pytest.mark.parametrize("words", GONE)
def test_what_is_gone_is_named_by_every_command_and_registered_again(words: str):
    client = connect(current_workspace())
    GONE[words](client)
    vaeline("models")
    commands = [("verify", CHAMPION), ("trace", CHAMPION), ("reproduce", CHAMPION), ("rollback", NAME)]
    for command in commands if "version" in words or "model" in words else commands[:3]:
        with pytest.raises(UserError, match=words) as raised:
            vaeline(*command)
        assert len(str(raised.value).splitlines()) == 1
    if words == "has no alias":
        assert vaeline("rollback", NAME) == f"{NAME} version 1 is champion again\n"
    stage.main()
    assert load.verify(CHAMPION)
    assert len(find_versions(client, NAME)) == 1
