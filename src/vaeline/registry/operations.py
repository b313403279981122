"""Commands of a person on registered models: promote, roll back, read the history. Raises UserError for mistakes."""

from dataclasses import replace
from typing import TYPE_CHECKING

from vaeline.errors import UserError
from vaeline.io.workspace import Workspace
from vaeline.registry import champion_history as history
from vaeline.registry.champion import GateEvaluator, history_entry, read_state, registry_lock, set_champion
from vaeline.registry.champion_history import Entry
from vaeline.registry.gate import Decision
from vaeline.registry.stored import load_version, smoke_test
from vaeline.registry.versions import CHAMPION, find_models, find_version, find_versions

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

FORCE = "--force --reason TEXT"


def read_history(model: "RegisteredModel") -> list[tuple[Entry, bool]]:
    """Entries in order, and whether each took effect."""
    entries = history.read(model.tags)
    return list(zip(entries, history.carried_out(entries, model.aliases.get(CHAMPION)), strict=True))


def promote_by_gate(
    client: "MlflowClient", workspace: Workspace, name: str, number: int, evaluator: GateEvaluator
) -> Decision | None:
    """Make a version champion if the gate accepts it now; None where it is champion already.

    Raises UserError with the gate's reasons where it is rejected.
    """
    with registry_lock(client, workspace):
        version, state = find_version(client, name, number), read_state(client, name)
        if state.current == str(number):
            return None
        try:
            loaded = load_version(client, version)
        except UserError as error:
            raise UserError(f"{name} version {number}: cannot be read: {error}") from None
        if (digest := loaded.config.data.digest) != evaluator.data_digest:
            raise UserError(
                f"{name} version {number}: its data is {digest[:12]}, data/prepared is {evaluator.data_digest[:12]}: "
                f"the gate cannot compare it; `dvc checkout` its data, or {FORCE}"
            )
        decision = evaluator.decide(client, version, evaluator.candidate(loaded), state.champion)
        if not decision.promote:
            reasons = "; ".join(decision.reasons)
            raise UserError(f"{name} version {number}: rejected by the gate: {reasons} ({FORCE} overrules)")
        set_champion(client, version, history_entry("promote", version, state, decision), decision)
    return decision


def promote_by_force(
    client: "MlflowClient", workspace: Workspace, name: str, number: int, reason: str
) -> Decision | None:
    """Make a version champion whatever the gate decides, for a recorded reason; None where it is champion already.

    Raises UserError where it does not load and predict.
    """
    with registry_lock(client, workspace):
        version, state = find_version(client, name, number), read_state(client, name)
        if state.current == str(number):
            return None
        if error := smoke_test(client, version):
            raise UserError(f"{name} version {number}: does not load and predict in a fresh process: {error}")
        decision = Decision(True, (f"forced: {reason}",))
        entry = replace(history_entry("promote", version, state, decision), forced=True, reason=reason)
        set_champion(client, version, entry, decision)
        return decision


def rollback(client: "MlflowClient", workspace: Workspace, name: str, reason: str = "") -> tuple[str | None, str]:
    """Make the previous champion champion again; returns the versions from and to.

    Repeated, it goes further back. Deleted versions are skipped. Raises UserError where there is none to go back to,
    or where it does not load.
    """
    with registry_lock(client, workspace):
        existing = {
            str(version.version): version for version in find_versions(client, find_models(client, name)[0].name)
        }
        state = read_state(client, name)
        current = state.current
        before = [number for number in history.champions(state.entries, current) if number != current]
        target = next((existing[number] for number in reversed(before) if number in existing), None)
        if target is None:
            held = f"version {current} is champion and" if current else "no version is champion and"
            raise UserError(f"{name}: {held} no previous champion is left: nothing to go back to")
        if error := smoke_test(client, target):
            raise UserError(
                f"{name} version {target.version}, the previous champion, does not load and predict: {error}; "
                f"`vaeline promote {name} VERSION {FORCE}` chooses another"
            )
        decision = Decision(True, (f"back from version {current}" if current else "the alias was gone",))
        set_champion(client, target, replace(history_entry("rollback", target, state, decision), reason=reason))
        return current, str(target.version)
