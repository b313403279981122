"""Registration by the stage `register`: versions, aliases, tags, and the champion in a consumer's process."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from command_line import vaeline
from packages import EXAMPLE, WEIGHTS_AT
from pipeline.stages import register as stage
from registry_fixture import NAME
from vaeline.errors import UserError
from vaeline.io.workspace import current_workspace
from vaeline.registry import load
from vaeline.registry.registration import UNFINISHED_TAG, training_code
from vaeline.registry.smoke import predict, reconstructions, smoke_test
from vaeline.registry.versions import find_versions
from vaeline.serving.inference import TrainedModel
from vaeline.serving.model_files import load_model
from vaeline.serving.package import TrainingCode
from vaeline.tracking.connection import connect
from vaeline.tracking.provenance import RunStart
from vaeline.tracking.runs import open_model_run, open_training_run

if TYPE_CHECKING:
    from mlflow import MlflowClient


def versions(client: "MlflowClient") -> list[Any]:
    return find_versions(client, NAME)[::-1]


def aliases(client: "MlflowClient") -> dict[str, str]:
    return {alias: str(version) for alias, version in client.get_registered_model(NAME).aliases.items()}


def registration() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("reports/registration.json").read_text())
    return content


def test_the_first_model_becomes_champion_once_however_often_it_is_registered(registered: Path):
    first = Path("reports/registration.json").read_bytes()
    client = connect(current_workspace())
    (version,) = versions(client)
    stage.main()
    assert Path("reports/registration.json").read_bytes() == first
    assert versions(client) == [version]
    assert aliases(client) == {"champion": str(version.version)}
    digest = load_model(Path("models")).digest
    gate, decided = (
        json.loads(version.tags["vaeline.gate"]),
        {"decision": "promoted", "reasons": ["no champion before it"]},
    )
    assert registration() == {"digest": digest, "name": NAME, **decided, "gate": gate}
    assert gate.keys() == {"active_units", "images", "elbo", "psnr"}
    run = client.get_run(version.run_id)
    assert run.data.tags["vaeline.model_digest"] == version.tags["vaeline.model_digest"] == digest
    assert run.data.tags["vaeline.decision"] == version.tags["vaeline.decision"] == "promoted"
    assert run.data.metrics["train/elbo"] == -4.0
    assert run.data.metrics["test/elbo"] == -11.0
    stored = client.get_logged_model(version.source.removeprefix("models:/"))
    assert {metric.key: metric.value for metric in stored.metrics} == {"test/elbo": -11.0, "test/active_units": 3.0}
    assert len(client.get_metric_history(run.info.run_id, "test/elbo")) == 1
    assert json.loads(stored.tags["mlflow.modelVersions"]) == [{"name": NAME, "version": "1"}]
    assert version.description.startswith("On fashion-mnist, per test image: ELBO -11 nats, 3 active units.\n")


def test_what_is_stored_is_safetensors_json_and_code_with_signature_example_and_pins(registered: Path):
    (version,) = versions(connect(current_workspace()))
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}@champion"))
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".py", ".yaml", ".txt", ".typed", ""}
    assert {path.name for path in folder.rglob("*") if path.suffix == ""} & {"MLmodel"}
    (weights,) = folder.rglob("model.safetensors")
    assert weights.read_bytes() == Path("models/model.safetensors").read_bytes()
    pins = (folder / "requirements.txt").read_text().split()
    names = {"mlflow", "torch", "numpy", "pydantic", "ruamel.yaml", "safetensors"}
    assert {pin.partition("==")[0] for pin in pins} == names
    assert all("==" in pin and "+" not in pin for pin in pins)
    info = mlflow.models.get_model_info(f"models:/{NAME}@champion")
    assert [param.name for param in info.signature.params] == ["method", "n", "seed"]
    assert info.metadata["methods"]["reconstruct"]["input"] == {"dtype": "uint8", "shape": [-1, 1, 5, 4]}
    example = json.loads((folder / "serving_input_example.json").read_text())
    assert np.array(example["inputs"]).shape == (2, 1, 5, 4)
    assert version.run_id == info.run_id


def test_a_better_model_takes_the_alias_and_a_worse_one_does_not(evaluated: Path, outputs: Callable[..., Path]):
    client = connect(current_workspace())
    for seed, sigma in ((1, 0.6), (2, 1.0), (3, 0.3)):
        outputs(seed, folder=evaluated, sigma=sigma)
        stage.main()
        if seed == 2:
            assert registration()["decision"] == "rejected"
            assert aliases(client) == {"champion": "1", "challenger": "2"}
    assert registration()["decision"] == "promoted"
    assert aliases(client) == {"champion": "3", "challenger": "2"}
    tags = [version.tags for version in versions(client)]
    assert [tag["vaeline.decision"] for tag in tags] == ["promoted", "rejected", "promoted"]
    (reason,) = json.loads(tags[1]["vaeline.reasons"])
    assert reason.startswith("gain -")
    assert reason.endswith("not above register.margin 0.1")
    outputs(1, folder=evaluated, sigma=0.6)
    stage.main()
    assert registration()["decision"] == "rejected"
    assert len(versions(client)) == 3
    assert aliases(client) == {"champion": "3", "challenger": "1"}


def test_a_rejected_model_is_decided_on_again_with_new_thresholds_and_numbers(evaluated: Path):
    """Mistake 17: stale tags, of a model that is rejected (fewer active units than required) or champion."""
    params, metrics, client = Path("params.yaml"), Path("reports/metrics.json"), connect(current_workspace())
    loose = params.read_text()
    params.write_text(loose.replace("minimum_active_units: 2", "minimum_active_units: 4"))
    stage.main()
    assert registration()["reasons"] == ["3 active units, register.minimum_active_units is 4"]
    for elbo, text in (("-11.5", params.read_text()), ("-12.5", loose), ("-13.5", loose)):
        params.write_text(text)
        content = json.loads(metrics.read_text())
        metrics.write_text(json.dumps(content | {"test": content["test"] | {"elbo": float(elbo)}}))
        stage.main()
        (version,) = versions(client)
        assert registration()["decision"] == ("promoted" if text == loose else "rejected")
        assert version.tags["vaeline.test_elbo"] == elbo
    assert aliases(client)["champion"] == "1"


def test_a_model_whose_numbers_are_not_finite_is_rejected(evaluated: Path):
    (evaluated / "dvc.yaml").write_text("stages: {}")
    weights = Path("models/model.safetensors")
    save_file({name: value * 1e20 for name, value in load_file(weights).items()}, weights)
    for _ in range(2):  # by the metrics of another model; then found by its digest
        stage.main()
        assert registration()["decision"] == "rejected"
        assert registration()["reasons"][0].startswith("not finite: its ELBO on ")
    connect(current_workspace()).delete_registered_model_alias(NAME, "challenger")
    connect(current_workspace()).set_registered_model_alias(NAME, "champion", "1")
    stage.main()
    assert registration()["decision"] == "unchanged", "the alias was set by hand"
    connect(current_workspace()).delete_registered_model_alias(NAME, "champion")
    with pytest.raises(UserError, match=r"version 1: cannot be used: its reconstructions are not finite"):
        vaeline("promote", NAME, "1", "--force", "--reason", "why")


def test_a_package_that_does_not_load_back_leaves_no_version(evaluated: Path, monkeypatch: pytest.MonkeyPatch):
    """Mistake 17: a version that is found before its package is whole."""
    client, digest = connect(current_workspace()), load_model(Path("models")).digest

    def fail(*given: object, **named: object) -> None:
        (version,) = versions(client)
        assert version.tags == {UNFINISHED_TAG: digest}, "it is not found by its digest yet"
        raise UserError("broken")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="broken"):
        patch.setattr("vaeline.registry.registration.verified", fail)
        stage.main()
    assert versions(client) == []
    assert not Path("reports/registration.json").exists()
    left = client.create_model_version(NAME, "file:///nowhere", tags={UNFINISHED_TAG: digest})  # by a killed process
    stage.main()
    (version,) = versions(client)
    assert int(version.version) > int(left.version)
    assert UNFINISHED_TAG not in version.tags
    assert load.verify(f"models:/{NAME}/{version.version}")["version"] == int(version.version)
    assert aliases(client) == {"champion": str(version.version)}


def test_a_wrong_signing_key_ends_a_registration_before_it_has_a_number(
    evaluated: Path, monkeypatch: pytest.MonkeyPatch
):
    for key in ("", "nowhere.pem"):
        with monkeypatch.context() as patch, pytest.raises(UserError, match=r"^VAELINE_SIGNING_KEY: "):
            patch.setenv("VAELINE_SIGNING_KEY", key)
            stage.main()
    stage.main()
    assert [int(version.version) for version in versions(connect(current_workspace()))] == [1]


@pytest.mark.parametrize("ended", [KeyboardInterrupt, SystemExit(143)])
def test_a_registration_ended_by_a_signal_keeps_its_number(
    evaluated: Path, monkeypatch: pytest.MonkeyPatch, ended: Any
):
    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr("vaeline.registry.registration.verified", Mock(side_effect=ended))
        stage.main()
    client = connect(current_workspace())
    (left,) = versions(client)
    stage.main()
    (version,) = versions(client)
    assert (left.version, version.version, version.source) == (1, 1, left.source)
    assert client.get_logged_model(str(version.source).removeprefix("models:/")).status == "READY"
    assert load.verify(f"models:/{NAME}/1")["version"] == 1


def test_a_version_that_was_brought_from_another_store_is_recognised(registered: Path):
    """Its package lies in a folder, and has no page in this store."""
    client, before = connect(current_workspace()), registration()
    (version,) = versions(client)
    address = client.get_model_version_download_uri(NAME, version.version)
    client.delete_registered_model(NAME)
    client.create_registered_model(NAME)
    client.create_model_version(NAME, address, tags=version.tags)
    stage.main()
    assert (registration(), len(versions(client))) == (before, 1)


def test_a_package_must_load_and_predict_in_a_fresh_process_before_it_is_uploaded(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Mistake 17: the caller's PYTHONPATH in that process. A model whose own code is broken passes every number."""
    (tmp_path / "sitecustomize.py").write_text("import os\nos._exit(7)\n")  # run by a Python that has it in its path
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    expected = reconstructions(TrainedModel(load_model(package / "artifacts/model")), EXAMPLE)
    smoke_test(package, EXAMPLE, expected)
    with pytest.raises(UserError, match="no answer within 1 s"):
        smoke_test(package, EXAMPLE, expected, seconds=1)
    (package / "code/vaeline/serving/model_files.py").write_text("raise RuntimeError('no such thing')\n")
    with pytest.raises(UserError, match=r"does not load and predict in a fresh process: .*no such thing"):
        smoke_test(package, EXAMPLE, expected)


