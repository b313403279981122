"""What a parent process passes on to its children: one environment variable, VAELINE_RUN_CONTEXT, a JSON object."""

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from vaeline.errors import UserError
from vaeline.io.safe_read import parse_json

VARIABLE = "VAELINE_RUN_CONTEXT"


@dataclass(frozen=True)
class RunContext:
    """The context in which a process was started; None: not part of it."""

    root: str | None = None  # repository that owns the local state, where DVC_ROOT is a trial's clone
    workspace: str | None = None  # folder in which a worker's flow runs work
    run: str | None = None  # process id of the run that holds the workspace lock
    flow_run: str | None = None  # Prefect's id
    sweep: str | None = None  # name of the sweep that a trial belongs to
    parent_run: str | None = None  # id of the sweep's MLflow run
    uploader_path: str | None = None  # PYTHONPATH of the uploader, which outlives a trial's clone
    service: str | None = None  # which service of `vaeline up` started this process

    @classmethod
    def read(cls) -> "RunContext":
        """The context of this process. Raises UserError where the variable does not hold one."""
        text = os.environ.get(VARIABLE) or "{}"
        try:
            content: Any = parse_json(text.encode(), VARIABLE)
            if all(isinstance(value, str) for value in content.values()):
                return cls(**content)
        except (UserError, TypeError, AttributeError):
            pass
        keys = ", ".join(field.name for field in fields(cls))
        raise UserError(f"{VARIABLE}: found {text[:200]!r}, allowed: a JSON object of strings, with keys out of {keys}")

    def environment(self, **changes: str | None) -> dict[str, str]:
        """The variable that gives children this context with changes."""
        content = asdict(replace(self, **changes))
        return {VARIABLE: json.dumps({name: value for name, value in content.items() if value is not None})}
