import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from small_training import CPU, TRAIN, Recorder, bumps, model, options, same_weights, splits, train_small
from vaeline import config
from vaeline.config import Binarise
from vaeline.core.likelihoods import Bernoulli
from vaeline.data import batches
from vaeline.data.batches import Resident
from vaeline.errors import UserError
from vaeline.training import checkpoint, interruption, trainer
from vaeline.training.history import best
from vaeline.training.meter import Averages
from vaeline.training.randomness import Noise
from vaeline.training.settings import Settings
from vaeline.training.splits import Splits
from vaeline.training.step import Batch
from vaeline.training.trainer import Result
from vaeline.training.validation import validate

GOLDEN = {"elbo": -32.662044, "kl": 0.40677482, "sigma": 0.31397343}
EVERY_STEP = Settings(checkpoint_seconds=1e9, log_every=1)


def test_the_golden_run_comes_to_the_recorded_bound(tmp_path: Path):
    result = train_small(tmp_path)
    assert [row.step for row in result.history] == [7, 14, 21]
    last = result.history[-1]
    assert last.validation_elbo == pytest.approx(GOLDEN["elbo"], rel=1e-4)
    assert last.validation_kl == pytest.approx(GOLDEN["kl"], rel=1e-4)
    assert last.sigma == pytest.approx(GOLDEN["sigma"], rel=1e-4)


def test_two_trainings_of_the_same_params_are_the_same_to_the_last_bit(tmp_path: Path):
    first = train_small(tmp_path / "a")
    torch.manual_seed(99)
    torch.rand(3)
    np.random.default_rng(5)
    second = train_small(tmp_path / "b")
    assert same_weights(first, second)
    assert first.history == second.history
    assert not same_weights(first, train_small(tmp_path / "c", options(seed=2)))


