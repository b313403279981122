"""The stages evaluate and sample on a small real data set: what they write, what they refuse."""

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluated_workspace import PARAMS, events, set_up
from pipeline.stages import evaluate, sample
from vaeline.config import parse_params
from vaeline.data.prepare import prepare
from vaeline.data.prepared import load_split
from vaeline.errors import UserError
from vaeline.io.workspace import MODEL, PREPARED, RAW
from vaeline.plotting import sheets
from vaeline.serving.model_files import load_model, save_model
from vaeline.training.build import build_model
from workspaces import ROOT, execute

SHEETS = ["interpolation", "mixtures", "prior_samples", "reconstructions", "traversals"]


def changed(**sections: dict[str, Any]) -> dict[str, Any]:
    return {name: section | sections.get(name, {}) for name, section in PARAMS.items()}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAELINE_UPLOADER", "off")
    (tmp_path / ".dvc").mkdir()
    set_up(PARAMS)
    return tmp_path


def outputs() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path("reports").rglob("*")) if path.is_file()}


def test_evaluate_writes_metrics_and_the_kl_of_each_dimension(workspace: Path) -> None:
    evaluate.main()
    report = json.loads(Path("reports/metrics.json").read_text())
    assert report["objective"] == "elbo"
    assert report["validation"]["elbo"] != report["test"]["elbo"]
    assert report["test"]["importance_samples"] == 5
    with Path("reports/kl_per_dimension.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["dimension"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert sum(float(row["kl"]) for row in rows) == pytest.approx(report["test"]["kl"])


def test_evaluate_reports_to_the_models_run(workspace: Path) -> None:
    evaluate.main()
    report = json.loads(Path("reports/metrics.json").read_text())
    logged: dict[str, float] = {}
    for event in events(workspace, "metrics"):
        logged |= event["values"]
    assert logged["test_elbo"] == report["test"]["elbo"]
    assert logged["validation_elbo"] == report["validation"]["elbo"]
    kept = {Path(event["file"]).name for event in events(workspace, "artifact")}
    assert {"metrics.json", "kl_per_dimension.csv"} <= kept
    assert [event["tags"]["vaeline.model_digest"] for event in events(workspace, "start")] == [load_model(MODEL).digest]


def test_both_stages_write_the_same_bytes_every_time(workspace: Path) -> None:
    written = []
    for _ in range(2):
        evaluate.main()
        sample.main()
        written.append(outputs())
    assert written[0] == written[1]
    assert set(written[0]) == {
        *(f"reports/samples/{name}.png" for name in SHEETS),
        "reports/metrics.json",
        "reports/kl_per_dimension.csv",
    }


def test_sample_sends_each_sheet_under_its_name_so_that_runs_line_up(workspace: Path) -> None:
    sample.main()
    sent = {(event["key"], event["step"]) for event in events(workspace, "image")}
    assert sent == {(name, 0) for name in SHEETS}


def drawn_sheets(**section: int) -> dict[str, sheets.Sheet]:
    params = parse_params(changed(sample=section))
    return sample.draw(load_model(MODEL).vae, load_split(PREPARED, "test"), params.sample)


def words(sheet: sheets.Sheet) -> str:
    return " | ".join(text.words for text in sheet.texts)


def of_the_test_split(tile: sheets.Tile) -> bool:
    large = sheets.enlarge(np.array(load_split(PREPARED, "test")))
    return bool((large == tile.pixels).reshape(len(large), -1).all(1).any())


def test_the_sheets_have_the_sizes_that_params_ask_for(workspace: Path) -> None:
    drawn = drawn_sheets()
    counts = {name: len(sheet.tiles) for name, sheet in drawn.items()}
    assert counts == {
        "prior_samples": 5 * 4,
        "reconstructions": 2 * 5 * 2,
        "interpolation": 4 * (7 + 2),
        "mixtures": 7 * 8 // 2 + 3,
        "traversals": 3 * 7,
    }
    assert all(tile.pixels.shape == (60, 60, 3) for sheet in drawn.values() for tile in sheet.tiles)


def test_originals_are_test_images_pixel_for_pixel_and_stand_where_they_belong(workspace: Path) -> None:
    drawn = drawn_sheets()
    originals = {name: [i for i, tile in enumerate(s.tiles) if of_the_test_split(tile)] for name, s in drawn.items()}
    assert originals == {
        "prior_samples": [],
        "reconstructions": [0, 1, 2, 3, 4, 10, 11, 12, 13, 14],
        "interpolation": [0, 8, 9, 17, 18, 26, 27, 35],
        "mixtures": [28, 29, 30],
        "traversals": [],
    }


def test_the_pure_mixtures_stand_beside_their_own_originals(workspace: Path) -> None:
    reconstruction = drawn_sheets()["reconstructions"].tiles
    mixture = drawn_sheets()["mixtures"].tiles
    for original, corner, mixed in zip(reconstruction[:3], mixture[28:], (0, 21, 27), strict=True):
        assert (original.pixels == corner.pixels).all()
        paired = next(t for t in reconstruction if t.left == original.left and t.top > original.top)
        assert np.abs(paired.pixels.astype(int) - mixture[mixed].pixels).max() <= 1


def test_an_interpolation_starts_and_ends_at_the_reconstructions(workspace: Path) -> None:
    reconstruction, row = drawn_sheets()["reconstructions"].tiles, drawn_sheets()["interpolation"].tiles[:9]
    for place, image in ((1, 5), (7, 6)):
        assert np.abs(row[place].pixels.astype(int) - reconstruction[image].pixels).max() <= 1


def test_traversals_are_of_the_dimensions_with_the_largest_kl(workspace: Path) -> None:
    evaluate.main()
    with Path("reports/kl_per_dimension.csv").open(newline="") as file:
        kl = {int(row["dimension"]): float(row["kl"]) for row in csv.DictReader(file)}
    labels = [t.words for t in drawn_sheets()["traversals"].texts if t.words.startswith("z")]
    order = [int(label.split()[0][1:]) for label in labels]
    assert order == sorted(kl, key=lambda z: -kl[z])[:3]
    assert all("KL" in label and label.endswith("nats") for label in labels)
    assert "the 3 most informative of 6 latent dimensions" in words(drawn_sheets()["traversals"])


def test_more_traversals_than_dimensions_show_them_all(workspace: Path) -> None:
    sheet = drawn_sheets(traversals=64)["traversals"]
    assert len(sheet.tiles) == 6 * 7
    assert "Traversals of all 6 latent dimensions" in words(sheet)


def test_another_seed_chooses_other_images_and_samples(workspace: Path) -> None:
    first, second = drawn_sheets(), drawn_sheets(seed=2)
    for name in ("prior_samples", "reconstructions"):
        assert not all((a.pixels == b.pixels).all() for a, b in zip(first[name].tiles, second[name].tiles, strict=True))


def test_a_test_split_with_too_few_images_is_gone_through_again(workspace: Path) -> None:
    model, section = load_model(MODEL).vae, parse_params(PARAMS).sample
    two = np.array(load_split(PREPARED, "test")[:2])
    assert len(sample.draw(model, two, section)["reconstructions"].tiles) == 20


def test_the_png_files_are_the_sheets(workspace: Path) -> None:
    sample.main()
    for name, sheet in drawn_sheets().items():
        with Image.open(f"reports/samples/{name}.png") as image:
            assert (np.array(image) == sheets.render(sheet)).all()


def test_of_an_autoencoder_there_are_reconstructions_and_no_claims_about_a_prior(workspace: Path) -> None:
    set_up(changed(train={"objective": "autoencoder"}))
    evaluate.main()
    report = json.loads(Path("reports/metrics.json").read_text())
    assert set(report["test"]) == {"reconstruction", "reconstruction_se", "mse", "psnr"}
    assert Path("reports/kl_per_dimension.csv").read_text() == "dimension,kl\n"
    drawn = drawn_sheets()
    assert "an autoencoder's code has no such prior" in words(drawn["prior_samples"])
    assert "KL" not in words(drawn["traversals"])
    assert "standard deviations of the codes" in words(drawn["traversals"])


def test_a_learned_prior_is_sampled_and_its_kl_has_no_parts(workspace: Path) -> None:
    set_up(changed(model={"prior": {"kind": "mixture", "components": 4}}))
    evaluate.main()
    assert "kl" in json.loads(Path("reports/metrics.json").read_text())["test"]
    assert Path("reports/kl_per_dimension.csv").read_text() == "dimension,kl\n"
    assert "z ~ p(z), the learned prior" in words(drawn_sheets()["prior_samples"])


def test_a_summary_shows_every_number_with_its_protocol(workspace: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        evaluate.main()
    for shown in ("(u8 + u) / 256", "ELBO", "KL", "NLL", "+-", "nats per image", "bits/dim", "k = 5", "active", "dB"):
        assert shown in caplog.text


def test_a_model_of_another_shape_is_refused(workspace: Path) -> None:
    config = json.loads((MODEL / "config.json").read_text())
    vae = build_model(parse_params(PARAMS).model, (1, 8, 8), "elbo", seed=0)
    save_model(MODEL, vae, {key: config[key] for key in ("model", "objective", "data")})
    for stage in (evaluate, sample):
        with pytest.raises(UserError, match=r"model of 1 x 8 x 8 images, .*manifest\.json has 3 x 12 x 12"):
            stage.main()
    assert not Path("reports").exists()


def test_a_model_of_other_data_is_refused(workspace: Path) -> None:
    """Mistake 11: its training images may be in this test split."""
    prepare(parse_params(changed(data={"seed": 2})).data, RAW, PREPARED)
    for stage in (evaluate, sample):
        with pytest.raises(UserError, match=r"was trained on the data [0-9a-f]{12}"):
            stage.main()
    assert not Path("reports").exists()


@pytest.mark.parametrize("path", ["models/config.json", "models/model.safetensors", "data/prepared/test.npy"])
def test_a_missing_file_is_named_and_nothing_is_written(workspace: Path, path: str) -> None:
    Path(path).unlink()
    for stage in (evaluate, sample):
        with pytest.raises(UserError, match=f"^{re.escape(path)}: [^\n]+$"):
            stage.main()
    assert not Path("reports").exists()


def test_a_stage_without_a_model_ends_with_one_line_and_exit_code_1(workspace: Path) -> None:
    Path("models/config.json").unlink()
    done = execute(sys.executable, str(ROOT / "pipeline/stages/runner.py"), "evaluate", cwd=workspace, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: models/config.json: ")
    assert len(done.stderr.splitlines()) == 1
