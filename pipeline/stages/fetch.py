"""Stage fetch: `data.source` -> `data/raw`."""

from vaeline.config import read_params
from vaeline.data.fetch import fetch
from vaeline.io.workspace import PARAMS, RAW


def main() -> None:
    """Fill `data/raw` with the original bytes of the source that params.yaml names."""
    fetch(read_params(PARAMS).data.source, RAW)
