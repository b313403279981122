import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from small_training import CPU, TRAIN, Recorder, bumps, model, options, same_weights, splits, train_small
from vaeline import config
from vaeline.config.data import Binarise
from vaeline.core.likelihoods import Bernoulli
from vaeline.data import batches
from vaeline.data.batches import Resident
from vaeline.errors import UserError
from vaeline.training import checkpoint, trainer
from vaeline.training import step as steps
from vaeline.training.device import Settings
from vaeline.training.history import best
from vaeline.training.randomness import Noise
from vaeline.training.splits import Splits, validate
from vaeline.training.step import Averages, Batch
from vaeline.training.trainer import Result

GOLDEN = {"validation_elbo": -0.34881336, "validation_kl": 0.06154173, "sigma": 0.28960204}
EVERY_STEP = Settings(checkpoint_seconds=1e9, log_every=1)
BERNOULLI = model(config.Bernoulli(kind="bernoulli"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A training of the default params: 3 epochs of 7 steps."""
    return train_small(tmp_path_factory.mktemp("plain"))


def test_the_golden_run_depends_on_its_seed_alone_and_not_on_how_its_images_are_read(
    plain: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert [row.step for row in plain.history] == [7, 14, 21]
    assert {name: getattr(plain.history[-1], name) for name in GOLDEN} == pytest.approx(GOLDEN, rel=1e-4)
    torch.manual_seed(99)
    torch.rand(3)
    again = train_small(tmp_path / "a")
    assert same_weights(plain, again)
    assert plain.history == again.history
    assert not same_weights(plain, train_small(tmp_path / "b", options(seed=2)))
    monkeypatch.setattr(batches, "_free_bytes", lambda device: 0)
    assert isinstance(batches.open_images(bumps(3, 1), CPU), batches.Streamed)
    assert same_weights(plain, train_small(tmp_path / "c"))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches that steps are taken on."""
    batches: list[Batch] = []
    real = steps.step

    def watched(state: trainer.State, batch: Batch, *rest: Any) -> object:
        batches.append(batch)
        return real(state, batch, *rest)

    monkeypatch.setattr(steps, "step", watched)
    return batches


def test_every_image_is_seen_once_an_epoch_in_another_order_and_dequantised_anew(tmp_path: Path, seen: list[Batch]):
    """Mistakes 7, 8 and 11: no noise for densities; the same order in every epoch; a short last batch dropped."""
    train_small(tmp_path, options(epochs=2))
    assert [len(batch.pixels) for batch in seen] == 2 * ([16] * 6 + [4])
    images = [image.tobytes() for batch in seen for image in batch.pixels.to(torch.uint8).numpy()]
    first, second, file = images[:100], images[100:], [image.tobytes() for image in bumps(100, seed=1)]
    assert sorted(first) == sorted(second) == sorted(file)
    assert first != second
    assert file not in (first, second)
    noise = torch.cat([batch.uniform for batch in seen])
    assert noise.shape == (200, 1, 8, 8)
    assert len(noise.unique()) > 0.8 * noise.numel()  # of 2^16 values
    assert 0 < noise.min() < noise.max() < 1


def test_half_of_the_images_of_a_step_are_mirrored(tmp_path: Path, seen: list[Batch]):
    """Mistake 13."""
    result, file = train_small(tmp_path / "a", options(flips=True, epochs=2)), bumps(100, seed=1)
    images = [image for batch in seen for image in batch.pixels.to(torch.uint8).numpy()]
    plain, mirrored = {image.tobytes() for image in file}, {image[:, :, ::-1].tobytes() for image in file}
    assert {image.tobytes() for image in images} <= plain | mirrored
    first, second = ([image.tobytes() in mirrored for image in images[part]] for part in (slice(100), slice(100, 200)))
    assert 35 <= sum(first) <= 65 and first != second
    assert same_weights(result, train_small(tmp_path / "b", options(flips=True, epochs=2)))


def test_each_step_takes_a_part_of_each_image_at_a_place_of_its_own(tmp_path: Path, seen: list[Batch]):
    """Mistake 13."""
    grid = np.arange(100, dtype=np.uint8).reshape(1, 10, 10)
    data = Splits(bumps(100, seed=1), bumps(30, seed=2), "none", whole=np.stack([grid] * 100))
    train_small(tmp_path, options(epochs=2), data)
    images = torch.cat([batch.pixels for batch in seen]).to(torch.uint8).numpy()
    corners = [divmod(int(image[0, 0, 0]), 10) for image in images]
    for image, (y, x) in zip(images, corners, strict=True):
        np.testing.assert_array_equal(image, grid[:, y : y + 8, x : x + 8])
    counts = Counter(corners)
    assert set(counts) == {(y, x) for y in range(3) for x in range(3)}
    assert min(counts.values()) >= 8 and max(counts.values()) <= 40  # of 200 / 9 each
    assert corners[:100] != corners[100:]


@pytest.mark.parametrize("ema", [0.0, 0.8])
def test_patience_ends_a_training_whose_weights_are_those_of_the_epoch_with_the_best_bound(tmp_path: Path, ema: float):
    """Mistake 2: the last weights, or those of another epoch than the best, in place of the best."""
    data = Splits(bumps(100, seed=1), 255 - bumps(30, seed=2), "none")  # to validate: the negative of what is learnt
    result = train_small(tmp_path, options(epochs=50, patience=2, ema=ema), data)
    assert result.best == best(result.history, 1.0)
    assert len(result.history) == result.best.epoch + 2 < 50
    found = validate(result.model, Resident(data.validation, CPU), Noise(TRAIN.seed, CPU))
    assert found.reconstruction - found.kl == pytest.approx(result.best.validation_elbo, rel=1e-6)


def test_mistake_2_weights_are_chosen_under_the_last_weight_of_the_kl_and_not_that_of_the_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def trained(name: str, *found: tuple[float, float]) -> Result:
        validations = iter([Averages(reconstruction, kl, 0.0) for reconstruction, kl in found])
        monkeypatch.setattr(trainer, "validate", lambda *_, **__: next(validations))
        return train_small(tmp_path / name, options(beta=4.0, warmup_epochs=3))

    # -25, -27 and -42 at beta 4, but at the second epoch's beta of 2.5 that one is the best so far
    result = trained("a", (-21.0, 1.0), (-15.0, 3.0), (-30.0, 3.0))
    assert result.best.epoch == 1
    assert same_weights(result, trained("b", (-1.0, 0.0), (-9.0, 0.0), (-9.0, 0.0)))


def test_mistake_12_reported_bounds_have_neither_beta_nor_warm_up_nor_free_bits(tmp_path: Path):
    recorder = Recorder()
    section = options(beta=4.0, warmup_epochs=2, free_bits=0.5)
    result = train_small(tmp_path, section, tracker=recorder, settings=EVERY_STEP)
    assert [row.beta for row in result.history] == pytest.approx([4 * 6 / 14, 4 * 13 / 14, 4.0])
    for row in result.history:
        assert row.train_kl > 0.01
        assert row.train_elbo == row.train_reconstruction - row.train_kl
        assert row.validation_elbo == row.validation_reconstruction - row.validation_kl
    elbo, kl = recorder.values("train/elbo"), recorder.values("train/kl")
    reconstruction = recorder.values("train/reconstruction")
    assert all(elbo[step] == reconstruction[step] - kl[step] for step in elbo)


@pytest.mark.parametrize(
    "changes",
    [
        {"beta": 4.0},
        {"warmup_epochs": 2},
        {"free_bits": 1.0},
        {"batch_size": 20},
        {"learning_rate": 0.001},
        {"adam_betas": (0.9, 0.99)},
        {"gradient_clip": 0.5},
    ],
    ids=str,
)
def test_mistake_13_every_option_changes_the_training(plain: Result, tmp_path: Path, changes: dict[str, Any]):
    assert not same_weights(plain, train_small(tmp_path, options(**changes)))


def test_metrics_and_pictures_reach_the_tracker_and_the_means_of_an_epochs_parts_add_up_to_its_row(tmp_path: Path):
    """Mistake 8: a mean of batch means, the last of them short."""
    recorder = Recorder()
    result = train_small(tmp_path, tracker=recorder, settings=Settings(log_every=5))
    for name in ("elbo", "reconstruction", "kl", "sigma", "beta", "learning_rate", "images_per_second"):
        assert sorted(recorder.values(f"train/{name}")) == [5, 7, 10, 14, 15, 20, 21]
    for name in ("elbo", "reconstruction", "kl"):
        expected = {row.step: getattr(row, f"validation_{name}") for row in result.history}
        assert recorder.values(f"validation/{name}") == expected
    assert [(key, step, image.shape, image.dtype) for key, step, image in recorder.images] == [
        ("samples", step, (64, 64), np.uint8) for step in (7, 14, 21)
    ]
    parts = recorder.values("train/reconstruction")
    mean = (80 * parts[5] + 20 * parts[7]) / 100
    assert mean == pytest.approx(result.history[0].train_reconstruction, rel=1e-9)


def test_an_autoencoder_has_no_elbo_and_no_kl(tmp_path: Path):
    recorder = Recorder()
    result = train_small(tmp_path, options(objective="autoencoder"), tracker=recorder, settings=EVERY_STEP)
    bounds = [(row.train_elbo, row.train_kl, row.validation_elbo, row.validation_kl) for row in result.history]
    assert set(bounds) == {(None, None, None, None)}
    assert recorder.values("train/elbo") == recorder.values("train/kl") == recorder.values("validation/elbo") == {}
    assert result.best.validation_reconstruction == max(row.validation_reconstruction for row in result.history)
    assert result.model.deterministic


def test_dynamic_binarisation_draws_the_training_pixels_anew_each_epoch(tmp_path: Path, seen: list[Batch]):
    data, section = splits(2000, binarise="dynamic"), options(batch_size=2000, epochs=10, learning_rate=1e-4)
    train_small(tmp_path, section, data, model_section=BERNOULLI)
    drawn = [Bernoulli().observe(batch.pixels, batch.uniform) for batch in seen]
    images = torch.stack([epoch.flatten(1).sum(1).sort().values for epoch in drawn])
    assert set(torch.cat(drawn).unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(images[0], images[1])
    assert torch.stack(drawn).mean().item() == pytest.approx(data.train.mean() / 255, rel=5e-3)


@pytest.mark.parametrize(
    ("binarise", "spoilt"), [("static", "train"), ("static", "validation"), ("dynamic", "validation")]
)
def test_mistake_10_a_bernoulli_refuses_grey_pixels(tmp_path: Path, binarise: Binarise, spoilt: str):
    data = splits(binarise=binarise)
    parts = {"train": data.train, "validation": data.validation}
    parts[spoilt] = bumps(len(parts[spoilt]), seed=3)
    with pytest.raises(UserError, match=f"the {spoilt} split has grey pixels"):
        train_small(tmp_path, data=Splits(**parts, binarise=binarise), model_section=BERNOULLI)


def test_pseudo_inputs_start_at_different_training_images(tmp_path: Path) -> None:
    data, prior = splits(), config.Vamp(kind="vamp", components=7)
    started, pixels = data.some(7, seed=1), torch.from_numpy(data.train) / 255
    matches = (started[:, None] == pixels[None]).flatten(2).all(2)  # [7, N]
    assert (matches.any(1).sum(), matches.any(0).sum()) == (7, 7)
    assert len(data.some(250, seed=1)) == 250
    slow = train_small(tmp_path, options(epochs=1, learning_rate=1e-9), data, model_section=model(prior=prior))
    torch.testing.assert_close(slow.model.prior.pseudo_inputs.detach(), started)


def test_a_loss_that_is_not_finite_ends_training_within_that_step_and_keeps_the_checkpoint(
    plain: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, calls = steps.step, []

    def poisoned(state: trainer.State, batch: Batch, *rest: Any) -> object:
        calls.append(1)
        pixels = batch.pixels * float("nan") if len(calls) == 11 else batch.pixels
        return real(state, Batch(pixels, batch.uniform, batch.normal), *rest)

    monkeypatch.setattr(steps, "step", poisoned)
    expected = r"^training diverged: .* not finite at step 11; lower train.learning_rate"
    with pytest.raises(UserError, match=expected):
        train_small(tmp_path, settings=Settings(checkpoint_seconds=0.0))
    assert len(calls) == 11
    monkeypatch.setattr(steps, "step", real)
    assert checkpoint.read(tmp_path).progress["step"] == 10
    assert same_weights(train_small(tmp_path), plain)


def test_an_interrupt_that_a_shell_has_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with trainer.deferred_signals() as received:
            os.kill(os.getpid(), signal.SIGINT)
        assert received == []
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_checkpoint_follows_a_flush_of_what_was_reported_before_it(tmp_path: Path):
    newest: list[int] = []

    class Careful(Recorder):
        def flush(self) -> None:
            found = checkpoint.read(tmp_path)
            newest.append(found.progress["step"] if found else 0)

    train_small(tmp_path, tracker=Careful(), settings=Settings(checkpoint_seconds=0, log_every=1))
    assert newest[:21] == list(range(21))


@pytest.mark.parametrize("at", [4, 7, 12, 21])
def test_a_signal_leaves_a_checkpoint_to_go_on_from(plain: Result, tmp_path: Path, at: int):
    """After a step, the last of an epoch, and when all that is left is the last epoch's picture."""
    number, error = (signal.SIGINT, KeyboardInterrupt) if at == 12 else (signal.SIGTERM, SystemExit)

    class Killer(Recorder):
        def metrics(self, values, step):
            if step == at < 21 and "train/elbo" in values:
                os.kill(os.getpid(), number)

        def image(self, key, image, step):
            if step == at == 21:
                os.kill(os.getpid(), number)

    handler, recorder = signal.getsignal(number), Recorder()
    with pytest.raises(error) as caught:
        train_small(tmp_path, tracker=Killer(), settings=EVERY_STEP)
    assert signal.getsignal(number) is handler
    assert error is KeyboardInterrupt or caught.value.code == 143
    assert checkpoint.read(tmp_path).progress["step"] == at
    resumed = train_small(tmp_path, tracker=recorder, settings=EVERY_STEP)
    assert min(recorder.values("train/elbo"), default=22) == at + 1, "nothing is computed again"
    assert same_weights(resumed, plain)
    assert resumed.history == plain.history
