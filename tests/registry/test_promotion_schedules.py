"""Several machines promote at once: every call to the registry in any order, on a registry in memory.

What MLflow promises is all there is in it: each call happens whole, the last writer wins.
"""

import random
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vaeline.errors import UserError
from vaeline.evaluation.comparison import Scores
from vaeline.registry import champion, history
from vaeline.registry.champion import Trial, contest, move, read_standing
from vaeline.registry.gate import Bar, Contender, Evidence

NAME = "model"
BAR = Bar(0, margin=0.0, confidence=0.95, psnr_tolerance=0.5)


class Killed(BaseException):
    """Nothing that anybody handles."""


class Registry:
    """A registered model with versions 1 to n, as MlflowClient gives it."""

    def __init__(self, versions: int) -> None:
        self.tags: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
        self.versions = {str(n): SimpleNamespace(name=NAME, version=str(n), tags={}) for n in range(1, versions + 1)}

    def get_registered_model(self, name: str) -> Any:
        return SimpleNamespace(name=name, tags=dict(self.tags), aliases=dict(self.aliases))

    def get_model_version(self, name: str, version: str) -> Any:
        return self.versions[str(version)]

    def get_model_version_by_alias(self, name: str, alias: str) -> Any:
        from mlflow.exceptions import MlflowException

        if alias not in self.aliases:
            raise MlflowException.invalid_parameter_value("no such alias")
        return self.versions[self.aliases[alias]]

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        self.versions[str(version)].tags[key] = value

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        self.tags[key] = value

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self.aliases[alias] = str(version)

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        self.aliases.pop(alias, None)


class Machine:
    """A client whose every call waits for its turn; killed before its `end`-th."""

    def __init__(self, registry: Registry, work: Callable[[Any], object], end: int | None = None) -> None:
        self.registry, self.left = registry, end
        self.turn, self.waiting = threading.Semaphore(0), threading.Semaphore(0)
        self.done = False
        self.thread = threading.Thread(target=self._run, args=(work,))
        self.thread.start()
        self.waiting.acquire()

    def _run(self, work: Callable[[Any], object]) -> None:
        try:
            work(self)
        except Killed:
            pass
        finally:
            self.done = True
            self.waiting.release()

    def step(self) -> None:
        self.turn.release()
        self.waiting.acquire()

    def __getattr__(self, name: str) -> Any:
        self.waiting.release()
        self.turn.acquire()
        if self.left is not None:
            if self.left == 0:
                raise Killed
            self.left -= 1
        return getattr(self.registry, name)


class Table(Trial):
    """Version n is better than version m by n - m nats, surely."""

    def contender(self, loaded: Any, evidence: Evidence | None = None) -> Contender:
        number = int(loaded.version)
        return Contender(
            Evidence(str(number), "data", "gaussian", "elbo", 0.0, 1),
            Scores(np.array([1.0, 2.0, 3.0]) + number, 20.0, 1),
        )


TABLE = Table(BAR, "data", lambda loaded: Scores(np.zeros(2), 0.0, 0), lambda version: None)


@pytest.fixture(autouse=True)
def stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(champion, "load_version", lambda client, version: version)


def compete(number: int) -> Callable[[Any], object]:
    def work(client: Any) -> None:
        version = client.get_model_version(NAME, str(number))
        if read_standing(client, NAME).current != str(number):
            contest(client, version, TABLE.contender(version), TABLE)

    return work


def interleave(machines: list[Machine], seed: int) -> None:
    """Let one machine after the other make a call, some far ahead of others, until all are done."""
    chance = random.Random(seed)
    while live := [machine for machine in machines if not machine.done]:
        chosen = chance.choice(live)
        for _ in range(chance.choice((1, 1, 2, 5, 20))):
            if not chosen.done:
                chosen.step()
    for machine in machines:
        machine.thread.join()


def assert_one_right_champion(registry: Registry, best: int) -> None:
    assert registry.aliases["champion"] == str(best)
    assert registry.aliases.get("challenger") != str(best)
    assert registry.versions[str(best)].tags["vaeline.decision"] == "promoted"
    told = history.read(registry.tags)
    assert [entry.version for entry in told if entry.moves][-1] == str(best)
    assert all(history.carried_out(told, str(best)))


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_in_any_order_of_calls_the_best_is_champion_in_the_end(first: int):
    for seed in range(first, first + 100):
        registry, order = Registry(4), random.Random(seed).sample([2, 3, 4], 3)
        compete(1)(registry)
        interleave([Machine(registry, compete(number)) for number in order], seed)
        assert_one_right_champion(registry, 4)
        assert {entry.version for entry in history.read(registry.tags)} == {"1", "2", "3", "4"}


@pytest.mark.parametrize("first", range(0, 200, 100))
def test_and_so_it_is_after_a_machine_died_somewhere_and_all_registered_again(first: int):
    for seed in range(first, first + 100):
        registry, chance = Registry(4), random.Random(seed)
        compete(1)(registry)
        dying = chance.choice([2, 3, 4])
        ends = {dying: chance.randrange(30)}
        interleave([Machine(registry, compete(number), ends.get(number)) for number in (2, 3, 4)], seed)
        assert registry.aliases["champion"] in "1234"
        for number in (2, 3, 4):
            compete(number)(registry)
        assert registry.aliases["champion"] == "4"
        assert {entry.version for entry in history.read(registry.tags)} == {"1", "2", "3", "4"}


def test_what_a_person_orders_stays_whatever_the_gate_says_at_the_same_time():
    def order(client: Any) -> None:
        standing = read_standing(client, NAME)
        entry = history.Entry("promote", "2", standing.current, "2", forced=True, reason="because")
        move(client, NAME, entry, standing, None)

    for seed in range(100):
        registry = Registry(4)
        compete(1)(registry)
        machines = [Machine(registry, order), Machine(registry, compete(4))]
        interleave(machines, seed)
        told = [entry for entry in history.read(registry.tags) if entry.moves]
        sequential = [(e.version, e.before) for e in told] == [("1", None), ("2", "1"), ("4", "2")]
        assert registry.aliases["champion"] == ("4" if sequential else "2"), told


def test_an_alias_that_others_move_all_the_time_ends_in_one_line():
    registry = Registry(3)

    class Restless:
        def __getattr__(self, name: str) -> Any:
            registry.aliases["champion"] = "2"
            return getattr(registry, name)

    with pytest.raises(UserError, match="vaeline history model"):
        compete(3)(Restless())