def test_a_slightly_damaged_weight_fails_the_smoke_test_and_rounding_does_not(package: Path):
    """Rounding moves a large network's pixels by more than a weight that is off by 1e-4 does; not in float64."""
    weights = package / WEIGHTS_AT
    single, double = reconstructions(TrainedModel(load_model(weights.parent)), EXAMPLE)
    predict(package, EXAMPLE, [single + np.float32(2e-4), double])
    with pytest.raises(ValueError, match="reconstructs other images than the model that was trained"):
        predict(package, EXAMPLE, [single + np.float32(2e-3), double])
    tensors = load_file(weights)
    save_file(tensors | {"decoder.0.weight": tensors["decoder.0.weight"] * (1 + 1e-4)}, weights)
    with pytest.raises(ValueError, match="reconstructs other images than the model that was trained"):
        predict(package, EXAMPLE, [single, double])


def test_the_code_that_trained_a_model_is_sealed_with_it(evaluated: Path):
    """As this machine recorded it: what the tracking store says of a run is not signed."""
    workspace, tags = current_workspace(), {"vaeline.git_commit": "c" * 40}
    for seed, diff in ((1, b"changes"), (2, b"")):
        with open_training_run(workspace, str(seed), RunStart("e", "r", tags=tags, diff=diff)) as run:
            run.finish_training(load_model(Path("models")).digest)
        expected = hashlib.sha256(diff).hexdigest() if diff else None
        assert training_code(run.outbox) == TrainingCode(commit="c" * 40, diff=expected)
    stage.main()
    manifest = load.verified(f"models:/{NAME}/1").manifest
    assert manifest.code == TrainingCode(commit="c" * 40, diff=None)
    with open_model_run(workspace, "0" * 64, RunStart("e", "r", tags=tags), upload=False) as elsewhere:
        assert training_code(elsewhere.outbox) is None
