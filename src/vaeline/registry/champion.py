"""Champion of a registered model: the gate run on a candidate, the commands of a person, and the move of the alias.

On one machine a lock serialises promotions. MLflow has no compare-and-set for aliases: the champion is read again
right before the move (a changed one ends the promotion) and after it (another machine's move is logged). Every model
that may become champion is read by `vaeline.registry.load`, whatever the registry says of it.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vaeline.config import Register
from vaeline.errors import TransientError, UserError
from vaeline.evaluation.split_metrics import Scores
from vaeline.io.locks import locked
from vaeline.io.workspace import Workspace
from vaeline.registry import champion_history as history
from vaeline.registry import load
from vaeline.registry.champion_history import Action, Entry
from vaeline.registry.gate import Decision, Evidence, decide
from vaeline.registry.versions import CHAMPION, DIGEST_TAG, find_champion, find_models, find_version, find_versions
from vaeline.serving.inference import TrainedModel
from vaeline.tracking.connection import SQLITE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from vaeline.serving.model_files import LoadedModel

CHALLENGER = "challenger"
FORCE = "--force --reason TEXT"

log = logging.getLogger(__name__)


class ChampionChangedError(TransientError):
    """Another machine set another champion than the one that a model was compared with; nothing was changed."""


@dataclass(frozen=True)
class GateEvaluator:
    """Gate's thresholds, and how it measures a model on the test split of `data_digest`."""

    thresholds: Register
    data_digest: str
    score: Callable[["LoadedModel"], Scores]

    def candidate(self, loaded: "LoadedModel", evidence: Evidence | None = None) -> Evidence:
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
        return replace(evidence, scores=scores)

    def decide(self, challenger: Evidence, champion: "ModelVersion | None") -> Decision:
        """Gate's decision against the champion's stored model, scored again: its tags may be missing or stale."""
        if champion is None:
            return decide(challenger, None, self.thresholds)
        try:
            return decide(challenger, self.candidate(load_version(champion).loaded), self.thresholds)
        except TransientError:
            raise
        except UserError as error:
            return decide(challenger, str(error), self.thresholds)


def load_version(version: "ModelVersion", where: str = "", usable: bool = False) -> TrainedModel:
    """Verified model of a version, which answers with finite pixels where it must be `usable`.

    The UserError's message starts with `where`, and names no folder of this machine.
    """
    try:
        model = load.load(f"models:/{version.name}/{version.version}")
        if usable and not np.isfinite(model.reconstruct(np.zeros((1, *model.loaded.config.shape), np.uint8))).all():
            raise UserError("its reconstructions are not finite")
        return model
    except UserError as error:
        line = re.sub(r"(?<!models:)(?:file:/+)?/(?:[^\s/:'\"]+/)+", "", " ".join(str(error).split()))
        raise type(error)(f"{where}{line[:300]}") from None


@contextmanager
def registry_lock(client: "MlflowClient", workspace: Workspace) -> Iterator[None]:
    """One promotion at a time: beside an sqlite store for all who use it, else in this repository."""
    uri = client.tracking_uri
    folder = Path(uri.removeprefix(SQLITE)).parent if uri.startswith(SQLITE) else workspace.state
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "registry.lock", lambda: log.warning("waiting for another registration to end")):
        yield


def run_gate(
    client: "MlflowClient", version: "ModelVersion", challenger: Evidence, evaluator: GateEvaluator
) -> Decision:
    """Decide on a version that is not the champion, write the decision down, and move the alias last.

    The caller holds the lock. A crash between any two steps leaves the old champion; a repetition continues from there.
    """
    name, champion = version.name, find_champion(client, version.name)
    decision, entries = evaluator.decide(challenger, champion), history.read(client.get_registered_model(name).tags)
    if decision.promote and history.is_rolled_back(entries, _number(champion), str(version.version)):
        reason = f"it was rolled back; `vaeline promote {name} VERSION` makes it champion again"
        decision = Decision(False, (reason,), decision.numbers)
    entry = _entry("promote" if decision.promote else "reject", version, champion, decision)
    if decision.promote:
        set_champion(client, version, entry)
    else:
        _write_decision(client, version, entry)
        history.record(client, name, entry)
        client.set_registered_model_alias(name, CHALLENGER, version.version)
    return decision


