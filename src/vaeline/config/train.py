"""Section `train` of `params.yaml`."""

from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from vaeline.io.yaml_config import BY_KIND, Count, Location, NonNegative, Positive, Section, Seed

PERCEPTUAL_SIDE = 16  # pixels at least: four halvings
INIT_PERCEPTUAL = "perceptual.safetensors"
INIT_CONFIG, INIT_WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"  # as diffusers names them

Decay = Annotated[FiniteFloat, Field(ge=0, lt=1)]


class Random(Section):
    """Weights drawn by `train.seed`."""

    kind: Literal["random"]


class Diffusers(Section):
    """Weights of an AutoencoderKL that diffusers, or `vaeline export --format diffusers`, has saved."""

    kind: Literal["diffusers"]
    path: Location  # of the folder, from the repository or absolute


class Perceptual(Section):
    """LPIPS between images and expected pixels, added to the loss; never part of a bound that is reported."""

    kind: Literal["vgg16"]
    weight: Positive  # nats a unit of LPIPS
    weights: Location  # safetensors: torchvision's state_dict, with LPIPS's lin0.model.1.weight ... if wanted


class Train(Section):
    """Section `train`."""

    objective: Literal["elbo", "iwae", "autoencoder"]  # maximised; autoencoder: neither KL nor noise
    estimator: Literal[  # of the objective's gradient
        "pathwise", "score-function", "score-function-baseline", "sticking-the-landing", "doubly-reparameterised"
    ] = "pathwise"
    samples: Annotated[int, Field(ge=1, le=5000)] = 1  # of z an image and step: iwae's k
    init: Annotated[Random | Diffusers, BY_KIND] = Random(kind="random")
    only: Literal["all", "decoder"] = "all"  # what is trained; the encoder stays as init gives it
    flips: bool = False  # half of the images of each step mirrored, left to right
    perceptual: Perceptual | None = None
    accumulate: Count = 1  # parts of a batch, one after another: less memory, the same gradient
    recompute: bool = False  # activations of an AutoencoderKL in the backward pass: less memory, a third more time
    beta: NonNegative  # weight of the KL
    warmup_epochs: Annotated[int, Field(ge=0)]  # over which the KL's weight grows linearly from 0 to beta
    free_bits: NonNegative  # nats per latent dimension
    epochs: Count  # passes over the training images
    batch_size: Count  # images a step
    learning_rate: Positive  # at its peak
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"  # of the learning rate
    ema: Decay = 0.0  # decay of the average of the weights that is kept; 0: none
    adam_betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.999)  # decays of Adam's two moments
    gradient_clip: Positive  # largest norm of the gradient of the mean loss
    precision: Literal["float32", "bfloat16", "auto"] = "float32"  # of matrix products
    patience: Count  # epochs without a better validation ELBO before training stops
    seed: Seed  # of weights, order and noise

    @model_validator(mode="after")
    def _not_contradictory(self) -> Self:
        objective, estimator, weighed = self.objective, self.estimator, self.beta != 1 or self.warmup_epochs > 0
        if objective != "elbo" and (weighed or self.free_bits):
            raise ValueError(f"objective '{objective}' has no KL: beta must be 1, warmup_epochs and free_bits 0")
        if objective == "autoencoder" and (estimator, self.samples) != ("pathwise", 1):
            raise ValueError("objective 'autoencoder' draws no samples: estimator must be pathwise, samples 1")
        if estimator == "doubly-reparameterised" and objective == "elbo":
            raise ValueError(f"estimator '{estimator}' is for objective iwae; for elbo it is sticking-the-landing")
        if estimator == "sticking-the-landing" and objective == "iwae":
            raise ValueError(f"estimator '{estimator}' is biased for objective iwae: use doubly-reparameterised")
        if estimator == "score-function-baseline" and self.samples == 1:
            raise ValueError(f"estimator '{estimator}' leaves one sample out: samples must be at least 2, found 1")
        if estimator != "pathwise" and self.free_bits:
            raise ValueError(f"free_bits need a closed-form KL: estimator must be pathwise, found '{estimator}'")
        if self.accumulate > 1 and self.free_bits:
            raise ValueError(f"free_bits need the KL of whole batches: accumulate must be 1, found {self.accumulate}")
        if self.perceptual and (self.objective == "iwae" or estimator != "pathwise" or self.samples > 1):
            raise ValueError("perceptual compares one decoded image: objective elbo, estimator pathwise, samples 1")
        if self.only == "decoder" and isinstance(self.init, Random):
            raise ValueError("only: decoder needs an encoder that is trained: init must be of kind diffusers")
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must not exceed epochs ({self.epochs})")
        return self
