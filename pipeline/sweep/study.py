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
from typing import Literal

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from pipeline.sweep.experiments import Values, checked_arguments, with_values
from pipeline.sweep.process import Baseline, Origin, Result, read_baseline
from pipeline.sweep.space import check, corners, grid, parse_space, show, to_params, to_values, varied
from vaeline.errors import UserError
from vaeline.io.digests import value_digest
from vaeline.io.locks import acquire
from vaeline.io.workspace import Workspace
from vaeline.tracking.connection import SQLITE

NAME, NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}"), "up to 40 letters, digits, - and _"
MOST_CORNERS = 1024  # of a search space that are checked; a trial is checked anyway before it runs
UPWARDS = re.compile(
    r"elbo|reconstruction|active_units|psnr|mutual_information.*|.*accuracy.*|mig|disentanglement|informativeness"
)
DOWNWARDS = re.compile(r"nll|kl|mse|gap|bits_per_dimension.*|mmd|squared|total_correlation|frechet.*|prior_samples")

Search = Literal["grid", "random", "bayesian"]


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    assignments: list[str]
    search: Search = "grid"
    trials: int = 0  # of a search
    seed: int = 1  # of a search
    metric: str = "test.elbo"  # path in reports/metrics.json, or max:PATH, min:PATH


def parse_metric(text: str) -> tuple[str, bool]:
    """The metric of `[max:|min:]METRIC`, and whether more is better. Raises UserError where that is not known."""
    prefix, colon, metric = text.rpartition(":")
    if metric and prefix in ("max", "min"):
        return metric, prefix == "max"
    for pattern in (UPWARDS, DOWNWARDS):
        if not colon and any(map(pattern.fullmatch, text.split("."))):
            return text, pattern is UPWARDS
    raise UserError(f"--metric: found {text!r}, whose direction is not known; allowed: max:METRIC or min:METRIC")


def open_storage(address: str) -> optuna.storages.RDBStorage:
    """Optuna's storage at an SQLAlchemy address. Raises UserError where it cannot be used."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if address.startswith(SQLITE):
        Path(address.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    try:
        return optuna.storages.RDBStorage(address)
    except (SQLAlchemyError, ImportError, StorageInternalError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the sweep's storage {address} cannot be used: {reason}") from None


class Sweep:
    """A sweep: what was asked, on which baseline, and optuna's study of it."""

    def __init__(self, workspace: Workspace, name: str, request: Request, baseline: Baseline, storage: str) -> None:
        """`storage`: SQLAlchemy address of optuna's storage. Raises UserError for a request that is wrong in itself."""
        self.workspace, self.name, self.request = workspace, name, request
        self.baseline, self.storage = baseline, storage
        self.folder = workspace.state / "sweeps" / name  # logs, and the trials' clones while they run
        self.metric, self.maximise = parse_metric(request.metric)
        self.space = parse_space(request.assignments, baseline.params)
        self.combinations = grid(self.space) if request.search == "grid" else []
        self.total = len(self.combinations) or request.trials

    @cached_property
    def study(self) -> optuna.Study:
        """The study, made where it is missing. Raises UserError where the storage cannot be used."""
        direction: Literal["maximize", "minimize"] = "maximize" if self.maximise else "minimize"
        storage = open_storage(self.storage)
        return optuna.create_study(storage=storage, study_name=self.name, direction=direction, load_if_exists=True)

    @property
    def origin(self) -> Origin:
        """What its experiments start from. All their MLflow runs are in the experiment of the parent run."""
        experiment, parent = self.baseline.params["register"]["name"], self.study.user_attrs.get("parent_run")
        context = {"sweep": self.name, "parent_run": parent, "experiment": experiment}
        return Origin(self.workspace, self.baseline, self.folder, context)

    def changes(self, values: Values) -> list[str]:
        """Arguments of `dvc exp run` that turn params.yaml into a trial's, from a database that others may write.

        Raises UserError where the values are not valid.
        """
        return checked_arguments(self.baseline.params, with_values(self.baseline.params, values), "sweep")

    def trials(self) -> list[FrozenTrial]:
        """The latest trial of each name."""
        return list({t.user_attrs["name"]: t for t in self.study.trials if "name" in t.user_attrs}.values())

    def count(self, state: TrialState) -> int:
        """How many trials are in a state."""
        return sum(trial.state == state for trial in self.trials())

    def begin(self) -> None:
        """Store a new sweep, or go on with a known one: what failed or was cut off waits again.

        For `exclusive` alone: to the one process that runs the sweep, a trial in state RUNNING is one that a killed
        process left. Raises UserError as `check_stored`.
        """
        self.check_stored()
        self.study.set_user_attr("request", asdict(self.request))
        self.study.set_user_attr("baseline", self.baseline.identity)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)
        known = self.trials()
        waiting = [(t.user_attrs["name"], t.user_attrs["values"]) for t in known if t.state == TrialState.FAIL]
        for number, values in enumerate(self.combinations[len(known) :], len(known)):
            waiting.append((self._trial_name(number, values), values))
        for name, values in waiting:
            self.study.enqueue_trial(to_params(self.space, values), {"name": name, "values": values})

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
            # each draw has its own random stream: a resumed search draws what it would have drawn
            stream = (self.request.seed * 1_000_003 + drawn) % 2**32  # what a generator takes
            if self.request.search == "random":
                self.study.sampler = optuna.samplers.RandomSampler(seed=stream)
            else:  # TPE (Bergstra et al. 2011); running trials count as bad ones, so that parallel ones keep apart
                self.study.sampler = optuna.samplers.TPESampler(seed=stream, constant_liar=True)
        trial = self.study.ask(self.space)
        if "name" not in trial.user_attrs:
            values = to_values(trial.params)
            trial.set_user_attr("values", values)
            trial.set_user_attr("name", self._trial_name(drawn, values))
        return self.study.trials[trial.number]

    def finish(self, number: int, result: Result) -> FrozenTrial:
        """Store the result of trial `number`, unless it has one: failed with a reason or without the metric."""
        if (stored := self.study.trials[number]).state.is_finished():
            return stored
        score = result.get("metrics", {}).get(self.metric)
        if score is None:
            result = {"reason": f"no {self.metric} in its metrics", **result}
        failed = "reason" in result
        # optuna's Trial of a number: `ask` alone makes one publicly, and another process may have asked
        optuna.Trial(self.study, stored._trial_id).set_user_attr("result", result)
        self.study.tell(number, None if failed else score, TrialState.FAIL if failed else TrialState.COMPLETE)
        return self.study.trials[number]

    def _trial_name(self, number: int, values: Values) -> str:
        """`NAME-01-beta0.5-latent_dim8`: a part of a Git reference and of a file's name."""
        text = ""
        for key in varied(self.space):
            value = values[key]
            kind = str(value["kind"] if isinstance(value, dict) and "kind" in value else show(value))
            slug = re.sub(r"[^A-Za-z0-9.+-]+|\.(?!\d)", "_", kind)[:24].strip("._")  # no reference ends in .lock
            text += f"-{key.rpartition('.')[2]}{slug}"
        return f"{self.name}-{number + 1:02d}" + text[:100].rstrip(".-_")


