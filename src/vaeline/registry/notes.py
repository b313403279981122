"""Descriptions that MLflow shows on top of a run's and a version's page; what a user wrote there stays."""

import hashlib
from typing import TYPE_CHECKING

from vaeline.registry.lineage import Lineage

if TYPE_CHECKING:
    from mlflow import MlflowClient

NOTE, OURS = "mlflow.note.content", "vaeline.note"  # tags: the description, and the digest of the one written here


def annotate(client: "MlflowClient", lineage: Lineage, text: str) -> None:
    """Put `text` on the run's page, and before what the version's says of how to use it."""
    if lineage.run_id:
        tags = client.get_run(lineage.run_id).data.tags
        if not tags.get(NOTE) or tags.get(OURS) == _digest(tags[NOTE]):
            client.set_tag(lineage.run_id, NOTE, text)
            client.set_tag(lineage.run_id, OURS, _digest(text))
    version = client.get_model_version(lineage.name, lineage.version)
    before = version.description or ""
    usage = before.rpartition("\n\n---\n\n")[2]
    after = f"{text}\n\n---\n\n{usage}" if usage else text
    if after != before and (before == usage or version.tags.get(OURS) == _digest(before)):
        client.update_model_version(lineage.name, lineage.version, after)
        client.set_model_version_tag(lineage.name, lineage.version, OURS, _digest(after))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
