"""Really trained models of scikit-learn's digits before the gate: better, worse, equal, collapsed, not a number."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from command_line import vaeline
from pipeline.stages import evaluate, fetch, prepare, register, train
from registry_fixture import ROOT
from vaeline.errors import UserError
from vaeline.io.workspace import current_workspace
from vaeline.tracking.connection import connect

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType"),  # MLflow, of its own classes
]
TINY = {
    r"kind: fashion-mnist": "kind: digits",
    r"validation: 10000": "validation: 200",
    r"name: vaeline-fashion-mnist": "name: digits",
    r"importance_samples: \d+": "importance_samples: 4",
    r"latent_images: \d+": "latent_images: 50",
    r"hidden: \[.*\]": "hidden: [32]",
}


def change(**values: object) -> None:
    params = Path("params.yaml")
    text = params.read_text()
    for key, value in values.items():
        text, count = re.subn(rf"^  {key}: \S+", f"  {key}: {value}", text, flags=re.MULTILINE)
        assert count == 1, key
    params.write_text(text)


def registered() -> dict[str, Any]:
    register.main()
    content: dict[str, Any] = json.loads(Path("reports/registration.json").read_text())
    return content


def trained(**values: object) -> dict[str, Any]:
    """Train with these params, evaluate, register."""
    change(**values)
    shutil.rmtree("models", ignore_errors=True)
    train.main()
    evaluate.main()
    return registered()


@pytest.fixture
def digits(store: Path, no_smoke_test: None) -> Path:
    text = (ROOT / "params.yaml").read_text()
    for pattern, value in TINY.items():
        text, count = re.subn(pattern, value, text)
        assert count, pattern
    Path("params.yaml").write_text(text)
    Path("dvc.yaml").write_text("stages: {}")
    fetch.main()
    prepare.main()
    return store.parents[1]


def test_the_better_one_is_promoted_and_each_other_rejected_with_its_reason(digits: Path):
    first = trained(epochs=20)
    assert (first["decision"], first["reasons"]) == ("promoted", ["no champion before it"])
    better = trained(epochs=80)
    assert better["decision"] == "promoted", better
    assert better["gate"]["gain"] > 5 * better["gate"]["gain_se"]
    assert better["gate"]["elbo"] == json.loads(Path("reports/metrics.json").read_text())["test"]["elbo"]
    kept = digits / "better"
    shutil.copytree("models", kept)

    worse = trained(epochs=5)
    assert worse["decision"] == "rejected"
    assert any(reason.startswith("gain -") for reason in worse["reasons"])

    collapsed = trained(epochs=20, beta=1000.0)
    assert collapsed["decision"] == "rejected"
    assert "0 active units, register.minimum_active_units is 2" in collapsed["reasons"]

    shutil.copytree(kept, "models", dirs_exist_ok=True)
    config = Path("models/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scale_factor": 2.0}))  # another model by its digest
    evaluate.main()
    equal = registered()
    assert equal["digest"] != better["digest"]
    assert equal["decision"] == "rejected"
    assert equal["reasons"][0].startswith("gain +0.0000 ± 0.0000 nats per image")

    weights = Path("models/model.safetensors")
    save_file({name: value * 1e20 for name, value in load_file(weights).items()}, weights)
    with pytest.raises(UserError, match="are not finite"):
        evaluate.main()
    broken = registered()  # by the metrics of another model
    assert broken["decision"] == "rejected"
    assert broken["reasons"][0].startswith("not finite: its ELBO on ")

    aliases = connect(current_workspace()).get_registered_model("digits").aliases
    assert {alias: int(version) for alias, version in aliases.items()} == {"champion": 2, "challenger": 6}
    assert vaeline("rollback", "digits") == "digits version 1 is champion again, version 2 is not any more\n"
    text = re.sub(r"\s+", " ", vaeline("history", "digits", width=200))
    words = ["promoted 1", "promoted 2 after 1", *(f"rejected {n}" for n in range(3, 7)), "back to 1 after 2"]
    places = [text.index(word) for word in words]
    assert places == sorted(places)