def plan_sweep(workspace: Workspace, request: Request, name: str = "") -> Sweep:
    """A sweep of the working tree as it is, every combination checked; a name alone stands for a known one.

    Raises UserError for whatever is wrong.
    """
    if not request.assignments:
        if not name:
            raise UserError("nothing to vary: vaeline sweep KEY=VALUE,VALUE ..., or --name NAME to go on with a sweep")
        if request != Request([]):
            raise UserError("--name: goes on with the sweep as it was asked; leave out the other options but --jobs")
        return load_sweep(workspace, name)
    baseline = read_baseline(workspace)
    if (request.search == "grid") != (request.trials == 0):
        raise UserError("--trials: how many a search draws: needed by --search random and bayesian, and only by them")
    name = name or f"sweep-{value_digest(asdict(request) | baseline.identity)[:6]}"
    if not NAME.fullmatch(name):
        raise UserError(f"--name: found {name!r}, allowed: {NAMES}")
    sweep = Sweep(workspace, name, request, baseline, _storage_address(workspace, name))
    check(baseline.params, sweep.combinations or islice(corners(sweep.space), MOST_CORNERS))
    return sweep


def load_sweep(workspace: Workspace, name: str, storage: str = "") -> Sweep:
    """A stored sweep on the working tree as it is. Raises UserError where there is none, or on another baseline.

    Both names may come with a request for a flow run: they lead to no other file or database than a sweep's.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"--name: found {name!r}, allowed: {NAMES}")
    own, file = _storage_address(workspace, name), f"/.vaeline/sweeps/{name}/study.db"
    if storage not in ("", own) and not (storage.startswith(SQLITE) and storage.endswith(file)):
        raise UserError(f"storage: found {storage}, allowed: that of VAELINE_SWEEP_STORAGE here, or {SQLITE}...{file}")
    address = storage or own
    start = "start it with KEY=VALUES; workers on several machines need a database, VAELINE_SWEEP_STORAGE"
    missing = UserError(f"--name: there is no sweep {name!r} in {address}; {start}")
    if address.startswith(SQLITE) and not Path(address.removeprefix(SQLITE)).exists():
        raise missing
    try:
        stored = optuna.load_study(study_name=name, storage=open_storage(address)).user_attrs
        sweep = Sweep(workspace, name, Request(**stored["request"]), read_baseline(workspace), address)
    except (KeyError, TypeError):
        raise missing from None
    sweep.check_stored()
    return sweep


def _storage_address(workspace: Workspace, name: str) -> str:
    file = (workspace.state / "sweeps" / name / "study.db").absolute()
    return os.environ.get("VAELINE_SWEEP_STORAGE") or f"{SQLITE}{file}"


@contextmanager
def exclusive(sweep: Sweep) -> Iterator[None]:
    """The sweep, begun. Raises UserError where another process of this machine runs it, and where its storage fails."""
    sweep.folder.mkdir(parents=True, exist_ok=True)
    descriptor = acquire(sweep.folder / "lock", wait=False)
    if descriptor is None:
        raise UserError(f"sweep {sweep.name}: another process is running it")
    try:
        sweep.begin()
        yield
    except StorageInternalError as error:  # a full disk, a database that is gone
        raise UserError(f"sweep {sweep.name}: its storage {sweep.storage} failed: {error.__cause__}") from None
    finally:
        os.close(descriptor)
