"""Stage prepare: `data/raw` -> `data/prepared`."""

from vaeline.config import read_params
from vaeline.data.prepare import prepare
from vaeline.io.workspace import PARAMS, PREPARED, RAW


def main() -> None:
    """Write the validated splits and their manifest, as section `data` of params.yaml says."""
    prepare(read_params(PARAMS).data, RAW, PREPARED)
