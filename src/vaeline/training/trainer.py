"""Training loop: steps, epochs, validation, checkpoints, reports. A resumed training ends in the same bits."""

import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from vaeline import config
from vaeline.core.gradients import Bound
from vaeline.core.likelihoods import Bernoulli
from vaeline.core.model import VAE
from vaeline.core.priors import VampPrior
from vaeline.core.sampling import sample_sheet
from vaeline.data.batches import open_images
from vaeline.errors import UserError
from vaeline.io.progress import progress
from vaeline.training import checkpoint, history, interruption
from vaeline.training.build import build_model
from vaeline.training.checkpoint import Checkpoint
from vaeline.training.device import keep_freed_memory, reproducible
from vaeline.training.history import Epoch
from vaeline.training.meter import Averages, Meter
from vaeline.training.process_group import SINGLE_PROCESS, ProcessGroup
from vaeline.training.randomness import Noise, mix, permutation
from vaeline.training.schedule import kl_weight, one_cycle
from vaeline.training.settings import Settings
from vaeline.training.splits import Splits
from vaeline.training.step import Batch, State, StepConfig, step
from vaeline.training.tracker import NullTracker, Tracker
from vaeline.training.validation import validate

log = logging.getLogger(__name__)

SAMPLES = 64  # images in the picture that shows a training's progress


@dataclass(frozen=True)
class Result:
    """A trained model, on the CPU, with the weights of its best epoch."""

    model: VAE
    history: list[Epoch]
    best: Epoch


