"""Package: the folder of a registered model, with MANIFEST.json, which lists what it consists of.

The manifest holds the SHA-256 and size of every other file, the registered name, the version's number (`serial`), the
digests of model and data, the code that trained it and, where it is signed, the signer; MANIFEST.sig then holds the
Ed25519 signature of its bytes. Refused, each in one line: a file that was changed, added, removed or swapped; a package
under another name or number than its own, hence an old version passed off as a newer one; with VAELINE_TRUSTED_KEYS
set, whatever none of those signed. Each file is compared with the manifest before it is parsed, and nothing in a
package is ever executed.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from vaeline.errors import UserError
from vaeline.evaluation.drift import LARGEST_FILE, REFERENCE, Values, parse_reference
from vaeline.io.atomic_write import write_file
from vaeline.io.digests import file_digest
from vaeline.io.safe_read import checked_digest, read_bounded, readable, shown
from vaeline.io.yaml_config import Section, validate_json
from vaeline.serving import signatures
from vaeline.serving.model_files import CONFIG, WEIGHTS, LoadedModel, load_model

MANIFEST, SIGNATURE = "MANIFEST.json", "MANIFEST.sig"
MODEL = "artifacts/model"  # of a package: the folder with model.safetensors and config.json
LEFT_BY_MLFLOW = "registered_model_meta"  # MLflow writes it into each folder that it hands out; it is never read
MANIFEST_BYTES, LEFT_BYTES, MOST_FILES, DEEPEST = 1 << 20, 1000, 5000, 16
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
KINDS = re.compile(r".+\.(py|typed|json|yaml|txt|safetensors)|MLmodel|__pycache__")  # none of which is a pickle

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PackageFile(Section):
    """A file of a package."""

    sha256: Digest
    size: Annotated[int, Field(ge=0)]  # bytes


class TrainingCode(Section):
    """The code that trained a model."""

    commit: str
    diff: Digest | None  # SHA-256 of its run's git/uncommitted.diff; None: nothing was uncommitted


class PackageManifest(Section):
    """The content of MANIFEST.json."""

    format: Literal[1]
    name: str  # of the registered model
    serial: Annotated[int, Field(ge=1)]  # the number of its version
    model_digest: Digest
    data_digest: str
    code: TrainingCode | None = None  # None: it was trained elsewhere
    signer: Digest | None  # an Ed25519 public key; None: not signed
    files: dict[str, PackageFile]  # by path within the package, with slashes


@dataclass(frozen=True)
class RegisteredAs:
    """A version as the registry describes it."""

    name: str
    serial: int
    tags: Mapping[str, str]  # SHA-256 of MANIFEST.json, and digests of model and data, as far as they are set


@dataclass(frozen=True)
class Package:
    """A package that was checked, and its model."""

    loaded: LoadedModel
    manifest: PackageManifest
    reference: Values | None  # ELBOs of test images, nats; None where the package has none


def seal(folder: Path, name: str, serial: int, loaded: LoadedModel, code: TrainingCode | None = None) -> str:
    """Write the manifest of a finished package, signed where VAELINE_SIGNING_KEY is set; returns its SHA-256."""
    key, files = signatures.signing_key(), {}
    for path in sorted(_files(folder)):
        files[path] = PackageFile(sha256=file_digest(folder / path), size=(folder / path).stat().st_size)
    manifest = PackageManifest(
        format=1,
        name=name,
        serial=serial,
        model_digest=loaded.digest,
        data_digest=loaded.config.data.digest,
        code=code,
        signer=signatures.signer(key) if key else None,
        files=files,
    )
    content = (json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()
    write_file(folder / MANIFEST, content)
    if key:
        write_file(folder / SIGNATURE, key.sign(content))
    return hashlib.sha256(content).hexdigest()


def load_package(folder: Path, device: str | torch.device = "cpu", registered: RegisteredAs | None = None) -> Package:
    """Check all of a package, and load its model. Raises UserError, in one line, for whatever is not as it was."""
    where, content = folder / MANIFEST, read_bounded(folder / MANIFEST, MANIFEST_BYTES)
    tags = registered.tags if registered else {}
    _refuse_tag(tags, "vaeline.manifest", hashlib.sha256(content).hexdigest())
    manifest = validate_json(PackageManifest, content, where)
    trusted, by = signatures.trusted_signers(), manifest.signer
    if trusted is not None and by not in trusted:
        found = f"is signed by {by[:12]}, which is no key" if by else "is not signed by any key"
        raise UserError(f"{where}: {found} of {signatures.TRUSTED}")
    if by and not signatures.is_signed(content, read_bounded(folder / SIGNATURE, signatures.SIGNATURE_BYTES), by):
        raise UserError(f"{folder / SIGNATURE}: is not the signature of {MANIFEST} by {by[:12]}")
    if registered and (manifest.name, manifest.serial) != (registered.name, registered.serial):
        raise UserError(
            f"{where}: is of {shown(manifest.name)!r} version {manifest.serial}, "
            f"passed off as {registered.name!r} version {registered.serial}"
        )
    _check_files(folder, manifest)

    def read(path: Path, most: int) -> bytes:
        content, name = read_bounded(path, most), path.relative_to(folder).as_posix()
        if name not in manifest.files:
            raise UserError(f"{where}: lists no {name}")
        _refuse_change(path, hashlib.sha256(content).hexdigest(), manifest.files[name])
        return content

    loaded = load_model(folder / MODEL, device, read)
    if (manifest.model_digest, manifest.data_digest) != (loaded.digest, loaded.config.data.digest):
        raise UserError(f"{where}: names another model or other data than {folder / MODEL / CONFIG}")
    _refuse_tag(tags, "vaeline.model_digest", manifest.model_digest)
    _refuse_tag(tags, "vaeline.data_digest", manifest.data_digest)
    path, reference = folder / MODEL / REFERENCE, None
    if f"{MODEL}/{REFERENCE}" in manifest.files:
        reference = parse_reference(read(path, LARGEST_FILE), str(path))
    return Package(loaded, manifest, reference)


def is_package(folder: Path) -> bool:
    """Whether a folder should have a manifest: it holds MLflow's MLmodel, or the manifest itself."""
    return any(os.path.lexists(folder / name) for name in (MANIFEST, SIGNATURE, "MLmodel"))


