"""Small repositories in which each stage can be run again and again from the same state."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
STAGES = ("fetch", "prepare", "train", "evaluate", "sample", "theory", "register", "report")
OUTPUTS = {  # of each stage, as DVC removes them before it runs it
    "fetch": ("data/init", "data/raw"),
    "prepare": ("data/prepared", "reports/data"),
    "train": ("models", "reports/history.csv"),
    "evaluate": ("reports/metrics.json", "reports/kl_per_dimension.csv"),
    "sample": ("reports/samples", "reports/explorer.html"),
    "theory": ("reports/theory", "reports/theory.json"),
    "register": ("reports/registration.json",),
    "report": ("reports/index.html",),
}
TRACKED = STAGES[2:]
# a kill between two of these finds on the disk what a kill at one of them finds
CHANGES = re.compile(r"create|half write|replace|after|rename|unlink|rmdir|open|half copy")
ALIKE = re.compile(r"(open|half copy|after mkdir) .vaeline/artifacts/(.*/)?models/")  # hundreds of files of one upload
EACH = 15


class PreloadedProcess:
    """The process that forks for each job."""

    def __init__(self) -> None:
        path = os.pathsep.join(map(str, (HERE, ROOT / "src", ROOT)))
        env = os.environ | {"PYTHONPATH": path, "VAELINE_DEVICE": "cpu", "PYTHONWARNINGS": "ignore"}
        command, pipe = [sys.executable, str(HERE / "preloaded_process.py")], subprocess.PIPE
        self.process = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True)
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, job: Mapping[str, Any]) -> int:
        """Run a job; its exit code, negative for a signal."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self._answer())

    def close(self) -> None:
        """End it."""
        self.process.communicate()


@dataclass(frozen=True)
class Outcome:
    """How a job ended, what it said, which points it passed."""

    code: int
    said: str
    points: list[str]


