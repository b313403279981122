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


def take_from(registry: Registry, *parts: str) -> None:
    """Files or folders of version 1 in the place of version 2's."""
    for part in parts:
        old, new = (registry.folder(version) / part for version in (1, 2))
        if old.is_dir():
            shutil.rmtree(new)
        (shutil.copytree if old.is_dir() else shutil.copy)(old, new)


def all_its_tags(registry: Registry) -> None:
    copy_over(registry, 1)
    for key, value in registry.client.get_model_version(NAME, "1").tags.items():
        set_tag(registry, value, key)


CHANGED = "the package or the tag was changed"
PASSED_OFF = "is of '{}' version 1, passed off as '" + NAME + "' version 2"
ATTACKS: list[tuple[Callable[[Registry], object], str]] = [
    (lambda it: copy_over(it, 1), CHANGED),
    (lambda it: (copy_over(it, 1), set_tag(it, it.tag(1))), PASSED_OFF.format(NAME)),
    (all_its_tags, PASSED_OFF.format(NAME)),
    (lambda it: copy_over(it, 1, OTHER), CHANGED),
    (lambda it: (copy_over(it, 1, OTHER), set_tag(it, it.tag(1, OTHER))), PASSED_OFF.format(OTHER)),
    (lambda it: take_from(it, MODEL), "was changed"),
    (lambda it: take_from(it, MANIFEST, SIGNATURE), CHANGED),
    (lambda it: reseal(it.folder(2)), CHANGED),
    (lambda it: it.client.delete_model_version_tag(NAME, "2", TAG), "has no tag vaeline.manifest"),
    (lambda it: set_tag(it, "0" * 64), CHANGED),
    (lambda it: set_tag(it, "0" * 64, "vaeline.model_digest"), "tag vaeline.model_digest: is"),
    (lambda it: set_tag(it, "0" * 64, "vaeline.data_digest"), "tag vaeline.data_digest: is"),
    (lambda it: shutil.rmtree(it.folder(2) / "artifacts"), "is missing"),
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
