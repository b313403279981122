"""Models by address: the files are found, all of them checked, and only then read. The one way in for every model.

    models:/NAME@alias   models:/NAME/3     a version of the registry: bound to its name, number and tags
    models:/m-...        runs:/RUN/PATH     a package in the tracking store
    file:///a/folder     a/folder           a package, or a plain folder such as the pipeline's `models/`

MLflow only finds the files: none of its loaders runs, and no code of a package either. An address without a version
binds a package to its manifest and signature alone: an older one may lie there. Who may move an alias can still
choose which of the signed versions is the champion.
"""

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch

from vaeline.errors import TransientError, UserError, redact
from vaeline.io.safe_read import shown
from vaeline.io.workspace import current_workspace
from vaeline.registry.versions import ADDRESS, DATA_TAG, DIGEST_TAG, MANIFEST_TAG, UNKNOWN, find_version_at
from vaeline.serving.inference import TrainedModel
from vaeline.serving.package import Package, RegisteredAs, is_package, load_package, load_plain
from vaeline.serving.signatures import trusted_signers
from vaeline.tracking.connection import SQLITE, connect, one_line_errors, tracking_uri

ALLOWED = "models:/NAME@alias, models:/NAME/3, models:/m-ID, runs:/RUN/PATH, file:///FOLDER or a folder"
LOGGED = re.compile(r"models:/(m-[0-9a-f]+)")
RUN = re.compile(r"runs:/([0-9a-f]+)/(.+)")


def load(uri: str | os.PathLike[str], device: str | torch.device = "cpu") -> TrainedModel:
    """Load a model for use, see the table above. Raises UserError, in one line, for what cannot be trusted or read."""
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError):
        raise UserError(f"device: found {device!r}, allowed: cpu, cuda, cuda:1") from None
    if (target.index or 0) >= {"cpu": 1, "cuda": torch.cuda.device_count()}.get(target.type, 0):
        raise UserError(f"device: found {str(target)!r}, allowed here: cpu" + ", cuda" * torch.cuda.is_available())
    folder = _local(os.fspath(uri))
    if folder is not None and folder.is_dir() and not is_package(folder):
        return TrainedModel(load_plain(folder, target))
    package = verified(uri, target)
    return TrainedModel(package.loaded, package.reference)


def verified(
    uri: str | os.PathLike[str], device: str | torch.device = "cpu", registered: RegisteredAs | None = None
) -> Package:
    """Package at an address, all of it checked; `registered` says as what where the address does not.

    Raises UserError for addresses that are none, for what does not exist, and for whatever is not as it was sealed,
    or not signed by a key of VAELINE_TRUSTED_KEYS where that is set.
    """
    address, found = _locate(os.fspath(uri))
    with available(address) as folder:
        return load_package(folder, device, registered or found)


def verify(uri: str) -> dict[str, Any]:
    """Check all of a stored model; returns what was checked. Raises UserError for the first error."""
    package = verified(uri)
    manifest, model = package.manifest, package.loaded.config.model
    return {
        "uri": uri,
        "name": manifest.name,
        "version": manifest.serial,
        "files": len(manifest.files),
        "bytes": sum(entry.size for entry in manifest.files.values()),
        "model_digest": manifest.model_digest,
        "data_digest": manifest.data_digest,
        "network": model.network.kind,
        "likelihood": model.likelihood.kind,
        "signer": manifest.signer,  # an Ed25519 public key
        "trusted": trusted_signers() is not None,  # it is one of VAELINE_TRUSTED_KEYS
        "registered": ADDRESS.fullmatch(uri) is not None,  # name, number and tags of the registry agree
    }


@contextmanager
def available(address: str) -> Iterator[Path]:
    """A local file or folder itself, so that no link is followed; else a copy for the length of the block."""
    if (path := _local(address)) is not None:
        yield path
        return
    import mlflow

    with tempfile.TemporaryDirectory() as temporary:
        with storage_errors(address):
            path = Path(mlflow.artifacts.download_artifacts(address, dst_path=temporary))
        yield path


@contextmanager
def storage_errors(address: str) -> Iterator[None]:
    """Turn whatever the library of an artifact store raises into a UserError; TransientError where it is away."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    with one_line_errors():
        try:
            yield
        except (MlflowException, RequestException):
            raise
        except Exception as error:
            if isinstance(error, OSError) and (error.filename or error.errno == errno.ENOSPC):
                raise  # of the file here
            reason = " ".join(redact(str(error)).split())[:300]
            kind = TransientError if isinstance(error, ConnectionError | TimeoutError) else UserError
            raise kind(f"{address}: cannot be downloaded: {reason}") from None


def _locate(uri: str) -> tuple[str, RegisteredAs | None]:
    """Where the files are, by MLflow's address or a folder, and as which version of the registry."""
    if not any(kind.fullmatch(uri) for kind in (ADDRESS, LOGGED, RUN)):
        folder = _local(uri)
        if folder is None or not folder.is_dir():
            found = "" if folder is None else "is not a folder; "
            raise UserError(f"{shown(uri)!r}: {found}allowed: {ALLOWED}")
        return str(folder), None
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
            if model := LOGGED.fullmatch(uri):
                return client.get_logged_model(model[1]).artifact_location, None
            if match := RUN.fullmatch(uri):
                if ".." in match[2].split("/"):
                    raise UserError(f"{uri}: allowed: a path inside the run's artifacts")
                run = client.get_run(match[1])
                outputs = run.outputs.model_outputs if run.outputs else []  # which MLflow 3 keeps outside of the run
                models = [client.get_logged_model(output.model_id) for output in outputs]
                named = [model.artifact_location for model in models if model.name == match[2]]
                return str(named[-1]) if named else f"{run.info.artifact_uri}/{match[2]}", None
            version = find_version_at(client, uri)
        except MlflowException as error:
            if error.error_code not in UNKNOWN:
                raise
            raise UserError(f"{uri}: {' '.join(redact(error.message).split())[:300]} (store: {store})") from None
        if not version.tags.get(MANIFEST_TAG):
            raise UserError(
                f"{uri}: version {version.version} has no tag {MANIFEST_TAG}, nothing to check it against; "
                "delete the version and register the model again: dvc repro -f -s register"
            )
        tags = {key: version.tags[key] for key in (MANIFEST_TAG, DIGEST_TAG, DATA_TAG) if key in version.tags}
        address = client.get_model_version_download_uri(version.name, version.version)
        return address, RegisteredAs(version.name, int(version.version), tags)


def _local(address: str) -> Path | None:
    """The path that an address names; None where it is elsewhere."""
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", address):
        return Path(address) if address else None  # else it would be the current folder
    parts = urlsplit(address)
    return Path(unquote(parts.path)) if parts.scheme == "file" and parts.netloc in ("", "localhost") else None
