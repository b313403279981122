"""Training loop: steps, epochs, validation, checkpoints, reports. A resumed training ends in the same bits."""

import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from vaeline import config
from vaeline.config.train import Diffusers, Train
from vaeline.core.autoencoder_kl import recompute_activations
from vaeline.core.likelihoods import Bernoulli
from vaeline.core.model import VAE, sample_sheet
from vaeline.core.priors import VampPrior
from vaeline.data.batches import open_images, parts
from vaeline.errors import UserError
from vaeline.io.progress import Progress
from vaeline.training import checkpoint, history
from vaeline.training.build import build_model
from vaeline.training.device import Settings, few_threads, keep_freed_memory, pick_precision, reproducible
from vaeline.training.history import Epoch, Tracker
from vaeline.training.initial import load_initial, load_perceptual
from vaeline.training.process_group import SINGLE, ProcessGroup
from vaeline.training.randomness import Noise, mix, permutation
from vaeline.training.splits import FIT_IMAGES, Splits, fitted_prior, validate
from vaeline.training.step import Averages, Batch, State, Stepper, bound_of, kl_weight, learning_rate

log = logging.getLogger(__name__)

SAMPLES = 64  # images in the picture that shows a training's progress
MEAN_IMAGES = 1000  # whose mean is what the decoder starts at
LOWER = "lower train.learning_rate or train.gradient_clip"


@dataclass(frozen=True)
class Result:
    """Outcome of a training."""

    model: VAE  # on the CPU, with the weights of the best epoch
    history: list[Epoch]
    best: Epoch


