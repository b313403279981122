"""The drift test against its promises: the error rate, the power, and exact small cases."""

import itertools
import re
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from data_files import refusal
from small_training import model, options, train_small
from vaeline.core.model import VAE
from vaeline.evaluation import drift
from vaeline.evaluation.split_metrics import Values, bound
from vaeline.training.splits import Splits

BATCHES = 1000


def same_again(pool: Values, reference: int, batch: int, batches: int = BATCHES) -> np.ndarray:
    """The p-values of batches that come from where the reference comes from, all in all and of the shape: [2, N]."""
    rng = np.random.default_rng(1)
    drawn = (rng.permutation(pool)[: reference + batch] for _ in range(batches))
    verdicts = [drift.compare(part[:reference], part[reference:], 0.01) for part in drawn]
    return np.array([(verdict.p_value, verdict.p_shape) for verdict in verdicts]).T


def bounds(level: float, batches: int = BATCHES) -> tuple[float, float]:
    """Between which a count of rejections lies, but for one in 10,000 experiments, where each has chance `level`."""
    low, high = stats.binom.ppf([0.5e-4, 1 - 0.5e-4], batches, level)
    return float(low), float(high)


RNG = np.random.default_rng(2)
POOLS = {
    "heavy tails": RNG.standard_cauchy(3000),
    "two lumps": np.concatenate([RNG.standard_normal(1500), RNG.standard_normal(1500) + 50]),
    "ties": RNG.integers(0, 5, 3000).astype(float),
}


@pytest.mark.parametrize("draw", POOLS)
def test_whatever_the_distribution_the_same_one_is_rarely_called_drift(draw: str):
    p_values, _ = same_again(POOLS[draw], 1000, 200, batches=300)
    assert (p_values <= 0.05).sum() <= bounds(0.05, 300)[1]


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> VAE:
    """Trained on 600 digits for a second or two."""
    folder, data = tmp_path_factory.mktemp("digits"), Splits(digits()[:600], digits()[500:600], "none")
    section = options(epochs=60, batch_size=100, learning_rate=0.005, patience=60)
    return train_small(folder, section, data, model_section=model(latent_dim=4)).model.requires_grad_(False)


def digits() -> np.ndarray:
    """[1797, 1, 8, 8] uint8, in a random order."""
    pixels = (load_digits().images * 255 / 16).round().astype(np.uint8)[:, None]
    return np.random.default_rng(1).permutation(pixels)


@pytest.fixture(scope="module")
def pool(vae: VAE) -> Values:
    """The ELBOs of 1,197 digits that it was not trained on."""
    return bound(vae, digits()[600:], drift.REFERENCE_SEED).elbo


@pytest.mark.parametrize(("reference", "batch"), [(900, 100), (600, 500)])
def test_held_out_images_are_called_drift_about_as_often_as_the_level_says(pool: Values, reference: int, batch: int):
    """Never above the level; below it by what Bonferroni and the discreteness of small counts cost."""
    p_values, p_shape = same_again(pool, reference, batch)
    for level in (0.01, 0.05, 0.1):
        assert bounds(0.4 * level)[0] <= (p_values <= level).sum() <= bounds(level)[1]
        assert bounds(0.7 * level)[0] <= (p_shape <= level).sum() <= bounds(level)[1]


def squares(count: int) -> np.ndarray:
    """White squares of 3 x 3 pixels, anywhere."""
    row, column = np.random.default_rng(6).integers(0, 6, (2, count, 1, 1))
    near = [(np.arange(8) >= corner) & (np.arange(8) < corner + 3) for corner in (row, column)]  # [N, 1, 8] each
    return (255 * (near[0].swapaxes(1, 2) & near[1])).astype(np.uint8)[:, None]


SHIFTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "inverted": lambda x: 255 - x,
    "noise": lambda x: np.random.default_rng(3).integers(0, 256, x.shape, dtype=np.uint8),
    "shuffled": lambda x: np.random.default_rng(4).permuted(x.reshape(len(x), -1), axis=1).reshape(x.shape),
    "other shapes": lambda x: squares(len(x)),
    "a little brighter": lambda x: np.clip(x * 1.3 + 10, 0, 255).astype(np.uint8),
    "one in ten inverted": lambda x: np.where(np.arange(len(x))[:, None, None, None] % 10 == 0, 255 - x, x),
    "likelier than digits": lambda x: (0.3 * x + 0.7 * digits().mean(0)).astype(np.uint8),
}


