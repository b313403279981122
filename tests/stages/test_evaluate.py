"""Stage evaluate on a small real data set: what it writes; what evaluate and sample refuse."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from evaluated_workspace import MODEL, PARAMS, PREPARED, RAW, changed, set_up
from pipeline.stages import evaluate, sample
from uploads import outbox_events
from vaeline.config import parse_params
from vaeline.data.prepare import prepare
from vaeline.data.prepared import SPLITS, open_split
from vaeline.errors import UserError
from vaeline.evaluation.split_metrics import bound
from vaeline.serving.model_files import load_model, save_model
from vaeline.training.build import build_model


def read_report(folder: Path = Path()) -> dict[str, Any]:
    return json.loads((folder / "reports/metrics.json").read_text())


def test_evaluate_writes_metrics_and_the_kl_of_each_dimension_and_reports_them_to_the_models_run(measured: Path):
    """Mistake 23."""
    report, test = read_report(measured), read_report(measured)["test"]
    assert (report["objective"], test["importance_samples"], test["proposal"]) == ("elbo", 5, "laplace")
    with (measured / "reports/kl_per_dimension.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["dimension"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert sum(float(row["kl"]) for row in rows) == pytest.approx(test["kl"])
    logged = {name: value for event in outbox_events(measured, "metrics") for name, value in event["values"].items()}
    assert logged["test/elbo"] == test["elbo"] != report["validation"]["elbo"]
    kept = {event["name"] for event in outbox_events(measured, "artifact")}
    assert {"metrics.json", "kl_per_dimension.csv"} <= kept
    digests = [event["tags"]["vaeline.model_digest"] for event in outbox_events(measured, "start")]
    assert digests == [load_model(measured / MODEL).digest]


def test_mistake_18_every_number_is_of_its_own_split(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(evaluate, "latent_report", lambda vae, *splits, **_: seen.extend(splits) or {})
    evaluate.main()
    report, section = read_report(), parse_params(PARAMS).evaluate
    vae, splits = load_model(MODEL).vae, [open_split(PREPARED, name) for name in SPLITS]
    for name, split in zip(SPLITS[1:], splits[1:], strict=True):
        assert report[name]["elbo"] == pytest.approx(bound(vae, split.pixels, section.seed).elbo.mean(), rel=1e-6)
    assert [(split.pixels == own.pixels).all() for split, own in zip(seen, splits, strict=True)] == [True] * 3


def test_both_stages_write_the_same_bytes_every_time(workspace: Path, measured: Path):
    evaluate.main()
    sample.main()
    first, again = (
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("reports/**/*") if path.is_file()}
        for folder in (measured, workspace)
    )
    assert first == again
    sheets = ("prior_samples", "reconstructions", "interpolation", "mixtures", "traversals")
    assert set(first) == {
        *(f"reports/samples/{name}.png" for name in sheets),
        "reports/explorer.html",
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
def test_an_autoencoder_has_no_bound_and_no_kl(
    workspace: Path, changes, found: set[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    set_up(changed(**changes))
    monkeypatch.setattr(evaluate, "latent_report", lambda *_, **__: {})
    with caplog.at_level("INFO"):
        evaluate.main()
    test = set(read_report()["test"])
    assert test >= found
    assert ("elbo" in test) == ("elbo" in found)
    assert all(word in caplog.text for word in {"(u8 + u) / 256", "±", *found} - {"reconstruction_se"})
    rows = Path("reports/kl_per_dimension.csv").read_text().splitlines()
    assert len(rows) == (7 if "elbo" in found else 1)


def other_shape() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    vae = build_model(parse_params(PARAMS).model, (1, 8, 8), "elbo", seed=0)
    save_model(MODEL, vae, {key: config[key] for key in ("model", "objective", "data")})


def other_data() -> None:
    prepare(parse_params(changed(data={"seed": 2})).data, RAW, PREPARED)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (other_shape, r"models/config\.json: was trained on 1 x 8 x 8 images, data/prepared has 3 x 12 x 12"),
        (other_data, r"models/config\.json: was trained on the data [0-9a-f]{12}, data/prepared is [0-9a-f]{12}"),
        *(
            (Path(path).unlink, f"{re.escape(path)}: [^\n]+$")
            for path in ("models/config.json", "models/model.safetensors", "data/prepared/test.npy")
        ),
    ],
)
def test_a_model_of_other_images_or_a_missing_file_is_refused_and_nothing_is_written(workspace: Path, damage, words):
    """Mistake 11: the training images of a model of other data may be in this test split."""
    damage()
    for stage in (evaluate, sample):
        with pytest.raises(UserError, match=f"^{words}"):
            stage.main()
    assert not Path("reports").exists()
