"""What the machinery around the work costs: a stage's own overhead, `dvc repro` with nothing to do, commands.

All are measured on scikit-learn's digits in a temporary copy of this repository, beside what they are held against:
importing the same libraries, and a trivial pipeline of five stages.
"""

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType

from benchmarks.row import Row

ROOT = Path(__file__).parents[1]
REPEATS = 3
MODEL = "models:/vaeline-fashion-mnist/1"
COMMANDS = {  # the most CPU-seconds of each, with nothing to do; the last two load a model, and so import torch
    "run": 2.5,
    "models": 1.5,
    "history vaeline-fashion-mnist": 1.5,
    f"verify {MODEL}": 3.0,
    f"trace {MODEL}": 3.0,
}
WHOLE = ("fetch", "prepare", "train")  # whose work on digits takes no time
START = ("evaluate", "sample", "theory", "register", "report")  # whose work does: measured with an empty `main`
TINY = {
    r"importance_samples: \d+": "importance_samples: 2",
    r"latent_images: \d+": "latent_images: 20",
    r"\{images: \d+": "{images: 2",
    r"training_images: \d+": "training_images: 20",
    r"hidden: \[.*\]": "hidden: [16]",
    r"  epochs: \d+": "  epochs: 1",
    r"rows: \d+": "rows: 1",
    r"columns: \d+": "columns: 2",
    r"traversals: \d+": "traversals: 1",
}
# runs a stage, whole or with an empty `main`, and writes the libraries that it imported, in their order
RUNNING = """
import os, sys
from importlib import import_module
from pipeline.stages import runner
listing, stage, part = sys.argv[1:]
def write():
    ours = ("vaeline", "pipeline", "__main__")
    names = [n for n in sys.modules if n.partition(".")[0] not in (*ours, *sys.stdlib_module_names)]
    open(listing, "w").write("\\n".join(names))
end = os._exit  # how a program ends, without the interpreter's own clearing up
os._exit = lambda code: (write(), end(code))
if part == "start":
    import_module(f"pipeline.stages.{stage}").main = lambda: None
runner.main(stage)
"""
IMPORTING = """
import importlib, sys
for name in open(sys.argv[1]).read().split():
    try:
        importlib.import_module(name)
    except Exception:
        pass
"""


def rows() -> Iterator[Row]:
    """Nothing to do beside nothing to do, and the overhead of each stage; each as soon as it is measured."""
    with tiny_repository() as ours, _trivial_pipeline() as trivial:
        run_command("dvc", "repro", "-q", cwd=ours)
        run_command("dvc", "repro", "-q", cwd=trivial)
        yield _nothing_to_do_row(ours, trivial)
        for command, most in COMMANDS.items():
            yield _command_row(command, most, ours)
        for part, stages in (("whole", WHOLE), ("start", START)):
            for stage in stages:
                yield _overhead_row(stage, part, ours)


def _overhead_row(stage: str, part: str, folder: Path) -> Row:
    listing = str(folder / ".vaeline" / "libraries")
    running = (sys.executable, "-c", RUNNING, listing, stage, part)
    importing = (sys.executable, "-c", IMPORTING, listing)
    run_command(*running, cwd=folder)
    whole, libraries = _fastest([running, importing], [folder, folder])
    overhead = whole - libraries
    name = f"stage {stage}: {'own overhead' if part == 'whole' else 'own start-up'}"
    return Row(name, f"{overhead:.2f} of {whole:.2f} s", None, "< 1 s", overhead < 1)


def _command_row(command: str, most: float, folder: Path) -> Row:
    used = [run_command("vaeline", *command.split(), cwd=folder) for _ in range(REPEATS)]
    found = min(one.ru_utime + one.ru_stime for one in used)
    return Row(f"vaeline {command}", f"{found:.2f} CPU-s", None, f"<= {most:g} CPU-s", found <= most)


def _nothing_to_do_row(ours: Path, trivial: Path) -> Row:
    mine, floor = _fastest([("dvc", "repro", "-q")] * 2, [ours, trivial])
    ratio = mine / floor
    return Row("dvc repro, nothing to do", f"{mine:.2f} s", ratio, "<= 1.5x", ratio <= 1.5)


def _fastest(commands: Sequence[Sequence[str]], folders: Sequence[Path]) -> list[float]:
    """Seconds of each command, the best of several rounds in which they take turns."""
    times: list[list[float]] = [[] for _ in commands]
    for _ in range(REPEATS):
        for seconds, command, folder in zip(times, commands, folders, strict=True):
            begun = time.perf_counter()
            run_command(*command, cwd=folder)
            seconds.append(time.perf_counter() - begun)
    return [min(seconds) for seconds in times]


def tiny_repository(source: str = "kind: digits", validation: str = "validation: 200") -> AbstractContextManager[Path]:
    """A copy of this repository with another source and one epoch."""
    return repository(TINY | {"kind: fashion-mnist": source, "validation: 10000": validation})


@contextmanager
def repository(changes: Mapping[str, str] = MappingProxyType({})) -> Iterator[Path]:
    """A copy of this repository, its params.yaml changed: patterns and what takes their place."""
    with tempfile.TemporaryDirectory(prefix="vaeline-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for part in ("src", "pipeline", "benchmarks"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
            (folder / file).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / file, folder / file)
        text = (folder / "params.yaml").read_text()
        for pattern, value in changes.items():
            text = re.sub(pattern, value, text)
        (folder / "params.yaml").write_text(text)
        _commit(folder)
        yield folder


@contextmanager
def _trivial_pipeline() -> Iterator[Path]:
    """Five stages that copy a file."""
    with tempfile.TemporaryDirectory(prefix="vaeline-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "0.txt").write_text("0")
        stages = [f"  s{n}: {{cmd: cp {n}.txt {n + 1}.txt, deps: [{n}.txt], outs: [{n + 1}.txt]}}" for n in range(5)]
        (folder / "dvc.yaml").write_text("\n".join(["stages:", *stages]))
        (folder / ".dvc").mkdir()
        shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
        _commit(folder)
        yield folder


def _commit(folder: Path) -> None:
    run_command("git", "init", "-q", cwd=folder)
    run_command("git", "add", "-A", cwd=folder)
    run_command(
        "git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-q", "-m", "Start", cwd=folder
    )


def run_command(*command: str, cwd: Path, **variables: str) -> resource.struct_rusage:
    """What a command in a copy of this repository used, its children included.

    Raises RuntimeError, with what it said, where it fails.
    """
    with tempfile.TemporaryFile() as output:
        env = environment(cwd) | variables
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}\n{output.read().decode()}")
    return used


def environment(cwd: Path) -> dict[str, str]:
    """Variables of a process in a copy of this repository."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "VAELINE_"))},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{cwd / 'src'}{os.pathsep}{cwd}",
        "DVC_SITE_CACHE_DIR": str(cwd / ".dvc" / "tmp" / "site"),
        "VAELINE_DEVICE": "cpu",
    }
