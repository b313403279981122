"""Reader of reports/metrics.json; imports neither torch nor numpy."""

import json
from pathlib import Path
from typing import Any

from vaeline.errors import UserError


def read_metrics(path: Path) -> dict[str, Any]:
    """The report that the stage evaluate wrote; raises UserError where it is missing or something else."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; run the stage evaluate") from None
    except ValueError:
        raise UserError(f"{path}: is not JSON; run the stage evaluate again") from None
    if not isinstance(report, dict):
        raise UserError(f"{path}: holds no metrics; run the stage evaluate again")
    return report