@pytest.mark.parametrize("shift", SHIFTS)
def test_other_images_are_called_drift_with_power(vae: VAE, pool: Values, shift: str):
    """20 batches of 100 images each, drawn at random from 397 digits that the reference does not hold.

    A one-sided test on a low ELBO would pass the images that are likelier than digits (Nalisnick et al. 2019).
    """
    reference, rng = pool[:800], np.random.default_rng(5)
    flagged = 0
    for seed in range(20):
        images = SHIFTS[shift](digits()[rng.choice(np.arange(1400, 1797), 100, replace=False)])
        verdict = drift.compare(reference, bound(vae, np.ascontiguousarray(images), seed).elbo, 0.01)
        flagged += verdict.drift
        assert shift != "likelier than digits" or verdict.median_shift > 10
    assert flagged >= 19


def test_the_tails_p_value_is_that_of_all_orders_of_few_numbers():
    """Brute force: of 6 + 3 numbers every choice of 3 as the batch is equally likely."""
    numbers = np.arange(9.0)
    counts = []
    for chosen in itertools.combinations(range(9), 3):
        batch = numbers[list(chosen)]
        reference = np.setdiff1d(numbers, batch)
        counts.append(int(((batch < reference.min()) | (batch > reference.max())).sum()))
    for outside in range(4):
        batch = np.array([100.0] * outside + [2.5] * (3 - outside))
        exact = np.mean(np.array(counts) >= outside)
        assert drift.compare(numbers[:6], batch, 0.01).p_tails == pytest.approx(exact)


def test_one_image_far_off_is_enough_and_the_central_range_leaves_one_in_a_hundred_outside():
    reference = np.random.default_rng(1).standard_normal(4000)
    for far in (-50.0, np.inf, np.nan):
        assert drift.compare(reference, np.array([far]), 0.01).drift
    assert not drift.compare(reference, np.array([0.1]), 0.01).drift
    verdict = drift.compare(reference, np.random.default_rng(2).standard_normal(100_000), 0.01)
    assert verdict.outside_expected == pytest.approx(0.01, rel=0.02)
    assert verdict.outside == pytest.approx(0.01, abs=0.004)


def test_quantiles_count_ties_half():
    reference = np.array([1.0, 2.0, 2.0, 3.0])
    np.testing.assert_allclose(drift.quantiles(reference, np.array([0.0, 2.0, 2.5, 9.0])), [0, 0.5, 0.75, 1])


@pytest.mark.parametrize("count", [1, 100, 4096, 4097, 10_000])
def test_the_reference_is_spread_over_the_whole_split_and_comes_back(count: int):
    chosen = drift.spread_evenly(count)
    assert len(set(chosen.tolist())) == len(chosen) == min(count, 4096)
    assert (chosen[0], chosen[-1]) == (0, count - 1)
    elbo = np.random.default_rng(1).standard_normal(max(2, len(chosen)))
    content = drift.reference_bytes(elbo)
    assert content == drift.reference_bytes(elbo)
    assert np.array_equal(drift.parse_reference(content, "here"), elbo.astype(np.float32))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04pickle",
        drift.reference_bytes(np.zeros(100_000)),
        drift.reference_bytes(np.zeros(1)),
        drift.reference_bytes(np.zeros((4, 4))),
        drift.reference_bytes(np.array([1.0, np.nan])),
        drift.safetensors_save({drift.TENSOR: np.zeros(5)}),
        drift.safetensors_save({"other": np.zeros(5, np.float32)}),
        drift.reference_bytes(np.zeros(8))[:-1],
    ],
)
def test_what_is_no_reference_is_refused_in_one_line(content: bytes):
    assert re.match(r"here: .*allowed: test_elbo, float32", refusal(drift.parse_reference, content, "here"))
