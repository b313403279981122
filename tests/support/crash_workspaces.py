"""Small repositories in which each stage can be run again and again from the same state."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import yaml

from pipeline.services.dvc_command import outputs, read_stages
from preloaded_process import PROCESSES, work
from vaeline.io.workspace import Workspace

ROOT = Path(__file__).parents[2]
OUTPUTS = {name: outputs(stage) for name, stage in read_stages(Workspace(ROOT)).items()}  # DVC removes them first
STAGES = tuple(OUTPUTS)
TRACKED = STAGES[2:]
# a kill between two of these finds on the disk what a kill at one of them finds
CHANGES = re.compile(r"create|half write|replace|after|rename|unlink|rmdir|open|half copy")
ALIKE = re.compile(r"(open|half copy|after mkdir) .vaeline/artifacts/(.*/)?models/")  # hundreds of files of one upload
EACH = 15


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
    env: dict[str, str] = field(default_factory=dict)

    def run(
        self, what: str, action: str = "none", at: int = -1, within: str = "", after: float | None = None, **env: str
    ) -> Outcome:
        """A stage, sync or inspect; something happens at a point of those within a subfolder, or a kill in time."""
        points, here = self.folder / ".points.json", str(self.folder)
        points.unlink(missing_ok=True)
        own = {"DVC_ROOT": here, "VAELINE_UPLOADER": "off", "VAELINE_DEVICE": "cpu"} | self.env | env
        with NamedTemporaryFile("r") as log:  # not on a disk that is full
            job = {"what": what, "cwd": here, "log": log.name, "env": os.environ | own, "points": str(points)}
            job["root"] = str(self.folder / within) if within else f"{here}/"
            process = PROCESSES.Process(target=work, args=(job | {"action": action, "at": at},))
            process.start()
            process.join(after)
            if process.is_alive():
                process.kill()
                process.join()
            said = Path(log.name).read_text()
        assert process.exitcode is not None
        return Outcome(process.exitcode, said, json.loads(points.read_text() or "[]") if points.exists() else [])

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
        return CrashWorkspace(folder, self.env)


@dataclass
class StageStates:
    """For each stage the state before it, and what it comes to when nothing happens."""

    root: Path
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
        each = {"VAELINE_CHECKPOINT_SECONDS": "0", "VAELINE_LOG_EVERY": "2"}  # a checkpoint and a point each step
        last = CrashWorkspace(self.root / "seed", each | {"CACHED_RESULTS": str(self.root)})
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
    """Seconds for the whole pipeline, on drawn shapes."""
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
