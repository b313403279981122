"""Runs the trials of a sweep, several at once, whatever becomes of each; a signal stops all and loses nothing."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from pipeline.services.dvc_command import cache_folder
from pipeline.sweep.devices import Environment
from pipeline.sweep.ranking import best
from pipeline.sweep.state import Sweep, Trial, folder
from pipeline.sweep.trial import clear, start
from vaeline.errors import UserError
from vaeline.io.digests import value_digest
from vaeline.io.locks import acquire
from vaeline.io.workspace import current_workspace

POLL_S = 0.2


class Job(Protocol):
    """A trial at work, here or elsewhere."""

    trial: Trial

    def poll(self) -> Trial | None:
        """None while it runs; then what became of it."""

    def stop(self) -> None:
        """End it."""

    def last_line(self) -> str:
        """What it said last."""


Start = Callable[[Trial, int], Job]  # trial, place from 0 to jobs - 1
Watch = Callable[[Iterable[Job], Trial | None], None]  # the running ones, and one that has just ended


def run_trials(sweep: Sweep, begin: Start, jobs: int, watch: Watch) -> None:
    """Run what is missing, `jobs` at once; every outcome is saved as it comes.

    Whatever ends this early (Ctrl-C, SIGTERM, an error) stops the running trials first; they stay to be done.
    """
    running: dict[int, Job] = {}
    try:
        while True:
            while len(running) < jobs and (trial := sweep.next_trial(job.trial.number for job in running.values())):
                place = next(place for place in range(jobs) if place not in running)
                if trial.status == "failed":  # drawn with values that contradict each other
                    watch(running.values(), trial)
                elif isinstance(job := _begun(begin, trial, place), Trial):
                    sweep.settle(job)
                    watch(running.values(), job)
                else:
                    running[place] = job
            if not running:
                return
            watch(running.values(), None)
            time.sleep(POLL_S)
            for place, job in list(running.items()):
                if (ended := job.poll()) is not None:
                    del running[place]
                    sweep.settle(ended)
                    watch(running.values(), ended)
    finally:
        _stop(running.values())


def _begun(begin: Start, trial: Trial, place: int) -> Job | Trial:
    """The job, or the failed trial where it cannot even start: a full disk, a torn repository."""
    try:
        return begin(trial, place)
    except (UserError, OSError) as error:
        return replace(trial, status="failed", reason=str(error))


def _stop(jobs: Iterable[Job]) -> None:
    """All at the same time: a training may take seconds to write its checkpoint."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda job: job.stop(), jobs))


def start_here(
    sweep: Sweep, places: Sequence[Environment], targets: Sequence[str] = (), *, collect: bool = True
) -> Start:
    """How a trial starts on this machine, in the environment of its place; no targets: all stages."""
    cache = cache_folder(current_workspace())

    def begin(trial: Trial, place: int) -> Job:
        return start(sweep, trial, cache, places[place], targets, collect=collect)

    return begin


def prepare_data(sweep: Sweep, begin: Start) -> None:
    """Fetch and prepare once for each different section `data`, so that the trials find both in DVC's cache.

    A failure is left to the trials, which meet it again and tell.
    """
    sweep.next_trial(())  # a search draws its first
    waiting = [trial for trial in sweep.trials if trial.status == "waiting"]
    different = {value_digest(sweep.params(trial)["data"]): trial for trial in waiting}
    for trial in different.values():
        finish(begin(trial, 0))


def complete_best(sweep: Sweep, begin: Start) -> str:
    """Run the best trial's remaining stages: samples, theory, and the registry's gate; returns why not, or nothing.

    Its trained model and scores come out of DVC's cache. The other trials register nothing.
    """
    chosen = best(sweep)
    if chosen is None or sweep.completed == chosen.name:
        return ""
    ended = finish(begin(chosen, 0))
    if ended.status == "failed":
        return ended.reason
    sweep.completed = chosen.name
    sweep.save()
    return ""


def finish(job: Job) -> Trial:
    """Wait for a job's end; stop it where the waiting is cut off."""
    try:
        while (ended := job.poll()) is None:
            time.sleep(POLL_S)
        return ended
    finally:
        job.stop()


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """One process a sweep. Raises UserError where another is at it; clears what a killed one left."""
    home = folder(name)
    home.mkdir(parents=True, exist_ok=True)
    descriptor = acquire(home / "lock", wait=False)
    if descriptor is None:
        raise UserError(f"sweep {name}: another process is running it")
    try:
        clear(name)
        yield
    finally:
        os.close(descriptor)
