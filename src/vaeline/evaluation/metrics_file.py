"""Reader of reports/metrics.json and other JSON that a stage wrote; imports neither torch nor numpy."""

from pathlib import Path
from typing import Any

from vaeline.errors import UserError
from vaeline.io.safe_read import parse_json, read_bounded

MOST_BYTES = 32 << 20
KEYS = {"evaluate": {"test"}, "register": {"name", "decision", "reasons", "digest"}}  # by stage, of its file


def read_metrics(path: Path, stage: str = "evaluate") -> dict[str, Any]:
    """The report that a stage wrote; raises UserError where it is missing or something else."""
    try:
        report = parse_json(read_bounded(path, MOST_BYTES), str(path))
    except UserError as error:
        raise UserError(f"{error}; run the stage {stage} again") from None
    if not isinstance(report, dict) or not KEYS[stage] <= report.keys():
        raise UserError(f"{path}: is not what the stage {stage} writes; run it again")
    return report
