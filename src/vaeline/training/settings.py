"""How often training writes and reports, from the environment; the result does not depend on it."""

import math
import os
from dataclasses import dataclass

from vaeline.errors import UserError


@dataclass(frozen=True)
class Settings:
    """The defaults are those of an empty environment."""

    checkpoint_seconds: float = 20.0  # VAELINE_CHECKPOINT_SECONDS
    log_every: int = 50  # steps; VAELINE_LOG_EVERY

    @classmethod
    def from_environment(cls) -> "Settings":
        """Raises UserError where a variable is no number or not allowed."""
        seconds = _number("VAELINE_CHECKPOINT_SECONDS", cls.checkpoint_seconds, least=0.0)
        return cls(seconds, whole_number("VAELINE_LOG_EVERY", cls.log_every))


def whole_number(name: str, default: int, most: int | None = None) -> int:
    """An environment variable, from 1 to `most`. Raises UserError for anything else."""
    text = os.environ.get(name) or str(default)
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= (most or math.inf):
        allowed = f"from 1 to {most}" if most else "from 1"
        raise UserError(f"{name}: must be a whole number {allowed}, found {text!r}")
    return int(text)


def _number(name: str, default: float, least: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        raise UserError(f"{name}: must be a number from {least:g}, found {text!r}")
    return value
