"""Champion of a registered model: the gate run on a candidate, and the move of the alias.

On one machine a lock serialises promotions. MLflow has no compare-and-set for aliases: the champion is read again
right before the move (a changed one ends the promotion) and after it (another machine's move is logged).
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vaeline.errors import TransientError, UserError
from vaeline.evaluation.comparison import Scores
from vaeline.io.locks import locked
from vaeline.io.workspace import Workspace
from vaeline.registry import champion_history as history
from vaeline.registry.champion_history import Action, Entry
from vaeline.registry.gate import Candidate, Decision, Evidence, GateThresholds, Unreadable, decide, incomparable
from vaeline.registry.stored import load_version, smoke_test
from vaeline.registry.versions import CHAMPION, DIGEST_TAG, find_champion
from vaeline.tracking.connection import SQLITE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from vaeline.serving.model_files import LoadedModel

CHALLENGER = "challenger"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GateEvaluator:
    """Gate's thresholds, and how it measures a model on the test split of `data_digest`."""

    thresholds: GateThresholds
    data_digest: str
    score: Callable[["LoadedModel"], Scores]
    smoke_test: Callable[["MlflowClient", "ModelVersion"], str | None] = smoke_test  # the error, or None

    def candidate(self, loaded: "LoadedModel", evidence: Evidence | None = None) -> Candidate:
        """Model with its scores; without scores where it has no ELBO or belongs to other data."""
        config = loaded.config
        comparable = config.objective != "autoencoder" and config.data.digest == self.data_digest
        scores = self.score(loaded) if comparable else None
        if evidence is None:
            evidence = Evidence(
                digest=loaded.digest,
                data_digest=config.data.digest,
                likelihood=config.model.likelihood.kind,
                objective=config.objective,
                validation_elbo=0.0,  # not used: the scores are newer
                active_units=scores.active_units if scores else 0,
            )
        return Candidate(evidence, scores)

    def decide(
        self,
        client: "MlflowClient",
        version: "ModelVersion",
        challenger: Candidate,
        champion: "ModelVersion | None",
    ) -> Decision:
        """Gate's decision against the champion, whose stored model is scored again, and then the smoke test."""
        decision = decide(challenger, self._champion(client, champion, challenger.evidence), self.thresholds)
        if decision.promote and (error := self.smoke_test(client, version)):
            return Decision(False, (f"does not load and predict in a fresh process: {error}",), decision.numbers)
        return decision

    def _champion(
        self, client: "MlflowClient", champion: "ModelVersion | None", challenger: Evidence
    ) -> Candidate | Unreadable | None:
        """The champion by its stored model, since its tags may be missing or stale."""
        if champion is None:
            return None
        try:
            found = self.candidate(load_version(client, champion))
        except UserError as error:
            return Unreadable(str(error))
        return replace(found, scores=None) if incomparable(challenger, found.evidence) else found


@dataclass(frozen=True)
class RegistryState:
    """History and champion of a registered model at one moment."""

    entries: tuple[Entry, ...]
    champion: "ModelVersion | None"  # None where the alias is not set, or its version is gone

    @property
    def current(self) -> str | None:
        """The champion's version number."""
        return None if self.champion is None else str(self.champion.version)


def read_state(client: "MlflowClient", name: str) -> RegistryState:
    """State of the registered model `name`."""
    entries = tuple(history.read(client.get_registered_model(name).tags))
    return RegistryState(entries, find_champion(client, name))


@contextmanager
def registry_lock(client: "MlflowClient", workspace: Workspace) -> Iterator[None]:
    """One promotion at a time: beside an sqlite store for all who use it, else in this repository."""
    uri = client.tracking_uri
    folder = Path(uri.removeprefix(SQLITE)).parent if uri.startswith(SQLITE) else workspace.state
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "registry.lock"):
        yield


def run_gate(
    client: "MlflowClient", version: "ModelVersion", challenger: Candidate, evaluator: GateEvaluator
) -> Decision:
    """Decide on a version that is not the champion, write the decision down, and move the alias last.

    The caller holds the lock. A crash between any two steps leaves the old champion; a repetition continues from there.
    """
    state = read_state(client, version.name)
    decision = evaluator.decide(client, version, challenger, state.champion)
    if decision.promote and history.is_rolled_back(state.entries, state.current, str(version.version)):
        reason = f"it was rolled back; `vaeline promote {version.name} VERSION` makes it champion again"
        decision = Decision(False, (reason,), decision.numbers)
    if decision.promote:
        set_champion(client, version, history_entry("promote", version, state, decision), decision)
        return decision
    _write_decision(client, version, decision)
    history.record(client, version.name, history_entry("reject", version, state, decision))
    client.set_registered_model_alias(version.name, CHALLENGER, version.version)
    return decision


def history_entry(action: Action, version: "ModelVersion", state: RegistryState, decision: Decision) -> Entry:
    """History entry of a decision."""
    digest = version.tags.get(DIGEST_TAG, "")
    return Entry(action, str(version.version), state.current, digest, decision.reasons, decision.numbers)


def set_champion(
    client: "MlflowClient", version: "ModelVersion", entry: Entry, decision: Decision | None = None
) -> None:
    """Write the decision and the history entry, then move the alias to the version.

    Raises TransientError, with nothing changed, where the champion is no longer the one that the entry names.
    """
    name = version.name
    if (current := _current(client, name)) != entry.before:
        raise TransientError(
            f"{name}: the champion was version {entry.before or 'none'} and is version {current or 'none'} now, set by "
            "another machine meanwhile: nothing was changed, try again"
        )
    if decision is not None:
        _write_decision(client, version, decision)
    key = history.record(client, name, entry)
    if str(client.get_registered_model(name).aliases.get(CHALLENGER)) == entry.version:
        client.delete_registered_model_alias(name, CHALLENGER)
    client.set_registered_model_alias(name, CHAMPION, version.version)
    history.confirm(client, name, key)
    if (current := _current(client, name)) != entry.version:
        log.warning(
            "%s: version %s became champion, but another machine set version %s at the same time; see vaeline history",
            *(name, entry.version, current or "none"),
        )


def _current(client: "MlflowClient", name: str) -> str | None:
    champion = find_champion(client, name)
    return None if champion is None else str(champion.version)


def _write_decision(client: "MlflowClient", version: "ModelVersion", decision: Decision) -> None:
    """Set the decision, its reasons and numbers as the version's tags."""
    result, reasons = "promoted" if decision.promote else "rejected", "; ".join(decision.reasons)
    tags = {
        "vaeline.reasons": json.dumps(decision.reasons),
        "vaeline.gate": json.dumps(decision.numbers, allow_nan=False),
        "vaeline.decision": result,
    }
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.version, key, value)
    log.info("%s version %s: %s (%s)", version.name, version.version, result, reasons)
