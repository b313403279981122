"""`vaeline.load` and `vaeline verify` against a real registry, and what an attacker with access to it might try."""

import errno
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from typer.testing import CliRunner

import vaeline
from attacks import ATTACKS, NAME, OTHER, Registry
from pipeline.stages import register as stage
from registry_fixture import enter, entered
from uploads import answers, mlflow_server, until
from vaeline.command.main import app
from vaeline.errors import TransientError, UserError
from vaeline.io.workspace import current_workspace
from vaeline.registry import load
from vaeline.serving.model_files import load_model
from vaeline.serving.package import LEFT_BY_MLFLOW, MANIFEST, SIGNATURE
from vaeline.tracking.connection import connect


@pytest.fixture(scope="module")
def signed_registry(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path, sealed: Path, outputs: Callable[..., Path]
):
    """Registered once, with signatures: it takes seconds."""
    root = tmp_path_factory.mktemp("registry")
    with entered(root, empty_store) as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("VAELINE_SIGNING_KEY", str(sealed / "signer.pem"))
        patch.setenv("VAELINE_TRUSTED_KEYS", str(sealed / "signer.pub"))
        for seed, name in ((1, NAME), (2, NAME), (3, OTHER)):
            outputs(seed, -10.0 + seed, root)
            params = root / "params.yaml"
            params.write_text(params.read_text().replace(f"name: {NAME}", f"name: {name}"))
            stage.main()
        client = connect(current_workspace())
        client.set_registered_model_alias(NAME, "champion", "2")  # untrained, it would not pass the gate
        yield Registry(root, client)


@pytest.fixture
def registry(signed_registry: Registry, tmp_path: Path) -> Iterator[Registry]:
    """The registry; version 2, which the tests damage, is restored."""
    tags = dict(signed_registry.client.get_model_version(NAME, "2").tags)
    saved = shutil.copytree(signed_registry.folder(2), tmp_path / "saved")
    yield signed_registry
    shutil.rmtree(signed_registry.folder(2))
    shutil.copytree(saved, signed_registry.folder(2))
    now = signed_registry.client.get_model_version(NAME, "2").tags
    for key in [key for key, value in tags.items() if now.get(key) != value]:
        signed_registry.client.set_model_version_tag(NAME, "2", key, tags[key])


def digest(seed: int, outputs: Callable[..., Path]) -> str:
    return load_model(outputs(seed) / "models").digest


def test_every_address_of_a_model_loads_it(registry: Registry, outputs: Callable[..., Path]):
    first, second = digest(1, outputs), digest(2, outputs)
    version = registry.client.get_model_version(NAME, "1")
    addresses = [
        f"models:/{NAME}/1",
        version.source,  # models:/m-...
        f"runs:/{version.run_id}/{NAME}",
        registry.folder(1),
        registry.folder(1).as_uri(),
        os.path.relpath(registry.folder(1)),
    ]
    assert [vaeline.load(address).digest for address in addresses] == [first] * len(addresses)
    assert vaeline.load(f"models:/{NAME}@champion").digest == vaeline.load(f"models:/{NAME}/2").digest == second
    with pytest.raises(UserError, match="allowed: a path inside the run's artifacts"):
        vaeline.load(f"runs:/{version.run_id}/../../models")


def test_verify_prints_what_it_checked(registry: Registry, monkeypatch: pytest.MonkeyPatch):
    done = CliRunner().invoke(app, ["verify", f"models:/{NAME}@champion"])
    assert done.exit_code == 0, done.exception
    first, files, model, _, signature, tags = done.output.splitlines()
    assert first == f"models:/{NAME}@champion: {NAME} version 2"
    unlisted = {MANIFEST, SIGNATURE, LEFT_BY_MLFLOW}
    listed = [path for path in registry.folder(2).rglob("*") if path.is_file() and path.name not in unlisted]
    assert files.startswith(f"files: {len(listed)}, ")
    assert vaeline.load(f"models:/{NAME}/2").digest in model
    assert signature.endswith("a key of VAELINE_TRUSTED_KEYS")
    assert tags == "registry: name, number and tags agree"
    monkeypatch.delenv("VAELINE_TRUSTED_KEYS")
    (registry.folder(2) / "conda.yaml").write_text("")
    refused = CliRunner().invoke(app, ["verify", f"models:/{NAME}@champion"])
    assert isinstance(refused.exception, UserError)
    assert "conda.yaml" in str(refused.exception)
    assert refused.output == ""
    with pytest.raises(UserError, match=r"MANIFEST\.json: cannot be read"):
        load.verify(str(registry.root / "models"))  # a plain folder


