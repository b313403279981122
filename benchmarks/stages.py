"""What the machinery around the work costs: a stage's own overhead, and `dvc repro` with nothing to do.

Both are measured on scikit-learn's digits in a temporary copy of this repository, beside what they are held against:
importing the same libraries, and a trivial pipeline of five stages.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.row import Row

ROOT = Path(__file__).parents[1]
REPEATS = 3
STAGES = ("fetch", "prepare", "train", "evaluate", "sample", "register")
TINY = {
    r"kind: fashion-mnist": "kind: digits",
    r"validation: 10000": "validation: 200",
    r"importance_samples: \d+": "importance_samples: 1",
    r"hidden: \[.*\]": "hidden: [16]",
    r"  epochs: \d+": "  epochs: 1",
    r"rows: \d+": "rows: 1",
    r"columns: \d+": "columns: 2",
    r"traversals: \d+": "traversals: 1",
}
# runs a stage, then writes the libraries that it has imported, in the order of their import
LISTING = """
import atexit, runpy, sys
def write():
    ours = ("vaeline", "pipeline", "benchmarks", "__main__")
    names = [n for n in sys.modules if n.partition(".")[0] not in (*ours, *sys.stdlib_module_names)]
    open(sys.argv[1], "w").write("\\n".join(names))
atexit.register(write)
runpy.run_module(f"pipeline.stages.{sys.argv[2]}", run_name="__main__", alter_sys=False)
"""
IMPORTING = """
import importlib, sys
for name in open(sys.argv[1]).read().split():
    try:
        importlib.import_module(name)
    except Exception:
        pass
"""


def rows() -> list[Row]:
    """The overhead of each stage, and nothing to do beside nothing to do."""
    with _tiny_repository() as ours, _trivial_pipeline() as trivial:
        _run("dvc", "repro", "-q", cwd=ours)
        _run("dvc", "repro", "-q", cwd=trivial)
        overheads = [_overhead_row(stage, ours) for stage in STAGES]
        return [*overheads, _nothing_to_do_row(ours, trivial)]


def _overhead_row(stage: str, folder: Path) -> Row:
    listing = folder / ".vaeline" / "libraries"
    _run(sys.executable, "-c", LISTING, str(listing), stage, cwd=folder)
    whole = ("-m", f"pipeline.stages.{stage}")
    seconds = _fastest([(sys.executable, *whole), (sys.executable, "-c", IMPORTING, str(listing))], [folder, folder])
    overhead = seconds[0] - seconds[1]
    return Row(f"stage {stage}: own overhead", f"{overhead:.2f} s", seconds[0] / seconds[1], "< 1 s", overhead < 1)


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
            _run(*command, cwd=folder)
            seconds.append(time.perf_counter() - begun)
    return [min(seconds) for seconds in times]


@contextmanager
def _tiny_repository() -> Iterator[Path]:
    """A copy of this repository with digits and one epoch."""
    with tempfile.TemporaryDirectory(prefix="vaeline-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for part in ("src", "pipeline"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
            (folder / file).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / file, folder / file)
        text = (folder / "params.yaml").read_text()
        for pattern, value in TINY.items():
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
    _run("git", "init", "-q", cwd=folder)
    _run("git", "add", "-A", cwd=folder)
    _run("git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-q", "-m", "Start", cwd=folder)


def _run(*command: str, cwd: Path) -> None:
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "VAELINE_"))},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{cwd / 'src'}{os.pathsep}{cwd}",
        "DVC_SITE_CACHE_DIR": str(cwd / ".dvc" / "tmp" / "site"),
        "VAELINE_DEVICE": "cpu",
    }
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