def train(
    model: config.Model,
    options: config.Train,
    splits: Splits,
    *,
    device: torch.device,
    checkpoints: Path,
    tracker: Tracker | None = None,
    settings: Settings | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Result:
    """Train a model of these params, resuming from the newest checkpoint in `checkpoints` if there is one.

    The result is bit for bit that of an uninterrupted training on the same machine. The caller owns the folder
    (`checkpoint.owned`) and removes it (`checkpoint.remove`) when the result is in place. In a `group` every process
    calls this; rank zero alone uses the folder and the tracker, all get the result.

    Raises UserError where the loss, its gradient or the validation bound is not finite, and for a Bernoulli with grey
    pixels or a group with free bits; OSError where a checkpoint cannot be written; and, having written one,
    SystemExit(143) on SIGTERM, KeyboardInterrupt on Ctrl-C.
    """
    vae = build_model(model, splits.train.shape[1:], options.objective, mix(options.seed, "weights"))
    if isinstance(vae.likelihood, Bernoulli):
        splits.refuse_grey()
    if isinstance(vae.prior, VampPrior):
        vae.prior.start_at(splits.some(len(vae.prior.pseudo_inputs), options.seed))
    if options.free_bits and not group.is_single:
        raise UserError(
            f"train.free_bits: is a threshold on the KL of the whole batch, of which each of {group.size} processes "
            "has a part; allowed: 0"
        )
    keep_freed_memory()
    tracker = tracker if tracker and group.is_rank_zero else NullTracker()
    with reproducible(device):
        return _Training(vae.to(device), options, splits, group, settings, checkpoints, tracker).run()


class _Training:
    """State and loop of one training."""

    def __init__(
        self,
        model: VAE,
        options: config.Train,
        splits: Splits,
        group: ProcessGroup,
        settings: Settings | None,
        checkpoints: Path,
        tracker: Tracker,
    ) -> None:
        self.options, self.group, self.settings = options, group, settings or Settings.from_environment()
        self.checkpoints, self.tracker = checkpoints, tracker
        self.state = State.start(model)
        self.device = self.state.totals.device
        self.images = open_images(splits.train, self.device)
        self.validation = open_images(splits.validation, self.device)
        self.noise = Noise(options.seed, self.device)
        self.bound: Bound = "iwae" if options.objective == "iwae" else "elbo"
        self.draws_uniform = model.likelihood.uses_noise or splits.binarise == "dynamic"
        self.steps_per_epoch = -(-len(self.images) // options.batch_size)
        self.steps = options.epochs * self.steps_per_epoch
        self.step = 0  # steps done
        self.rows: list[Epoch] = []  # epochs done
        self.best: dict[str, Tensor] = {}  # the best epoch's weights
        self.meter: Meter | None = None  # of this epoch, once it has begun
        self.saved = time.monotonic()

    def run(self) -> Result:
        """Resume, train to the end, and return the model with its best weights."""
        quiet, model = not self.group.is_rank_zero, self.state.model
        with interruption.deferred() as self.interrupted:
            self.resume()
            with progress("training", self.steps, "steps", done=self.step, quiet=quiet) as self.progress:
                while not history.is_over(self.rows, self.options):
                    self.epoch()
            self.stop_if_interrupted()
        model.load_state_dict(self.best)
        return Result(model.cpu(), self.rows, history.best(self.rows, self.options.beta))

    def resume(self) -> None:
        """Continue from rank zero's newest checkpoint, if there is one."""
        found = checkpoint.read(self.checkpoints) if self.group.is_rank_zero else None
        if not self.group.is_single:
            content = self.group.broadcast(checkpoint.pack(found) if found else b"", self.device)
            found = checkpoint.unpack(content) if content else None
        if found is None:
            return
        self.state.restore(found.tensors)
        self.step = found.progress["step"]
        self.rows = [Epoch(**row) for row in found.progress["rows"]]
        self.meter = Meter(self.state.totals.tolist(), found.progress["reported"])
        weights = {name: tensor for name, tensor in found.tensors.items() if name.startswith("best/")}
        self.best = {name.removeprefix("best/"): tensor.to(self.device) for name, tensor in weights.items()}
        if self.group.is_rank_zero:
            log.info("resuming at step %s of %s", f"{self.step:,}", f"{self.steps:,}")

    def save(self) -> None:
        """Write a checkpoint of a finite state."""
        self.refuse_failure()
        self.saved = time.monotonic()
        if not self.group.is_rank_zero:
            return
        tensors = self.state.tensors() | {f"best/{name}": tensor for name, tensor in self.best.items()}
        reported = self.meter and list(self.meter.last)
        done = {"step": self.step, "rows": [asdict(row) for row in self.rows], "reported": reported}
        self.tracker.flush()
        checkpoint.write(self.checkpoints, self.step, Checkpoint(tensors, done))

    def epoch(self) -> None:
        """One epoch, or the rest of one."""
        done = len(self.rows)
        skip = self.step - done * self.steps_per_epoch
        order = permutation(self.options.seed, done, len(self.images))
        meter = self.meter = self.meter or Meter(self.state.totals.tolist())
        batches = torch.split(order, self.options.batch_size)[skip:]
        pixels = self.images.batches([batch[self.group.rows(len(batch))[0]] for batch in batches])
        for batch, own in zip(batches, pixels, strict=True):
            self.take_step(own, len(batch))
            if self.device.type == "cpu":  # elsewhere a look waits for the device: only at reports and checkpoints
                self.refuse_failure()
            if self.step % self.settings.log_every == 0 or self.step % self.steps_per_epoch == 0:
                self.refuse_failure()
                self.report(meter)
            self.stop_if_interrupted()
            if time.monotonic() - self.saved > self.settings.checkpoint_seconds:
                self.save()
        self.finish_epoch(meter)

    def stop_if_interrupted(self) -> None:
        """After a signal to this process or another of the group, which stop after the same step: save and raise."""
        if not self.group.is_single and self.device.type != "cpu" and self.step % self.settings.log_every:
            return  # to ask waits for the device
        if self.group.any(self.interrupted.number is not None, self.device):
            self.save()
            raise self.interrupted.error()

    def config(self, number: int) -> StepConfig:
        """The configuration of step `number`, from 0."""
        options = self.options
        beta = kl_weight(number, options.warmup_epochs * self.steps_per_epoch, options.beta)
        return StepConfig(
            learning_rate=one_cycle(number, self.steps, options.learning_rate),
            beta=torch.full((), beta, device=self.device),
            free_bits=options.free_bits,
            gradient_clip=options.gradient_clip,
            bound=self.bound,
            estimator=options.estimator,
        )

    def take_step(self, pixels: Tensor, images: int) -> None:
        """One step on a batch of so many images, of which these, uint8 [B, C, H, W], are here."""
        self.noise.restart("step", self.step)
        normal = self.normal(images)
        uniform = self.noise.uniform(torch.Size((images, *pixels.shape[1:]))) if self.draws_uniform else None
        rows, fraction = self.group.rows(images)
        if not self.group.is_single:
            normal = None if normal is None else normal[..., rows, :]
            uniform = None if uniform is None else uniform[rows]
        batch = Batch(pixels.to(torch.float32), uniform, normal, fraction)
        step(self.state, batch, self.config(self.step), self.group)
        self.step += 1

    def normal(self, images: int) -> Tensor | None:
        """Noise for z: [B, Z], or [K, B, Z] where a step takes K samples or another estimator than the plain one."""
        model, options = self.state.model, self.options
        if model.deterministic:
            return None
        if (options.objective, options.estimator, options.samples) == ("elbo", "pathwise", 1):
            return self.noise.normal(images, model.latent_dim)
        return self.noise.normal(options.samples, images, model.latent_dim)

    def finish_epoch(self, meter: Meter) -> None:
        """Validate, add a row, keep the weights if they are the best so far, report."""
        row = self.row()
        self.rows.append(row)
        self.state.totals.zero_()
        self.meter = None
        model = self.state.model
        if history.best(self.rows, self.options.beta) is row:
            self.best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        names = {f"validation/{name}": getattr(row, f"validation_{name}") for name in ("elbo", "reconstruction", "kl")}
        self.tracker.metrics({name: value for name, value in names.items() if value is not None}, self.step)
        self.noise.restart("samples", 0)
        samples = sample_sheet(model, self.noise.normal(SAMPLES, model.latent_dim))
        self.tracker.image("samples", samples, self.step)
        self.progress.line(f"{history.summary(row, self.options)}, {meter.speed():,.0f} images/s")

    def row(self) -> Epoch:
        """The epoch that has just ended. Raises UserError where its validation bound is not finite."""
        trained = Averages.of(self.state.totals.tolist())
        held_out = validate(self.state.model, self.validation, self.noise, self.bound, self.options.samples, self.group)
        if not math.isfinite(held_out.bound):
            raise UserError(
                f"training diverged: the validation bound is not finite after epoch {len(self.rows) + 1}; "
                f"lower train.learning_rate (now {self.options.learning_rate:g})"
            )
        bound, last = not self.state.model.deterministic, self.config(self.step - 1)
        return Epoch(
            epoch=len(self.rows) + 1,
            step=self.step,
            train_elbo=trained.bound if bound else None,
            train_reconstruction=trained.reconstruction,
            train_kl=trained.kl if bound else None,
            validation_elbo=held_out.bound if bound else None,
            validation_reconstruction=held_out.reconstruction,
            validation_kl=held_out.kl if bound else None,
            sigma=self.sigma(),
            beta=last.beta.item(),
            learning_rate=last.learning_rate,
        )

    def report(self, meter: Meter) -> None:
        """Report the means since the last report."""
        means, speed = meter.read(self.state.totals.tolist())
        last = self.config(self.step - 1)
        values = {"train/reconstruction": means.reconstruction, "train/images_per_second": speed}
        if not self.state.model.deterministic:
            values |= {"train/elbo": means.bound, "train/kl": means.kl, "train/beta": last.beta.item()}
        if (sigma := self.sigma()) is not None:
            values["train/sigma"] = sigma
        self.tracker.metrics(values | {"train/learning_rate": last.learning_rate}, self.step)
        self.progress.update(self.step, f"{speed:,.0f} images/s")

    def sigma(self) -> float | None:
        """The likelihood's sigma, in pixels on [0, 1]."""
        sigma = self.state.model.likelihood.sigma
        return None if sigma is None else sigma.item()

    def refuse_failure(self) -> None:
        """Raise UserError if a loss or gradient was not finite; the state is still that before the step."""
        if not self.state.failed.item():
            return
        good = int(self.state.count.item())
        epoch = good // self.steps_per_epoch + 1
        raise UserError(
            f"training diverged: the loss or its gradient is not finite at step {good + 1} (epoch {epoch}); "
            f"lower train.learning_rate (now {self.options.learning_rate:g}) "
            f"or train.gradient_clip (now {self.options.gradient_clip:g})"
        )
