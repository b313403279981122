"""Stage fetch: `data.source` -> `data/raw`."""

from pipeline.services.program import run_stage
from vaeline.config import read_params
from vaeline.data.fetch import fetch
from vaeline.io.workspace import PARAMS, RAW


def main() -> None:
    """Fill `data/raw` with the original bytes of the source that params.yaml names."""
    fetch(read_params(PARAMS).data.source, RAW)


if __name__ == "__main__":
    run_stage(main)
