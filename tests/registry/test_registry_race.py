"""Many processes register at once on one sqlite store, while another one loads the champion all the time."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from filled_registry import ROOT
from vaeline.serving.model_files import load_model


@pytest.mark.parametrize(("processes", "rounds"), [(2, 2), pytest.param(8, 20, marks=pytest.mark.slow)])
def test_after_each_round_one_champion_the_best_one_version_a_digest_and_a_whole_history(
    store: Path, outputs: Callable[..., Path], processes: int, rounds: int
):
    """Model n is better than model n - 1 by about a nat per image: only sigma differs, 8% nearer to its best."""
    digests = []
    for number in range(rounds + 2):
        root = outputs(folder=store.parents[1], sigma=3.0 * 0.92**number)
        shutil.copytree(root / "models", root / f"models-{number}")
        digests.append(load_model(root / "models").digest)
    program = Path(__file__).parents[1] / "support" / "register_race.py"
    command = [sys.executable, "-W", "ignore", str(program), str(processes), str(rounds)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "VAELINE_DEVICE": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["errors"] == []
    assert len(told["looks"]) == rounds
    entered: set[int] = set()
    for look in told["looks"]:
        entered |= set(look["row"])
        assert look["champion"] == digests[max(entered)]
        assert sorted(look["digests"]) == sorted(digests[number] for number in entered), "one version each"
        assert look["judged"] == sorted(digests[number] for number in entered)
        assert look["moves"][-1] == look["champion"]
        assert look["befores"] == [None, *look["moves"][:-1]], "each took the place of the one before"
        assert look["carried_out"]
        numbers = [digests.index(digest) for digest in look["moves"]]
        assert numbers == sorted(numbers), "each better than the one before"
    assert told["loads"][0] >= 1
