"""Stage sample on a small real data set: which images stand where on the sheets."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluated_workspace import MODEL, PREPARED, changed, set_up
from pipeline.stages import evaluate, sample
from uploads import outbox_events
from vaeline.config import parse_params
from vaeline.data.prepared import load_split
from vaeline.plotting.sheets import Sheet, render
from vaeline.serving.model_files import load_model


def drawn_sheets(**section: int) -> dict[str, Sheet]:
    params = parse_params(changed(sample=section))
    return sample.draw(load_model(MODEL).vae, load_split(PREPARED, "test"), params.sample)


def difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


def test_originals_are_test_images_pixel_for_pixel_and_stand_where_they_belong(workspace: Path):
    """Mistake 19."""
    test = load_split(PREPARED, "test")
    originals, counts = {}, {}
    for name, sheet in drawn_sheets().items():
        originals[name] = [i for i, tile in enumerate(sheet.tiles) if (test == tile.image).all((1, 2, 3)).any()]
        counts[name] = len(sheet.tiles)
    assert originals == {
        "prior_samples": [],
        "reconstructions": [0, 1, 2, 3, 4, 10, 11, 12, 13, 14],
        "interpolation": [0, 8, 9, 17, 18, 26, 27, 35],
        "mixtures": [28, 29, 30],
        "traversals": [],
    }
    assert list(counts.values()) == [5 * 4, 2 * 5 * 2, 4 * (7 + 2), 7 * 8 // 2 + 3, 3 * 7]


def test_each_reconstruction_stands_below_its_original_and_agrees_with_the_pure_mixtures(workspace: Path):
    drawn = drawn_sheets()
    reconstruction, mixture = drawn["reconstructions"].tiles, drawn["mixtures"].tiles
    for column, (corner, mixed) in enumerate(zip(mixture[28:], (0, 21, 27), strict=True)):
        original, below = reconstruction[column], reconstruction[5 + column]
        assert (original.row, original.column, below.row, below.column) == (0, column, 1, column)
        assert (original.image == corner.image).all()
        assert difference(below.image, mixture[mixed].image) <= 1


def test_an_interpolation_starts_and_ends_at_the_reconstructions(workspace: Path):
    drawn = drawn_sheets()
    reconstruction, row = drawn["reconstructions"].tiles, drawn["interpolation"].tiles[:9]
    for place, image in ((1, 5), (7, 6)):
        assert difference(row[place].image, reconstruction[image].image) <= 1


def test_traversals_are_of_the_dimensions_with_the_largest_kl(workspace: Path):
    evaluate.main()
    with Path("reports/kl_per_dimension.csv").open(newline="") as file:
        kl = {int(row["dimension"]): float(row["kl"]) for row in csv.DictReader(file)}
    sheet, everything = drawn_sheets()["traversals"], drawn_sheets(traversals=64)["traversals"]
    labels = list(sheet.labels.values())
    assert [int(label.split()[0][1:]) for label in labels] == sorted(kl, key=lambda z: -kl[z])[:3]
    assert all("KL" in label and label.endswith("nats") for label in labels)
    assert sheet.headers[0] == "-3.0"
    assert sheet.headers[-1] == "3.0"
    assert "the 3 most informative of 6 latent dimensions" in sheet.title
    assert len(everything.tiles) == 6 * 7
    assert "Traversals of all 6 latent dimensions" in everything.title


def test_another_seed_chooses_other_images_and_samples(workspace: Path):
    first, second = drawn_sheets(), drawn_sheets(seed=2)
    for name in ("prior_samples", "reconstructions"):
        assert not all((a.image == b.image).all() for a, b in zip(first[name].tiles, second[name].tiles, strict=True))


def test_a_test_split_with_too_few_images_is_gone_through_again(workspace: Path):
    section, two = parse_params(changed()).sample, np.array(load_split(PREPARED, "test")[:2])
    assert len(sample.draw(load_model(MODEL).vae, two, section)["reconstructions"].tiles) == 20


def test_the_png_files_are_the_sheets_and_go_to_the_run_under_their_names(workspace: Path):
    """Mistake 19."""
    sample.main()
    for name, sheet in drawn_sheets().items():
        with Image.open(f"reports/samples/{name}.png") as image:
            assert (np.array(image) == render(sheet)).all()
    assert {(event["key"], event["step"]) for event in outbox_events(workspace, "image")} == {
        (n, 0) for n in sample.SHEETS
    }


@pytest.mark.parametrize(
    ("changes", "prior", "traversals"),
    [
        (
            {"train": {"objective": "autoencoder"}},
            "an autoencoder's code has no such prior",
            "standard deviations of the codes",
        ),
        (
            {"model": {"prior": {"kind": "mixture", "components": 4}}},
            "z ~ p(z), the learned prior",
            "standard deviations of the codes",
        ),
    ],
)
def test_sheets_of_a_model_without_a_standard_normal_prior_claim_none(workspace: Path, changes, prior, traversals):
    set_up(changed(**changes))
    drawn = drawn_sheets()
    assert prior in drawn["prior_samples"].title
    assert traversals in drawn["traversals"].title
    assert not any("KL" in label for label in drawn["traversals"].labels.values())
