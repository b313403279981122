"""A model made again from what its run recorded, in a folder of its own.

A clone of the commit, the uncommitted changes applied, and `dvc repro` of fetch, prepare and train: computed, not
taken from DVC's cache or run cache. It has its own DVC cache and its own MLflow store, which nothing is sent to, and
registers nothing.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.services.clone import make_clone
from pipeline.services.dvc_command import DVC, error_line, stream
from vaeline.errors import UserError
from vaeline.io import run_context
from vaeline.io.git import git_bytes, try_git
from vaeline.io.workspace import Workspace
from vaeline.registry.lineage import Lineage
from vaeline.tracking.provenance import MAXIMUM_DIFF, versions

Log = Callable[[str], None]
MAKES_THE_MODEL = ("data.", "model.", "train.")  # params
READ_PARAMS = (
    "import json, pathlib, vaeline.config as c, vaeline.tracking.provenance as p;"
    "print(json.dumps(p.flatten_params(c.read_params(pathlib.Path('params.yaml')))))"
)


@contextmanager
def reproduced(lineage: Lineage, workspace: Workspace, log: Log, keep: bool = False) -> Iterator[Path]:
    """The folder in which the model was made again; removed at the end of the block unless `keep`.

    Raises UserError where the run did not record enough, the repository lacks the commit, the params differ from the
    run's, or a stage fails.
    """
    commit = _recorded_commit(lineage, workspace.root)
    folder = Path(tempfile.mkdtemp(prefix="vaeline-reproduce-"))
    try:
        project = make_clone(workspace.root, folder / "checkout", commit)
        _apply_changes(lineage, folder / "checkout", log)
        environment = _environment(lineage, project, log)
        _check_params(lineage, project, environment)
        _log_what_differs(lineage, log)
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


def _recorded_commit(lineage: Lineage, root: Path) -> str:
    commit = lineage.tag("git_commit")
    if not lineage.run_id or not commit:
        raise UserError(f"{lineage.uri}: its MLflow run names no commit, so it cannot be reproduced")
    if lineage.dirty and lineage.changes is None:
        raise UserError(
            f"{lineage.uri}: was trained with uncommitted changes, which its run {lineage.run_id} does not hold; "
            "where it was trained `vaeline sync` sends what is missing"
        )
    if lineage.changes and lineage.changes.cut:
        raise UserError(
            f"{lineage.uri}: was trained with uncommitted changes of more than {MAXIMUM_DIFF:,} bytes, of which only "
            "these were kept: the model cannot be made again"
        )
    if try_git(root, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise UserError(
            f"{lineage.uri}: its commit {commit} is not in this clone; `git fetch --all` may bring it, or go to the "
            "clone in which it was trained"
        )
    return commit


def _apply_changes(lineage: Lineage, clone: Path, log: Log) -> None:
    if lineage.changes is None:
        return
    try:
        git_bytes(clone, "apply", "--whitespace=nowarn", "-", stdin=lineage.changes.content)
    except UserError as error:
        raise UserError(f"the run's uncommitted changes do not fit its commit: {error}") from None
    log(f"applied the run's uncommitted changes of {', '.join(lineage.changes.files())}")


def _environment(lineage: Lineage, project: Path, log: Log) -> dict[str, str]:
    """The clone's own code and stores; the recorded device and threads, unless the user names others."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_ROOT", "DVC_EXP", "GIT_"))}
    environment.pop(run_context.VARIABLE, None)
    machine = lineage.machine
    recorded = {
        "VAELINE_THREADS": machine.get("threads"),
        "VAELINE_NPROC": machine.get("processes"),
        "VAELINE_DEVICE": "cpu" if machine.get("device", "").startswith("cpu") else None,
    }
    for name, value in recorded.items():
        if value and name not in environment:
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
    here, recorded = json.loads(done.stdout), lineage.params
    lines = [
        f"the checkout's params.yaml: {key}: {here.get(key, 'missing')}, the run had {recorded.get(key, 'none')}"
        for key in sorted(here.keys() | recorded.keys())
        if key.startswith(MAKES_THE_MODEL) and here.get(key) != recorded.get(key)
    ]
    if lines:
        raise UserError("\n".join(lines))


def _log_what_differs(lineage: Lineage, log: Log) -> None:
    if lineage.untracked:
        log(f"not kept, as git did not track them: {', '.join(lineage.untracked)}")
    here = versions()
    for name, recorded in lineage.versions.items():
        if here.get(name) != recorded:
            log(f"{name} is {here.get(name, 'not installed')} here, was {recorded}")


def _link_data(lineage: Lineage, root: Path, project: Path) -> None:
    """Make images that lie in the workspace, but not in git, visible in the clone."""
    path = Path(lineage.params.get("data.source.path") or "/")
    source, link = root / path, project / path
    if not path.is_absolute() and ".." not in path.parts and source.exists() and not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source.absolute())
