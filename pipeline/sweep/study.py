"""A sweep as an optuna study: what is asked, the baseline, and the trials with what became of each.

A trial of optuna carries user attributes: `name` (of the DVC experiment), `values` (by key path) and, once it ended,
`result`. What failed or was cut off runs again as a new trial of the same name; the latest of a name counts.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypedDict

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline.sweep.baseline import Baseline, read_baseline
from pipeline.sweep.space import (
    Space,
    Values,
    check,
    corners,
    grid,
    label,
    parse_space,
    show,
    to_params,
    to_values,
    varied,
)
from pipeline.sweep.storage import open_storage
from vaeline.errors import UserError
from vaeline.io.digests import value_digest
from vaeline.io.locks import acquire
from vaeline.io.workspace import Workspace

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
MOST_CORNERS = 1024  # of a search space that are checked; a trial is checked anyway before it runs


Search = Literal["grid", "random", "bayesian"]


class Result(TypedDict, total=False):
    """What became of a trial."""

    seconds: float
    reason: str  # of a failure
    metrics: dict[str, float]  # "test.elbo": nats, ...
    digest: str  # of the model


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    assignments: list[str]
    search: Search = "grid"
    trials: int = 0  # of a search
    seed: int = 1  # of a search
    metric: str = "test.elbo"
    maximise: bool = True


@dataclass
class Sweep:
    """A sweep: what was asked, on which baseline, and optuna's study of it."""

    workspace: Workspace
    name: str
    request: Request
    baseline: Baseline
    storage: str  # address of optuna's storage

    @property
    def folder(self) -> Path:
        """`.vaeline/sweeps/NAME/`: journal, logs, and the trials' clones while they run."""
        return sweep_folder(self.workspace, self.name)

    @cached_property
    def space(self) -> Space:
        """What is varied or fixed."""
        return parse_space(self.request.assignments, self.baseline.params)

    @cached_property
    def total(self) -> int:
        """How many trials there will be."""
        return len(grid(self.space)) if self.request.search == "grid" else self.request.trials

    @cached_property
    def study(self) -> optuna.Study:
        """The study, made where it is missing."""
        return optuna.create_study(
            storage=open_storage(self.storage),
            study_name=self.name,
            direction="maximize" if self.request.maximise else "minimize",
            load_if_exists=True,
        )

    def trials(self) -> list[FrozenTrial]:
        """The latest trial of each name."""
        return list({t.user_attrs["name"]: t for t in self.study.trials if "name" in t.user_attrs}.values())

    def begin(self) -> None:
        """Store a new sweep, or go on with a known one: what failed or was cut off waits again.

        Raises UserError where the name stands for another request or baseline. To be called by the one process that
        runs the sweep: to it every trial in state RUNNING is one that a killed process left.
        """
        self.check_stored()
        self.study.set_user_attr("request", asdict(self.request))
        self.study.set_user_attr("baseline", self.baseline.identity)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)
        known = self.trials()
        waiting = [dict(trial.user_attrs) for trial in known if trial.state == TrialState.FAIL]
        if self.request.search == "grid":
            missing = enumerate(grid(self.space)[len(known) :], len(known))
            waiting += [{"name": self._trial_name(number, values), "values": values} for number, values in missing]
        for attributes in waiting:
            attributes.pop("result", None)
            self.study.enqueue_trial(to_params(self.space, attributes["values"]), attributes)

    def check_stored(self) -> None:
        """Raise UserError where the stored study is of another request or baseline."""
        stored = self.study.user_attrs
        if stored.get("request", asdict(self.request)) != asdict(self.request):
            raise UserError(f"sweep {self.name}: was asked for other things; choose another --name")
        if (then := stored.get("baseline", self.baseline.identity)) != self.baseline.identity:
            raise UserError(
                f"sweep {self.name}: began on commit {then['commit'][:8]} with other params or uncommitted changes; "
                "go back to them, or choose another --name"
            )

    def next_trial(self) -> FrozenTrial | None:
        """A trial that waits, or a newly drawn one, in state RUNNING; None where there is none to start."""
        drawn = len(self.trials())
        if not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            if drawn >= self.total:
                return None
            self.study.sampler = _sampler(self.request, drawn)
        trial = self.study.ask(self.space)
        if "name" not in trial.user_attrs:
            values = to_values(trial.params)
            trial.set_user_attr("values", values)
            trial.set_user_attr("name", self._trial_name(drawn, values))
        return self.study.trials[trial.number]

    def finish(self, number: int, result: Result) -> FrozenTrial:
        """Store the result of trial `number`, unless it has one: failed with a reason or without the metric."""
        frozen = self.study.trials[number]
        if frozen.state.is_finished():
            return frozen
        score = result.get("metrics", {}).get(self.request.metric)
        if score is None:
            result = {"reason": f"no {self.request.metric} in its metrics", **result}
        failed = "reason" in result
        # optuna's Trial of a number: `ask` alone makes one publicly, and another process may have asked
        optuna.Trial(self.study, frozen._trial_id).set_user_attr("result", result)
        self.study.tell(number, None if failed else score, TrialState.FAIL if failed else TrialState.COMPLETE)
        return self.study.trials[number]

    def _trial_name(self, number: int, values: Values) -> str:
        """`NAME-01-beta0.5-latent_dim8`: a part of a Git reference and of a file's name."""
        keys = varied(self.space)
        parts = [f"-{label(key, keys)}{_slug(values[key])}" for key in keys]
        return f"{self.name}-{number + 1:02d}" + "".join(parts)[:100].rstrip(".-_")


