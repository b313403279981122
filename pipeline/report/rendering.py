"""The run report as HTML: the stages' outputs and the lineage put into pipeline/report/templates/run.html."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report import charts, curves, lineage_rows, summary
from pipeline.report.claims import read_claims
from vaeline.config import Params
from vaeline.registry.lineage import Lineage
from vaeline.theory.page import Claim
from vaeline.tracking.provenance import flatten_metrics, flatten_params

PICTURE_BYTES = 1_300_000  # of all pictures together; above, they are made smaller
LONGEST, QUALITY = 1400, 80  # pixels, WebP's
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
CAPTIONS = {
    "prior_samples": "Samples drawn from the prior",
    "reconstructions": "Test images and their reconstructions",
    "interpolation": "Interpolations between test images",
    "mixtures": "Mixtures of three test images",
    "traversals": "Traversals of latent dimensions",
}


@dataclass(frozen=True)
class Number:
    """One headline."""

    label: str
    value: str
    error: str  # standard error; empty where there is none
    unit: str


@dataclass(frozen=True)
class Figure:
    """A picture as the page holds it."""

    source: str  # data: URI
    caption: str


def render(params: Params, lineage: Lineage | None, facts: str = "{}") -> str:
    """The page as HTML; every text is escaped by the template. `facts` go into its head, for `page.facts`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = summary.read(summary.METRICS)
    figures, claims = _figures(read_claims())
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("run.html").render(
        title=f"{params.register_.name}: {_version(lineage)}",
        facts=facts,
        registration=summary.registration(),
        gate=_gate(lineage),
        objective=found.get("objective", ""),
        protocol=summary.protocol(),
        numbers=headline(found.get("test", {})),
        sum=_sum(found.get("test", {})),
        importance_samples=found.get("test", {}).get("importance_samples"),
        curves=curves.training_curves(params),
        constants=curves.constants(),
        kl=curves.kl_bars(),
        kept=curves.kept_epoch(params),
        figures=figures,
        latent=_latent(found),
        claims=claims,
        rows=lineage_rows.rows(lineage) if lineage else [],
        params=sorted((lineage.params if lineage and lineage.params else flatten_params(params)).items()),
        charts=charts,
    )


def headline(test: Mapping[str, Any]) -> list[Number]:
    """The test split's numbers that there are, in the order of HEADLINE."""
    return [
        Number(label, *_measured(test[key], test.get(f"{key}_se")), unit)
        for key, (label, unit) in HEADLINE.items()
        if isinstance(test.get(key), int | float)
    ]


def _measured(value: float, error: Any) -> tuple[str, str]:
    """A value and its standard error, to the error's second digit."""
    if not isinstance(error, float) or not math.isfinite(error) or error <= 0:
        return _text(value), ""
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{digits}f}".replace("-", "−"), f"{error:,.{digits}f}"


def _sum(test: Mapping[str, Any]) -> str:
    """ELBO = reconstruction - KL, in this model's numbers."""
    if not {"elbo", "reconstruction", "kl"} <= test.keys():
        return ""
    elbo, reconstruction, kl = (f"{test[key]:.4f}".replace("-", "−") for key in ("elbo", "reconstruction", "kl"))
    return f"ELBO = reconstruction − KL:  {elbo} = {reconstruction} − {kl}"


def _latent(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return _pairs(found.get("latent", {}))


def _gate(lineage: Lineage | None) -> list[tuple[str, str]]:
    return _pairs(summary.registration().get("gate") or (lineage.gate if lineage else {}))


def _pairs(numbers: Any) -> list[tuple[str, str]]:
    """Names and values of nested numbers, each with the standard error that stands beside it."""
    flat = flatten_metrics(numbers) if isinstance(numbers, Mapping) else {}
    named = {key: _measured(value, flat.get(f"{key}_se")) for key, value in flat.items()}
    return [
        (key.replace("/", " ").replace("_", " "), " ± ".join(filter(None, told)))
        for key, told in named.items()
        if not (key.endswith("_se") and key.removesuffix("_se") in named)
    ]


def _version(lineage: Lineage | None) -> str:
    return f"version {lineage.version}" if lineage else "not in the registry"


def _figures(claims: Sequence[Claim]) -> tuple[list[Figure], list[tuple[Claim, list[Figure]]]]:
    """The sample sheets, and each claim with its pictures, all of a size that a mail takes."""
    sheets = sorted(summary.pictures(), key=lambda path: [*CAPTIONS, path.stem].index(path.stem))
    named = [(path.read_bytes(), CAPTIONS.get(path.stem, path.stem.replace("_", " "))) for path in sheets]
    size = sum(len(png) for png, _ in named) + sum(len(p.png) for claim in claims for p in claim.pictures)

    def figure(png: bytes, caption: str) -> Figure:
        kind, content = ("png", png) if size <= PICTURE_BYTES else ("webp", _smaller(png))
        return Figure(f"data:image/{kind};base64,{base64.b64encode(content).decode()}", caption)

    return [figure(*sheet) for sheet in named], [(c, [figure(p.png, p.caption) for p in c.pictures]) for c in claims]


def _smaller(png: bytes) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        reduced = picture.convert("RGB")
        reduced.thumbnail((LONGEST, LONGEST))
        reduced.save(buffer, format="WEBP", quality=QUALITY)
    return buffer.getvalue()


def _text(value: float) -> str:
    text = f"{value:,.5g}" if isinstance(value, float) and math.isfinite(value) else str(value)
    return text.replace("-", "−", 1) if text.startswith("-") else text