def promote(
    client: "MlflowClient", workspace: Workspace, name: str, number: int, evaluator: GateEvaluator | None, reason: str
) -> Decision | None:
    """Make a version champion if the gate accepts it now, or, without an evaluator, by force, for a person's reason.

    None where it is champion already. Raises UserError, with the gate's reasons, where it is not made champion.
    """
    with registry_lock(client, workspace):
        version, champion = find_version(client, name, number), find_champion(client, name)
        where = f"{name} version {number}"
        if _number(champion) == str(number):
            return None
        model = load_version(version, f"{where}: cannot be used: ", usable=True)
        if evaluator is None:
            decision = Decision(True, (f"forced: {reason}",))
        else:
            if (digest := model.loaded.config.data.digest) != evaluator.data_digest:
                raise UserError(
                    f"{where}: its data is {digest[:12]}, data/prepared is {evaluator.data_digest[:12]}: "
                    f"the gate cannot compare it; `dvc checkout` its data, or {FORCE}"
                )
            decision = evaluator.decide(evaluator.candidate(model.loaded), champion)
            if not decision.promote:
                reasons = "; ".join(decision.reasons)
                raise UserError(f"{where}: rejected by the gate: {reasons} ({FORCE} overrules)")
        entry = replace(_entry("promote", version, champion, decision), forced=evaluator is None, reason=reason)
        set_champion(client, version, entry)
    return decision


def rollback(client: "MlflowClient", workspace: Workspace, name: str, reason: str = "") -> tuple[str | None, str]:
    """Make the previous champion that still exists champion again; returns the versions from and to.

    Repeated, it goes further back. Raises UserError where there is none to go back to, or where it cannot be used.
    """
    with registry_lock(client, workspace):
        (model,) = find_models(client, name)
        existing = {str(version.version): version for version in find_versions(client, model.name)}
        champion = find_champion(client, name)
        current = _number(champion)
        before = [number for number in history.champions(history.read(model.tags), current) if number != current]
        target = next((existing[number] for number in reversed(before) if number in existing), None)
        if target is None:
            held = f"version {current} is champion and" if current else "no version is champion and"
            raise UserError(f"{name}: {held} no previous champion is left: nothing to go back to")
        way_out = f"the previous champion, cannot be used (`vaeline promote {name} VERSION {FORCE}` chooses another): "
        load_version(target, f"{name} version {target.version}, {way_out}", usable=True)
        decision = Decision(True, (f"back from version {current}" if current else "the alias was gone",))
        set_champion(client, target, replace(_entry("rollback", target, champion, decision), reason=reason))
        return current, str(target.version)


def set_champion(client: "MlflowClient", version: "ModelVersion", entry: Entry) -> None:
    """Write the decision and the history entry, then move the alias. Raises ChampionChangedError."""
    name = version.name
    if (current := _number(find_champion(client, name))) != entry.before:
        raise ChampionChangedError(
            f"{name}: the champion was version {entry.before or 'none'} and is version {current or 'none'} now, set by "
            "another machine meanwhile: nothing was changed, try again"
        )
    if entry.action == "promote":
        _write_decision(client, version, entry)
    key = history.record(client, name, entry)
    if str(client.get_registered_model(name).aliases.get(CHALLENGER)) == entry.version:
        client.delete_registered_model_alias(name, CHALLENGER)
    client.set_registered_model_alias(name, CHAMPION, version.version)
    client.set_registered_model_tag(name, key.replace(history.PREFIX, history.CARRIED_OUT, 1), "true")
    if (current := _number(find_champion(client, name))) != entry.version:
        log.warning(
            "%s: version %s became champion, but another machine set version %s at the same time; see vaeline history",
            *(name, entry.version, current or "none"),
        )


def _number(version: "ModelVersion | None") -> str | None:
    return None if version is None else str(version.version)


def _entry(action: Action, version: "ModelVersion", before: "ModelVersion | None", decision: Decision) -> Entry:
    digest = version.tags.get(DIGEST_TAG, "")
    return Entry(action, str(version.version), _number(before), digest, decision.reasons, dict(decision.numbers))


def _write_decision(client: "MlflowClient", version: "ModelVersion", entry: Entry) -> None:
    """Set the decision, its reasons and numbers as the version's tags."""
    result, reasons = "promoted" if entry.moves else "rejected", json.dumps(entry.reasons)
    gate = json.dumps(entry.numbers, allow_nan=False)
    for key, value in (("reasons", reasons), ("gate", gate), ("decision", result)):
        client.set_model_version_tag(version.name, version.version, f"vaeline.{key}", value)
    log.info("%s version %s: %s (%s)", version.name, version.version, result, "; ".join(entry.reasons))
