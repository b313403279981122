"""Models as others load them: an address becomes a folder, all of it is checked, and only then is it a model.

    models:/NAME@alias   models:/NAME/3     a version of the registry: bound to its name, number and tags
    models:/m-...        runs:/RUN/PATH     a package in the tracking store
    file:///a/folder     a/folder           a package, or a plain folder such as the pipeline's `models/`

MLflow only tells where the files are: none of its loaders runs, and no code of a package either. An address without a
version binds a package to its manifest and signature alone: an older one may lie there. Who may move an alias can still
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
from vaeline.serving.inference import TrainedModel
from vaeline.serving.package import Expected, Package, is_package, load_package, load_plain
from vaeline.serving.signatures import TRUSTED
from vaeline.tracking.connection import SQLITE, connect, one_line_errors, redact, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALLOWED = "models:/NAME@alias, models:/NAME/3, models:/m-ID, runs:/RUN/PATH, file:///FOLDER or a folder"
REGISTERED = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/(\d{1,9}))")
LOGGED = re.compile(r"models:/(m-[0-9a-f]+)")
RUN = re.compile(r"runs:/([0-9a-f]+)/(.+)")
MANIFEST_TAG, MODEL_TAG, DATA_TAG = "vaeline.manifest", "vaeline.model_digest", "vaeline.data_digest"


@dataclass(frozen=True)
class Place:
    """Where a package is, and what the registry says of it."""

    address: str  # as MLflow knows it, or a folder
    expected: Expected | None = None
    tags: tuple[tuple[str, str], ...] = ()  # the digests that the version's tags name


def load(uri: str | os.PathLike[str], device: str | torch.device = "cpu") -> TrainedModel:
    """Load a model for use, see the table above. Raises UserError, in one line, for what cannot be trusted or read."""
    target, folder = _device(device), _local(os.fspath(uri))
    if folder is not None and folder.is_dir() and not is_package(folder):
        return TrainedModel(load_plain(folder, target))
    package = _checked(locate(uri), target)
    return TrainedModel(package.loaded, package.reference)


def verify(uri: str) -> list[str]:
    """Check all of a stored model, and say what was checked. Raises UserError for the first thing that is wrong."""
    place = locate(uri)
    package = _checked(place, torch.device("cpu"))
    manifest, model = package.manifest, package.loaded.config.model
    size = sum(entry.size for entry in manifest.files.values())
    lines = [
        f"{uri}: {shown(manifest.name)} version {manifest.serial}",
        f"files: {len(manifest.files)}, {size} bytes, each with the SHA-256 of MANIFEST.json; none missing, none added",
        f"model: {package.loaded.digest}, {model.network.kind}, {model.likelihood.kind}, loads and is finite",
        f"data: {shown(manifest.data_digest)}",
        f"signature: {_signature(package)}",
    ]
    if place.expected is None:
        return [*lines, "registry: not asked: this address names no version"]
    tags = ", ".join((MANIFEST_TAG, *(key for key, _ in place.tags)))
    return [*lines, f"registry: name, number and the tags {tags} agree"]


def locate(uri: str | os.PathLike[str]) -> Place:
    """Where the files are. Raises UserError for addresses that are none, and for models that are not there."""
    text = os.fspath(uri)
    if version := REGISTERED.fullmatch(text):
        return _asking(text, lambda client: _version(client, text, *version.groups()))
    if model := LOGGED.fullmatch(text):
        return _asking(text, lambda client: Place(client.get_logged_model(model[1]).artifact_location))
    if run := RUN.fullmatch(text):
        return _asking(text, lambda client: Place(_in_run(client, run[1], run[2])))
    folder = _local(text)
    if folder is None:
        raise UserError(f"{text[:200]!r}: allowed: {ALLOWED}")
    if not folder.is_dir():
        raise UserError(f"{text[:200]!r}: is not a folder; allowed: {ALLOWED}")
    return Place(str(folder))


def _version(client: "MlflowClient", uri: str, name: str, alias: str | None, number: str | None) -> Place:
    version = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number or "")
    digest = version.tags.get(MANIFEST_TAG)
    if not digest:
        raise UserError(
            f"{uri}: version {version.version} has no tag {MANIFEST_TAG}, nothing to check it against; "
            "delete the version and register the model again: dvc repro -f -s register"
        )
    told = tuple((key, version.tags[key]) for key in (MODEL_TAG, DATA_TAG) if key in version.tags)
    address = client.get_model_version_download_uri(name, version.version)
    return Place(address, Expected(name, int(version.version), digest), told)


def _in_run(client: "MlflowClient", run_id: str, path: str) -> str:
    """A run's artifacts, or the logged model of that name, which MLflow 3 keeps outside."""
    run = client.get_run(run_id)
    logged = [client.get_logged_model(output.model_id) for output in run.outputs.model_outputs] if run.outputs else []
    named = [model.artifact_location for model in logged if model.name == path]
    if ".." in path.split("/"):
        raise UserError(f"runs:/{run_id}/{path}: allowed: a path inside the run's artifacts")
    return str(named[-1] if named else f"{run.info.artifact_uri}/{path}")


def _asking(uri: str, question: "Callable[[MlflowClient], Place]") -> Place:
    """Ask the tracking store. Raises UserError where it is away, or knows no such model."""
    store = tracking_uri(current_workspace())
    if store.startswith(SQLITE) and not Path(store.removeprefix(SQLITE)).is_file():
        raise UserError(f"MLFLOW_TRACKING_URI: there is no tracking store at {store}; say where it is")
    try:
        client = connect(current_workspace())
    except ModuleNotFoundError as error:
        raise UserError(f"{uri}: needs {error.name}: pip install mlflow; a folder can be loaded without") from None
    from mlflow.exceptions import MlflowException

    with one_line_errors():
        try:
            return question(client)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise UserError(f"{uri}: {' '.join(error.message.split())[:300]} (store: {redact(store)})") from None


def _checked(place: Place, device: torch.device) -> Package:
    with _at_hand(place.address) as folder:
        package = load_package(folder, device, place.expected)
    own = {MODEL_TAG: package.manifest.model_digest, DATA_TAG: package.manifest.data_digest}
    for key, told in place.tags:
        if own[key] != told:
            raise UserError(f"tag {key}: says {told[:12]!r}, the signed or sealed package says {own[key][:12]!r}")
    return package


@contextmanager
def _at_hand(address: str) -> Iterator[Path]:
    """The folder itself, so that nobody's links are copied; what is elsewhere is downloaded for the time being."""
    if (folder := _local(address)) is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield _downloaded(address, temporary)


def _downloaded(address: str, into: str) -> Path:
    import mlflow

    with one_line_errors():
        try:
            return Path(mlflow.artifacts.download_artifacts(address, dst_path=into))
        except (OSError, mlflow.exceptions.MlflowException):
            raise
        except Exception as error:  # whatever the store's own library raises
            raise UserError(f"{redact(address)}: cannot be downloaded: {' '.join(str(error).split())[:300]}") from None


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


def _signature(package: Package) -> str:
    if by := package.manifest.signer:
        return f"Ed25519, by {by}" + (", a key of VAELINE_TRUSTED_KEYS" if os.environ.get(TRUSTED) else "")
    return "none (with VAELINE_TRUSTED_KEYS set, it would be refused)"
