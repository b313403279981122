"""`params.yaml` as frozen, strict values: one class a section; variants form a union tagged by `kind`."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from vaeline.config.data import Data, Shape
from vaeline.config.train import PERCEPTUAL_SIDE, Diffusers, Train
from vaeline.io.machine import memory
from vaeline.io.yaml_config import BY_KIND, Count, NonNegative, Positive, Section, Seed, read_yaml, validate

Activation = Literal["relu", "tanh", "silu"]
Width = Annotated[int, Field(ge=1, le=65536)]
Covariance = Annotated[Literal["diagonal", "full"], Field(exclude_if=lambda value: value == "diagonal")]
Levels = Annotated[list[Width], Field(min_length=1, max_length=10)]


class Mlp(Section):
    """A multilayer perceptron; the decoder mirrors the encoder."""

    kind: Literal["mlp"]
    hidden: Annotated[list[Width], Field(min_length=1, max_length=100, default_factory=lambda: [400])]  # widths
    activation: Activation = "relu"  # after every hidden layer


class Conv(Section):
    """Strided convolutions, one halving of the resolution a channel count, then a dense layer."""

    kind: Literal["conv"]
    channels: Annotated[list[Width], Field(min_length=1, max_length=100, default_factory=lambda: [32, 64])]  # a layer
    hidden: Width = 256  # width of the dense layer
    activation: Activation = "relu"  # after every hidden layer


class Gated(Section):
    """Gated dense layers, h = (W x + b) * sigmoid(V x + c); the decoder mirrors the encoder."""

    kind: Literal["gated"]
    hidden: Annotated[list[Width], Field(min_length=1, max_length=100, default_factory=lambda: [300, 300])]  # widths


class AutoencoderKl(Section):
    """diffusers' AutoencoderKL: latent_dim is latent_channels * H / f * W / f, f = 2^(n - 1) for n channel counts."""

    kind: Literal["autoencoder-kl"]
    block_out_channels: Levels = Field(default_factory=lambda: [32, 64, 64])  # of each level, half as large
    layers_per_block: Annotated[int, Field(ge=1, le=16)] = 1  # and one more in the decoder
    latent_channels: Width = 4  # of the latents, which keep their places
    norm_num_groups: Width = 32  # of the group norms: divides every channel count
    mid_block_add_attention: bool = True  # over all places of the lowest resolution


class Bernoulli(Section):
    """Binary pixels; refuses grey ones."""

    kind: Literal["bernoulli"]


class Gaussian(Section):
    """Dequantised pixels on [0, 1]; sigma is fixed, or one learned number."""

    kind: Literal["gaussian"]
    sigma: Literal["learned"] | Positive = "learned"  # on pixels in [0, 1]
    truncated: bool = False  # to [0, 1]: a density of pixels alone


class Laplace(Section):
    """Dequantised pixels on [0, 1] by their absolute error; its scale is fixed, or one learned number."""

    kind: Literal["laplace"]
    scale: Literal["learned"] | Positive = "learned"  # b, on pixels in [0, 1]


class ContinuousBernoulli(Section):
    """Dequantised pixels on [0, 1] (Loaiza-Ganem & Cunningham 2019)."""

    kind: Literal["continuous-bernoulli"]


class DiscretisedLogistic(Section):
    """Exact 8-bit pixels (Kingma et al. 2016)."""

    kind: Literal["discretised-logistic"]
    scale: Literal["shared", "pixel"] = "pixel"  # one learned scale, or one a pixel


class StandardNormal(Section):
    """p(z) = N(0, I)."""

    kind: Literal["standard-normal"]


class Vamp(Section):
    """The mean of the posteriors of learned pseudo-inputs (Tomczak & Welling 2018)."""

    kind: Literal["vamp"]
    components: Width = 500  # pseudo-inputs


class Mixture(Section):
    """A mixture of Gaussians with learned means, variances or covariances, and weights."""

    kind: Literal["mixture"]
    components: Width = 100  # Gaussians
    covariance: Covariance = "diagonal"  # of each


