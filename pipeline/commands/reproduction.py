"""Making a model again from what its run recorded, in a folder of its own that touches nothing else.

A clone of the commit, the uncommitted changes applied, and `dvc repro` of fetch, prepare and train: computed, not
taken from DVC's cache or run cache. It has its own DVC cache, its own MLflow store, which nothing is sent to, and
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

from pipeline.services.dvc_command import DVC, stream
from vaeline.errors import UserError
from vaeline.io import run_context
from vaeline.io.git import git, git_bytes, try_git
from vaeline.registry.lineage import Changes, Lineage
from vaeline.tracking.provenance import MAXIMUM_DIFF, versions

Log = Callable[[str], None]
MAKES_THE_MODEL = ("data.", "model.", "train.")  # params
READ_PARAMS = (
    "import json, pathlib, vaeline.config as c, vaeline.tracking.provenance as p;"
    "print(json.dumps(p.flatten_params(c.read_params(pathlib.Path('params.yaml')))))"
)


@contextmanager
def rebuilt(lineage: Lineage, log: Log, keep: bool = False) -> Iterator[Path]:
    """The folder in which the model was made again; it is removed at the end of the block unless `keep`.

    Raises UserError where the run did not record enough, this clone lacks the commit, the params come out otherwise,
    or a stage fails.
    """
    commit = _recorded_commit(lineage)
    folder = Path(tempfile.mkdtemp(prefix="vaeline-reproduce-"))
    try:
        project = _check_out(commit, folder / "checkout")
        if lineage.changes:
            _apply(lineage.changes, folder / "checkout", log)
        environment = _environment(lineage, project, log)
        _same_params(lineage, project, environment)
        _warn(lineage, log)
        _lend_data(lineage, project)
        _reproduce(project, environment, log)
        yield project
    finally:
        if keep:
            log(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _recorded_commit(lineage: Lineage) -> str:
    """The commit to go back to, everything that has to be known being there."""
    commit = lineage.tag("git_commit")
    if not lineage.run_id or not commit:
        raise UserError(f"{lineage.uri}: its MLflow run names no commit: there is nothing to go back to")
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
    if try_git(Path(), "cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise UserError(
            f"{lineage.uri}: its commit {commit} is not in this clone; `git fetch --all` may bring it, or go to the "
            "clone in which it was trained"
        )
    return commit


def _check_out(commit: str, folder: Path) -> Path:
    """A clone that borrows this repository's objects, at the commit; the place of dvc.yaml in it."""
    quiet = ("-c", "advice.detachedHead=false", "-c", "core.hooksPath=/dev/null")
    top, prefix = (git(Path(), "rev-parse", option) for option in ("--show-toplevel", "--show-prefix"))
    git(Path(), "clone", "--quiet", "--shared", "--no-checkout", top, str(folder))
    git(folder, *quiet, "checkout", "--quiet", "--detach", commit)
    project = folder / prefix
    if not (project / "dvc.yaml").is_file():
        raise UserError(f"commit {commit} has no {prefix}dvc.yaml")
    return project


def _apply(changes: Changes, folder: Path, log: Log) -> None:
    try:
        git_bytes(folder, "apply", "--whitespace=nowarn", "-", stdin=changes.content)
    except UserError as error:
        raise UserError(f"the run's uncommitted changes do not fit its commit: {error}") from None
    log(f"applied the run's uncommitted changes of {', '.join(changes.files())}")


def _environment(lineage: Lineage, project: Path, log: Log) -> dict[str, str]:
    """The checkout's own code and stores; the device and threads of then, unless the user names others."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_ROOT", "DVC_EXP", "GIT_"))}
    ours.pop(run_context.VARIABLE, None)
    machine = lineage.machine
    as_then = {
        "VAELINE_THREADS": machine.get("threads"),
        "VAELINE_NPROC": machine.get("processes"),
        "VAELINE_DEVICE": "cpu" if _on_cpu(lineage) else None,
    }
    for name, value in as_then.items():
        if value and name not in ours:
            ours[name] = value
            log(f"{name}={value}, as then")
    state = project / ".vaeline"
    state.mkdir(exist_ok=True)
    own_cache = f"[cache]\n    dir = {project / '.dvc' / 'cache'}\n"  # whatever the user's settings for DVC are
    (project / ".dvc" / "config.local").write_text(own_cache, encoding="utf-8")
    return ours | {
        "PYTHONPATH": os.pathsep.join([str(project / "src"), str(project)]),
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{state / 'mlflow.db'}",
        "VAELINE_UPLOADER": "off",
        "TMPDIR": str(state),  # PyTorch leaves a folder there
    }


def _on_cpu(lineage: Lineage) -> bool:
    return lineage.machine.get("device", "").startswith("cpu")


def _same_params(lineage: Lineage, project: Path, environment: Mapping[str, str]) -> None:
    """Refuse, before anything is computed, a checkout that would train with other params than the run did."""
    command = [sys.executable, "-c", READ_PARAMS]
    done = subprocess.run(command, cwd=project, env=dict(environment), capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"{project / 'params.yaml'}: cannot be read by the checkout's own code: {reason}")
    here: dict[str, str] = json.loads(done.stdout)
    then = lineage.params
    keys = [key for key in sorted(here.keys() | then.keys()) if key.startswith(MAKES_THE_MODEL)]
    other = [f"{key}: {here.get(key, 'missing')}, the run had {then.get(key, 'none')}" for key in keys]
    other = [line for key, line in zip(keys, other, strict=True) if here.get(key) != then.get(key)]
    if other:
        raise UserError("\n".join(f"the checkout's params.yaml: {line}" for line in other))


def _warn(lineage: Lineage, log: Log) -> None:
    """Say what is known to be otherwise, before the wait."""
    if lineage.untracked:
        log(f"not kept, for git did not follow them: {', '.join(lineage.untracked)}")
    here = versions()
    for name, then in lineage.versions.items():
        if here.get(name) != then:
            log(f"{name} is {here.get(name, 'not installed')} here, was {then}")


def _lend_data(lineage: Lineage, project: Path) -> None:
    """Let the checkout see images that lie in this folder, but not in git."""
    path = Path(lineage.params.get("data.source.path") or "/")
    if not path.is_absolute() and ".." not in path.parts and path.exists() and not (project / path).exists():
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).symlink_to(path.absolute())


def _reproduce(project: Path, environment: Mapping[str, str], log: Log) -> None:
    """`dvc repro train` with all before it; whatever ends this early ends the stages."""
    command = [*DVC, "--cd", str(project), "repro", "--force", "--no-run-cache", "--no-commit", "train"]
    code, tail = stream(command, environment, log)
    if code:
        told = [line.removeprefix("error: ") for line in tail if line.startswith("error: ")]
        raise UserError("\n".join(told or [f"dvc repro train: exit code {code}: {''.join(list(tail)[-1:])}"]))
