"""A sweep as a file, `.vaeline/sweeps/<name>/state.json`: what was asked, on which baseline, and what became of it.

Written whole after every change, so that a sweep that was stopped or killed goes on where it was.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

from pipeline.sweep.search import Known, Method, require_optuna, suggest
from pipeline.sweep.space import MOST_CORNERS, Axis, Values, check, corners, grid, overlaid, parse_axes, varied
from vaeline.errors import UserError
from vaeline.io.atomic_write import write_file
from vaeline.io.digests import value_digest
from vaeline.io.workspace import state_folder

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
Status = Literal["waiting", "done", "failed"]


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    assignments: list[str]
    search: Literal["grid", "random", "bayesian"] = "grid"
    trials: int = 0  # of a search
    seed: int = 1  # of a search
    metric: str = "test.elbo"
    maximise: bool = True


@dataclass(frozen=True)
class Baseline:
    """What every trial starts from: a commit, and the uncommitted changes of tracked files as a stash commit."""

    commit: str
    stash: str  # empty where there are none
    content: str  # digest of the changes: a stash commit's own name tells the time too
    params: Any  # the content of params.yaml

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from another: not the stash commit, which holds a time."""
        return {"commit": self.commit, "content": self.content, "params": self.params}


@dataclass(frozen=True)
class Trial:
    """One combination of values and what became of it."""

    number: int
    name: str  # of the DVC experiment
    values: Values
    status: Status = "waiting"
    metrics: dict[str, float] = field(default_factory=dict)  # "test.elbo": nats, ...
    reason: str = ""  # of a failure
    digest: str = ""  # of the model
    seconds: float = 0.0


@dataclass
class Sweep:
    """Everything about one sweep; `save` after a change."""

    name: str
    request: Request
    baseline: Baseline
    trials: list[Trial] = field(default_factory=list)
    completed: str = ""  # the best trial, once its remaining stages have run
    parent_run_id: str = ""  # in MLflow, once there is one

    @classmethod
    def plan(cls, name: str, request: Request, baseline: Baseline) -> Self:
        """A new sweep, checked; a grid's trials are all there at once. Raises UserError before anything runs."""
        axes = parse_axes(request.assignments, baseline.params)
        name = name or f"sweep-{value_digest(_identity(request, baseline))[:6]}"
        if not NAME.fullmatch(name):
            raise UserError(f"--name: found {name!r}, allowed: up to 40 letters, digits, - and _")
        sweep = cls(name, request, baseline)
        if request.search == "grid":
            combinations = grid(axes)
            check(baseline.params, combinations)
            for values in combinations:
                sweep._add(values, varied(axes))
        else:
            require_optuna()
            check(baseline.params, islice(corners(axes), MOST_CORNERS))
        return sweep

    @classmethod
    def load(cls, name: str) -> "Sweep | None":
        """The sweep of that name, what failed or was cut off waiting again; None where there is none."""
        path = folder(name) / "state.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content["request"] = Request(**content["request"])
            content["baseline"] = Baseline(**content["baseline"])
            trials = [Trial(**trial) for trial in content.pop("trials")]
            again = [t if t.status == "done" else replace(t, status="waiting", reason="") for t in trials]
            return cls(**content, trials=again)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: cannot be read ({error}); remove {path.parent} to start anew") from None

    def save(self) -> None:
        """Write the state, whole or not at all."""
        write_file(folder(self.name) / "state.json", (json.dumps(asdict(self), indent=1) + "\n").encode())

    @property
    def axes(self) -> list[Axis]:
        """What is varied or fixed."""
        return parse_axes(self.request.assignments, self.baseline.params)

    @property
    def total(self) -> int:
        """How many trials there will be."""
        return len(self.trials) if self.request.search == "grid" else self.request.trials

    def next_trial(self, running: Iterable[int]) -> Trial | None:
        """A trial that waits, or a newly drawn one; None where there is none to start."""
        started = set(running)
        for trial in self.trials:
            if trial.status == "waiting" and trial.number not in started:
                return trial
        if len(self.trials) >= self.total:
            return None
        return self._draw()

    def settle(self, trial: Trial) -> None:
        """Put in what became of a trial."""
        self.trials[trial.number] = trial
        self.save()

    def score(self, trial: Trial) -> float | None:
        """The metric that ranks; None where the trial has none."""
        return trial.metrics.get(self.request.metric) if trial.status == "done" else None

    def _draw(self) -> Trial:
        """The search's next trial, refused at once where its values contradict each other."""
        method: Method = "random" if self.request.search == "random" else "bayesian"
        known = [Known(t.values, self.score(t), _is_lost(t, self.request.metric)) for t in self.trials]
        axes = self.axes
        values = suggest(axes, method, self.request.seed, known, self.request.maximise)
        trial = self._add(values, varied(axes))
        try:
            check(self.baseline.params, [values])
        except UserError as error:
            self.trials[trial.number] = replace(trial, status="failed", reason=str(error).replace("\n", "; "))
        self.save()
        return self.trials[trial.number]

    def _add(self, values: Values, keys: list[str]) -> Trial:
        number = len(self.trials)
        self.trials.append(Trial(number, f"{self.name}-{number + 1:02d}{_readable(values, keys)}", values))
        return self.trials[-1]

    def params(self, trial: Trial) -> Any:
        """The content of the trial's params.yaml."""
        return overlaid(self.baseline.params, trial.values)


def folder(name: str) -> Path:
    """`.vaeline/sweeps/<name>/`: state, logs, and the trials' clones while they run."""
    return state_folder() / "sweeps" / name


def _identity(request: Request, baseline: Baseline) -> dict[str, Any]:
    """What makes two sweeps the same one: the same command again goes on with it."""
    return asdict(request) | baseline.identity


def _is_lost(trial: Trial, metric: str) -> bool:
    return trial.status == "failed" or (trial.status == "done" and metric not in trial.metrics)


def _readable(values: Values, keys: list[str]) -> str:
    """`-beta0.5-latent_dim8`: a part of a Git reference and of a file's name."""
    parts = [f"-{label(key, values)}{_slug(values[key])}" for key in keys]
    return "".join(parts)[:100].rstrip(".-_")


def label(key: str, keys: Iterable[str]) -> str:
    """A key's last part, or all of it where another key ends the same."""
    last = key.rpartition(".")[2]
    return last if Counter(other.rpartition(".")[2] for other in keys)[last] == 1 else key


def show(value: Any) -> str:
    """A value for people: `0.00213`, `gated`, `[400, 400]`."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict) and "kind" in value:
        rest = ", ".join(f"{key} {show(inner)}" for key, inner in value.items() if key != "kind")
        return f"{value['kind']}{f' ({rest})' if rest else ''}"
    return value if isinstance(value, str) else json.dumps(value)


def _slug(value: Any) -> str:
    kind = value["kind"] if isinstance(value, dict) and "kind" in value else show(value)
    return re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9.+-]+", "_", str(kind)))[:24].strip("._")
