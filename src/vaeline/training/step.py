"""One step of training: a batch goes in, the state moves. Nothing random, no clock, no wait for the device.

`step` calls two private functions of PyTorch, for speed; tests hold them against the public ones, of the same bits.
`torch.optim.Adam` took 0.20 ms a step more (0.53 in place of 0.33 ms with 16 hidden units, one thread, batch 128),
`nn.utils.get_total_norm` 0.05 ms.
"""

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vaeline.config.train import Train
from vaeline.core.model import VAE
from vaeline.core.objectives import Bound, Estimator, elbo_terms, estimate, surrogate
from vaeline.core.perceptual import Perceptual
from vaeline.training.process_group import SINGLE, ProcessGroup

log = logging.getLogger(__name__)

RISE = 0.25  # the part of training in which the learning rate rises
START, END = 1 / 20, 1 / 1000  # of the peak
ADAM = {"eps": 1e-8, "weight_decay": 0.0}  # Kingma & Ba 2015


@dataclass(frozen=True)
class Batch:
    """Images and the noise for them."""

    pixels: Tensor  # [B, C, H, W], 0 ... 255, float32
    uniform: Tensor | None  # [B, C, H, W], for dequantisation or dynamic binarisation
    normal: Tensor | None  # [B, Z] or [K, B, Z], for the samples of z; None for a plain autoencoder
    fraction: float = 1.0  # of the group's images in this step that are here: 0 for a placeholder

    def parts(self, count: int) -> "list[Batch]":
        """At most so many batches of about as many images each, that make up this one."""
        pixels, none = self.pixels.tensor_split(min(count, len(self.pixels))), [None] * count
        uniform = none if self.uniform is None else self.uniform.tensor_split(len(pixels))
        normal = none if self.normal is None else self.normal.tensor_split(len(pixels), dim=-2)
        return [Batch(*each, self.fraction) for each in zip(pixels, uniform, normal, strict=False)]

    def tensors(self) -> list[Tensor]:
        """Those that are there."""
        return [tensor for tensor in (self.pixels, self.uniform, self.normal) if tensor is not None]


@dataclass(frozen=True)
class Averages:
    """Means over images, in nats, of the ELBO's terms and of the bound's gain over the ELBO at the same samples."""

    reconstruction: float
    kl: float
    gain: float  # 0 unless the bound is IWAE-k

    @classmethod
    def of(cls, totals: Sequence[float]) -> "Averages":
        """From the sums over images of the three, and the number of images."""
        *sums, images = totals
        return cls(*(value / images for value in sums))

    @property
    def bound(self) -> float:
        """The bound itself."""
        return self.reconstruction - self.kl + self.gain


class State:
    """All that a step changes, in place: before the first step, on the model's device."""

    def __init__(self, model: VAE, averages: bool = False, perceptual: Perceptual | None = None) -> None:
        self.model, self.perceptual = model, perceptual
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self.first = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]  # Adam's mean of the gradient
        self.second = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]  # and of its square
        # of the weights, exponential (Polyak & Juditsky 1992): what is validated and kept
        self.average = [p.detach().clone() for p in self.parameters] if averages else []
        device = self.parameters[0].device
        self.count = torch.zeros((), device=device)  # Adam's steps so far
        # sums of reconstruction, KL and gain, and the images, of this epoch so far
        self.totals = torch.zeros(4, dtype=torch.float64, device=device)
        # 1 from the first loss or gradient on that is not finite: nothing moves any more
        self.failed = torch.zeros((), device=device)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, by name; not copies."""
        named = {f"model/{name}": tensor.detach() for name, tensor in self.model.state_dict().items()}
        named |= {f"first/{i}": tensor for i, tensor in enumerate(self.first)}
        named |= {f"second/{i}": tensor for i, tensor in enumerate(self.second)}
        named |= {f"average/{i}": tensor for i, tensor in enumerate(self.average)}
        return named | {"count": self.count, "totals": self.totals}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Copy in what `tensors` returned at another time."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their average, if there is one."""
        for parameter, average in zip(self.parameters, self.average, strict=False):
            held = parameter.clone()
            parameter.copy_(average)
            average.copy_(held)