def sweep_folder(workspace: Workspace, name: str) -> Path:
    """`.vaeline/sweeps/NAME/`."""
    return workspace.state / "sweeps" / name


def _storage_address(workspace: Workspace, name: str) -> str:
    journal = (sweep_folder(workspace, name) / "journal.log").absolute()
    return os.environ.get("VAELINE_SWEEP_STORAGE") or str(journal)


def plan_sweep(workspace: Workspace, request: Request, name: str = "") -> Sweep:
    """A sweep of the working tree as it is, every combination checked. Raises UserError for whatever is wrong."""
    baseline = read_baseline(workspace)
    if (request.search == "grid") != (request.trials == 0) or request.trials < 0:
        raise UserError("--trials: how many a search draws: needed by --search random and bayesian, and only by them")
    space = parse_space(request.assignments, baseline.params)
    name = name or f"sweep-{value_digest(asdict(request) | baseline.identity)[:6]}"
    if not NAME.fullmatch(name):
        raise UserError(f"--name: found {name!r}, allowed: up to 40 letters, digits, - and _")
    check(baseline.params, grid(space) if request.search == "grid" else islice(corners(space), MOST_CORNERS))
    return Sweep(workspace, name, request, baseline, _storage_address(workspace, name))


def load_sweep(workspace: Workspace, name: str, storage: str = "") -> Sweep:
    """A stored sweep on the working tree as it is. Raises UserError where there is none, or on another baseline."""
    address = storage or _storage_address(workspace, name)
    if "://" not in address and not Path(address).exists():
        raise UserError(
            f"sweep {name}: no {address} here; for workers on several machines set VAELINE_SWEEP_STORAGE to a database"
            if storage
            else f"--name: there is no sweep {name!r} in {workspace.state / 'sweeps'}; to start it give KEY=VALUES"
        )
    try:
        study = optuna.load_study(study_name=name, storage=open_storage(address))
        request = Request(**study.user_attrs["request"])
    except KeyError:
        raise UserError(f"--name: there is no sweep {name!r} in {address}; to start it give KEY=VALUES") from None
    sweep = Sweep(workspace, name, request, read_baseline(workspace), address)
    sweep.check_stored()
    return sweep


@contextmanager
def exclusive(sweep: Sweep) -> Iterator[None]:
    """One process runs a sweep. Raises UserError where another on this machine does."""
    sweep.folder.mkdir(parents=True, exist_ok=True)
    descriptor = acquire(sweep.folder / "lock", wait=False)
    if descriptor is None:
        raise UserError(f"sweep {sweep.name}: another process is running it")
    try:
        yield
    finally:
        os.close(descriptor)


def _sampler(request: Request, number: int) -> optuna.samplers.BaseSampler:
    """Sampler of one draw. Each number has its own random stream: a resumed search draws what it would have drawn.

    Bayesian is TPE (Bergstra et al. 2011); trials that still run count as bad ones (constant liar), so that parallel
    ones keep apart.
    """
    stream = (request.seed * 1_000_003 + number) % 2**32  # what a generator takes
    if request.search == "random":
        return optuna.samplers.RandomSampler(seed=stream)
    return optuna.samplers.TPESampler(seed=stream, constant_liar=True)


def _slug(value: Any) -> str:
    kind = value["kind"] if isinstance(value, dict) and "kind" in value else show(value)
    return re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9.+-]+", "_", str(kind)))[:24].strip("._")
