"""Every entry point that loads a model, a diff or an artifact of a store, against every hostile package and patch.

The attacker may write to the registry, to the tracking store and its artifacts: version 3 of "shapes" is theirs, with
tags that fit whatever lies there. Nothing of theirs runs, and each refusal is one line.
"""

import hashlib
import os
import random
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vaeline
from attacks import EXECUTING
from command_line import vaeline as command
from package_damage import DAMAGED, MANIFESTS, RESEALED, code
from packages import reseal
from pipeline import cli
from pipeline.commands import explore
from pipeline.stages import register as stage
from registry_fixture import ROOT, entered
from vaeline.errors import UserError
from vaeline.io.workspace import current_workspace
from vaeline.registry.champion import set_champion
from vaeline.registry.champion_history import Entry
from vaeline.registry.versions import DATA_TAG, DIGEST_TAG, MANIFEST_TAG, find_version
from vaeline.serving.model_files import load_model
from vaeline.serving.package import MANIFEST, SIGNATURE, seal
from vaeline.tracking.connection import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME, PLANTED = "shapes", "models:/shapes/3"
HARMLESS = {"init", "run", "experiment", "ui", "sync", "doctor", "up", "down", "deploy", "worker", "sweep", "models"}
HARMLESS |= {"history"}
LOADERS = {  # what can run or parse foreign bytes, and the modules that may call it
    r"mlflow\.pyfunc\.load_model\((?!.{1,3}models|.{0,2}uri)": {"registry/smoke.py"},
    r"download_artifacts\(": {"registry/load.py"},
    r"\bload_package\(": {"registry/load.py", "serving/package.py"},
    r"load_plain\(": {"registry/load.py", "serving/package.py"},
    r"\bpickle\.|torch\.load\(|joblib|cloudpickle|weights_only": set(),
}


CASES = {
    **DAMAGED,
    **{f"resealed: {name}": damage for name, damage in RESEALED.items()},
    **{f"manifest: {name}": damage for name, damage in MANIFESTS.items()},
}


del CASES["manifest made anew"]  # it fits, and only a key tells it from ours
QUICK = re.compile(
    "(resealed: )?(pickle|torch|bytecode|sitecustomize|model code|link to a|pipe in place of the w|.*path up)"
)
PATCHES: dict[str, Callable[[Path], object]] = {
    "code": lambda path: path.write_bytes(added("src/vaeline/__init__.py", code(path.parents[4]))),
    "hook": lambda path: path.write_bytes(added(".git/hooks/post-checkout", b"#!/bin/sh\nmkdir canary\n")),
    "path upwards": lambda path: path.write_bytes(added("../../evil\x1b[2J", b"evil\n")),
    "noise": lambda path: path.write_bytes(random.Random(1).randbytes(10_000)),
    "large": lambda path: path.write_bytes(bytes(20_000_000)),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
}


def added(path: str, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    head = (
        f"diff --git a/{path} b/{path}\nnew file mode 100755\n--- /dev/null\n+++ b/{path}\n@@ -0,0 +1,{len(lines)} @@\n"
    )
    return head.encode() + b"".join(b"+" + line for line in lines)


def gate(client: "MlflowClient") -> None:
    """The hostile version as the champion that a new model is compared with."""
    workspace = current_workspace()
    evaluator = stage.gate_evaluator(workspace)
    challenger = load_model(Path("challenger"))
    decision = evaluator.decide(evaluator.candidate(challenger), find_version(client, NAME, 3))
    if decision.reasons[-1].startswith("not compared: the champion cannot be read: "):
        raise UserError(decision.reasons[-1])


COMMANDS: dict[str, tuple[str, ...]] = {
    "verify": (PLANTED,),
    "score": ("images.npz", "--model", PLANTED),
    "export": (PLANTED, "onnx"),
    "promote": (NAME, "3"),
    "promote --force": (NAME, "3", "--force", "--reason", "why"),
    "rollback": (NAME,),
    "trace": (PLANTED,),
    "compare": (PLANTED, PLANTED),
    "reproduce": (PLANTED, "--run-changes"),
}
ENTRIES: dict[str, Callable[["MlflowClient"], object]] = {
    **{name: lambda _, name=name: command(name.split()[0], *COMMANDS[name]) for name in COMMANDS},  # type: ignore[misc]
    "load": lambda _: vaeline.load(PLANTED),
    "load by alias": lambda _: vaeline.load(f"models:/{NAME}@challenger"),
    "load from its folder": lambda _: vaeline.load("planted"),
    "gate": gate,
    "register": lambda _: stage.main(),
    "explore": lambda _: explore.load(current_workspace(), PLANTED),
}


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, sealed: Path, outputs: Callable[..., Path], empty_store: Path
) -> Iterator[Path]:
    """A repository whose registry has version 1, the champion, and 3, champion before it, whose files tests replace."""
    root = tmp_path_factory.mktemp("trust")
    with entered(root):
        outputs(9, folder=root)
        shutil.copytree(root / "models", root / "challenger")
        outputs(folder=root)  # the model of the sealed package
        params = root / "params.yaml"
        params.write_text(params.read_text().replace("vaeline-fashion-mnist", NAME))
        (root / "dvc.yaml").write_text("stages: {}")
        (root / "images.npz").touch()
        (root / ".vaeline").mkdir()
        shutil.copy(empty_store, root / ".vaeline" / "mlflow.db")
        shutil.copytree(sealed / "package", root / "good", ignore=shutil.ignore_patterns(MANIFEST, SIGNATURE))
        with pytest.MonkeyPatch.context() as signing:
            signing.setenv("VAELINE_SIGNING_KEY", str(sealed / "signer.pem"))
            tag = seal(root / "good", NAME, 1, load_model(root / "good/artifacts/model"))
        client = connect(current_workspace())
        client.create_registered_model(NAME)
        client.create_model_version(NAME, (root / "good").as_uri(), tags={MANIFEST_TAG: tag})
        client.create_model_version(NAME, "file:///nowhere")
        run = client.create_run(client.create_experiment("e", (root / "artifacts").as_uri()))
        client.set_tag(run.info.run_id, "vaeline.git_commit", "a" * 40)
        client.create_model_version(NAME, (root / "planted").as_uri(), run.info.run_id)
        for number, before in (("3", None), ("1", "3")):
            set_champion(client, client.get_model_version(NAME, number), Entry("promote", number, before, ""))
        client.set_registered_model_alias(NAME, "challenger", "3")
        shutil.copy(root / ".vaeline/mlflow.db", root / "whole.db")
        yield root


