"""Reader of reports/metrics.json and other JSON that a stage wrote; imports neither torch nor numpy."""

import json
from pathlib import Path
from typing import Any

from vaeline.errors import UserError


def read_metrics(path: Path, stage: str = "evaluate") -> dict[str, Any]:
    """The report that a stage wrote; raises UserError where it is missing or something else."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; run the stage {stage}") from None
    except ValueError:
        raise UserError(f"{path}: is not JSON; run the stage {stage} again") from None
    if not isinstance(report, dict):
        raise UserError(f"{path}: is not what the stage {stage} writes; run it again")
    return report
