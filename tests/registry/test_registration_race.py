"""Clones that register at once: beside one sqlite store, and at one server, between whose clients no lock holds."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from pipeline.stages import register as stage
from registry_fixture import NAME, FilledRegistry, enter, patch_smoke_test
from uploads import answers, mlflow_server, until
from vaeline.io.workspace import current_workspace
from vaeline.registry import load, registration
from vaeline.registry.champion_history import read_history
from vaeline.registry.versions import DIGEST_TAG, find_models, find_versions
from vaeline.serving.model_files import load_model
from vaeline.tracking.connection import connect

PROGRAM = Path(__file__).parents[1] / "support" / "register_race.py"
SIGMA = 3.0  # model n + 1 has 8% less: better than model n by about a nat per image


def race(folder: Path, outputs: Callable[..., Path], numbers: tuple[int, ...]) -> list[str]:
    """Let a clone for each of the models register, all at once; the models' digests."""
    clones = []
    for place, number in enumerate(numbers):
        (clone := folder / f"clone-{number}-{place}").mkdir(parents=True)
        clones.append(outputs(folder=clone, sigma=SIGMA * 0.92**number))
        params = clones[-1] / "params.yaml"
        params.write_text(params.read_text().replace("minimum_active_units: 2", "minimum_active_units: 0"))
    command = [sys.executable, "-W", "ignore", str(PROGRAM), *map(str, clones)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [load_model(clone / "models").digest for clone in clones]


def digests(client: MlflowClient) -> dict[str, str]:
    """Of each version, by its number."""
    return {str(version.version): version.tags[DIGEST_TAG] for version in find_versions(client, NAME)}


@pytest.mark.parametrize("numbers", [(0, 1, 1), pytest.param((2, 5, 0, 1, 4, 3, 5, 2), marks=pytest.mark.slow)])
def test_the_best_is_champion_with_one_version_a_digest_and_a_whole_history(
    store: Path, outputs: Callable[..., Path], numbers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    registered = race(store.parents[1], outputs, numbers)
    client = connect(current_workspace())
    by_number, (model,) = digests(client), find_models(client, NAME)
    assert sorted(by_number, key=int) == [str(number + 1) for number in range(len(set(numbers)))], "none is lost"
    assert sorted(by_number.values()) == sorted(set(registered)), "one version each"
    ordered = [digest for _, digest in sorted(zip(numbers, registered, strict=True))]
    assert by_number[str(model.aliases["champion"])] == ordered[-1]
    entries, done_flags = zip(*read_history(model), strict=True)
    moves = [entry for entry in entries if entry.moves]
    assert {entry.digest for entry in entries} == set(registered)
    assert all(done_flags)
    assert [entry.before for entry in moves] == [None, *(entry.version for entry in moves[:-1])]
    order = [ordered.index(entry.digest) for entry in moves]
    assert order == sorted(order), "each better than the one before"


@pytest.mark.parametrize("finished", [True, False])
def test_a_model_that_another_machine_is_publishing_is_waited_for_and_a_killed_one_is_made_anew(
    filled: FilledRegistry, monkeypatch: pytest.MonkeyPatch, finished: bool
):
    client, digest, minute = filled.client, filled.tags(4)[DIGEST_TAG], iter(range(0, 9999, 60))
    client.set_model_version_tag(NAME, "4", registration.UNFINISHED_TAG, digest)
    client.delete_model_version_tag(NAME, "4", DIGEST_TAG)

    def sleep(_: float) -> None:
        if finished:
            client.set_model_version_tag(NAME, "4", DIGEST_TAG, digest)

    monkeypatch.setattr(registration, "time", SimpleNamespace(monotonic=lambda: next(minute), sleep=sleep))
    monkeypatch.setattr(registration, "SQLITE", "no lock is held")
    patch_smoke_test(monkeypatch)
    monkeypatch.setenv("VAELINE_DEVICE", "cpu")
    stage.main()
    assert digests(client)["4" if finished else "5"] == digest
    assert sorted(digests(client)) == ["1", "2", "3", "4" if finished else "5"]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with mlflow_server(tmp_path) as (address, _):
        enter(monkeypatch, tmp_path)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        until(answers, seconds=400)  # on a busy machine
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_four_clones_at_one_server_use_no_more_numbers_than_registrations(tmp_path: Path, outputs: Callable[..., Path]):
    """Twice the same model, and two others, in each round."""
    rounds, registered, used = 5, set[str](), 0
    for number in range(rounds):
        found = race(tmp_path / f"round-{number}", outputs, (3 * number, 3 * number, 3 * number + 1, 3 * number + 2))
        registered |= set(found)
        client = connect(current_workspace())
        kept = digests(client)
        assert sorted(kept.values()) == sorted(registered), "one version each"
        used = max(map(int, kept))
        assert used <= 4 * (number + 1)
    print(f"{rounds} rounds of four: {used} numbers used, {len(registered)} versions kept")  # noqa: T201
    for number in kept:
        load.verify(f"models:/{NAME}/{number}")
    entries = read_history(find_models(client, NAME)[0])
    promoted = {entry.version for entry, done in entries if entry.moves and done}
    tagged = {str(v.version) for v in find_versions(client, NAME) if v.tags["vaeline.decision"] == "promoted"}
    assert tagged <= promoted, "no version is tagged as promoted that was not"
