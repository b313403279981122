"""A model made again from what its run recorded, in a folder of its own, and compared with the registered one.

A clone of the commit, the uncommitted changes applied, and `dvc repro` of fetch, prepare and train: computed, not
taken from DVC's cache or run cache. It has its own DVC cache and its own MLflow store, which nothing is sent to, and
registers nothing.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.services.dvc_command import DVC, Log, error_line, make_clone, stream
from vaeline.errors import UserError
from vaeline.io.digests import file_digest
from vaeline.io.git import git_bytes, try_git
from vaeline.io.safe_read import shown
from vaeline.io.workspace import VARIABLE, Workspace
from vaeline.registry.lineage import HISTORY, Lineage
from vaeline.tracking.outbox import Outbox
from vaeline.tracking.provenance import MAXIMUM_DIFF, leaves, versions

if TYPE_CHECKING:
    from vaeline.serving.model_files import LoadedModel


@contextmanager
def reproduced(
    lineage: Lineage, workspace: Workspace, log: Log, keep: bool = False, run_changes: bool = False
) -> Iterator[Path]:
    """The folder in which the model was made again; removed at the end of the block unless `keep`.

    Uncommitted changes that no trusted key signed run with `run_changes` only. Raises UserError where these, or not
    enough, were recorded, the repository lacks the commit, or a stage fails.
    """
    _check_code(lineage, workspace.root, log, run_changes)
    folder, code = Path(tempfile.mkdtemp(prefix="vaeline-reproduce-")), lineage.content["code"]
    try:
        project = make_clone(workspace.root, folder / "checkout", code["commit"])
        if lineage.diff is not None:
            try:
                git_bytes(folder / "checkout", "apply", "--whitespace=nowarn", "-", stdin=lineage.diff)
            except UserError as error:
                raise UserError(f"the run's uncommitted changes do not fit its commit: {error}") from None
            log(f"applied the run's uncommitted changes of {shown(', '.join(code['diff']['files']), 1000)}")
        environment = _environment(lineage, project, log)
        if code["untracked"]:
            log(f"not kept, as git did not track them: {shown(', '.join(code['untracked']), 1000)}")
        here = versions()
        for name, recorded in lineage.content["versions"].items():
            if here.get(name) != recorded:
                log(f"{shown(name)} is {here.get(name, 'not installed')} here, was {shown(recorded)}")
        images = Path(lineage.content["params"].get("data.source.path") or "/")  # that lie beside git: linked
        source, link = workspace.root / images, project / images
        if not images.is_absolute() and ".." not in images.parts and source.exists() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source.absolute())
        command = [*DVC, "--cd", str(project), "repro", "--force", "--no-run-cache", "--no-commit", "train"]
        status, tail = stream(command, environment, log)
        if status:
            raise UserError(f"dvc repro train failed: {error_line(tail, status)}")
        yield project
    finally:
        if keep:
            log(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def differences(lineage: Lineage, project: Path) -> list[str]:
    """Lines on what differs in the model made again in `project`, and then about the machines: none if identical."""
    found, was = [], lineage.content["data"]["digest"]
    if (digest := file_digest(Workspace(project).prepared / "manifest.json")) != was:
        found.append(f"data/prepared: digest {digest}, was {was}")
    found += _model_differences(lineage.package.loaded, Workspace(project).model)
    if lineage.history not in (None, (project / HISTORY).read_bytes()):
        found.append(f"{HISTORY}: differs")
    if not found:
        return []
    events = [event for run in Outbox(Workspace(project, project)).runs() for _, event in run.read()]
    tags = [item for event in events if event["kind"] == "tags" for item in event["values"].items()]
    prefix = "vaeline.machine."
    here = {key.removeprefix(prefix): value for key, value in tags if key.startswith(prefix)}
    there = lineage.content["machine"]
    if not there:
        return [*found, "the machine that trained it is not recorded"]
    names = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
    return found + [f"the machine: {name} is {here.get(name)}, was {there.get(name)}" for name in names]


def _check_code(lineage: Lineage, root: Path, log: Log, run_changes: bool) -> None:
    code, diff, trained = lineage.content["code"], lineage.diff, f"{lineage.uri}: was trained with uncommitted changes"
    if not code["commit"]:
        raise UserError(f"{lineage.uri}: its run names no commit, so it cannot be reproduced")
    if code["dirty"] and diff is None:
        raise UserError(
            f"{trained}, which its run does not hold; where it was trained `vaeline sync` sends what is missing"
        )
    if code["diff"] and code["diff"]["cut"]:
        raise UserError(f"{trained} of more than {MAXIMUM_DIFF:,} bytes, not all of which were kept")
    if diff is not None and not lineage.signed and not run_changes:
        for line in diff.decode("utf-8", "replace").splitlines():
            log(shown(line.expandtabs(), 1000))
        raise UserError(f"{trained}, shown above, that no trusted key signed; read them, then --run-changes runs them")
    if try_git(root, "cat-file", "-e", f"{code['commit']}^{{commit}}") is None:
        commit = shown(code["commit"])
        raise UserError(f"{lineage.uri}: its commit {commit} is not in this clone; `git fetch --all` may bring it")


def _environment(lineage: Lineage, project: Path, log: Log) -> dict[str, str]:
    """The clone's own code and stores; the recorded device and threads, unless the user names others."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_ROOT", "DVC_EXP", "GIT_"))}
    environment.pop(VARIABLE, None)
    machine = lineage.content["machine"]
    recorded = {
        "VAELINE_THREADS": machine.get("threads", ""),
        "VAELINE_NPROC": machine.get("processes", ""),
        "VAELINE_DEVICE": "cpu" if machine.get("device", "").startswith("cpu") else "",
    }
    for name, value in recorded.items():
        if name not in environment and (value == "cpu" or (value.isdecimal() and len(value) < 4)):
            environment[name] = value
            log(f"{name}={value}, as recorded")
    state = project / ".vaeline"
    state.mkdir(exist_ok=True)
    return environment | {
        "PYTHONPATH": os.pathsep.join([str(project / "src"), str(project)]),
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{state / 'mlflow.db'}",
        "VAELINE_UPLOADER": "off",
        "TMPDIR": str(state),  # PyTorch leaves a folder there
    }


def _model_differences(old: "LoadedModel", folder: Path) -> Iterator[str]:
    from vaeline.serving.model_files import load_model

    new = load_model(folder)
    if new.digest == old.digest:
        return
    yield f"models: digest {new.digest}, was {old.digest}"
    was, now = (dict(leaves(model.config.model_dump(mode="json"))) for model in (old, new))
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            yield f"models/config.json: {key}: {now.get(key)!r}, was {was.get(key)!r}"
    path, tensors, others = "models/model.safetensors", old.vae.state_dict(), new.vae.state_dict()
    if [(name, tensor.shape) for name, tensor in tensors.items()] != [(name, t.shape) for name, t in others.items()]:
        yield f"{path}: other tensors or shapes"
        return
    gaps = {name: float((others[name].double() - tensor).abs().max()) for name, tensor in tensors.items()}
    if differing := sum(gap != 0 for gap in gaps.values()):
        worst = max(gaps, key=lambda name: gaps[name])
        yield f"{path}: {differing} of {len(gaps)} tensors differ, by at most {gaps[worst]:.3g} ({worst})"
