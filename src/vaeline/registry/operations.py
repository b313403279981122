"""What a person does with registered models: look, promote, roll back. Mistakes are told in one line."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vaeline.errors import UserError
from vaeline.registry import history
from vaeline.registry.champion import (
    CHAMPION,
    Trial,
    entry_of,
    judge,
    move,
    promote,
    read_standing,
    registry_lock,
    write_decision,
)
from vaeline.registry.gate import Decision
from vaeline.registry.history import Entry
from vaeline.registry.stored import load_version, smoke_test

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

FORCE = "--force --reason TEXT"


@dataclass(frozen=True)
class Version:
    """What there is to see of a version."""

    number: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    created: datetime  # UTC


def find_models(client: "MlflowClient", name: str | None = None) -> "list[RegisteredModel]":
    """The registered models, or the one of that name. Raises UserError, naming those there are, where it is none."""
    found = list(client.search_registered_models())
    while found and (token := getattr(found, "token", None)):
        found += client.search_registered_models(page_token=token)
    if name is None:
        return found
    chosen = [model for model in found if model.name == name]
    if not chosen:
        names = ", ".join(model.name for model in found) or "none; `vaeline run` registers the first"
        raise UserError(f"no model is registered as '{name}'; registered: {names}")
    return chosen


def find_versions(client: "MlflowClient", name: str) -> "list[ModelVersion]":
    """The versions of a registered model, the newest first."""
    found = client.search_model_versions(f"name = '{name}'")
    return sorted(found, key=lambda version: int(version.version), reverse=True)


def list_versions(client: "MlflowClient", model: "RegisteredModel") -> list[Version]:
    """The versions of a registered model as a person sees them, the newest first."""
    return [
        Version(
            number=int(version.version),
            aliases=tuple(sorted(a for a, number in model.aliases.items() if str(number) == str(version.version))),
            tags=version.tags,
            created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
        )
        for version in find_versions(client, model.name)
    ]


def read_history(model: "RegisteredModel") -> list[tuple[Entry, bool]]:
    """The entries in order, and whether each came to pass."""
    entries = history.read(model.tags)
    return list(zip(entries, history.carried_out(entries, model.aliases.get(CHAMPION)), strict=True))


def promote_by_gate(client: "MlflowClient", name: str, number: int, trial: Trial) -> Decision | None:
    """Make a version champion if the gate agrees now; None where it is already.

    Raises UserError with the gate's reasons where it does not agree.
    """
    with registry_lock(client):
        version, standing = _find_version(client, name, number), read_standing(client, name)
        if standing.current == str(number):
            return None
        try:
            loaded = load_version(client, version)
        except UserError as error:
            raise UserError(f"{name} version {number}: cannot be read: {error}") from None
        if (theirs := loaded.config.data.digest) != trial.data_digest:
            raise UserError(
                f"{name} version {number}: its data is {theirs[:12]}, data/prepared is {trial.data_digest[:12]}: "
                f"the gate cannot judge it; `dvc checkout` its data, or {FORCE}"
            )
        decision = judge(client, version, trial.contender(loaded), standing.champion, trial)
        if decision.promote:
            decision = promote(client, version, decision, standing, trial)
    if not decision.promote:
        raise UserError(f"{name} version {number}: the gate says no: {'; '.join(decision.reasons)} ({FORCE} overrules)")
    return decision


def promote_by_force(client: "MlflowClient", name: str, number: int, reason: str) -> Decision | None:
    """Make a version champion whatever the gate says, for a reason that is kept; None where it is already.

    Raises UserError where it does not even load and predict.
    """
    with registry_lock(client):
        version, standing = _find_version(client, name, number), read_standing(client, name)
        if standing.current == str(number):
            return None
        if wrong := smoke_test(version):
            raise UserError(f"{name} version {number}: does not load and predict in a fresh process: {wrong}")
        decision = Decision(True, (f"forced: {reason}",))
        write_decision(client, version, decision)
        entry = entry_of("promote", version, standing, decision)
        move(client, name, replace(entry, forced=True, reason=reason), standing, None)
        return decision


def rollback(client: "MlflowClient", name: str, reason: str = "") -> tuple[str | None, str]:
    """Make the champion before the present one champion again; returns the versions from and to.

    Again and again it walks further back. Versions that are deleted are passed over. Raises UserError where there is
    none to go back to, or where it does not load.
    """
    with registry_lock(client):
        there = {str(version.version): version for version in find_versions(client, find_models(client, name)[0].name)}
        standing = read_standing(client, name)
        current = standing.current
        before = [number for number in history.champions(standing.entries, current) if number != current]
        target = next((there[number] for number in reversed(before) if number in there), None)
        if target is None:
            held = f"version {current} is champion and" if current else "nobody is champion and"
            raise UserError(f"{name}: {held} no champion before it is left: nothing to go back to")
        if wrong := smoke_test(target):
            raise UserError(
                f"{name} version {target.version}, the champion before, does not load and predict: {wrong}; "
                f"`vaeline promote {name} VERSION {FORCE}` takes another"
            )
        decision = Decision(True, (f"back from version {current}" if current else "the alias was gone",))
        entry = replace(entry_of("rollback", target, standing, decision), reason=reason)
        return current, move(client, name, entry, standing, None)


def _find_version(client: "MlflowClient", name: str, number: int) -> "ModelVersion":
    """A version. Raises UserError, saying which there are, where there is no such."""
    (model,) = find_models(client, name)
    versions = find_versions(client, model.name)
    chosen = next((version for version in versions if int(version.version) == number), None)
    if chosen is None:
        there = ", ".join(str(version.version) for version in reversed(versions)) or "none"
        raise UserError(f"{name}: found no version {number}; there are: {there}")
    return chosen
