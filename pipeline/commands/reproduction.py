"""A model made again from what its run recorded, in a folder of its own, and compared with the registered one.

A clone of the commit, the uncommitted changes applied, and `dvc repro` of fetch, prepare and train: computed, not
taken from DVC's cache or run cache. It has its own DVC cache and its own MLflow store, which nothing is sent to, and
registers nothing.
"""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.services.dvc_command import DVC, error_line, make_clone, stream
from vaeline.errors import UserError
from vaeline.io import run_context
from vaeline.io.digests import file_digest
from vaeline.io.git import git_bytes, try_git
from vaeline.io.safe_read import shown
from vaeline.io.workspace import Workspace
from vaeline.registry.lineage import HISTORY, MACHINE, Lineage
from vaeline.tracking.outbox import Outbox
from vaeline.tracking.provenance import MAXIMUM_DIFF, versions

if TYPE_CHECKING:
    from vaeline.serving.model_files import LoadedModel

Log = Callable[[str], None]
MAKES_THE_MODEL = ("data.", "model.", "train.")  # params
READ_PARAMS = (
    "import json, pathlib, vaeline.config as c, vaeline.tracking.provenance as p;"
    "print(json.dumps(p.flatten_params(c.read_params(pathlib.Path('params.yaml')))))"
)


