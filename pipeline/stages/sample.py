"""Stage sample: the model and a few test images -> sheets of pictures in `reports/samples`."""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.stages.inputs import load_trained
from vaeline.config import Sample, read_params
from vaeline.core import sampling
from vaeline.core.batches import batch_ranges, pixel_batches
from vaeline.core.metrics import most_informative
from vaeline.core.model import VAE
from vaeline.core.priors import StandardNormal
from vaeline.data.prepared import load_split
from vaeline.io.atomic_write import write_folder
from vaeline.io.workspace import current_workspace
from vaeline.plotting.sheets import Pixels, Sheet, grid, png, render, to_pixels, triangle
from vaeline.tracking.provenance import run_start
from vaeline.tracking.runs import open_model_run
from vaeline.training.device import pick_device, reproducible

log = logging.getLogger(__name__)

SHEETS = ("prior_samples", "reconstructions", "interpolation", "mixtures", "traversals")
SPAN = 3.0  # standard deviations that a traversal goes either way


def main() -> None:
    """Draw every sheet, then write them all."""
    workspace, device = current_workspace(), pick_device()
    params, trained = read_params(workspace.params), load_trained(workspace, device)
    with reproducible(device):
        sheets = draw(trained.vae, load_split(workspace.prepared, "test"), params.sample)
    drawn = {name: render(sheet) for name, sheet in sheets.items()}
    folder = workspace.reports / "samples"
    write_folder(folder, {f"{name}.png": png(pixels) for name, pixels in drawn.items()})
    for name, pixels in drawn.items():
        log.info("%s: %d x %d pixels", folder / f"{name}.png", pixels.shape[1], pixels.shape[0])
    with open_model_run(workspace, trained.digest, run_start(workspace, params)) as run:
        for name, pixels in drawn.items():
            run.image(name, pixels, 0)


