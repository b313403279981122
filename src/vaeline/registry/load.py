"""Loading of models by address: the files are found, all of them checked, and only then read as a model.

    models:/NAME@alias   models:/NAME/3     a version of the registry: bound to its name, number and tags
    models:/m-...        runs:/RUN/PATH     a package in the tracking store
    file:///a/folder     a/folder           a package, or a plain folder such as the pipeline's `models/`

MLflow only finds the files: none of its loaders runs, and no code of a package either. An address without a version
binds a package to its manifest and signature alone: an older one may lie there. Who may move an alias can still
choose which of the signed versions is the champion.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import torch

from vaeline.errors import UserError
from vaeline.io.safe_read import shown
from vaeline.io.workspace import current_workspace
from vaeline.registry.versions import ADDRESS, DATA_TAG, DIGEST_TAG, MANIFEST_TAG, UNKNOWN, find_version_at
from vaeline.serving.inference import TrainedModel
from vaeline.serving.package import Package, RegisteredAs, is_package, load_package, load_plain
from vaeline.serving.signatures import TRUSTED
from vaeline.tracking.connection import SQLITE, connect, one_line_errors, redact, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALLOWED = "models:/NAME@alias, models:/NAME/3, models:/m-ID, runs:/RUN/PATH, file:///FOLDER or a folder"
LOGGED = re.compile(r"models:/(m-[0-9a-f]+)")
RUN = re.compile(r"runs:/([0-9a-f]+)/(.+)")


@dataclass(frozen=True)
class Location:
    """Location of a package, and its version in the registry."""

    address: str  # MLflow's, or a folder
    registered: RegisteredAs | None = None


def load(uri: str | os.PathLike[str], device: str | torch.device = "cpu") -> TrainedModel:
    """Load a model for use, see the table above. Raises UserError, in one line, for what cannot be trusted or read."""
    target, folder = _device(device), _local(os.fspath(uri))
    if folder is not None and folder.is_dir() and not is_package(folder):
        return TrainedModel(load_plain(folder, target))
    package = _checked(locate(uri), target)
    return TrainedModel(package.loaded, package.reference)


def verify(uri: str) -> list[str]:
    """Check all of a stored model; returns what was checked, line by line. Raises UserError for the first error."""
    location = locate(uri)
    package = _checked(location, torch.device("cpu"))
    manifest, model = package.manifest, package.loaded.config.model
    size = sum(entry.size for entry in manifest.files.values())
    signature = "none (with VAELINE_TRUSTED_KEYS set, it would be refused)"
    if by := manifest.signer:
        signature = f"Ed25519, by {by}" + (f", a key of {TRUSTED}" if os.environ.get(TRUSTED) else "")
    registry = "not asked: this address names no version"
    if location.registered is not None:
        registry = f"name, number and the tags {', '.join(location.registered.tags)} agree"
    return [
        f"{uri}: {shown(manifest.name)} version {manifest.serial}",
        f"files: {len(manifest.files)}, {size} bytes, each with the SHA-256 of MANIFEST.json; none missing, none added",
        f"model: {package.loaded.digest}, {model.network.kind}, {model.likelihood.kind}, loads and is finite",
        f"data: {shown(manifest.data_digest)}",
        f"signature: {signature}",
        f"registry: {registry}",
    ]


def locate(uri: str | os.PathLike[str]) -> Location:
    """Find the files. Raises UserError for addresses that are none, and for models that do not exist."""
    text = os.fspath(uri)
    if ADDRESS.fullmatch(text):
        return _ask_store(text, lambda client: _version(client, text))
    if model := LOGGED.fullmatch(text):
        return _ask_store(text, lambda client: Location(client.get_logged_model(model[1]).artifact_location))
    if run := RUN.fullmatch(text):
        return _ask_store(text, lambda client: Location(_in_run(client, run[1], run[2])))
    folder = _local(text)
    if folder is None or not folder.is_dir():
        found = "" if folder is None else "is not a folder; "
        raise UserError(f"{text[:200]!r}: {found}allowed: {ALLOWED}")
    return Location(str(folder))


def _version(client: "MlflowClient", uri: str) -> Location:
    version = find_version_at(client, uri)
    if not version.tags.get(MANIFEST_TAG):
        raise UserError(
            f"{uri}: version {version.version} has no tag {MANIFEST_TAG}, nothing to check it against; "
            "delete the version and register the model again: dvc repro -f -s register"
        )
    tags = {key: version.tags[key] for key in (MANIFEST_TAG, DIGEST_TAG, DATA_TAG) if key in version.tags}
    address = client.get_model_version_download_uri(version.name, version.version)
    return Location(address, RegisteredAs(version.name, int(version.version), tags))


def _in_run(client: "MlflowClient", run_id: str, path: str) -> str:
    """A run's artifacts, or the logged model of that name, which MLflow 3 keeps outside."""
    run = client.get_run(run_id)
    logged = [client.get_logged_model(output.model_id) for output in run.outputs.model_outputs] if run.outputs else []
    named = [model.artifact_location for model in logged if model.name == path]
    if ".." in path.split("/"):
        raise UserError(f"runs:/{run_id}/{path}: allowed: a path inside the run's artifacts")
    return str(named[-1] if named else f"{run.info.artifact_uri}/{path}")


def _ask_store(uri: str, question: "Callable[[MlflowClient], Location]") -> Location:
    """Ask the tracking store. Raises UserError where it is away, or has no such model."""
    workspace = current_workspace()
    store = tracking_uri(workspace)
    if store.startswith(SQLITE) and not Path(store.removeprefix(SQLITE)).is_file():
        raise UserError(f"MLFLOW_TRACKING_URI: there is no tracking store at {store}")
    try:
        client = connect(workspace)
    except ModuleNotFoundError as error:
        raise UserError(f"{uri}: needs {error.name}: pip install mlflow; a folder can be loaded without") from None
    from mlflow.exceptions import MlflowException

    with one_line_errors():
        try:
            return question(client)
        except MlflowException as error:
            if error.error_code not in UNKNOWN:
                raise
            raise UserError(f"{uri}: {' '.join(error.message.split())[:300]} (store: {redact(store)})") from None


def _checked(location: Location, device: torch.device) -> Package:
    with _available(location.address) as folder:
        return load_package(folder, device, location.registered)


@contextmanager
def _available(address: str) -> Iterator[Path]:
    """The folder itself, so that no links are copied; files elsewhere are downloaded for the length of the block."""
    if (folder := _local(address)) is not None:
        yield folder
        return
    import mlflow

    with tempfile.TemporaryDirectory() as temporary:
        with one_line_errors():
            try:
                folder = Path(mlflow.artifacts.download_artifacts(address, dst_path=temporary))
            except (OSError, mlflow.exceptions.MlflowException):
                raise
            except Exception as error:  # whatever the store's own library raises
                reason = " ".join(str(error).split())[:300]
                raise UserError(f"{redact(address)}: cannot be downloaded: {reason}") from None
        yield folder


def _local(address: str) -> Path | None:
    """The folder that an address names; None where it is elsewhere."""
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", address):
        return Path(address)
    parts = urlsplit(address)
    return Path(unquote(parts.path)) if parts.scheme == "file" and parts.netloc in ("", "localhost") else None


def _device(device: str | torch.device) -> torch.device:
    try:
        target = torch.device(device)
    except RuntimeError:
        raise UserError(f"device: found {device!r}, allowed: cpu, cuda, cuda:1") from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count()}.get(target.type, 0)
    if (target.index or 0) >= count:
        raise UserError(f"device: found {str(target)!r}, allowed here: cpu" + ", cuda" * torch.cuda.is_available())
    return target
