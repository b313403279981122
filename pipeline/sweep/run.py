"""The loop over a sweep's trials, several at once; a signal stops all and loses nothing."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol

from optuna.trial import FrozenTrial, TrialState

from pipeline.sweep.devices import slots
from pipeline.sweep.ranking import best, status
from pipeline.sweep.ranking import result as stored
from pipeline.sweep.space import Values, check, corners, with_values
from pipeline.sweep.study import Result, Sweep
from pipeline.sweep.trial import POLL_S, TrialProcess
from vaeline.errors import UserError
from vaeline.io.digests import value_digest
from vaeline.io.progress import progress


class Job(Protocol):
    """A trial at work, here or elsewhere."""

    name: str

    def poll(self) -> Result | None:
        """None while it runs; then its result."""

    def stop(self) -> None:
        """End it."""

    def last_line(self) -> str:
        """What it printed last."""


Start = Callable[[FrozenTrial, int], Job]  # trial, place from 0 to jobs - 1
Log = Callable[[str], None]


def run_trials(sweep: Sweep, start: Start, jobs: int, log: Log) -> None:
    """Run what is missing, `jobs` at once; every result is stored as it comes.

    Whatever ends this early (Ctrl-C, SIGTERM, an error) stops the running trials first; they stay to be done.
    """
    running: dict[int, tuple[FrozenTrial, Job]] = {}  # by place
    with progress(f"sweep {sweep.name}", sweep.total, "trials", done=count(sweep, TrialState.COMPLETE)) as bar:
        try:
            while True:
                while len(running) < jobs and (trial := sweep.next_trial()):
                    place = min(set(range(jobs)) - running.keys())
                    try:
                        check(sweep.baseline.params, [trial.user_attrs["values"]])  # drawn ones may contradict
                        running[place] = trial, start(trial, place)
                    except (UserError, OSError) as error:  # a full disk, a damaged repository
                        _finish(sweep, trial, {"reason": "; ".join(str(error).splitlines())}, log)
                    else:
                        log(f"{_position(sweep, trial)}: running")
                if not running:
                    return
                time.sleep(POLL_S)
                for place, (trial, job) in list(running.items()):
                    if (result := job.poll()) is not None:
                        del running[place]
                        _finish(sweep, trial, result, log)
                lines = [f"{job.name}: {job.last_line()}" for _, job in running.values()]
                bar.update(count(sweep, TrialState.COMPLETE), "; ".join(lines)[:100])
        finally:
            _stop(job for _, job in running.values())


def _finish(sweep: Sweep, trial: FrozenTrial, result: Result, log: Log) -> None:
    ended = sweep.finish(trial.number, result)
    outcome = status(ended) if ended.value is None else f"done, {sweep.request.metric} {ended.value:.5g}"
    log(f"{_position(sweep, ended)}: {outcome} ({stored(ended).get('seconds', 0):.0f} s)")


def _position(sweep: Sweep, trial: FrozenTrial) -> str:
    names = [other.user_attrs["name"] for other in sweep.trials()]
    name = trial.user_attrs["name"]
    return f"[{names.index(name) + 1:>{len(str(sweep.total))}}/{sweep.total}] {name}"


def count(sweep: Sweep, state: TrialState) -> int:
    """How many trials are in a state."""
    return sum(trial.state == state for trial in sweep.trials())


def _stop(jobs: Iterable[Job]) -> None:
    """All at the same time: a training may take seconds to write its checkpoint."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda job: job.stop(), jobs))


def run_trials_here(sweep: Sweep, jobs: int, log: Log) -> None:
    """Run what is missing on this machine, each trial on a device or a share of the cores."""
    places = slots(jobs)
    _prepare_data(sweep)

    def start(trial: FrozenTrial, place: int) -> Job:
        attributes = trial.user_attrs
        return TrialProcess(sweep, attributes["name"], attributes["values"], places[place], ("evaluate",))

    run_trials(sweep, start, jobs, log)


def _prepare_data(sweep: Sweep) -> None:
    """Fetch and prepare once for each different section `data`, so that the trials find both in DVC's cache.

    A failure is left to the trials, which meet it again and report it.
    """
    trials = sweep.trials()
    waiting: list[Values] = [t.user_attrs["values"] for t in trials if t.state == TrialState.WAITING]
    if len(trials) < sweep.total:  # a search has yet to draw
        waiting += islice(corners(sweep.space), 1)
    different = {value_digest(with_values(sweep.baseline.params, values)["data"]): values for values in waiting}
    for digest, values in different.items():
        TrialProcess(sweep, f"{sweep.name}-data-{digest[:6]}", values, slots(1)[0], ("prepare",), collect=False).wait()


def complete_best(sweep: Sweep, log: Log) -> None:
    """Run the best trial's remaining stages: samples, theory, and the registry's gate.

    Its trained model and scores come out of DVC's cache. The other trials register nothing.
    """
    chosen = best(sweep)
    name = chosen.user_attrs["name"] if chosen else ""
    if chosen is None or sweep.study.user_attrs.get("completed") == name:
        return
    log(f"the best, {name}: its remaining stages, and the registry's gate")
    result = TrialProcess(sweep, name, chosen.user_attrs["values"], slots(1)[0]).wait()
    if why := result.get("reason"):
        log(f"not registered: {why}; try again with: vaeline sweep --name {sweep.name}")
    else:
        sweep.study.set_user_attr("completed", name)
