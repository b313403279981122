"""Stage theory: the model and its data -> `reports/theory.json` and `reports/theory` (claims.json, pictures)."""

from pipeline.stages.inputs import load_trained
from vaeline.config import read_params
from vaeline.data.prepared import open_split
from vaeline.io.atomic_write import write_file, write_folder
from vaeline.io.workspace import current_workspace
from vaeline.theory.claim import numbers_file, theory_files
from vaeline.theory.context import Context
from vaeline.theory.sections import all_sections
from vaeline.tracking.provenance import run_start
from vaeline.tracking.runs import open_model_run
from vaeline.training.device import pick_device, reproducible
from vaeline.training.history import read_history


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
