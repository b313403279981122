"""Several processes register at once on one sqlite store."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from registry_fixture import NAME
from vaeline.io.workspace import current_workspace
from vaeline.registry.champion_history import read_history
from vaeline.registry.versions import find_models, find_versions
from vaeline.serving.model_files import load_model
from vaeline.tracking.connection import connect


@pytest.mark.parametrize("numbers", [(0, 1, 1), pytest.param((2, 5, 0, 1, 4, 3, 5, 2), marks=pytest.mark.slow)])
def test_the_best_is_champion_with_one_version_a_digest_and_a_whole_history(
    store: Path, outputs: Callable[..., Path], numbers: tuple[int, ...]
):
    """Model n is better than model n - 1 by about a nat per image: only sigma differs, 8% nearer to its best."""
    digests = []
    for number in range(max(numbers) + 1):
        root = outputs(folder=store.parents[1], sigma=3.0 * 0.92**number)
        shutil.copytree(root / "models", root / f"models-{number}")
        digests.append(load_model(root / "models").digest)
    program = Path(__file__).parents[1] / "support" / "register_race.py"
    command = [sys.executable, "-W", "ignore", str(program), *(f"models-{number}" for number in numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    client = connect(current_workspace())
    versions, (model,) = find_versions(client, NAME), find_models(client, NAME)
    by_number = {str(version.version): version.tags["vaeline.model_digest"] for version in versions}
    assert sorted(by_number.values()) == sorted(digests), "one version each"
    assert by_number[str(model.aliases["champion"])] == digests[-1]
    entries, done_flags = zip(*read_history(model), strict=True)
    moves = [entry for entry in entries if entry.moves]
    assert {entry.digest for entry in entries} == set(digests)
    assert all(done_flags)
    assert [entry.before for entry in moves] == [None, *(entry.version for entry in moves[:-1])]
    order = [digests.index(entry.digest) for entry in moves]
    assert order == sorted(order), "each better than the one before"
