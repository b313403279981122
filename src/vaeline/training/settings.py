"""How often training writes and reports, from the environment: nothing of it changes the result."""

import math
import os
from dataclasses import dataclass

from vaeline.errors import UserError


@dataclass(frozen=True)
class Settings:
    """Where the environment says nothing, these."""

    checkpoint_seconds: float = 20.0  # VAELINE_CHECKPOINT_SECONDS
    log_every: int = 50  # steps; VAELINE_LOG_EVERY

    @classmethod
    def from_environment(cls) -> "Settings":
        """Raises UserError where a variable is no number or not allowed."""
        seconds = _number("VAELINE_CHECKPOINT_SECONDS", cls.checkpoint_seconds, least=0.0)
        every = _number("VAELINE_LOG_EVERY", cls.log_every, least=1.0)
        if every != int(every):
            raise UserError(f"VAELINE_LOG_EVERY: must be a whole number of steps, found {every}")
        return cls(seconds, int(every))


def _number(name: str, default: float, least: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        raise UserError(f"{name}: must be a number from {least:g}, found {text!r}")
    return value
