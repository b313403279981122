"""Stage fetch: `data.source` -> `data/raw`, `train.init` -> `data/init`."""

from vaeline.config import read_params
from vaeline.data.fetch import fetch, fetch_init
from vaeline.io.workspace import current_workspace


def main() -> None:
    """Bring the original bytes of the source, and of the weights to start from, that params.yaml names."""
    workspace = current_workspace()
    params = read_params(workspace.params)
    fetch(params.data.source, workspace)
    fetch_init(params.train.init, params.train.perceptual, workspace)