def load_plain(folder: Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Load a folder with the two files of a saved model and nothing else, such as the pipeline's `models/`.

    It has no signature: raises UserError where VAELINE_TRUSTED_KEYS asks for one.
    """
    if signatures.trusted_signers() is not None:
        raise UserError(f"{folder}: has no {MANIFEST} and is signed by no key of {signatures.TRUSTED}")
    with readable():
        names = {path.name for path in folder.iterdir()}
    if extra := sorted(names - {WEIGHTS, CONFIG}):
        raise UserError(f"{folder}: found also {extra[0]!r}, allowed: {WEIGHTS} and {CONFIG} alone, or a package")
    return load_model(folder, device)


def _refuse_tag(tags: Mapping[str, str], tag: str, digest: str) -> None:
    if digest != (expected := tags.get(tag, digest)):
        raise UserError(
            f"tag {tag}: is {expected[:12]!r}, the package has {digest[:12]!r}: the package or the tag was changed"
        )


def _refuse_change(path: Path, digest: str, entry: PackageFile) -> None:
    if digest != entry.sha256:
        raise UserError(f"{path}: was changed: has SHA-256 {digest[:12]}, {MANIFEST} lists {entry.sha256[:12]}")


def _check_files(folder: Path, manifest: PackageManifest) -> None:
    """The files are those of the manifest, and their bytes too; the model's own two are checked when they are read."""
    for path in manifest.files:  # names that lead elsewhere, and files that could be a pickle, have no place
        if not all(NAME.fullmatch(part) for part in path.split("/")) or not KINDS.fullmatch(path.rpartition("/")[2]):
            raise UserError(f"{folder}: {shown(path)!r}: is no file that a package may have")
    found, listed = _files(folder), manifest.files.keys()
    beside = {MANIFEST, LEFT_BY_MLFLOW} | ({SIGNATURE} if manifest.signer else set())
    if missing := sorted(listed - found):
        raise UserError(f"{folder / missing[0]}: is missing, {MANIFEST} lists it")
    if added := sorted(found - listed - beside):
        raise UserError(f"{folder / added[0]}: was added, {MANIFEST} does not list it")
    if LEFT_BY_MLFLOW in found and (folder / LEFT_BY_MLFLOW).lstat().st_size > LEFT_BYTES:
        raise UserError(f"{folder / LEFT_BY_MLFLOW}: is not the one that MLflow writes")
    for path, entry in manifest.files.items():
        if path not in (f"{MODEL}/{WEIGHTS}", f"{MODEL}/{CONFIG}"):
            _refuse_change(folder / path, checked_digest(folder / path, entry.size), entry)


def _files(folder: Path) -> set[str]:
    """Every file in a folder. Raises UserError for links, what is neither file nor folder, odd names, and depths."""
    files, folders = set[str](), [folder]
    for parent in folders:  # its subfolders are added: recursion ends before the depth that a file system allows
        with readable():
            entries = list(parent.iterdir())
        for path in entries:
            parts = path.relative_to(folder).parts
            if not NAME.fullmatch(path.name) or len(files) + len(folders) > MOST_FILES or len(parts) > DEEPEST:
                raise UserError(f"{parent}: {path.name!r}: is no file that a package may have")
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise UserError(f"{path}: is a link or a special file; a package has neither")
            folders.append(path) if path.is_dir() else files.add("/".join(parts))
        if not entries:
            raise UserError(f"{parent}: is an empty folder; a package has none")
    return files
