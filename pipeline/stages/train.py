"""Stage train: prepared data, `model` and `train` -> `models/`, `reports/history.csv`."""

from pipeline.stages.entry import run_stage
from pipeline.trained import write_whole
from vaeline.config import Params, read_params
from vaeline.data.prepared import load_split, manifest_digest, read_manifest
from vaeline.digests import model_digest
from vaeline.models import save_model
from vaeline.tracking.runs import open_training_run, run_start
from vaeline.training import checkpoint
from vaeline.training.device import pick_device
from vaeline.training.history import to_csv
from vaeline.training.key import training_key
from vaeline.training.splits import Splits
from vaeline.training.trainer import Result, train
from vaeline.workspace import MODEL, PARAMS, PREPARED, REPORTS, state_folder

HISTORY = REPORTS / "history.csv"


def main() -> None:
    """Train, or go on training, and put the result in place."""
    params, manifest = read_params(PARAMS), read_manifest(PREPARED)
    device, digest = pick_device(), manifest_digest(PREPARED)
    splits = Splits(load_split(PREPARED, "train"), load_split(PREPARED, "validation"), manifest.binarise)
    key = training_key(params, digest, device)
    checkpoints = state_folder() / "checkpoints" / key
    with checkpoint.owned(checkpoints):
        resume = checkpoint.read(checkpoints) is not None
        with open_training_run(key, run_start(params), resume=resume) as run:
            result = train(params.model, params.train, splits, device=device, checkpoints=checkpoints, tracker=run)
            put_in_place(result, params, {"digest": digest, "source": manifest.source, "binarise": manifest.binarise})
            run.artifact(HISTORY, "reports")
            run.finish_training(model_digest(MODEL))
        checkpoint.remove(checkpoints)


def put_in_place(result: Result, params: Params, data: dict[str, str]) -> None:
    """Write the outputs, each whole or not at all."""
    model = params.model.model_dump(mode="json")
    save_model(MODEL, result.model, {"model": model, "objective": params.train.objective, "data": data})
    write_whole(HISTORY, to_csv(result.history).encode())


if __name__ == "__main__":
    run_stage(main)