def test_images_read_from_their_file_train_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    resident = train_small(tmp_path / "a")
    monkeypatch.setattr(batches, "_free_bytes", lambda device: 0)
    assert isinstance(batches.open_images(bumps(3, 1), CPU), batches.Streamed)
    assert same_weights(train_small(tmp_path / "b"), resident)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches that steps are taken on."""
    batches: list[Batch] = []
    real = trainer.step

    def watched(state: trainer.State, batch: Batch, *rest: Any) -> object:
        batches.append(batch)
        return real(state, batch, *rest)

    monkeypatch.setattr(trainer, "step", watched)
    return batches


def test_every_image_is_seen_once_an_epoch_and_in_another_order_each_time(tmp_path: Path, seen: list[Batch]):
    """Mistakes 8 and 11: the same order in every epoch; a short last batch that is dropped."""
    train_small(tmp_path, options(epochs=2))
    assert [len(batch.pixels) for batch in seen] == 2 * ([16] * 6 + [4])
    images = [image.tobytes() for batch in seen for image in batch.pixels.to(torch.uint8).numpy()]
    first, second, file = images[:100], images[100:], [image.tobytes() for image in bumps(100, seed=1)]
    assert sorted(first) == sorted(second) == sorted(file)
    assert first != second
    assert file not in (first, second)


def test_mistake_7_a_density_is_trained_on_pixels_dequantised_anew_at_every_step(tmp_path: Path, seen: list[Batch]):
    train_small(tmp_path, options(epochs=2))
    noise = torch.cat([batch.uniform for batch in seen])
    assert noise.shape == (200, 1, 8, 8)
    assert len(noise.unique()) > 0.8 * noise.numel()  # of 2^16 values
    assert 0 < noise.min() < noise.max() < 1


def getting_worse() -> Splits:
    """A validation split that is the negative of what there is to learn."""
    return Splits(bumps(100, seed=1), 255 - bumps(30, seed=2), "none")


def test_the_weights_are_those_of_the_epoch_with_the_best_bound(tmp_path: Path):
    """Mistake 2: the last weights, or those of another epoch than the best, in place of the best."""
    result = train_small(tmp_path, options(epochs=8), getting_worse())
    assert result.best == best(result.history, 1.0)
    assert result.best.epoch < result.history[-1].epoch == 8
    found = validate(result.model, Resident(getting_worse().validation, CPU), Noise(TRAIN.seed, CPU))
    assert found.reconstruction - found.kl == pytest.approx(result.best.validation_elbo, rel=1e-6)


def test_mistake_2_weights_are_chosen_under_the_last_weight_of_the_kl_and_not_that_of_the_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def trained(name: str, *found: tuple[float, float]) -> Result:
        validations = iter([Averages(reconstruction, kl, 0.0) for reconstruction, kl in found])
        monkeypatch.setattr(trainer, "validate", lambda *_: next(validations))
        return train_small(tmp_path / name, options(beta=4.0, warmup_epochs=3))

    # -25, -27 and -42 at beta 4, but at the second epoch's beta of 2.5 that one is the best so far
    result = trained("a", (-21.0, 1.0), (-15.0, 3.0), (-30.0, 3.0))
    assert result.best.epoch == 1
    assert same_weights(result, trained("b", (-1.0, 0.0), (-9.0, 0.0), (-9.0, 0.0)))


def test_patience_ends_a_training_that_gets_no_better(tmp_path: Path):
    result = train_small(tmp_path, options(epochs=50, patience=2), getting_worse())
    assert len(result.history) == result.best.epoch + 2 < 50


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
        {"gradient_clip": 0.5},
        {"seed": 2},
    ],
    ids=str,
)
def test_mistake_13_every_option_changes_the_training(tmp_path: Path, changes: dict[str, float]):
    assert not same_weights(train_small(tmp_path / "a"), train_small(tmp_path / "b", options(**changes)))


def test_metrics_and_pictures_reach_the_tracker(tmp_path: Path):
    recorder = Recorder()
    result = train_small(tmp_path, tracker=recorder, settings=Settings(log_every=5))
    names = ("elbo", "reconstruction", "kl", "sigma", "beta", "learning_rate", "images_per_second")
    for name in names:
        assert sorted(recorder.values(f"train/{name}")) == [5, 7, 10, 14, 15, 20, 21]
    for name in ("elbo", "reconstruction", "kl"):
        expected = {row.step: getattr(row, f"validation_{name}") for row in result.history}
        assert recorder.values(f"validation/{name}") == expected
    assert [(key, step, image.shape, image.dtype) for key, step, image in recorder.images] == [
        ("samples", step, (64, 64), np.uint8) for step in (7, 14, 21)
    ]


def test_the_reported_means_of_an_epochs_parts_add_up_to_its_row(tmp_path: Path):
    """Mistake 8: a mean of batch means, the last of them short."""
    recorder = Recorder()
    result = train_small(tmp_path, options(epochs=1), tracker=recorder, settings=Settings(log_every=2))
    parts = recorder.values("train/reconstruction")
    weights = {2: 32, 4: 32, 6: 32, 7: 4}
    mean = sum(parts[step] * count for step, count in weights.items()) / 100
    assert mean == pytest.approx(result.history[0].train_reconstruction, rel=1e-9)


def test_an_autoencoder_has_no_elbo_and_no_kl(tmp_path: Path):
    recorder = Recorder()
    result = train_small(tmp_path, options(objective="autoencoder"), tracker=recorder, settings=EVERY_STEP)
    assert {(row.train_elbo, row.train_kl, row.validation_elbo, row.validation_kl) for row in result.history} == {
        (None, None, None, None)
    }
    assert recorder.values("train/elbo") == recorder.values("train/kl") == recorder.values("validation/elbo") == {}
    assert result.best.validation_reconstruction == max(row.validation_reconstruction for row in result.history)
    assert not list(result.model.named_buffers())
    assert result.model.deterministic


def test_dynamic_binarisation_draws_the_training_pixels_anew_each_epoch(tmp_path: Path, seen: list[Batch]):
    data = splits(binarise="dynamic")
    section = options(batch_size=100, epochs=200, learning_rate=1e-4, patience=200)
    train_small(tmp_path, section, data, model_section=model(config.Bernoulli(kind="bernoulli")))
    drawn = [Bernoulli().observe(batch.pixels, batch.uniform) for batch in seen]
    images = torch.stack([epoch.flatten(1).sum(1).sort().values for epoch in drawn])
    assert set(torch.cat(drawn).unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(images[0], images[1])
    expected = data.train.mean() / 255
    assert torch.stack(drawn).mean().item() == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize(
    ("binarise", "spoilt"), [("static", "train"), ("static", "validation"), ("dynamic", "validation")]
)
def test_mistake_10_a_bernoulli_refuses_grey_pixels(tmp_path: Path, binarise: Binarise, spoilt: str):
    data = splits(binarise=binarise)
    parts = {"train": data.train, "validation": data.validation}
    parts[spoilt] = bumps(len(parts[spoilt]), seed=3)
    with pytest.raises(UserError, match=f"the {spoilt} split has grey pixels"):
        train_small(
            tmp_path,
            data=Splits(parts["train"], parts["validation"], binarise),
            model_section=model(config.Bernoulli(kind="bernoulli")),
        )


def test_a_loss_that_is_not_finite_ends_training_within_that_step_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, calls = trainer.step, []

    def poisoned(state: trainer.State, batch: Batch, *rest: Any) -> object:
        calls.append(1)
        pixels = batch.pixels * float("nan") if len(calls) == 11 else batch.pixels
        return real(state, Batch(pixels, batch.uniform, batch.normal), *rest)

    monkeypatch.setattr(trainer, "step", poisoned)
    expected = r"^training diverged: .* not finite at step 11 \(epoch 2\); lower train.learning_rate \(now 0.004\)"
    with pytest.raises(UserError, match=expected):
        train_small(tmp_path, settings=Settings(checkpoint_seconds=0.0))
    assert len(calls) == 11
    monkeypatch.setattr(trainer, "step", real)
    assert checkpoint.read(tmp_path).progress["step"] == 10
    assert same_weights(train_small(tmp_path), train_small(tmp_path / "whole"))


def test_an_interrupt_that_a_shell_has_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruption.deferred() as noted:
            os.kill(os.getpid(), signal.SIGINT)
        assert noted.number is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_checkpoint_follows_a_flush_of_what_was_reported_before_it(tmp_path: Path):
    class Careful(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.newest: list[int] = []

        def flush(self) -> None:
            found = checkpoint.read(tmp_path)
            self.newest.append(found.progress["step"] if found else 0)

    tracker = Careful()
    train_small(tmp_path, tracker=tracker, settings=Settings(checkpoint_seconds=0, log_every=1))
    steps = max(step for step, _ in tracker.points)
    assert tracker.newest[:steps] == list(range(steps))


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.parametrize("at", [4, 7, 12])
def test_a_signal_leaves_a_checkpoint_to_go_on_from(
    tmp_path: Path, number: signal.Signals, error: type[BaseException], at: int
):
    class Killer(Recorder):
        def metrics(self, values, step):
            super().metrics(values, step)
            if step == at and "train/elbo" in values:
                os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    with pytest.raises(error) as caught:
        train_small(tmp_path, tracker=Killer(), settings=EVERY_STEP)
    assert signal.getsignal(number) is handler
    assert error is KeyboardInterrupt or caught.value.code == 143
    assert checkpoint.read(tmp_path).progress["step"] == at
    recorder = Recorder()
    resumed = train_small(tmp_path, tracker=recorder, settings=EVERY_STEP)
    assert min(recorder.values("train/elbo")) == at + 1
    whole = train_small(tmp_path / "whole")
    assert same_weights(resumed, whole)
    assert resumed.history == whole.history
