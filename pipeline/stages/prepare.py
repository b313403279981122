"""Stage prepare: `data/raw` -> `data/prepared`, `reports/data`."""

from vaeline.config import read_params
from vaeline.data.prepare import prepare
from vaeline.io.workspace import current_workspace


def main() -> None:
    """Write the validated splits, their manifest and their summary, by section `data` of params.yaml."""
    workspace = current_workspace()
    data = read_params(workspace.params).data
    prepare(data, workspace.raw, workspace.prepared, workspace.reports / "data")