def learning_rate(options: Train, step: int, steps: int) -> float:
    """The rate of step 0 ... steps - 1: constant, or half a cosine down from the peak, in one cycle after a rise to it.

    Smith & Topin 2018 (arXiv:1708.07120), with a cosine in place of their second line.
    """
    peak, position = options.learning_rate, (step + 0.5) / steps
    if options.schedule == "constant":
        return peak
    rise = RISE if options.schedule == "one-cycle" else 0.0
    if position < rise:
        return peak * (START + (1 - START) * position / rise)
    cosine = 0.5 * (1 + math.cos(math.pi * (position - rise) / (1 - rise)))
    return peak * (END + (1 - END) * cosine)


def kl_weight(step: int, warmup_steps: int, beta: float) -> float:
    """The KL's weight at a step: from 0 linearly to beta over the warm-up, then beta."""
    return beta * min(1.0, step / warmup_steps) if warmup_steps else beta


def bound_of(options: Train) -> Bound:
    """The bound that is trained and reported; an autoencoder's is the ELBO without a KL."""
    return "iwae" if options.objective == "iwae" else "elbo"


class Stepper:
    """Calls of `step`: on CUDA and in one process as a CUDA graph.

    Forward, backward, clipping and Adam are one graph over static buffers, captured at the first batch of each size.
    Where capture fails, one warning is logged and steps run operation by operation.
    """

    def __init__(self, state: State, options: Train, group: ProcessGroup = SINGLE) -> None:
        self.state, self.options, self.group = state, options, group
        self.on_cuda = state.totals.device.type == "cuda"
        self.captures = self.on_cuda and group.is_single
        self.graphs: dict[int, tuple[Batch, torch.cuda.CUDAGraph]] = {}  # by the batch's size
        self.rate, self.beta = (torch.zeros_like(state.count) for _ in range(2))  # the graphs' schedule

    def __call__(self, batch: Batch, learning_rate: float, beta: Tensor) -> None:
        """One step; `beta` is the KL's weight, on the CPU."""
        if not self.on_cuda:
            step(self.state, batch, self.options, learning_rate, beta, self.group)
            return
        self.rate.fill_(learning_rate)
        self.beta.fill_(beta)
        count = len(batch.pixels)
        if self.captures and count not in self.graphs:
            self._capture(batch)
        if not self.captures:
            step(self.state, batch, self.options, self.rate, self.beta, self.group)
            return
        buffers, graph = self.graphs[count]
        for buffer, tensor in zip(buffers.tensors(), batch.tensors(), strict=True):
            buffer.copy_(tensor)
        graph.replay()

    def _capture(self, batch: Batch) -> None:
        uniform, normal = (None if t is None else t.clone() for t in (batch.uniform, batch.normal))
        buffers = Batch(batch.pixels.clone(), uniform, normal)
        arguments = (self.state, buffers, self.options, self.rate, self.beta)
        tensors = [*self.state.tensors().values(), self.state.failed]
        before = [tensor.clone() for tensor in tensors]
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):  # what libraries set up at first use must not be captured
                for _ in range(2):
                    step(*arguments)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another thread may pin memory meanwhile
                step(*arguments)
            self.graphs[len(batch.pixels)] = buffers, graph
        except RuntimeError as error:
            self.captures = False
            log.warning("training without CUDA graphs: %s", str(error).partition("\n")[0])
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(old)