@pytest.fixture
def planted(prepared: Path, sealed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of version 3, as they were sealed; afterwards nothing of theirs may have run."""
    for path in (prepared / "planted", prepared / "moved", prepared / "artifacts"):
        path.unlink(missing_ok=True) if path.is_symlink() or path.is_file() else shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(sealed / "package", prepared / "planted")
    monkeypatch.chdir(prepared)
    restore()
    yield prepared / "planted"
    assert not (prepared / "canary").exists()


def restore() -> None:
    """The registry as it was, while MLflow has it open."""
    with closing(sqlite3.connect("whole.db")) as whole, closing(sqlite3.connect(".vaeline/mlflow.db")) as store:
        whole.backup(store)


def plant(folder: Path) -> "MlflowClient":
    """Give version 3 the tags that fit its files."""
    client, model = connect(current_workspace()), load_model(Path("models"))
    tags = {DIGEST_TAG: model.digest, DATA_TAG: model.config.data.digest, "vaeline.decision": "promoted"}
    if (folder / MANIFEST).is_file():
        content = (folder / MANIFEST).read_bytes()[: 1 << 21]
        tags[MANIFEST_TAG] = hashlib.sha256(content).hexdigest()
    for key, value in tags.items():
        client.set_model_version_tag(NAME, "3", key, value)
    return client


def outcomes(client: "MlflowClient") -> dict[str, str]:
    """The error of each entry point; empty where it worked."""
    found = {}
    for name, enter_by in ENTRIES.items():
        try:
            enter_by(client)
            found[name] = ""
        except UserError as error:
            found[name] = str(error)
    assert not [text for text in found.values() if len(text.splitlines()) > 1 or not (text.isprintable())], found
    return found


def test_every_command_that_could_load_something_is_among_the_entry_points():
    groups = [cli.app, *(group.typer_instance for group in cli.app.registered_groups)]
    commands = {info.callback.__name__ for group in groups for info in group.registered_commands}  # type: ignore[union-attr]
    assert commands - HARMLESS == {name.split()[0] for name in (*COMMANDS, "explore")}
    sources = [*(ROOT / "src/vaeline").rglob("*.py"), *(ROOT / "pipeline").rglob("*.py")]
    for pattern, homes in LOADERS.items():
        users = {"/".join(path.parts[-2:]) for path in sources if re.search(pattern, path.read_text())}
        assert users <= homes, pattern


@pytest.mark.parametrize("case", EXECUTING)
def test_code_in_a_package_that_fits_never_runs_and_is_refused_where_it_must_be_signed(
    planted: Path, sealed: Path, monkeypatch: pytest.MonkeyPatch, case: str
):
    monkeypatch.setattr("vaeline.serving.onnx_export.export_onnx", lambda *_: (0.0, 0.0))  # it takes seconds
    EXECUTING[case](planted)
    client = plant(planted)
    outcomes(client)
    restore()
    client = plant(planted)
    monkeypatch.setenv("VAELINE_TRUSTED_KEYS", str(sealed / "signer.pub"))
    assert not {name: text for name, text in outcomes(client).items() if "is not signed by any key" not in text}


@pytest.mark.parametrize(
    "case", [case if QUICK.match(case) else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_a_hostile_package_is_refused_by_every_entry_point(planted: Path, case: str):
    """Mistake 17: a version found by its tag, or whatever lies at a version's address, taken for the model."""
    CASES[case](planted)
    if case.startswith("resealed: "):
        reseal(planted, lambda manifest: manifest.update(name=NAME))
    assert not [name for name, error in outcomes(plant(planted)).items() if not error]


@pytest.mark.parametrize("case", PATCHES)
def test_a_patch_of_the_tracking_store_is_not_run_unasked(planted: Path, case: str):
    client = plant(planted)
    run_id = client.get_model_version(NAME, "3").run_id
    client.set_tag(run_id, "vaeline.git_dirty", "true")
    path = Path(f"artifacts/{run_id}/artifacts/git/uncommitted.diff").absolute()
    path.parent.mkdir(parents=True)
    PATCHES[case](path)
    with pytest.raises(UserError) as refused:
        command("reproduce", PLANTED)
    assert len(str(refused.value).splitlines()) == 1
    with suppress(UserError):
        assert command("trace", PLANTED).replace("\n", "").isprintable()