def train(
    model: config.Model,
    options: Train,
    splits: Splits,
    *,
    device: torch.device,
    checkpoints: Path,
    tracker: Tracker | None = None,
    settings: Settings | None = None,
    group: ProcessGroup = SINGLE,
) -> Result:
    """Train a model of these params, resuming from the newest checkpoint in `checkpoints` if there is one.

    The result is bit for bit that of an uninterrupted training on the same machine. The caller owns the folder
    (`checkpoint.owned`) and removes it when the result is in place. In a `group` every process calls this and gets the
    result; rank zero alone uses the folder and the tracker. A prior that is `fitted` is that of the result alone.

    Raises UserError where a loss, gradient or bound is not finite, for a Bernoulli with grey pixels, for fewer images
    than a fitted prior has components, and for a group with free bits; OSError where a checkpoint cannot be written;
    having written one, SystemExit(143) on SIGTERM and KeyboardInterrupt on Ctrl-C.
    """
    options = options.model_copy(update={"precision": pick_precision(options.precision, device)})
    fitted = model.prior if isinstance(model.prior, config.Fitted) else None
    if fitted and fitted.components > (most := min(len(splits.train), FIT_IMAGES)):
        found = f"found {fitted.components}, allowed: at most the {most} training images that it is fitted to"
        raise UserError(f"model.prior.components: {found}")
    trained = model.model_copy(update={"prior": fitted.during}) if fitted else model
    vae = build_model(trained, splits.train.shape[1:], options.objective, mix(options.seed, "weights"))
    if isinstance(vae.likelihood, Bernoulli):
        splits.refuse_grey()
    with torch.no_grad():
        if isinstance(vae.prior, VampPrior):
            vae.prior.pseudo_inputs.copy_(splits.some(len(vae.prior.pseudo_inputs), options.seed))
        if isinstance(model.network, config.AutoencoderKl):
            if isinstance(options.init, Diffusers):
                load_initial(vae, model.network, Path(options.init.path))
            if options.recompute:
                recompute_activations(vae)
        else:
            bias = [parameter for name, parameter in vae.decoder.named_parameters() if name.endswith("bias")][-1]
            images = splits.some(min(len(splits.train), MEAN_IMAGES), options.seed)
            mean = images.mean(0) if bias.numel() == images[0].numel() else images.mean((0, 2, 3))
            bias.copy_(vae.likelihood.start(mean).flatten())  # each pixel, or each channel, as Burda et al. 2015 do
    if options.free_bits and not group.is_single:
        raise UserError(f"train.free_bits: needs the KL of whole batches, not of {group.size} processes; allowed: 0")
    if options.only == "decoder":
        for part in (vae.encoder, vae.prior):
            part.requires_grad_(False)
    keep_freed_memory()
    at_once = options.batch_size * options.samples // (options.accumulate * group.size)
    with reproducible(device), few_threads(vae, at_once):
        training = _Training(vae.to(device), options, splits, group, checkpoints)
        training.settings = settings or Settings.from_environment()
        training.tracker = tracker if tracker and group.is_rank_zero else Tracker()
        result = training.run()
        if fitted:
            log.info("fitting the prior to the codes of the training images")
            vae.prior = fitted_prior(vae, fitted.components, splits, options.seed, device)
        return result


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """SIGTERM and SIGINT received during the block, noted instead of acted on."""
    received: list[int] = []
    heeded = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in heeded}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Training:
    """State and loop of one training."""

    settings: Settings
    tracker: Tracker

    def __init__(self, model: VAE, options: Train, splits: Splits, group: ProcessGroup, checkpoints: Path) -> None:
        self.options, self.group, self.checkpoints = options, group, checkpoints
        wanted = options.perceptual
        perceptual = load_perceptual(wanted, model.shape).to(model.device) if wanted else None
        self.model, self.state = model, State(model, options.ema > 0, perceptual)
        self.device, self.take_step = self.state.totals.device, Stepper(self.state, options, group)
        self.images = open_images(splits.train if splits.whole is None else splits.whole, self.device)
        self.validation = open_images(splits.validation, self.device)
        self.noise = Noise(options.seed, self.device)
        plain = (options.objective, options.estimator, options.samples) == ("elbo", "pathwise", 1)
        self.samples = () if plain else (options.samples,)  # of z an image, the noise's first dimension
        self.draws_uniform = model.likelihood.uses_noise or splits.binarise == "dynamic"
        self.steps_per_epoch = -(-len(self.images) // options.batch_size)
        self.steps = options.epochs * self.steps_per_epoch
        self.step = 0  # steps done
        self.rows: list[Epoch] = []  # epochs done
        self.best: dict[str, Tensor] = {}  # the best epoch's weights
        self.reported: list[float] | None = None  # the totals at this epoch's last report, once it has begun
        self.timed, self.speed = (0.0, 0.0), 0.0  # when images were last counted, how many; and images a second
        self.saved = time.monotonic()

    def run(self) -> Result:
        """Train to the end, and return the model with its best weights."""
        with deferred_signals() as self.signals:
            self.resume()
            quiet = not self.group.is_rank_zero
            with Progress("training", self.steps, "steps", done=self.step, quiet=quiet) as self.progress:
                while not history.is_over(self.rows, self.options):
                    self.epoch()
            self.stop_if_interrupted()
        self.model.load_state_dict(self.best)
        return Result(self.model.cpu(), self.rows, history.best(self.rows, self.options.beta))

    def resume(self) -> None:
        """Continue from rank zero's newest checkpoint, if there is one."""
        found = checkpoint.read(self.checkpoints) if self.group.is_rank_zero else None
        if not self.group.is_single:
            content = self.group.broadcast(checkpoint.pack(found) if found else b"", self.device)
            found = checkpoint.unpack(content) if content else None
        if found is None:
            return
        self.state.restore(found.tensors)
        self.step, self.reported = found.progress["step"], found.progress["reported"]
        self.rows = [Epoch(**row) for row in found.progress["rows"]]
        weights = {name: tensor for name, tensor in found.tensors.items() if name.startswith("best/")}
        self.best = {name.removeprefix("best/"): tensor.to(self.device) for name, tensor in weights.items()}
        if self.group.is_rank_zero:
            log.info("resuming at step %s of %s", f"{self.step:,}", f"{self.steps:,}")

    def save(self) -> None:
        """Write a checkpoint of a finite state."""
        self.refuse_failure()
        self.saved = time.monotonic()
        if self.group.is_rank_zero:
            tensors = self.state.tensors() | {f"best/{name}": tensor for name, tensor in self.best.items()}
            done = {"step": self.step, "rows": [asdict(row) for row in self.rows], "reported": self.reported}
            self.tracker.flush()
            checkpoint.write(self.checkpoints, self.step, checkpoint.Checkpoint(tensors, done))

    def epoch(self) -> None:
        """One epoch, or the rest of one."""
        done, totals = len(self.rows), self.state.totals.tolist()
        self.reported, self.timed = self.reported or totals, (time.perf_counter(), totals[-1])
        order = permutation(self.options.seed, done, len(self.images))
        batches = torch.split(order, self.options.batch_size)[self.step - done * self.steps_per_epoch :]
        pixels = self.images.batches([batch[self.group.rows(len(batch))[0]] for batch in batches])
        for batch, own in zip(batches, pixels, strict=True):
            rows, fraction = self.group.rows(len(batch))
            own = self.augmented(own, len(batch), rows)  # noqa: PLW2901
            self.noise.restart("step", self.step)
            normal = uniform = None  # drawn for the whole batch in every process of a group
            if not self.model.deterministic:
                normal = self.noise.normal(*self.samples, len(batch), self.model.latent_dim)[..., rows, :]
            if self.draws_uniform:
                uniform = self.noise.uniform(torch.Size((len(batch), *own.shape[1:])))[rows]
            item = Batch(own.to(torch.float32), uniform, normal, fraction)
            self.take_step(item, *self.schedule(self.step))
            self.step += 1
            is_due = self.step % self.settings.log_every == 0 or self.step % self.steps_per_epoch == 0
            if is_due or self.device.type == "cpu":  # elsewhere a look waits for the device
                self.refuse_failure()
            if is_due:
                self.report()
            self.stop_if_interrupted()
            if time.monotonic() - self.saved > self.settings.checkpoint_seconds:
                self.save()
        self.finish_epoch()

    def augmented(self, pixels: Tensor, count: int, rows: slice) -> Tensor:
        """Random parts and flips of a step's images, those in `rows` of `count`."""
        if pixels.shape[1:] != self.model.shape:
            self.noise.restart("crops", self.step)
            pixels = parts(pixels, self.noise.uniform(torch.Size((count, 2)))[rows], self.model.shape)
        if self.options.flips:
            self.noise.restart("flips", self.step)
            mirrored = self.noise.uniform(torch.Size((count, 1, 1, 1)))[rows] < 0.5
            pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        return pixels

    def stop_if_interrupted(self) -> None:
        """After a signal to this process or another of the group, which stop after the same step: save and raise."""
        if not self.group.is_single and self.device.type != "cpu" and self.step % self.settings.log_every:
            return  # to ask waits for the device
        if self.group.any(bool(self.signals), self.device):
            self.save()
            raise KeyboardInterrupt if signal.SIGINT in self.signals else SystemExit(128 + signal.SIGTERM)

    def schedule(self, number: int) -> tuple[float, Tensor]:
        """The learning rate and the KL's weight of step `number`, from 0; on the CPU."""
        beta = kl_weight(number, self.options.warmup_epochs * self.steps_per_epoch, self.options.beta)
        rate = learning_rate(self.options, number, self.steps)
        return rate, torch.full((), beta)

    def finish_epoch(self) -> None:
        """Validate, add a row, keep the weights if they are the best so far, report."""
        options, model, number = self.options, self.model, len(self.rows) + 1
        trained = Averages.of(self.state.totals.tolist())
        shape, group = (options.samples, options.precision), self.group
        self.state.swap()
        held_out = validate(model, self.validation, self.noise, bound_of(options), *shape, group=group)
        if not math.isfinite(held_out.bound):
            raise UserError(f"training diverged: the validation bound is not finite after epoch {number}; {LOWER}")
        bound, (rate, beta) = not model.deterministic, self.schedule(self.step - 1)
        row = Epoch(
            epoch=number,
            step=self.step,
            train_elbo=trained.bound if bound else None,
            train_reconstruction=trained.reconstruction,
            train_kl=trained.kl if bound else None,
            validation_elbo=held_out.bound if bound else None,
            validation_reconstruction=held_out.reconstruction,
            validation_kl=held_out.kl if bound else None,
            sigma=model.likelihood.sigma.item() if model.likelihood.sigma is not None else None,
            beta=beta.item(),
            learning_rate=rate,
        )
        self.rows, self.reported = [*self.rows, row], None
        self.state.totals.zero_()
        if history.best(self.rows, options.beta) is row:
            self.best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        names = ("elbo", "reconstruction", "kl") if bound else ("reconstruction",)
        self.tracker.metrics({f"validation/{name}": getattr(row, f"validation_{name}") for name in names}, self.step)
        self.noise.restart("samples", 0)
        self.tracker.image("samples", sample_sheet(model, self.noise.normal(SAMPLES, model.latent_dim)), self.step)
        self.state.swap()
        name = {"elbo": "ELBO", "iwae": f"IWAE-{options.samples}"}.get(options.objective, "reconstruction")
        means = f"{name} {trained.bound:.2f}, validation {held_out.bound:.2f} with a KL of {held_out.kl:.2f}"
        self.progress.line(f"epoch {number}/{options.epochs}: {means}, {self.speed:,.0f} images/s")

    def report(self) -> None:
        """Report the means since the last report."""
        totals, (start, images) = self.state.totals.tolist(), self.timed
        means = Averages.of([now - before for now, before in zip(totals, self.reported or totals, strict=True)])
        self.reported, self.timed = totals, (time.perf_counter(), totals[-1])
        self.speed = (totals[-1] - images) / (self.timed[0] - start)
        rate, beta = self.schedule(self.step - 1)
        values = {"train/reconstruction": means.reconstruction}  # in the order in which MLflow lists them
        if not self.model.deterministic:
            values = {"train/elbo": means.bound} | values | {"train/kl": means.kl, "train/beta": beta.item()}
        if (sigma := self.model.likelihood.sigma) is not None:
            values["train/sigma"] = sigma.item()
        self.tracker.metrics(values | {"train/learning_rate": rate, "train/images_per_second": self.speed}, self.step)
        self.progress.update(self.step, f"{self.speed:,.0f} images/s")

    def refuse_failure(self) -> None:
        """Raise UserError if a loss or gradient was not finite; the state is still that before the step."""
        if self.state.failed.item():
            number = int(self.state.count.item()) + 1
            raise UserError(f"training diverged: the loss or its gradient is not finite at step {number}; {LOWER}")
