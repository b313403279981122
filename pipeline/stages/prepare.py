"""Stage prepare: `data/raw` -> `data/prepared`."""

from vaeline.config import read_params
from vaeline.data.prepare import prepare
from vaeline.io.workspace import current_workspace


def main() -> None:
    """Write the validated splits and their manifest, by section `data` of params.yaml."""
    workspace = current_workspace()
    prepare(read_params(workspace.params).data, workspace.raw, workspace.prepared)
