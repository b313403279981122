from pathlib import Path

import numpy as np
import pytest

from vaeline.data.sources.shapes import FACTORS, colours, draw_factors, render, write_shapes


def drawn(side: int = 64, **factors: float) -> np.ndarray:
    values = {"shape": 0, "size": 0.2, "x": 0.5, "y": 0.5, "angle": 0.0, "hue": 0.0} | factors
    return render(np.array([[values[name] for name in FACTORS]]), side)[0]  # 3 x S x S


def coverage(image: np.ndarray) -> np.ndarray:
    return image.max(0) / 255


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.2])
@pytest.mark.parametrize(
    ("shape", "area"), [(0, 2.0), (1, np.pi / 2), (2, 3 * np.sqrt(3) / 4)], ids=["square", "ellipse", "triangle"]
)
def test_the_area_covered_is_that_of_the_shape(shape: int, area: float, angle: float) -> None:
    covered = coverage(drawn(128, shape=shape, angle=angle)).sum() / 128**2
    assert covered == pytest.approx(area * 0.2**2, rel=0.02)


@pytest.mark.parametrize("shape", [0, 1, 2])
def test_the_centre_of_what_is_covered_is_the_position(shape: int) -> None:
    image = coverage(drawn(128, shape=shape, x=0.3, y=0.6, angle=0.4))
    centres = (np.arange(128) + 0.5) / 128
    assert (image.sum(0) @ centres) / image.sum() == pytest.approx(0.3, abs=0.003)
    assert (image.sum(1) @ centres) / image.sum() == pytest.approx(0.6, abs=0.003)


def test_every_factor_alone_changes_the_image() -> None:
    plain = drawn(shape=2)
    for change in ({"shape": 0}, {"size": 0.15}, {"x": 0.4}, {"y": 0.4}, {"angle": 0.7}, {"hue": 0.5}):
        assert (drawn(**({"shape": 2} | change)) != plain).mean() > 0.01, change


def test_hue_runs_through_red_green_and_blue() -> None:
    np.testing.assert_allclose(colours(np.array([0, 1 / 3, 2 / 3])), np.eye(3), atol=1e-6)


def test_factors_are_uniform_and_the_shapes_stay_inside() -> None:
    factors = draw_factors(np.random.default_rng(0), 4000)
    assert np.bincount(factors[:, 0].astype(int)).tolist() == pytest.approx([4000 / 3] * 3, rel=0.1)
    ranges = [(0, 2), (0.12, 0.24), (0.26, 0.74), (0.26, 0.74), (0, np.pi / 2), (0, 1)]
    for column, (low, high) in zip(factors.T, ranges, strict=True):
        assert low <= column.min() and column.max() <= high
        assert column.mean() == pytest.approx((low + high) / 2, rel=0.05)
    assert np.abs(np.corrcoef(factors.T) - np.eye(6)).max() < 0.06
    images = render(factors[:200], 32)
    border = np.concatenate([images[:, :, [0, -1]].ravel(), images[:, :, :, [0, -1]].ravel()])
    assert not border.any() and (images.max((1, 2, 3)) > 100).all()


def test_the_files_depend_on_the_seed_alone_and_a_larger_count_begins_alike(tmp_path: Path) -> None:
    arrays = {}
    for name, count, seed in (("a", 50, 7), ("again", 50, 7), ("more", 2000, 7), ("other", 50, 8)):
        (tmp_path / name).mkdir()
        write_shapes(tmp_path / name, count, 24, seed)
        arrays[name] = [np.load(tmp_path / name / f"{part}.npy") for part in ("images", "labels", "factors")]
    assert (tmp_path / "a/images.npy").read_bytes() == (tmp_path / "again/images.npy").read_bytes()
    images, labels, factors = arrays["a"]
    assert (images.shape, images.dtype) == ((50, 3, 24, 24), np.uint8)
    assert (labels.dtype, factors.shape, factors.dtype) == (np.int64, (50, 6), np.float64)
    np.testing.assert_array_equal(labels, factors[:, 0])
    for part, longer in zip(arrays["a"], arrays["more"], strict=True):
        np.testing.assert_array_equal(part, longer[:50])
    assert (images != arrays["other"][0]).any()
    np.testing.assert_array_equal(render(factors, 24), images)