@contextmanager
def reproduced(
    lineage: Lineage, workspace: Workspace, log: Log, keep: bool = False, run_changes: bool = False
) -> Iterator[Path]:
    """The folder in which the model was made again; removed at the end of the block unless `keep`.

    Uncommitted changes that no trusted key signed run with `run_changes` only. Raises UserError where these, or not
    enough, were recorded, the repository lacks the commit, the params differ from the run's, or a stage fails.
    """
    _check_code(lineage, workspace.root, log, run_changes)
    folder = Path(tempfile.mkdtemp(prefix="vaeline-reproduce-"))
    try:
        project = make_clone(workspace.root, folder / "checkout", lineage.content["code"]["commit"])
        if lineage.diff is not None:
            try:
                git_bytes(folder / "checkout", "apply", "--whitespace=nowarn", "-", stdin=lineage.diff)
            except UserError as error:
                raise UserError(f"the run's uncommitted changes do not fit its commit: {error}") from None
            log(f"applied the run's uncommitted changes of {', '.join(lineage.content['code']['diff']['files'])}")
        environment = _environment(lineage, project, log)
        _check_params(lineage, project, environment)
        if untracked := lineage.content["code"]["untracked"]:
            log(f"not kept, as git did not track them: {shown(', '.join(untracked), 1000)}")
        here = versions()
        for name, recorded in lineage.content["versions"].items():
            if here.get(name) != recorded:
                log(f"{shown(name)} is {here.get(name, 'not installed')} here, was {shown(recorded)}")
        _link_data(lineage, workspace.root, project)
        command = [*DVC, "--cd", str(project), "repro", "--force", "--no-run-cache", "--no-commit", "train"]
        code, tail = stream(command, environment, log)
        if code:
            raise UserError(f"dvc repro train failed: {error_line(tail, code)}")
        yield project
    finally:
        if keep:
            log(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def differences(lineage: Lineage, history: bytes | None, project: Path) -> list[str]:
    """Lines on what differs in the model made again in `project`: none where it is identical.

    `history` is the run's history.csv. Where something differs, what differs about the machines may be the cause.
    """
    assert lineage.package is not None
    found = list(_data_differences(lineage, Workspace(project).prepared / "manifest.json"))
    found += _model_differences(lineage.package.loaded, Workspace(project).model)
    if history is not None and history != (made := (project / HISTORY).read_bytes()):
        found += _history_differences(history, made)
    if not found:
        return []
    here, recorded = machine_of(project), lineage.content["machine"]
    if not recorded:
        return [*found, "the machine that trained it is not recorded"]
    names = sorted(recorded.keys() | here.keys())
    lines = [
        f"the machine: {name} is {here.get(name, 'not recorded')}, was {recorded.get(name, 'not recorded')}"
        for name in names
        if recorded.get(name) != here.get(name)
    ]
    return found + (lines or [f"the machines are alike: {', '.join(f'{name} {here[name]}' for name in names)}"])


def machine_of(project: Path) -> dict[str, str]:
    """The machine's identity, as the stage train reported it in `project`."""
    events = [event for run in Outbox(Workspace(project, project)).runs() for _, event in run.read()]
    tags = [item for event in events if event["kind"] == "tags" for item in event["values"].items()]
    return {key.removeprefix(MACHINE): value for key, value in tags if key.startswith(MACHINE)}


def _check_code(lineage: Lineage, root: Path, log: Log, run_changes: bool) -> None:
    uri, code, run_id = lineage.uri, lineage.content["code"], lineage.content["mlflow_run"]["id"]
    if not run_id or not code["commit"]:
        raise UserError(f"{uri}: its MLflow run names no commit, so it cannot be reproduced")
    if code["dirty"] and lineage.diff is None:
        raise UserError(
            f"{uri}: was trained with uncommitted changes, which its run {run_id} does not hold; "
            "where it was trained `vaeline sync` sends what is missing"
        )
    if lineage.cut:
        raise UserError(
            f"{uri}: was trained with uncommitted changes of more than {MAXIMUM_DIFF:,} bytes, of which only "
            "these were kept: the model cannot be made again"
        )
    if lineage.diff is not None and not lineage.signed and not run_changes:
        for line in lineage.diff.decode("utf-8", "replace").splitlines():
            log(shown(line.expandtabs(), 1000))
        raise UserError(
            f"{uri}: was trained with the uncommitted changes above, which no key of VAELINE_TRUSTED_KEYS signed; read "
            "them, then --run-changes runs them"
        )
    if try_git(root, "cat-file", "-e", f"{code['commit']}^{{commit}}") is None:
        raise UserError(
            f"{uri}: its commit {shown(code['commit'])} is not in this clone; `git fetch --all` may bring it, or go to "
            "the clone in which it was trained"
        )


def _environment(lineage: Lineage, project: Path, log: Log) -> dict[str, str]:
    """The clone's own code and stores; the recorded device and threads, unless the user names others."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_ROOT", "DVC_EXP", "GIT_"))}
    environment.pop(run_context.VARIABLE, None)
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


def _check_params(lineage: Lineage, project: Path, environment: Mapping[str, str]) -> None:
    """Refuse, before anything is computed, a clone that would train with other params than the run did."""
    command = [sys.executable, "-c", READ_PARAMS]
    done = subprocess.run(command, cwd=project, env=dict(environment), capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"{project / 'params.yaml'}: cannot be read by the checkout's own code: {last}")
    here, recorded = json.loads(done.stdout), lineage.content["params"]
    for key in sorted(here.keys() | recorded.keys()):
        if key.startswith(MAKES_THE_MODEL) and here.get(key) != recorded.get(key):
            was = shown(recorded.get(key, "none"))
            raise UserError(f"the checkout's params.yaml: {shown(key)}: {here.get(key, 'missing')}, the run had {was}")


def _link_data(lineage: Lineage, root: Path, project: Path) -> None:
    """Make images that lie in the workspace, but not in git, visible in the clone."""
    path = Path(lineage.content["params"].get("data.source.path") or "/")
    source, link = root / path, project / path
    if not path.is_absolute() and ".." not in path.parts and source.exists() and not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source.absolute())


def _data_differences(lineage: Lineage, manifest: Path) -> Iterator[str]:
    data = lineage.content["data"]
    if (digest := file_digest(manifest)) == data["digest"]:
        return
    yield f"data/prepared: digest {digest}, was {data['digest']}"
    splits = json.loads(manifest.read_text(encoding="utf-8"))["splits"]
    for split, count in data.get("images", {}).items():
        if (here := splits.get(split, {}).get("count")) != count:
            yield f"data/prepared: {split} has {here} images, had {count}"


def _model_differences(old: "LoadedModel", folder: Path) -> Iterator[str]:
    from vaeline.serving.model_files import load_model

    new = load_model(folder)
    if new.digest == old.digest:
        return
    yield f"models: digest {new.digest}, was {old.digest}"
    configs = [_flat(model.config.model_dump(mode="json")) for model in (old, new)]
    for key in sorted(configs[0].keys() | configs[1].keys()):
        was, now = (config.get(key) for config in configs)
        if was != now:
            yield f"models/config.json: {key}: {now!r}, was {was!r}"
    path, tensors = "models/model.safetensors", [model.vae.state_dict() for model in (old, new)]
    shapes = [{name: tuple(tensor.shape) for name, tensor in named.items()} for named in tensors]
    if shapes[0] != shapes[1]:
        yield f"{path}: other tensors: {shapes[1]}, were {shapes[0]}"
        return
    gaps = {name: float((tensors[1][name].double() - old_one).abs().max()) for name, old_one in tensors[0].items()}
    if differing := sum(gap != 0 for gap in gaps.values()):
        worst = max(gaps, key=lambda name: gaps[name])
        yield f"{path}: {differing} of {len(gaps)} tensors differ, by at most {gaps[worst]:.3g} ({worst})"


def _history_differences(recorded: bytes, made: bytes) -> Iterator[str]:
    """The largest difference of each column; the columns are those of the run's commit."""
    try:
        old, new = (list(csv.DictReader(io.StringIO(content.decode()))) for content in (recorded, made))
        pairs = {column: [(a.get(column), b[column]) for a, b in zip(old, new, strict=False)] for column in new[0]}
        gaps = {column: max(abs(float(b) - float(a)) for a, b in values if a and b) for column, values in pairs.items()}
    except (ValueError, TypeError, IndexError, csv.Error):
        yield f"{HISTORY}: cannot be compared with that of the run"
        return
    if len(old) != len(new):
        yield f"{HISTORY}: {len(new)} epochs, were {len(old)}"
    yield from (f"{HISTORY}: {column} differs by at most {gap:.3g}" for column, gap in gaps.items() if gap)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {prefix + key: item}
    return flat
