"""Damaged and hostile packages: each is refused in one line, and none gets to run anything."""

import pickle
import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import vaeline
from package_damage import (
    DAMAGED,
    MANIFESTS,
    NESTED,
    RESEALED,
    Damage,
    canary,
    code,
    edit,
    fifo,
    make_large,
    pickled,
    put,
    remove,
)
from package_damage import replace as put_in_place
from packages import CONFIG_AT, WEIGHTS_AT, make_package, reseal
from vaeline.errors import UserError
from vaeline.serving import mlflow_package
from vaeline.serving.model_files import load_model
from vaeline.serving.package import LEFT_BY_MLFLOW, MANIFEST, SIGNATURE, seal


@pytest.fixture
def trusted_key(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust in the signer's key alone."""
    monkeypatch.setenv("VAELINE_TRUSTED_KEYS", str(sealed / "signer.pub"))


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path) -> Iterator[None]:
    yield
    assert not (tmp_path / "canary").exists()


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as raised:
        vaeline.load(folder)
    message = str(raised.value)
    assert message.isprintable(), message  # one line, with nothing that a terminal obeys
    return message


def test_a_package_is_loaded_as_it_was_made_or_with_what_mlflow_leaves(package: Path, trusted_key: None):
    assert vaeline.load(package).sample(2).shape == (2, 1, 5, 4)
    (package / LEFT_BY_MLFLOW).write_text("model_name: shapes\nmodel_version: 3\n")
    assert vaeline.load(package)


def test_the_payloads_would_run_if_anything_unpickled_or_imported_them(package: Path):
    for payload in (lambda: pickle.loads(pickled(package)), lambda: exec(code(package))):
        payload()
        canary(package).rmdir()


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_package_is_refused_whether_a_key_is_trusted_or_not(
    package: Path, sealed: Path, monkeypatch: pytest.MonkeyPatch, case: str
):
    DAMAGED[case](package)
    if case != "manifest made anew":
        assert str(package) in refusal(package)
    monkeypatch.setenv("VAELINE_TRUSTED_KEYS", str(sealed / "signer.pub"))
    assert str(package) in refusal(package)


@pytest.mark.parametrize("case", [*RESEALED, *MANIFESTS])
def test_hostile_files_and_manifests_are_refused_though_the_digests_fit(package: Path, case: str):
    (RESEALED | MANIFESTS)[case](package)
    if case in RESEALED:
        reseal(package)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert str(package) in refusal(package)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_folders_in_each_other_by_the_thousand_are_refused(package: Path):
    deep = package
    for _ in range(1500):
        (deep := deep / "d").mkdir()
    try:
        assert str(package) in refusal(package)
    finally:
        subprocess.run(["rm", "-rf", str(package)], check=True)  # pytest's clean-up recurses


def test_a_package_has_the_library_s_code_alone(tmp_path: Path, outputs: Callable[..., Path], monkeypatch):
    """Not what an editor, a person or another branch left beside it."""
    library = shutil.copytree(Path(vaeline.__file__).parent, tmp_path / "vaeline")
    for name in ("notes.md", "my copy.py", ".#lock.py", "old_branch/__pycache__/a.cpython-311.pyc"):
        put(name, b"")(library)
    monkeypatch.setattr(mlflow_package, "vaeline", SimpleNamespace(__file__=str(library / "__init__.py")))
    make_package(tmp_path / "package", outputs() / "models")
    assert vaeline.load(tmp_path / "package")
    files = {path.relative_to(library) for path in library.rglob("*.py") if "__pycache__" not in path.parts}
    code = tmp_path / "package/code/vaeline"
    assert {path.relative_to(code) for path in code.rglob("*.py")} == files - {Path("my copy.py"), Path(".#lock.py")}


def test_a_manifest_of_another_signer_is_refused(
    package: Path, sealed: Path, trusted_key: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("VAELINE_SIGNING_KEY", str(sealed / "stranger.pem"))
    for file in (MANIFEST, SIGNATURE):
        (package / file).unlink()
    seal(package, "shapes", 3, load_model(package / "artifacts/model"))
    assert "which is no key of VAELINE_TRUSTED_KEYS" in refusal(package)
    monkeypatch.setenv("VAELINE_TRUSTED_KEYS", f"{sealed / 'signer.pub'}:{sealed / 'stranger.pub'}")
    assert vaeline.load(package)


def test_an_unsigned_package_or_plain_folder_is_refused_where_a_key_is_trusted(package: Path, trusted_key: None):
    """Mistake 17: a package without a signature accepted."""
    assert "has no MANIFEST.json" in refusal(package / "artifacts/model")
    reseal(package)
    assert "is not signed by any key of VAELINE_TRUSTED_KEYS" in refusal(package)


def test_any_flipped_bit_in_any_file_is_refused(package: Path, trusted_key: None):
    """One bit of every file, and several of those that are parsed."""
    chance = random.Random(1)
    files = [path for path in sorted(package.rglob("*")) if path.is_file() and path.stat().st_size]
    parsed = [package / name for name in (MANIFEST, SIGNATURE, WEIGHTS_AT, CONFIG_AT)]
    assert len(files) > 50
    for path in files + 8 * parsed:
        before = path.read_bytes()
        flipped = bytearray(before)
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        refusal(package)
        path.write_bytes(before)
    assert vaeline.load(package)


PLAIN: dict[str, Damage] = {
    "another file": put("more.txt", b""),
    "pickle": put("model.pkl", pickled),
    "pickle in place of the weights": put("model.safetensors", pickled),
    "pipe": put_in_place("model.safetensors", fifo),
    "link to a device": put_in_place("config.json", lambda path, _: path.symlink_to("/dev/zero")),
    "link to a folder": put_in_place("config.json", lambda path, _: path.symlink_to("/tmp")),
    "deep config": put("config.json", NESTED),
    "large config": make_large("config.json", 100 << 20),
    "torn weights": edit("model.safetensors", lambda old: old[:-9]),
    "no weights": remove("model.safetensors"),
}


@pytest.mark.parametrize("case", PLAIN)
def test_hostile_plain_folders_are_refused(package: Path, tmp_path: Path, case: str):
    plain = shutil.copytree(package / "artifacts/model", tmp_path / "plain")
    assert vaeline.load(plain)
    PLAIN[case](plain)
    assert str(plain) in refusal(plain)


def test_a_plain_folder_of_links_into_a_cache_is_loaded(package: Path, tmp_path: Path):
    """DVC makes them where cache.type is symlink."""
    (tmp_path / "plain").mkdir()
    for file in (package / "artifacts/model").iterdir():
        (tmp_path / "plain" / file.name).symlink_to(file)
    assert vaeline.load(tmp_path / "plain").digest == vaeline.load(package / "artifacts/model").digest
