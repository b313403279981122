"""One experiment by `vaeline run -S`: in a clone, so that params.yaml, dvc.lock and the data stay as they are."""

import re
from collections.abc import Callable, Sequence

from pipeline.services.dvc_command import TRANSIENT, StageError
from pipeline.sweep.experiments import parse_overrides
from pipeline.sweep.process import ExperimentProcess, Origin, Result, read_baseline
from pipeline.sweep.study import NAME, NAMES
from vaeline.errors import UserError
from vaeline.io.digests import value_digest
from vaeline.io.git import git
from vaeline.io.workspace import Workspace

OF_DVC = re.compile(r"Reproducing experiment|Ran experiment|Experiment results|To apply the results|\s+dvc exp |$")


def run_experiment(
    workspace: Workspace, overrides: Sequence[str], name: str, only: str, force: bool, echo: Callable[[str], None]
) -> tuple[str, Result]:
    """Name and result of an experiment with these changes to params.yaml, its output to `echo` as it comes.

    Raises UserError where a change or the name is wrong, and with the stage's error line where it fails.
    """
    if name and not NAME.fullmatch(name):
        raise UserError(f"--name: found {name!r}, allowed: {NAMES}")
    baseline = read_baseline(workspace)
    arguments = parse_overrides(overrides, baseline.params)
    if name and not force and git(workspace.root, "for-each-ref", f"refs/exps/*/*/{name}"):
        raise UserError(f"--name: experiment {name} exists; choose another name, or remove it: dvc exp remove {name}")
    if not name:
        words = "-".join(re.sub(r"^[^=]*\.", "", override).replace("=", "") for override in overrides)
        digest = value_digest({"baseline": baseline.identity, "arguments": arguments, "only": only})
        name = f"{re.sub(r'[^A-Za-z0-9+-]+', '_', words)[:50].strip('-_')}-{digest[:6]}"
    origin = Origin(workspace, baseline, workspace.make_state() / "experiments", {})
    origin.remove_clones()
    targets = [*(["--force"] if force else []), *([only] if only else [])]
    process = ExperimentProcess(origin, name, arguments, {}, targets)
    ended = process.wait(lambda line: None if OF_DVC.match(line) else echo(line))
    if "reason" in ended:
        reason = ended["reason"]
        message = f"experiment {name} failed: {reason}; the workspace is as it was"
        raise StageError(message, transient=TRANSIENT.search(reason) is not None)
    return name, ended
