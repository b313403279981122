"""One step of training: a batch goes in, the state moves. Nothing random, no clock, no wait for the device."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from vaeline.core.gradients import Bound, Estimator, estimate
from vaeline.core.model import VAE
from vaeline.core.objectives import elbo_terms, surrogate
from vaeline.training.process_group import SINGLE_PROCESS, ProcessGroup
from vaeline.training.torch_internals import fused_adam, total_norm


@dataclass(frozen=True)
class Batch:
    """Images and the noise for them."""

    pixels: Tensor  # [B, C, H, W], 0 ... 255, float32
    uniform: Tensor | None  # [B, C, H, W], for dequantisation or dynamic binarisation
    normal: Tensor | None  # [B, Z] or [K, B, Z], for the samples of z; None for a plain autoencoder
    fraction: float = 1.0  # of the group's images in this step that are here: 0 for a placeholder


@dataclass(frozen=True)
class StepConfig:
    """What a step does with its batch; only the rate and beta change as training goes on."""

    learning_rate: float
    beta: Tensor  # scalar, the KL's weight
    free_bits: float
    gradient_clip: float  # the largest norm of the gradient of the mean loss
    bound: Bound = "elbo"
    estimator: Estimator = "pathwise"  # of the bound's gradient


@dataclass(frozen=True)
class State:
    """All that a step changes, in place."""

    model: VAE
    parameters: list[Tensor]
    first: list[Tensor]  # Adam's running means of the gradient
    second: list[Tensor]  # and of its square
    count: Tensor  # scalar, Adam's steps so far
    totals: Tensor  # [4] float64: sums of reconstruction, KL and gain, and the images, of this epoch so far
    failed: Tensor  # scalar, 1 from the first loss or gradient on that is not finite: nothing moves any more

    @classmethod
    def start(cls, model: VAE) -> "State":
        """Before the first step, on the model's device."""
        parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        device = parameters[0].device
        return cls(
            model,
            parameters,
            first=[torch.zeros_like(p, requires_grad=False) for p in parameters],
            second=[torch.zeros_like(p, requires_grad=False) for p in parameters],
            count=torch.zeros((), device=device),
            totals=torch.zeros(4, dtype=torch.float64, device=device),
            failed=torch.zeros((), device=device),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, by name; not copies."""
        named = {f"model/{name}": tensor.detach() for name, tensor in self.model.state_dict().items()}
        for kind, tensors in (("first", self.first), ("second", self.second)):
            named |= {f"{kind}/{i}": tensor for i, tensor in enumerate(tensors)}
        return named | {"count": self.count, "totals": self.totals}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Copy in what `tensors` returned at another time."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])


def step(state: State, batch: Batch, config: StepConfig, group: ProcessGroup = SINGLE_PROCESS) -> tuple[Tensor, Tensor]:
    """Maximise the objective by one step of Adam, with the gradient clipped to a norm.

    Returns the loss in nats per image and the gradient's norm before clipping, scalars left on the device; on CUDA the
    next step overwrites them.

    Where the loss or its gradient is not finite, the state keeps its parameters and moments, now and from then on.
    A group's loss is the mean over all its images, its gradient the sum over ranks of fraction * gradient.
    """
    losses = _losses(state.totals.device.type)
    loss, sums = losses(
        state.model, batch, config.beta, config.free_bits, bound=config.bound, estimator=config.estimator
    )
    gradients = list(torch.autograd.grad(loss, state.parameters))  # raises where the loss lacks a parameter
    loss = loss.detach()
    if not group.is_single:
        sums = sums * float(batch.fraction > 0)
        weighted = [loss * batch.fraction, sums, *(g * batch.fraction for g in gradients)]
        loss, sums, *gradients = group.all_reduce(weighted)
    norm = _update(state, gradients, loss, config)
    with torch.no_grad():
        state.totals.add_(sums)
    return loss, norm


def losses(
    model: VAE,
    batch: Batch,
    beta: Tensor,
    free_bits: float,
    *,
    bound: Bound = "elbo",
    estimator: Estimator = "pathwise",
) -> tuple[Tensor, Tensor]:
    """loss = -(mean of the surrogate objective), and the sums [4] that `State.totals` adds up.

    The gain is that of the bound over the ELBO at the same samples: what is reported is the bound, not the surrogate.
    """
    x = model.likelihood.observe(batch.pixels, batch.uniform)  # [B, C, H, W]
    with precision(x.device):
        if (bound, estimator) == ("elbo", "pathwise") or batch.normal is None:
            terms = elbo_terms(model, x, batch.normal)
            loss = -surrogate(terms, beta, free_bits).mean()
            gain = torch.zeros_like(loss)
        else:
            weight = beta if bound == "elbo" else 1.0
            found = estimate(model, x, batch.normal, estimator, bound=bound, beta=weight)
            terms, loss = found.terms, -found.surrogate.mean()
            gain = (found.bound - terms.elbo).sum()
    count = torch.full_like(loss, len(x))
    return loss, torch.stack([terms.reconstruction.sum(), terms.kl.sum(), gain, count]).detach()


def precision(device: torch.device) -> torch.autocast | nullcontext[None]:
    """bfloat16 matrix products on CUDA, float32 elsewhere; the likelihood and the KL are float32 on both."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


@cache
def _losses(device: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """`losses`, on CUDA compiled and, forward and backward, captured in CUDA graphs."""
    if device == "cpu":
        return losses
    return torch.compile(losses, mode="reduce-overhead", dynamic=False)


@torch.no_grad()
def _update(state: State, gradients: list[Tensor], loss: Tensor, config: StepConfig) -> Tensor:
    """Adam in one fused call, which also clips and, where `state.failed`, does nothing; returns the norm."""
    norm = total_norm(gradients)
    torch.maximum(state.failed, (~torch.isfinite(loss + norm)).to(torch.float32), out=state.failed)
    excess = (norm / config.gradient_clip).clamp(min=1.0)  # the gradient is divided by it
    clips = norm.device.type != "cpu" or excess.item() != 1.0  # on the CPU to look costs less than to divide by 1
    state.count.add_(1 - state.failed)
    fused_adam(
        state.parameters,
        gradients,
        state.first,
        state.second,
        state.count,
        learning_rate=config.learning_rate,
        divisor=excess if clips else None,
        skip=state.failed,
    )
    return norm
