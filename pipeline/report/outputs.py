"""What the page and the summaries read of a run's outputs, and its numbers as text."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaeline.errors import UserError
from vaeline.io.workspace import Workspace

HEADLINE = {  # of the test split: label, unit
    "elbo": ("ELBO", "nats per image"),
    "reconstruction": ("reconstruction term", "nats per image"),
    "kl": ("KL to the prior", "nats per image"),
    "nll": ("NLL, −log p(x)", "nats per image"),
    "gap": ("log p(x) − ELBO", "nats per image"),
    "bits_per_dimension": ("bits/dim by the ELBO", "bits per pixel value"),
    "bits_per_dimension_nll": ("bits/dim by the NLL", "bits per pixel value"),
    "active_units": ("active units", "latent dimensions"),
    "psnr": ("PSNR", "dB"),
    "mse": ("MSE", "pixels on [0, 1]"),
}


def measured(value: object, error: object = None) -> str:
    """A number as text, with its standard error where it has one, both to the error's second digit."""
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    if not isinstance(error, float) or not math.isfinite(error) or error <= 0:
        return f"{value:.5g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def with_errors(numbers: Mapping[str, Any]) -> dict[str, str]:
    """Numbers as text, each with the standard error that stands beside it as `*_se`."""
    return {
        name: measured(value, numbers.get(f"{name}_se")) for name, value in numbers.items() if not name.endswith("_se")
    }


def registration(workspace: Workspace) -> dict[str, Any]:
    """The decision of the stage register; empty where it has not run. Raises UserError where it is something else."""
    path = workspace.reports / "registration.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not what the stage register writes; run it again (dvc repro --force register)")
    return content


def sheets(workspace: Workspace) -> list[Path]:
    """The sample sheets."""
    return sorted((workspace.reports / "samples").glob("*.png"))
