"""Stage fetch: `data.source` -> `data/raw`."""

from vaeline.config import read_params
from vaeline.data.fetch import fetch
from vaeline.io.workspace import current_workspace


def main() -> None:
    """Fill `data/raw` with the original bytes of the source that params.yaml names."""
    workspace = current_workspace()
    fetch(read_params(workspace.params).data.source, workspace)