@pytest.mark.parametrize(("attack", "words"), ATTACKS)
def test_what_was_not_registered_as_this_version_is_refused(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, attack: Callable[[Registry], object], words: str
):
    """Mistake 17: with and without keys that must have signed it."""
    attack(registry)
    for address in (f"models:/{NAME}@champion", f"models:/{NAME}/2"):
        with pytest.raises(UserError, match=words) as raised:
            vaeline.load(address)
        assert len(str(raised.value).splitlines()) == 1
        monkeypatch.delenv("VAELINE_TRUSTED_KEYS", raising=False)
    assert vaeline.load(f"models:/{NAME}/1")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ConnectionRefusedError(111, "Connection refused"), TransientError, "ftp://h/x: cannot be downloaded: "),
        (TimeoutError("timed out"), TransientError, "ftp://h/x: cannot be downloaded: "),
        (requests.HTTPError("503 Server Error"), TransientError, "MLFLOW_TRACKING_URI: the tracking store "),
        (OSError("no libjvm\nhere: a"), UserError, "ftp://h/x: cannot be downloaded: "),
    ],
)
def test_whatever_an_artifact_store_raises_is_one_line(error: OSError, kind: type[UserError], words: str):
    """One that is away is asked again: the gate must not reject a model for it."""
    with pytest.raises(UserError, match=rf"^{words}[^\n]+$") as raised, load.storage_errors("ftp://h/x"):
        raise error
    assert type(raised.value) is kind
    with pytest.raises(OSError, match="No space"), load.storage_errors("ftp://h/x"):  # its line names the disk
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (f"models:/{NAME}/77", "has no version 77; it has: 1, 2"),
        (f"models:/{NAME}@best", "has no alias 'best'; it has: challenger .*, champion"),
        ("models:/nothing@champion", "no model is registered as 'nothing'"),
        ("models:/m-00000000000000000000000000000000", "not found"),
        ("runs:/00000000000000000000000000000000/model", "not found"),
        (f"models:/{NAME}", "allowed: models:/NAME@alias"),
        (f"models:/{NAME}/latest", "allowed: models:/NAME@alias"),
        (f"models:/{NAME}@champion/../../x", "allowed: models:/NAME@alias"),
        ("s3://bucket/model", "allowed: models:/NAME@alias"),
        ("file://host/model", "allowed: models:/NAME@alias"),
        ("nowhere", "is not a folder"),
        ("", "allowed: models:/NAME@alias"),
    ],
)
def test_addresses_of_nothing_are_reported_in_one_line(registry: Registry, address: str, words: str):
    with pytest.raises(UserError, match=words) as raised:
        vaeline.load(address)
    assert len(str(raised.value).splitlines()) == 1


def test_a_device_that_does_not_exist_is_reported_in_one_line(registry: Registry):
    for device in ("gpu", "cuda:77", "meta", "cpu:1"):
        with pytest.raises(UserError, match=r"^device: found .*, allowed"):
            vaeline.load(registry.folder(1), device)


def test_no_store_is_made_and_an_error_holds_no_secrets(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(UserError, match=r"there is no tracking store at sqlite:///.*none\.db"):
        vaeline.load(f"models:/{NAME}@champion")
    assert not (tmp_path / "none.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:s3cr3t@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="Connection refused") as raised:
        vaeline.load(f"models:/{NAME}@champion")
    assert "s3cr3t" not in str(raised.value)


def importing(folder: Path) -> dict[str, str]:
    """An environment in which Python finds a package's code, and may leave bytecode."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(folder / "code")}


def test_importing_a_packages_code_leaves_no_bytecode_in_it(registry: Registry):
    command = [sys.executable, "-c", "import vaeline.io.digests; print(vaeline.__file__)"]
    folder = registry.folder(1)
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=importing(folder))
    assert Path(done.stdout.strip()).is_relative_to(folder / "code")
    assert vaeline.load(f"models:/{NAME}/1")
    (folder / "code/vaeline/__pycache__").unlink()  # what would happen without it
    subprocess.run(command, check=True, env=importing(folder), stdout=subprocess.DEVNULL)
    assert (folder / "code/vaeline/__pycache__").is_dir()
    shutil.rmtree(folder / "code/vaeline/__pycache__")
    (folder / "code/vaeline/__pycache__").touch()


@pytest.mark.slow
def test_from_a_server_that_keeps_the_artifacts_a_model_is_downloaded_and_checked(
    tmp_path: Path, sealed: Path, outputs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    with mlflow_server(tmp_path) as (address, _):
        root = outputs(1)
        monkeypatch.chdir(root)
        enter(monkeypatch, root)
        monkeypatch.setenv("VAELINE_UPLOADER", "off")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("VAELINE_SIGNING_KEY", str(sealed / "signer.pem"))
        monkeypatch.setenv("VAELINE_TRUSTED_KEYS", str(sealed / "signer.pub"))
        until(answers, seconds=400)  # on a busy machine
        stage.main()
        assert vaeline.load(f"models:/{NAME}@champion").digest == load_model(root / "models").digest
        assert load.verify(f"models:/{NAME}/1")["version"] == 1
        (weights,) = (tmp_path / "files").rglob("model.safetensors")
        flipped = bytearray(weights.read_bytes())
        flipped[-1] ^= 1
        weights.write_bytes(flipped)
        with pytest.raises(UserError, match=r"model\.safetensors: was changed"):
            vaeline.load(f"models:/{NAME}@champion")
