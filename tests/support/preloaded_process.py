"""Jobs in processes that are forked from one which has imported everything: a stage costs its own work alone."""

import json
import logging
import multiprocessing
import os
import pickle
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from sabotage import Sabotage
from vaeline.io.workspace import current_workspace

end_process = os._exit
Job = dict[str, Any]  # what: a stage | sync | inspect; cwd, log, env, action, at, root, points
PROCESSES = multiprocessing.get_context("forkserver")  # Python keeps one server, and one list, for all that ask
PROCESSES.set_forkserver_preload(["tests.support.preloaded"])


def work(job: Job) -> None:
    """One job; never returns."""
    assert "tests.support.preloaded" in sys.modules, "Python does not say what it could not import, or was asked anew"
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    warnings.simplefilter("ignore")
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # as a program asks for before it imports it
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    sabotage = Sabotage(job["root"], job["action"], job["at"])
    os._exit = sys.exit  # of the program: what it passed is still to be written
    code: Any = 70
    try:
        act(job["what"], sabotage)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for said in (sys.stdout, sys.stderr):  # end_process would lose it, where PYTHONUNBUFFERED is not set
            said.flush()
        sabotage.root, points = "/nowhere", sabotage.points
        if job.get("points"):
            with suppress(OSError):  # the disk may be full
                Path(job["points"]).write_text(json.dumps(points))
        end_process(code if isinstance(code, int) else 1)


def act(what: str, sabotage: Sabotage) -> None:
    """What the job is."""
    import importlib

    if what == "inspect":
        from store_inspection import inspect_store

        print(json.dumps(inspect_store()))
        return
    if what == "sync":
        from vaeline.command.program import run_program
        from vaeline.tracking.uploader import sync_all

        sabotage.install()
        run_program(lambda: print(sync_all(current_workspace())))
    from pipeline.stages import runner

    stage = importlib.import_module(f"pipeline.stages.{what}")
    for name in {"theory": ["all_sections"], "evaluate": ["latent_report"]}.get(what, []):
        cache_result(stage, name)
    if what == "register":
        smoke_by_fork(sabotage)
    sabotage.install()
    runner.main(what)


def cache_result(stage: Any, name: str) -> None:
    """What takes seconds and is the same each time; what is looked at here is how it is written."""
    path, real = Path(os.environ["CACHED_RESULTS"]) / name, getattr(stage, name)

    def once(*arguments: Any, **named: Any) -> Any:
        if path.exists():
            return pickle.loads(path.read_bytes())
        result = real(*arguments, **named)
        path.write_bytes(pickle.dumps(result))
        return result

    setattr(stage, name, once)


def smoke_by_fork(sabotage: Sabotage) -> None:
    """The smoke test in a forked process instead of a new one, which takes seconds to import MLflow."""
    from vaeline.registry import registration, smoke

    def forked(*given: Any) -> None:
        if child := os.fork():
            assert os.waitpid(child, 0)[1] == 0
            return
        sabotage.root = "/nowhere"
        code = 1
        try:
            smoke.predict(*given)
            code = 0
        finally:
            end_process(code)

    registration.smoke_test = forked
