"""Stage theory: the model and its data -> `reports/theory.json` and `reports/theory` (claims.json, pictures)."""

import json
from collections.abc import Sequence
from typing import Any

from vaeline.config import read_params
from vaeline.data.prepared import open_split
from vaeline.io.atomic_write import write_file, write_folder
from vaeline.io.progress import Progress
from vaeline.io.workspace import current_workspace
from vaeline.serving.model_files import load_trained
from vaeline.theory import bounds, codes, gradients, scales
from vaeline.theory.claim import Claim, Context
from vaeline.tracking.provenance import run_start
from vaeline.tracking.runs import open_model_run
from vaeline.training.device import pick_device, reproducible
from vaeline.training.history import read_history

SECTIONS = (  # in the order of the page
    codes.latent_space,
    bounds.gap,
    bounds.terms,
    gradients.estimators,
    bounds.asymmetry,
    gradients.batch_size,
    scales.log_variance,
    scales.squared_error,
    scales.latent_diffusion,
)


def main() -> None:
    """Measure every claim of the theory on the trained model."""
    workspace, device = current_workspace(), pick_device()
    params, trained = read_params(workspace.params), load_trained(workspace, device)
    context = Context(
        model=trained.vae,
        section=trained.config.model,
        objective=trained.config.objective,
        binarise=trained.config.data.binarise,
        train=open_split(workspace.prepared, "train"),
        validation=open_split(workspace.prepared, "validation"),
        test=open_split(workspace.prepared, "test"),
        history=read_history(workspace.reports / "history.csv"),
        options=params.theory,
        device=device,
    )
    with reproducible(device):
        claims = all_sections(context)
    files, folder = theory_files(claims), workspace.reports / "theory"
    write_folder(folder, files)
    write_file(workspace.reports / "theory.json", numbers_file(claims))
    with open_model_run(workspace, trained.digest, run_start(workspace, params)) as run:
        for name in files:
            run.artifact(folder / name, "reports/theory")
        run.artifact(workspace.reports / "theory.json", "reports")


def all_sections(context: Context) -> list[Claim]:
    """Every claim, measured on the trained model."""
    claims = list[Claim]()
    with Progress("theory", len(SECTIONS), "claims") as reporter:
        for section in SECTIONS:
            reporter.update(len(claims))
            claims.append(section(context))
            reporter.line(f"{len(claims)} of {len(SECTIONS)}: {claims[-1].title}")
    return claims


def numbers_file(claims: Sequence[Claim]) -> bytes:
    """theory.json: the numbers of each claim by its key, null where one is not finite."""
    content = {claim.key: {"applies": bool(claim.numbers), **claim.numbers} for claim in claims}
    return _json(json.loads(json.dumps(content), parse_constant=lambda _: None))


def theory_files(claims: Sequence[Claim]) -> dict[str, bytes]:
    """claims.json with everything but the numbers, and the pictures that it names, by file name."""
    content = []
    for claim in claims:
        table = {"header": claim.table[0], "rows": claim.table[1:]} if claim.table else None
        pictures = [
            {"name": picture.name, "caption": picture.caption, "wide": picture.wide} for picture in claim.pictures
        ]
        section = vars(claim) | {"table": table, "pictures": pictures}
        content.append({key: value for key, value in section.items() if key != "numbers"})
    return {"claims.json": _json(content)} | {f"{p.name}.png": p.png for claim in claims for p in claim.pictures}


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