def draw(model: VAE, test: Pixels, section: Sample) -> dict[str, Sheet]:
    """All sheets by name; `section.seed` chooses the images, again and again where the split has too few."""
    order = np.random.default_rng(section.seed).permutation(len(test))
    pairs = max(1, section.rows // 2)
    count = max(pairs * section.columns, 2 * section.rows, 3)
    images: Pixels = np.asarray(test[np.resize(order, count)])
    drawn = (
        prior_samples(model, section),
        reconstructions(model, images[: pairs * section.columns], section.columns),
        interpolation(model, images[: 2 * section.rows], section.steps),
        mixtures(model, images[:3], section.steps),
        traversals(model, images[:1], test, section),
    )
    return dict(zip(SHEETS, drawn, strict=True))


def prior_samples(model: VAE, section: Sample) -> Sheet:
    """rows x columns expected images of z ~ p(z)."""
    generator = torch.Generator().manual_seed(section.seed)
    noise = torch.randn(section.rows * section.columns, model.latent_dim, generator=generator).to(model.device)
    images = _pixels(*(sampling.prior_samples(model, noise[part]) for part in _slices(model, len(noise))))
    prior = "N(0, I)" if isinstance(model.prior, StandardNormal) else "p(z), the learned prior"
    title = f"Samples of the prior\nthe decoder's mean at z ~ {prior}"
    if model.deterministic:
        title = "Decoded N(0, I)\nan autoencoder's code has no such prior"
    return grid(title, [("", row) for row in _rows(images, section.columns)])


def reconstructions(model: VAE, images: Pixels, columns: int) -> Sheet:
    """Test images, each above the decoder's mean at its posterior mean."""
    rows = []
    for originals in _rows(images, columns):
        decoded = _pixels(sampling.reconstructions(model, _observed(model, originals)))
        rows += [("original", originals), ("reconstruction", decoded)]
    title = f"Reconstructions of test images\nbelow each, the decoder's mean at {_code(model, 'its')}"
    return grid(title, rows, group=2)


def interpolation(model: VAE, images: Pixels, steps: int) -> Sheet:
    """One row a pair of test images: the first, `steps` images on the line between their codes, the second."""
    rows = []
    for pair in _rows(images, 2):
        between = _pixels(sampling.interpolate(model, _observed(model, pair), steps))
        rows.append(("", np.concatenate([pair[:1], between, pair[1:]])))
    title = (
        f"Interpolation between test images\nthe decoder's mean on the straight line between {_code(model, 'their')}"
    )
    return grid(
        title, rows, ["test image", *(f"{fraction:.2f}" for fraction in np.linspace(0, 1, steps)), "test image"]
    )


def mixtures(model: VAE, images: Pixels, side: int) -> Sheet:
    """A triangle of weighted means of three test images' codes, the images outside its corners."""
    weights, x = sampling.barycentric_weights(side), _observed(model, images)
    mixed = _pixels(*(sampling.mixtures(model, x, weights[part]) for part in _slices(model, len(weights))))
    title = "Mixtures of three test images, which stand outside the corners\n"
    return triangle(f"{title}the decoder's mean at weighted means of {_code(model, 'their')}", mixed, images)


def traversals(model: VAE, image: Pixels, test: Pixels, section: Sample) -> Sheet:
    """One row a latent dimension, the most informative first; all of them where there are fewer than asked for."""
    dimensions, x = informative_dimensions(model, test)[: section.traversals], _observed(model, image)
    across = np.linspace(-SPAN, SPAN, section.steps)
    rows = []
    for z in dimensions:
        values = torch.from_numpy(z.centre + z.spread * across)
        rows.append((z.label, _pixels(sampling.traversals(model, x, torch.tensor([z.index]), values))))
    count = "all" if len(dimensions) == model.latent_dim else f"the {len(dimensions)} most informative of"
    unit = "" if _standard(model) else " standard deviations of the codes about their mean"
    title = (
        f"Traversals of {count} {model.latent_dim} latent dimensions\n"
        f"one at a time from -{SPAN:g} to {SPAN:g}{unit}, the others as for a test image"
    )
    return grid(title, rows, [f"{value:.1f}" for value in across])


@dataclass(frozen=True)
class Dimension:
    """A latent dimension to traverse: where its codes lie, and the label of its row."""

    index: int
    label: str
    centre: float = 0.0
    spread: float = 1.0


@torch.no_grad()
def informative_dimensions(model: VAE, test: Pixels) -> list[Dimension]:
    """All latent dimensions by falling mean KL to N(0, I) over the test split.

    An autoencoder, or a learned prior, has no such KL and no such scale: there by the codes' variance, in units of
    the posterior's, and with the codes' own centre and spread.
    """
    posteriors = [model.encode(model.likelihood.observe(batch, None)) for _, batch in pixel_batches(model, test)]
    if _standard(model):
        kl = torch.cat([posterior.kl_to_standard_normal() for posterior in posteriors]).double()
        means = kl.mean(0).tolist()
        return [Dimension(z, f"z{z}  KL {means[z]:.1f} nats") for z in most_informative(kl).tolist()]
    codes = torch.cat([posterior.mean for posterior in posteriors]).double()
    variance = torch.cat([posterior.log_variance for posterior in posteriors]).double().exp().mean(0)
    order = (codes.var(0, correction=0) / variance).argsort(descending=True, stable=True).tolist()
    centre, spread = codes.mean(0).tolist(), codes.std(0, correction=0).tolist()
    return [Dimension(z, f"z{z}  spread {spread[z]:.2f}", centre[z], spread[z]) for z in order]


def _standard(model: VAE) -> bool:
    """Whether codes are compared with N(0, I)."""
    return isinstance(model.prior, StandardNormal) and not model.deterministic


def _code(model: VAE, whose: str) -> str:
    """What stands for `its` image, or for `their` images, in latent space."""
    if model.deterministic:
        return "its code" if whose == "its" else "their codes"
    return "its posterior's mean" if whose == "its" else "their posteriors' means"


def _observed(model: VAE, images: Pixels) -> Tensor:
    """uint8 images as the encoder sees them, without noise."""
    return model.likelihood.observe(torch.from_numpy(np.array(images)).to(model.device), None)


def _pixels(*means: Tensor) -> Pixels:
    return to_pixels(torch.cat(means).cpu().numpy())


def _rows(images: Pixels, columns: int) -> list[Pixels]:
    return [images[start : start + columns] for start in range(0, len(images), columns)]


def _slices(model: VAE, count: int) -> list[slice]:
    return [slice(part.start, part.stop) for part in batch_ranges(model, count)]
