"""What someone with access to a registry might try, so that version 2 is not what was registered as it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from package_damage import Damage, code, pickled, put
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


def mlmodel(*lines: str, **files: Callable[[Path], bytes]) -> Damage:
    """An MLmodel whose Python flavor has these lines, with further files; the manifest fits."""

    def apply(folder: Path) -> None:
        flavor = "\n".join(f"    {line}" for line in ("python_version: 3.11.0", *lines))
        (folder / "MLmodel").write_text(f"flavors:\n  python_function:\n{flavor}\nmodel_uuid: a\n")
        for name, content in files.items():
            put(name.replace("__", "/").replace("_py", ".py").replace("_txt", ".txt"), content)(folder)
        reseal(folder)

    return apply


EXECUTING: dict[str, Damage] = {  # what MLflow's own loaders would run; the manifest fits, but is not signed
    "loader module": mlmodel("loader_module: evil", "code: code", code__evil_py=code),
    "loader module of data": mlmodel("loader_module: evil", "data: artifacts", "code: code", code__evil_py=code),
    "pickled model": mlmodel("loader_module: mlflow.pyfunc.model", "python_model: evil.txt", evil_txt=pickled),
    "pickle as scikit-learn's": mlmodel("loader_module: mlflow.sklearn", "model_path: evil.txt", evil_txt=pickled),
    "archive as torch's": mlmodel("loader_module: mlflow.pytorch", "model_data: evil.txt", evil_txt=pickled),
    "model code": lambda folder: (put("pyfunc.py", code)(folder), reseal(folder)),
    "library code": lambda folder: (put("code/vaeline/__init__.py", code)(folder), reseal(folder)),
    "code that hides a library": lambda folder: (put("code/numpy.py", code)(folder), reseal(folder)),
    "sitecustomize": lambda folder: (put("code/sitecustomize.py", code)(folder), reseal(folder)),
    "requirements": lambda folder: (
        put("requirements.txt", lambda folder: f"-e {folder}/code\n".encode())(folder),
        put("code/setup.py", code)(folder),
        reseal(folder),
    ),
}