@dataclass(frozen=True)
class CrashWorkspace:
    """A folder with params.yaml and what some stages left."""

    folder: Path
    preloaded: PreloadedProcess
    env: dict[str, str] = field(default_factory=dict)

    def run(
        self, what: str, action: str = "none", at: int = -1, within: str = "", after: float | None = None, **env: str
    ) -> Outcome:
        """A stage, sync or inspect; something happens at a point of those within a subfolder, or a kill in time."""
        points = self.folder / ".points.json"
        points.unlink(missing_ok=True)
        with NamedTemporaryFile("r") as log:  # not on a disk that is full
            job = {"what": what, "cwd": str(self.folder), "log": log.name, "env": self.env | env, "points": str(points)}
            job["root"] = str(self.folder / within) if within else f"{self.folder}/"
            code = self.preloaded.do(job | {"action": action, "at": at, "after": after})
            said = Path(log.name).read_text()
        return Outcome(code, said, json.loads(points.read_text() or "[]") if points.exists() else [])

    def run_ok(self, what: str, **env: str) -> Outcome:
        """Run, expecting success."""
        done = self.run(what, **env)
        assert done.code == 0, f"{what}: {done.code}\n{done.said}"
        return done

    def clear(self, stage: str) -> None:
        """Remove a stage's outputs, as DVC does."""
        for name in OUTPUTS[stage]:
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def outputs(self, stage: str) -> dict[str, bytes]:
        """Every file of a stage's outputs, hidden ones too."""
        found = {}
        for name in OUTPUTS[stage]:
            path = self.folder / name
            files = [path] if path.is_file() else sorted(path.rglob("*"))
            found |= {str(f.relative_to(self.folder)): f.read_bytes() for f in files if f.is_file()}
        return found

    def leftovers(self) -> list[str]:
        """What writers that were killed left lying."""
        hidden = [*self.folder.rglob(".*.part"), *self.folder.rglob(".*.new"), *self.folder.rglob(".*.old")]
        return sorted(str(path.relative_to(self.folder)) for path in hidden)

    def tracked(self) -> Any:
        """Send what is unsent, then all that the store says."""
        self.run_ok("sync")
        return json.loads(self.run_ok("inspect").said.splitlines()[-1])

    def copy(self, folder: Path) -> "CrashWorkspace":
        """The same state elsewhere."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return CrashWorkspace(folder, self.preloaded, self.env)


@dataclass
class StageStates:
    """For each stage the state before it, and what it comes to when nothing happens."""

    root: Path
    preloaded: PreloadedProcess
    before: dict[str, CrashWorkspace] = field(default_factory=dict)
    outputs: dict[str, dict[str, bytes]] = field(default_factory=dict)
    points: dict[str, list[str]] = field(default_factory=dict)
    store: dict[str, Any] = field(default_factory=dict)
    trials: int = 0

    def build(self, stages: tuple[str, ...] = STAGES) -> None:
        """Run the stages one after another, keeping the state before each."""
        if set(stages) <= set(self.outputs):
            return
        shutil.rmtree(self.root)
        last = CrashWorkspace(self.root / "seed", self.preloaded, {"CACHED_RESULTS": str(self.root)})
        last.folder.mkdir(parents=True)
        (last.folder / "params.yaml").write_text(yaml.safe_dump(tiny_params()))
        last.run_ok("inspect")  # makes the store, which takes seconds
        for stage in stages:
            self.before[stage] = last
            last = last.copy(self.root / f"after-{stage}")
            self.points[stage] = last.run_ok(stage).points
            self.outputs[stage] = last.outputs(stage)
            if stage in TRACKED:
                self.store[stage] = last.copy(self.root / f"look-{stage}").tracked()

    def trial(self, stage: str) -> CrashWorkspace:
        """A fresh workspace in the state before a stage."""
        self.trials += 1
        return self.before[stage].copy(self.root / f"trial-{self.trials}")


def tiny_params() -> dict[str, Any]:
    """Seconds for the whole pipeline, on drawn shapes; a checkpoint each step (the caller's environment)."""
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"]["source"] = {"kind": "shapes", "count": 150, "size": 8, "seed": 1}
    params["data"] |= {"validation": 30, "test": 30}
    params["model"]["network"]["hidden"] = [16]
    params["model"]["latent_dim"] = 2
    params["train"] |= {"epochs": 2, "batch_size": 32}
    params["evaluate"] |= {"importance_samples": 2, "latent_images": 30}
    params["sample"] |= {"columns": 3, "rows": 2, "steps": 3, "traversals": 2}
    params["theory"] |= {"images": 4, "importance_samples": 4, "training_images": 60, "epochs": 1}
    params["register"] |= {"name": "small", "minimum_active_units": 0}
    return params


def changes(points: Sequence[str]) -> list[int]:
    """The numbers of the points with a disk of their own; of an upload's many files every few."""
    found = [number for number, point in enumerate(points) if CHANGES.match(point)]
    alike = [number for number in found if ALIKE.match(points[number])]
    return sorted(set(found) - set(alike) | set(alike[::EACH]))


def assert_same(states: StageStates, trial: CrashWorkspace, stage: str) -> None:
    """Outputs, and what MLflow shows, as if nothing had happened."""
    assert trial.outputs(stage) == states.outputs[stage]
    assert trial.leftovers() == []
    if stage in TRACKED:
        assert trial.tracked() == states.store[stage]


def check_at(what: str, names: Sequence[str], points: Iterable[int], check: Callable[[int], None]) -> None:
    """Check at all these points, then fail with the names of those at which it failed."""
    bad, count = [], 0
    for at in points:
        count += 1
        try:
            check(at)
        except AssertionError as error:
            bad.append(f"{names[at]}: {str(error)[:2000]}")
    print(f"\n{what}: at {count} of {len(names)} points, {len(bad)} not as they should be")
    assert not bad, "\n".join(bad)


def number_of(points: Sequence[str], pattern: str) -> int:
    """The first point that is called so."""
    return next(number for number, name in enumerate(points) if re.match(pattern, name))


def put_old_outputs(states: StageStates, trial: CrashWorkspace, stage: str) -> None:
    """Outputs of before, to be kept or replaced."""
    for name in states.outputs[stage]:
        path = trial.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"old")


def assert_old_or_new(states: StageStates, trial: CrashWorkspace, stage: str) -> None:
    """Each output, a file or a folder, is wholly of before or wholly new."""
    found = trial.outputs(stage)
    assert found.keys() == states.outputs[stage].keys()
    for output in OUTPUTS[stage]:
        files = [name for name in found if name == output or name.startswith(f"{output}/")]
        now, new = ({name: source[name] for name in files} for source in (found, states.outputs[stage]))
        assert now in (new, dict.fromkeys(files, b"old")), f"{output} is a mixture"
