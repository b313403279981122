"""Who is champion: the contest before the gate, the move of the alias, and its agreement with others who move it.

MLflow's aliases are last-write-wins. On one machine a lock makes promotions take turns. Between machines everyone
writes the history before the alias and reads both again after it: whoever writes the alias last sees all entries, and
gives it to the one version that all agree on. So the alias ends where one promotion after the other would leave it.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vaeline.errors import UserError
from vaeline.evaluation.comparison import Scores
from vaeline.io.locks import locked
from vaeline.io.workspace import state_folder
from vaeline.registry import history
from vaeline.registry.gate import Bar, Contender, Decision, Evidence, Unreadable, decide, differences
from vaeline.registry.history import Action, Entry
from vaeline.registry.stored import DIGEST, load_version, smoke_test
from vaeline.tracking.connection import SQLITE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from vaeline.serving.model_files import LoadedModel

CHAMPION, CHALLENGER = "champion", "challenger"
ROUNDS = 100  # of settling; more only where others promote all the time
PENDING_MS = 3600 * 1000  # an entry this old whose alias never moved was given up

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """What the gate asks, and how it measures a model on the test split of `data_digest`."""

    bar: Bar
    data_digest: str
    score: Callable[["LoadedModel"], Scores]
    smoke_test: Callable[["ModelVersion"], str | None] = smoke_test  # what went wrong, or None

    def contender(self, loaded: "LoadedModel", evidence: Evidence | None = None) -> Contender:
        """A model with its scores; without, where it has no ELBO or belongs to other data."""
        described = loaded.config
        fits = described.objective != "autoencoder" and described.data.digest == self.data_digest
        scores = self.score(loaded) if fits else None
        if evidence is None:
            evidence = Evidence(
                digest=loaded.digest,
                data_digest=described.data.digest,
                likelihood=described.model.likelihood.kind,
                objective=described.objective,
                validation_elbo=0.0,  # not asked for: the scores are newer
                active_units=scores.active_units if scores else 0,
            )
        return Contender(evidence, scores)


@contextmanager
def registry_lock(client: "MlflowClient") -> Iterator[None]:
    """One promotion at a time: beside an sqlite store for all who use it, else in this repository."""
    uri = client.tracking_uri
    folder = Path(uri.removeprefix(SQLITE)).parent if uri.startswith(SQLITE) else state_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "registry.lock"):
        yield


@dataclass(frozen=True)
class Standing:
    """A registered model at one moment, before it is changed."""

    entries: tuple[Entry, ...]
    champion: "ModelVersion | None"  # None where nobody has the alias, or its version is gone

    @property
    def current(self) -> str | None:
        """The champion's version."""
        return None if self.champion is None else str(self.champion.version)

    @property
    def settled(self) -> frozenset[str]:
        """The keys of the entries that have come to pass or were given up; the others may be at it still."""
        since = time.time_ns() // 1_000_000 - PENDING_MS
        done = history.carried_out(self.entries, self.current)
        return frozenset(e.key for e, past in zip(self.entries, done, strict=True) if past or e.milliseconds < since)


def read_standing(client: "MlflowClient", name: str) -> Standing:
    """The history first and the champion after it: one who is confirmed there is seen as champion, or a later one."""
    from mlflow.exceptions import MlflowException

    entries = tuple(history.read(client.get_registered_model(name).tags))
    try:
        return Standing(entries, client.get_model_version_by_alias(name, CHAMPION))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return Standing(entries, None)


def contest(client: "MlflowClient", version: "ModelVersion", challenger: Contender, trial: Trial) -> Decision:
    """Judge a version that is not the champion, write the decision down, and move the alias last.

    The caller holds the lock. A crash between any two steps leaves the old champion; a repetition goes on from there.
    """
    standing = read_standing(client, version.name)
    decision = judge(client, version, challenger, standing.champion, trial)
    if decision.promote and history.rolled_back(standing.entries, standing.current, str(version.version)):
        why = f"it was rolled back; `vaeline promote {version.name} VERSION` puts it back"
        decision = Decision(False, (why,), decision.numbers)
    if decision.promote:
        return promote(client, version, decision, standing, trial)
    write_decision(client, version, decision)
    history.record(client, version.name, entry_of("reject", version, standing, decision))
    client.set_registered_model_alias(version.name, CHALLENGER, version.version)
    return decision


