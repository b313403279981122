"""Stage prepare: `data/raw` -> `data/prepared`, `reports/data`."""

from vaeline.config import read_params
from vaeline.data.prepare import prepare
from vaeline.errors import UserError
from vaeline.io.workspace import current_workspace


def main() -> None:
    """Write the validated splits, their manifest and their summary, by section `data` of params.yaml."""
    workspace = current_workspace()
    params = read_params(workspace.params)
    manifest = prepare(params.data, workspace.raw, workspace.prepared, workspace.reports / "data")
    try:
        params.model.check(manifest.shape)
    except ValueError as error:
        raise UserError(f"{error}, the shape of the prepared images") from None