def step(
    state: State,
    batch: Batch,
    options: Train,
    learning_rate: float | Tensor,
    beta: Tensor,
    group: ProcessGroup = SINGLE,
) -> tuple[Tensor, Tensor]:
    """Maximise the objective by one step of Adam, with the gradient clipped to a norm; `beta` is the KL's weight.

    Returns the loss in nats per image and the gradient's norm before clipping, scalars left on the device. Where one
    of them is not finite, the state keeps its parameters and moments, now and from then on. A group's loss is the mean
    over all its images, its gradient the sum over ranks of fraction * gradient.
    """
    loss, sums, gradients = gradient_of_loss(state, batch, options, beta)
    with torch.no_grad():
        if not group.is_single:
            sums = sums * float(batch.fraction > 0)
            weighted = [loss * batch.fraction, sums, *(g * batch.fraction for g in gradients)]
            loss, sums, *gradients = group.all_reduce(weighted)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch.maximum(state.failed, (~torch.isfinite(loss + norm)).to(torch.float32), out=state.failed)
        excess = (norm / options.gradient_clip).clamp(min=1.0)  # the gradient is divided by it
        clips = norm.device.type != "cpu" or excess.item() != 1.0  # on the CPU to look costs less than to divide by 1
        state.count.add_(1 - state.failed)
        torch._fused_adam_(
            state.parameters,
            gradients,
            state.first,
            state.second,
            [],
            [state.count] * len(gradients),
            lr=learning_rate,
            beta1=options.adam_betas[0],
            beta2=options.adam_betas[1],
            amsgrad=False,
            maximize=False,
            grad_scale=excess if clips else None,
            found_inf=state.failed,
            **ADAM,
        )
        if state.average:  # its decay rises to options.ema, or the weights at the start would stay in it for long
            weight = 1 - ((1 + state.count) / (10 + state.count)).clamp(max=options.ema)
            torch._foreach_lerp_(state.average, state.parameters, [weight] * len(gradients))
        state.totals.add_(sums)
    return loss, norm


def gradient_of_loss(state: State, batch: Batch, options: Train, beta: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """What `losses` returns, detached, and the gradient, each added up over `options.accumulate` parts of the batch."""
    bound, estimator, kind = bound_of(options), options.estimator, options.precision
    part_losses = partial(losses, free_bits=options.free_bits, bound=bound, estimator=estimator, precision=kind)
    loss, sums, gradients = torch.zeros(()), torch.zeros(()), list[Tensor]()
    for part in batch.parts(options.accumulate) if options.accumulate > 1 else [batch]:
        share = len(part.pixels) / len(batch.pixels)
        own, own_sums = part_losses(state.model, part, beta, perceptual=state.perceptual)
        found = torch.autograd.grad(own if share == 1 else share * own, state.parameters)  # raises where one is unused
        loss, sums = (own.detach(), own_sums) if share == 1 else (loss + share * own.detach(), sums + own_sums)
        if gradients:
            torch._foreach_add_(gradients, found)
        gradients = gradients or list(found)
    return loss, sums, gradients


def losses(
    model: VAE,
    batch: Batch,
    beta: Tensor,
    free_bits: float,
    *,
    bound: Bound = "elbo",
    estimator: Estimator = "pathwise",
    precision: str = "float32",
    perceptual: Perceptual | None = None,
) -> tuple[Tensor, Tensor]:
    """loss = -(mean of the surrogate objective), plus LPIPS if wanted, and the sums [4] that `State.totals` adds up.

    The gain is that of the bound over the ELBO at the same samples: what is reported is the bound, not the surrogate.
    """
    x = model.likelihood.observe(batch.pixels, batch.uniform)  # [B, C, H, W]
    with matrix_products(x.device, precision):
        if (bound, estimator) == ("elbo", "pathwise") or batch.normal is None:
            terms = elbo_terms(model, x, batch.normal)
            loss = -surrogate(terms, beta, free_bits).mean()
            if perceptual is not None and terms.output is not None:
                loss = loss + perceptual.weight * perceptual(x, model.likelihood.mean(terms.output)).mean()
            gain = torch.zeros_like(loss)
        else:
            weight = beta if bound == "elbo" else 1.0
            found = estimate(model, x, batch.normal, estimator, bound=bound, beta=weight)
            terms, loss = found.terms, -found.surrogate.mean()
            gain = (found.bound - terms.elbo).sum()
    count = torch.full_like(loss, len(x))
    return loss, torch.stack([terms.reconstruction.sum(), terms.kl.sum(), gain, count]).detach()


def matrix_products(device: torch.device, precision: str) -> torch.autocast | nullcontext[None]:
    """Matrix products in bfloat16 or float32; parameters, likelihood and KL are float32 in either case."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