class Fitted(Section):
    """A mixture of Gaussians with full covariances, fitted to the training codes after training (Ghosh et al. 2020)."""

    kind: Literal["fitted"]
    components: Width = 50  # Gaussians
    during: Annotated[StandardNormal | Vamp | Mixture, BY_KIND] = StandardNormal(kind="standard-normal")  # training


class Model(Section):
    """Section `model`."""

    latent_dim: Width  # Z, numbers in a code
    network: Annotated[Mlp | Conv | Gated | AutoencoderKl, BY_KIND]
    likelihood: Annotated[Bernoulli | Gaussian | Laplace | ContinuousBernoulli | DiscretisedLogistic, BY_KIND]
    prior: Annotated[StandardNormal | Vamp | Mixture | Fitted, BY_KIND] = StandardNormal(kind="standard-normal")

    @property
    def training_prior(self) -> StandardNormal | Vamp | Mixture:
        """The prior that is trained with."""
        return self.prior.during if isinstance(self.prior, Fitted) else self.prior

    @model_validator(mode="after")
    def _not_contradictory(self) -> Self:
        if isinstance(network := self.network, AutoencoderKl):
            if odd := [count for count in network.block_out_channels if count % network.norm_num_groups]:
                raise ValueError(f"network.norm_num_groups ({network.norm_num_groups}) must divide {odd[0]} channels")
            allowed = isinstance(self.likelihood, DiscretisedLogistic | Laplace) or (
                isinstance(self.likelihood, Gaussian) and not self.likelihood.truncated
            )
            if not allowed:
                rule = "allowed: gaussian (not truncated), laplace, discretised-logistic"
                raise ValueError(f"network 'autoencoder-kl' emits pixels on all reals; {rule} as likelihood")
        return self

    def check(self, shape: Shape) -> None:
        """Raise ValueError where no model of images of this shape can be built, or this machine cannot hold it."""
        (_, height, width), size, latents = shape, f"images of {shape[1]} x {shape[2]}", self.latent_dim
        weights = 0  # of convolutions: 3 x 3 of an encoder, 4 x 4 of its decoder; two of 3 x 3 a block
        match self.network:  # the widths of its dense layers
            case Mlp(hidden=hidden) | Gated(hidden=hidden):
                widths = [math.prod(shape), *hidden, 2 * latents]
            case Conv(channels=channels, hidden=hidden):
                widths = [channels[-1] * height * width // 4 ** len(channels), hidden, 2 * latents]
                weights = 25 * sum(before * after for before, after in pairwise(channels))
            case AutoencoderKl(block_out_channels=channels, layers_per_block=blocks, latent_channels=latent_channels):
                widths, factor = [], 2 ** (len(channels) - 1)
                weights = 18 * (2 * blocks + 1) * sum(count**2 for count in channels)
                if height % factor or width % factor:
                    raise ValueError(f"model.network: height and width must be divisible by {factor}, found {size}")
                if latents != (needed := latent_channels * height * width // factor**2):
                    rule = f"must be {needed} = latent_channels x height x width / {factor}^2 for {size}"
                    raise ValueError(f"model.latent_dim: {rule}; found {latents}")
        weights += 2 * sum(before * after for before, after in pairwise(widths))
        for prior in {self.prior, self.training_prior}:
            match prior:
                case Vamp(components=components):
                    weights += components * math.prod(shape)
                case Fitted(components=components) | Mixture(components=components, covariance="full"):
                    weights += components * latents**2
        if 4 * weights > memory():
            found = f"weights of {4 * weights / 1e9:,.0f} GB for {size}"
            raise ValueError(f"model: {found}; allowed: the {memory() / 1e9:,.0f} GB of this machine's memory")


class Evaluate(Section):
    """Section `evaluate`."""

    importance_samples: Annotated[int, Field(ge=1, le=100_000)]  # k of the importance-sampled log p(x)
    proposal: Literal["auto", "laplace", "posterior"] = "auto"  # of importance sampling
    active_units_threshold: Positive  # variance of the posterior mean over images, above which a latent is active
    latent_images: Annotated[int, Field(ge=2, le=1_000_000)] = 5000  # of the test split
    seed: Seed  # of posterior samples


class Sample(Section):
    """Section `sample`."""

    columns: Annotated[int, Field(ge=2, le=64)]  # images a row
    rows: Annotated[int, Field(ge=1, le=64)]  # of images
    steps: Annotated[int, Field(ge=2, le=64)]  # of an interpolation
    traversals: Annotated[int, Field(ge=1, le=64)]  # latent dimensions traversed, the most informative first
    seed: Seed  # of prior samples, and of the images shown


class Theory(Section):
    """Section `theory`."""

    images: Annotated[int, Field(ge=2, le=100_000)] = 100  # of the test split, each looked at by itself
    importance_samples: Annotated[int, Field(ge=2, le=100_000)] = 1000  # an image
    training_images: Annotated[int, Field(ge=2, le=1_000_000)] = 10_000  # of an autoencoder and a VAE, trained briefly
    epochs: Count = 8  # of theirs
    seed: Seed = 1  # of all its random numbers


class Register(Section):
    """Section `register`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]  # of the registered model
    minimum_active_units: Annotated[int, Field(ge=0)]  # of a champion
    margin: NonNegative = 0.1  # nats per image by which a champion must be better
    confidence: Annotated[FiniteFloat, Field(gt=0.5, lt=1)] = 0.95  # that it is better by the margin
    psnr_tolerance: NonNegative = 0.5  # decibels that it may be worse
    ssim_tolerance: NonNegative = 0.01  # of a first stage, that it may be worse


class Params(Section):
    """All sections of params.yaml."""

    data: Data
    model: Model
    train: Train
    evaluate: Evaluate
    sample: Sample
    theory: Theory = Theory()
    register_: Annotated[Register, Field(alias="register")]

    @model_validator(mode="after")
    def _not_contradictory(self) -> Self:
        if shape := self.data.known_shape():
            self.model.check(shape)
            if self.train.perceptual and (side := min(shape[1:])) < PERCEPTUAL_SIDE:
                raise ValueError(
                    f"train.perceptual: found images of {side} pixels a side; allowed: {PERCEPTUAL_SIDE} on"
                )
        likelihood, binarise, prior = self.model.likelihood.kind, self.data.binarise, self.model.training_prior.kind
        if (likelihood == "bernoulli") == (binarise == "none"):
            found = f"model.likelihood.kind is '{likelihood}' but data.binarise is '{binarise}'"
            raise ValueError(f"{found}: bernoulli needs binary pixels (static or dynamic), the others grey ones (none)")
        if prior != "standard-normal" and self.train.objective == "autoencoder":
            raise ValueError(f"model.prior.kind is '{prior}' but train.objective is 'autoencoder', which has no prior")
        if prior != "standard-normal" and self.train.free_bits:
            raise ValueError(f"train.free_bits must be 0: under model.prior.kind '{prior}' the KL has no parts")
        if isinstance(self.train.init, Diffusers) and not isinstance(self.model.network, AutoencoderKl):
            found = f"model.network.kind is '{self.model.network.kind}'"
            raise ValueError(f"train.init.kind is 'diffusers', an AutoencoderKL, but {found}: allowed: autoencoder-kl")
        if self.train.only == "decoder" and prior != "standard-normal":
            raise ValueError(f"train.only is 'decoder' but model.prior.kind is '{prior}', which belongs to the encoder")
        if self.train.recompute and not isinstance(self.model.network, AutoencoderKl):
            raise ValueError(f"train.recompute is for network autoencoder-kl, found '{self.model.network.kind}'")
        if (least := self.register_.minimum_active_units) > (latent_dim := self.model.latent_dim):
            raise ValueError(f"register.minimum_active_units ({least}) exceeds model.latent_dim ({latent_dim})")
        return self


def read_params(path: Path) -> Params:
    """Read and check params.yaml; raises UserError with one line a mistake."""
    return parse_params(read_yaml(path), str(path))


def parse_params(content: Any, where: str = "params.yaml") -> Params:
    """Check already parsed params, named `where` in messages."""
    return validate(Params, content, where)
