"""Descriptions shown on top of a run's and a version's page in MLflow; text that a user wrote there stays."""

import hashlib
from typing import TYPE_CHECKING

from vaeline.registry.lineage import Lineage

if TYPE_CHECKING:
    from mlflow import MlflowClient

NOTE, NOTE_DIGEST = "mlflow.note.content", "vaeline.note"  # tags: the description, the digest of the one written here


def annotate(client: "MlflowClient", lineage: Lineage, text: str) -> None:
    """Put `text` on the run's page, and before the usage text on the version's."""
    if lineage.run_id:
        tags = client.get_run(lineage.run_id).data.tags
        if not tags.get(NOTE) or tags.get(NOTE_DIGEST) == _digest(tags[NOTE]):
            client.set_tag(lineage.run_id, NOTE, text)
            client.set_tag(lineage.run_id, NOTE_DIGEST, _digest(text))
    version = client.get_model_version(lineage.name, lineage.version)
    before = version.description or ""
    usage = before.rpartition("\n\n---\n\n")[2]
    after = f"{text}\n\n---\n\n{usage}" if usage else text
    if after != before and (before == usage or version.tags.get(NOTE_DIGEST) == _digest(before)):
        client.update_model_version(lineage.name, lineage.version, after)
        client.set_model_version_tag(lineage.name, lineage.version, NOTE_DIGEST, _digest(after))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
