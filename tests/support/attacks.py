"""What someone with access to a registry might try, so that version 2 is not what was registered as it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packages import reseal
from vaeline.serving.package import MANIFEST, MODEL, SIGNATURE

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME, OTHER = "vaeline-fashion-mnist", "another"
TAG = "vaeline.manifest"


@dataclass(frozen=True)
class Registry:
    """Two versions of one name, and one of another, in their store."""

    root: Path
    client: "MlflowClient"

    def folder(self, version: int, name: str = NAME) -> Path:
        """Where the package of a version lies."""
        address = self.client.get_model_version_download_uri(name, str(version))
        return Path(address.removeprefix("file://"))

    def tag(self, version: int, name: str = NAME) -> str:
        """The digest of its manifest, as the registry has it."""
        return str(self.client.get_model_version(name, str(version)).tags[TAG])


def copy_over(registry: Registry, version: int, name: str = NAME) -> None:
    """Another package in the place of version 2's, all of it."""
    shutil.rmtree(registry.folder(2))
    shutil.copytree(registry.folder(version, name), registry.folder(2))


def set_tag(registry: Registry, value: str, key: str = TAG) -> None:
    registry.client.set_model_version_tag(NAME, "2", key, value)


def older(registry: Registry) -> None:
    copy_over(registry, 1)


def older_and_its_tag(registry: Registry) -> None:
    copy_over(registry, 1)
    set_tag(registry, registry.tag(1))


def all_its_tags(registry: Registry) -> None:
    older_and_its_tag(registry)
    for key, value in registry.client.get_model_version(NAME, "1").tags.items():
        set_tag(registry, value, key)


def another(registry: Registry) -> None:
    copy_over(registry, 1, OTHER)


def another_and_its_tag(registry: Registry) -> None:
    another(registry)
    set_tag(registry, registry.tag(1, OTHER))


def older_files_under_the_manifest(registry: Registry) -> None:
    shutil.rmtree(registry.folder(2) / MODEL)
    shutil.copytree(registry.folder(1) / MODEL, registry.folder(2) / MODEL)


def older_manifest(registry: Registry) -> None:
    for file in (MANIFEST, SIGNATURE):
        shutil.copy(registry.folder(1) / file, registry.folder(2) / file)


def new_manifest(registry: Registry) -> None:
    reseal(registry.folder(2))


def no_tag(registry: Registry) -> None:
    registry.client.delete_model_version_tag(NAME, "2", TAG)


ATTACKS: list[tuple[Callable[[Registry], None], str]] = [
    (older, "the package or the tag was changed"),
    (older_and_its_tag, f"is of '{NAME}' version 1, passed off as '{NAME}' version 2"),
    (all_its_tags, f"is of '{NAME}' version 1, passed off as '{NAME}' version 2"),
    (another, "the package or the tag was changed"),
    (another_and_its_tag, f"is of '{OTHER}' version 1, passed off as '{NAME}' version 2"),
    (older_files_under_the_manifest, "was changed"),
    (older_manifest, "the package or the tag was changed"),
    (new_manifest, "the package or the tag was changed"),
    (no_tag, "has no tag vaeline.manifest"),
    (lambda registry: set_tag(registry, "0" * 64), "the package or the tag was changed"),
    (lambda registry: set_tag(registry, "0" * 64, "vaeline.model_digest"), "tag vaeline.model_digest: is"),
    (lambda registry: set_tag(registry, "0" * 64, "vaeline.data_digest"), "tag vaeline.data_digest: is"),
    (lambda registry: shutil.rmtree(registry.folder(2) / "artifacts"), "is missing"),
]
