"""Look-up of registered models and their versions. Errors name what there is."""

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from vaeline.errors import UserError
from vaeline.io.safe_read import parse_json
from vaeline.tracking.connection import all_pages, tolerated

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CHAMPION = "champion"  # alias
DIGEST_TAG, DATA_TAG, MANIFEST_TAG = "vaeline.model_digest", "vaeline.data_digest", "vaeline.manifest"
ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>[1-9]\d{0,8}))")
UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's codes for names, numbers, aliases

T = TypeVar("T", list[Any], dict[str, Any])


def find_models(client: "MlflowClient", name: str | None = None) -> "list[RegisteredModel]":
    """Registered models, or the one of that name. Raises UserError where it does not exist."""
    found = all_pages(client.search_registered_models)
    if name is None:
        return found
    chosen = [model for model in found if model.name == name]
    if not chosen:
        names = ", ".join(sorted(model.name for model in found)) or "none; `vaeline run` registers the first"
        raise UserError(f"no model is registered as {name!r} in {client.tracking_uri}; registered: {names}")
    return chosen


def find_versions(client: "MlflowClient", name: str) -> "list[ModelVersion]":
    """Versions of a registered model, the newest first."""
    quote = '"' if "'" in name else "'"
    found = all_pages(client.search_model_versions, f"name = {quote}{name}{quote}")
    return sorted(found, key=lambda version: int(version.version), reverse=True)


def find_version(client: "MlflowClient", name: str, number: int | None = None, alias: str = "") -> "ModelVersion":
    """Version of a registered model by its number or alias. Raises UserError where it does not exist."""
    with tolerated(*UNKNOWN):
        return client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, str(number))
    (model,) = find_models(client, name)
    if alias:
        aliases = ", ".join(f"{key} (version {value})" for key, value in sorted(model.aliases.items()))
        raise UserError(f"{name} has no alias {alias!r}; it has: {aliases or 'none'}")
    numbers = ", ".join(str(version.version) for version in reversed(find_versions(client, name)))
    raise UserError(f"{name} has no version {number}; it has: {numbers or 'none'}")


def find_version_at(client: "MlflowClient", uri: str) -> "ModelVersion":
    """Version at models:/NAME@ALIAS or models:/NAME/VERSION. Raises UserError where there is none."""
    match = ADDRESS.fullmatch(uri)
    if match is None:
        raise UserError(f"{uri}: allowed: models:/NAME@champion, models:/NAME/VERSION")
    return find_version(client, match["name"], int(match["number"] or 0), match["alias"] or "")


def find_by_digest(client: "MlflowClient", name: str, digest: str) -> "ModelVersion | None":
    """First version with this model digest."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{DIGEST_TAG}` = '{digest}'")
    return min(found, key=lambda version: int(version.version), default=None)


def find_champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """Version with the alias champion; None where the alias is not set, or its version is gone."""
    with tolerated(*UNKNOWN):
        return client.get_model_version_by_alias(name, CHAMPION)
    return None


def parsed(text: str | bytes, kind: type[T]) -> T:
    """JSON that anyone may have written into a tag or a file; empty where it is something else."""
    try:
        value = parse_json(text if isinstance(text, bytes) else text.encode(errors="replace"), "")
    except UserError:
        return kind()
    return value if isinstance(value, kind) else kind()


def utc(moment: int | None) -> str:
    """ISO 8601 of milliseconds since the epoch; empty where it is not known."""
    known = moment is not None and 0 < moment < 10**14
    return datetime.fromtimestamp((moment or 0) / 1000, UTC).isoformat(timespec="seconds") if known else ""
