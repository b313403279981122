"""Stage evaluate on a small real data set: what it writes; what evaluate and sample refuse."""

import csv
import json
import re
from pathlib import Path

import pytest

from evaluated_workspace import MODEL, PARAMS, PREPARED, RAW, changed, set_up
from pipeline.stages import evaluate, sample
from uploads import outbox_events
from vaeline.config import parse_params
from vaeline.data.prepare import prepare
from vaeline.data.prepared import SPLITS, open_split
from vaeline.errors import UserError
from vaeline.evaluation.latent_space import latent_report
from vaeline.evaluation.split_metrics import bound
from vaeline.serving.model_files import load_model, save_model
from vaeline.training.build import build_model


def test_evaluate_writes_metrics_and_the_kl_of_each_dimension(workspace: Path):
    evaluate.main()
    report = json.loads(Path("reports/metrics.json").read_text())
    assert report["objective"] == "elbo"
    assert report["validation"]["elbo"] != report["test"]["elbo"]
    assert report["test"]["importance_samples"] == 5
    with Path("reports/kl_per_dimension.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["dimension"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert sum(float(row["kl"]) for row in rows) == pytest.approx(report["test"]["kl"])


def test_mistake_18_every_number_is_of_its_own_split(workspace: Path) -> None:
    evaluate.main()
    report, section = json.loads(Path("reports/metrics.json").read_text()), parse_params(PARAMS).evaluate
    vae, splits = load_model(MODEL).vae, [open_split(PREPARED, name) for name in SPLITS]
    for name, split in zip(SPLITS[1:], splits[1:], strict=True):
        assert report[name]["elbo"] == pytest.approx(bound(vae, split.pixels, section.seed).elbo.mean(), rel=1e-6)
    truth = latent_report(vae, *splits, images=section.latent_images, seed=section.seed)
    assert report["latent"]["rate"] == pytest.approx(truth["rate"], rel=1e-5)
    assert report["latent"]["images"] == truth["images"]


def test_evaluate_reports_to_the_models_run(workspace: Path):
    evaluate.main()
    report = json.loads(Path("reports/metrics.json").read_text())
    logged: dict[str, float] = {}
    for event in outbox_events(workspace, "metrics"):
        logged |= event["values"]
    assert logged["test_elbo"] == report["test"]["elbo"]
    assert logged["validation_elbo"] == report["validation"]["elbo"]
    kept = {event["name"] for event in outbox_events(workspace, "artifact")}
    assert {"metrics.json", "kl_per_dimension.csv"} <= kept
    assert [event["tags"]["vaeline.model_digest"] for event in outbox_events(workspace, "start")] == [
        load_model(MODEL).digest
    ]


def outputs() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path("reports").rglob("*")) if path.is_file()}


def test_both_stages_write_the_same_bytes_every_time(workspace: Path):
    written = []
    for _ in range(2):
        evaluate.main()
        sample.main()
        written.append(outputs())
    assert written[0] == written[1]
    assert set(written[0]) == {
        *(f"reports/samples/{name}.png" for name in sample.SHEETS),
        "reports/metrics.json",
        "reports/kl_per_dimension.csv",
    }


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"train": {"objective": "autoencoder"}}, {"reconstruction", "reconstruction_se", "mse", "psnr"}),
        ({"model": {"prior": {"kind": "mixture", "components": 4}}}, {"elbo", "kl", "nll", "active_units"}),
    ],
)
def test_an_autoencoder_has_no_bound_and_a_learned_priors_kl_no_parts(workspace: Path, changes, found: set[str]):
    set_up(changed(**changes))
    evaluate.main()
    test = set(json.loads(Path("reports/metrics.json").read_text())["test"])
    assert test >= found
    assert ("elbo" in test) == ("elbo" in found)
    assert Path("reports/kl_per_dimension.csv").read_text() == "dimension,kl\n"


def test_a_summary_shows_every_number_with_its_protocol(workspace: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO"):
        evaluate.main()
    for shown in ("(u8 + u) / 256", "ELBO", "KL", "NLL", "+-", "nats per image", "bits/dim", "k = 5", "active", "dB"):
        assert shown in caplog.text


def test_a_model_of_another_shape_is_refused(workspace: Path):
    config = json.loads((MODEL / "config.json").read_text())
    vae = build_model(parse_params(PARAMS).model, (1, 8, 8), "elbo", seed=0)
    save_model(MODEL, vae, {key: config[key] for key in ("model", "objective", "data")})
    for stage in (evaluate, sample):
        with pytest.raises(UserError, match=r"model of 1 x 8 x 8 images, .*manifest\.json has 3 x 12 x 12"):
            stage.main()
    assert not Path("reports").exists()


def test_a_model_of_other_data_is_refused(workspace: Path):
    """Mistake 11: its training images may be in this test split."""
    prepare(parse_params(changed(data={"seed": 2})).data, RAW, PREPARED)
    for stage in (evaluate, sample):
        with pytest.raises(UserError, match=r"was trained on the data [0-9a-f]{12}"):
            stage.main()
    assert not Path("reports").exists()


@pytest.mark.parametrize("path", ["models/config.json", "models/model.safetensors", "data/prepared/test.npy"])
def test_a_missing_file_is_named_and_nothing_is_written(workspace: Path, path: str):
    Path(path).unlink()
    for stage in (evaluate, sample):
        with pytest.raises(UserError, match=f"^{re.escape(path)}: [^\n]+$"):
            stage.main()
    assert not Path("reports").exists()