def promote(
    client: "MlflowClient", version: "ModelVersion", decision: Decision, standing: Standing, trial: Trial
) -> Decision:
    """Carry out the gate's decision on a version, made on this standing.

    Returns what it came to: one that was promoted at the same time may be the better one.
    """
    write_decision(client, version, decision)
    entry = entry_of("promote", version, standing, decision)
    if move(client, version.name, entry, standing, trial) == entry.version:
        return decision
    lost = Decision(False, ("one that was promoted at the same time is better by the gate",), decision.numbers)
    write_decision(client, version, lost)
    client.set_registered_model_alias(version.name, CHALLENGER, version.version)
    return lost


def entry_of(action: Action, version: "ModelVersion", standing: Standing, decision: Decision) -> Entry:
    """The line of the history on a decision."""
    digest, numbers = version.tags.get(DIGEST, ""), decision.numbers
    return Entry(action, str(version.version), standing.current, digest, decision.reasons, numbers)


def judge(
    client: "MlflowClient",
    version: "ModelVersion",
    challenger: Contender,
    champion: "ModelVersion | None",
    trial: Trial,
) -> Decision:
    """The gate's decision on a version against a champion, whose stored model is scored again, and the smoke test."""
    decision = decide(challenger, _opponent(client, champion, challenger.evidence, trial), trial.bar)
    if decision.promote and (wrong := trial.smoke_test(version)):
        return Decision(False, (f"does not load and predict in a fresh process: {wrong}",), decision.numbers)
    return decision


def write_decision(client: "MlflowClient", version: "ModelVersion", decision: Decision) -> None:
    """The decision, its reasons and numbers as the version's tags."""
    tags = {
        "vaeline.reasons": json.dumps(decision.reasons),
        "vaeline.gate": json.dumps(decision.numbers, allow_nan=False),
        "vaeline.decision": "promoted" if decision.promote else "rejected",
    }
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.version, key, value)
    log.info(
        "%s version %s: %s (%s)", version.name, version.version, tags["vaeline.decision"], "; ".join(decision.reasons)
    )


def move(client: "MlflowClient", name: str, entry: Entry, standing: Standing, trial: Trial | None) -> str:
    """Make an entry's version the champion, then agree with those who did so since the standing was read.

    Returns the version that is champion in the end. `trial` is needed where the gate must tell the better one; a
    person's order needs none.
    """
    known = standing.settled - {_crown(client, name, entry)}
    for _ in range(ROUNDS):
        now = read_standing(client, name)
        rivals = [e for e in now.entries if e.moves and e.key not in known]
        rightful = _rightful(client, name, rivals, trial)
        latest = [e.version for e in now.entries if e.moves][-1]
        if now.current == latest == rightful.version:
            return rightful.version
        other = latest if now.current == rightful.version else now.current
        log.info("%s: version %s was promoted at the same time", name, other)
        why = "of those promoted at the same time it is the one that stays"
        settled = replace(rightful, action="settle", before=other, reasons=(why,), numbers={}, forced=rightful.by_hand)
        _crown(client, name, settled)
    raise UserError(f"{name}: others move the alias {CHAMPION} all the time; look at `vaeline history {name}`")


def _crown(client: "MlflowClient", name: str, entry: Entry) -> str:
    """The entry, the alias, the confirmation; returns the entry's key."""
    key = history.record(client, name, entry)
    if client.get_registered_model(name).aliases.get(CHALLENGER) == entry.version:
        client.delete_registered_model_alias(name, CHALLENGER)
    client.set_registered_model_alias(name, CHAMPION, entry.version)
    history.confirm(client, name, key)
    return key


def _opponent(
    client: "MlflowClient", champion: "ModelVersion | None", challenger: Evidence, trial: Trial
) -> Contender | Unreadable | None:
    """The champion, its model loaded and scored where it can be compared; its tags may be missing or stale."""
    if champion is None:
        return None
    try:
        opponent = trial.contender(load_version(client, champion))
    except UserError as error:
        return Unreadable(str(error))
    comparable = not differences(challenger, opponent.evidence)
    return opponent if comparable else replace(opponent, scores=None)


def _rightful(client: "MlflowClient", name: str, rivals: Sequence[Entry], trial: Trial | None) -> Entry:
    """Who of those that were promoted at once is champion: the last one that a person wanted, else by the gate.

    As if they had come one after the other, in the order of their versions.
    """
    orders = [rival for rival in rivals if rival.by_hand]
    if orders or trial is None:
        return (orders or rivals)[-1]
    first, *others = sorted({rival.version: rival for rival in rivals}.values(), key=lambda rival: int(rival.version))
    champion = first
    for rival in others:
        version = client.get_model_version(name, rival.version)
        contender = trial.contender(load_version(client, version))
        if judge(client, version, contender, client.get_model_version(name, champion.version), trial).promote:
            champion = rival
    return champion
