"""Stage sample on a small real data set: which images stand where on the sheets."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluated_workspace import MODEL, PREPARED, changed, set_up
from pipeline.stages import sample
from uploads import outbox_events
from vaeline.config import parse_params
from vaeline.data.prepared import load_split
from vaeline.plotting.charts import Pixels, Sheet, render
from vaeline.serving.model_files import load_model


def draw(folder: Path = Path(), images: int = 40, **section: int) -> dict[str, Sheet]:
    test = load_split(folder / PREPARED, "test")[:images]
    model = load_model(folder / MODEL).vae
    return sample.draw(model, test, sample.latent_axes(model, test), parse_params(changed(sample=section)).sample)


@pytest.fixture(scope="module")
def drawn(measured: Path) -> dict[str, Sheet]:
    return draw(measured)


def images_of(sheet: Sheet) -> list[Pixels]:
    return [image for _, images in sheet.rows for image in images]


def difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


def test_originals_are_test_images_pixel_for_pixel_and_stand_where_they_belong(measured: Path, drawn):
    """Mistake 19."""
    test = load_split(measured / PREPARED, "test")
    originals = {
        name: [i for i, image in enumerate(images_of(sheet)) if (test == image).all((1, 2, 3)).any()]
        for name, sheet in drawn.items()
    }
    assert originals == {
        "prior_samples": [],
        "reconstructions": [0, 1, 2, 3, 4, 10, 11, 12, 13, 14],
        "interpolation": [0, 8, 9, 17, 18, 26, 27, 35],
        "mixtures": [0, 22, 30],
        "traversals": [],
    }
    counts = [len(images_of(sheet)) for sheet in drawn.values()]
    assert counts == [5 * 4, 2 * 5 * 2, 4 * (7 + 2), 7 * 8 // 2 + 3, 3 * 7]


def test_interpolations_run_between_the_reconstructions_that_stand_below_their_originals(drawn):
    (above, originals), (below, decoded) = drawn["reconstructions"].rows[:2]
    assert (above, below) == ("original", "reconstruction")
    row = drawn["interpolation"].rows[0][1]
    for at, place, neighbour in ((0, 0, 1), (1, -1, -2)):
        assert (row[place] == originals[at]).all()
        assert difference(row[neighbour], decoded[at]) <= 1


def test_mixtures_fill_a_triangle_between_the_reconstructions_of_the_three_images_outside_its_corners(drawn):
    (_, decoded), rows = drawn["reconstructions"].rows[1], [images for _, images in drawn["mixtures"].rows]
    assert [len(images) for images in rows] == [1, *range(1, 7), 9]
    for corner, expected in zip((rows[1][0], rows[-1][1], rows[-1][-2]), decoded, strict=False):
        assert difference(corner, expected) <= 1
    edge = drawn["interpolation"].rows[0][1][1:-1]  # from the first image to the second: the triangle's left edge
    assert all(difference(images[0], image) <= 1 for images, image in zip(rows[1:-1], edge, strict=False))


def test_traversals_are_of_the_dimensions_with_the_largest_kl(measured: Path, drawn):
    with (measured / "reports/kl_per_dimension.csv").open(newline="") as file:
        kl = {int(row["dimension"]): float(row["kl"]) for row in csv.DictReader(file)}
    sheet, everything = drawn["traversals"], draw(measured, traversals=64)["traversals"]
    labels = [label for label, _ in sheet.rows]
    assert [int(label.split()[0][1:]) for label in labels] == sorted(kl, key=lambda z: -kl[z])[:3]
    assert all("KL" in label and label.endswith("nats") for label in labels)
    assert (sheet.headers[0], sheet.headers[-1]) == ("-3.0", "3.0")
    assert "the 3 most informative of 6 latent dimensions" in sheet.title
    assert len(images_of(everything)) == 6 * 7


def test_another_seed_chooses_other_images_and_samples_and_few_images_are_gone_through_again(measured: Path, drawn):
    second = draw(measured, seed=2)
    for name in ("prior_samples", "reconstructions"):
        assert not np.array_equal(images_of(drawn[name]), images_of(second[name]))
    assert len(images_of(draw(measured, images=2)["reconstructions"])) == 20


def test_the_png_files_are_the_sheets_and_go_to_the_run_under_their_names(measured: Path, drawn):
    """Mistake 19."""
    for name, sheet in drawn.items():
        with Image.open(measured / f"reports/samples/{name}.png") as image:
            assert (np.array(image) == render(sheet)).all()
    sent = {(event["key"], event["step"]) for event in outbox_events(measured, "image")}
    assert sent == {(name, 0) for name in drawn}


@pytest.mark.parametrize(
    ("changes", "prior"),
    [
        ({"train": {"objective": "autoencoder"}}, "an autoencoder's code has no such prior"),
        ({"model": {"prior": {"kind": "mixture", "components": 4}}}, "z ~ p(z), the learned prior"),
        (
            {"train": {"objective": "autoencoder"}, "model": {"prior": {"kind": "fitted", "components": 4}}},
            "z ~ p(z), the learned prior",
        ),
    ],
)
def test_sheets_of_a_model_without_a_standard_normal_prior_claim_none(workspace: Path, changes, prior):
    set_up(changed(**changes))
    sheets = draw()
    assert prior in sheets["prior_samples"].title
    assert "standard deviations of the codes" in sheets["traversals"].title
    assert not any("KL" in label for label, _ in sheets["traversals"].rows)
