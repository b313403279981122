"""The repository that sweeps run in."""

from sweep_repository import repository  # noqa: F401
