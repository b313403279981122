"""Start of the uploader, a process of its own, beside a stage. Nothing here imports mlflow."""

import logging
import os
import sys

from vaeline.io.run_context import RunContext
from vaeline.io.workspace import Workspace
from vaeline.tracking.outbox import RunOutbox

log = logging.getLogger(__name__)


def start_uploader(workspace: Workspace, run: RunOutbox, *, system_metrics: bool) -> None:
    """Start `python -m vaeline.tracking.uploader` in its own session, so that it outlives a killed stage.

    It ends by itself soon after the last writer of the run has. `VAELINE_UPLOADER=off` starts none.
    """
    if os.environ.get("VAELINE_UPLOADER") == "off":
        return
    command = [sys.executable, "-m", "vaeline.tracking.uploader", str(workspace.repository.absolute()), run.name]
    command += ["--system-metrics"] if system_metrics else []
    environment = dict(os.environ)
    if (path := RunContext.read().uploader_path) is not None:
        environment["PYTHONPATH"] = path
    create = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    files += [(os.POSIX_SPAWN_OPEN, fd, str(run.log), create, 0o644) for fd in (1, 2)]
    try:
        os.posix_spawn(sys.executable, command, environment, file_actions=files, setsid=True)
    except (OSError, NotImplementedError) as error:
        log.warning("%s stays in %s until `vaeline sync`: %s", run.name, run.outbox.path, error)
