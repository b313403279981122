"""Stage sample: the model and test images -> sheets of pictures in `reports/samples`, `reports/explorer.html`."""

import logging

import numpy as np
import torch
from torch import Tensor

from pipeline.report.explorer import LatentAxes, explorer
from vaeline.config import Sample, read_params
from vaeline.core.distributions import DiagonalGaussian
from vaeline.core.estimators import batch_ranges, encoded, pixel_batches
from vaeline.core.model import VAE, decoded
from vaeline.core.priors import StandardNormal
from vaeline.data.prepared import open_split, read_manifest
from vaeline.io.atomic_write import write_file, write_folder
from vaeline.io.npy import Pixels
from vaeline.io.workspace import current_workspace
from vaeline.plotting.charts import Sheet, png, render, to_pixels
from vaeline.serving.model_files import load_trained
from vaeline.tracking.provenance import run_start
from vaeline.tracking.runs import open_model_run
from vaeline.training.device import pick_device, reproducible

log = logging.getLogger(__name__)

SPAN = 3.0  # standard deviations that a traversal goes either way
ON_THE_MAP = 400  # test images in the explorer


def main() -> None:
    """Draw every sheet and the explorer, then write them all."""
    workspace, device = current_workspace(), pick_device()
    params, trained = read_params(workspace.params), load_trained(workspace, device)
    test, page = open_split(workspace.prepared, "test"), workspace.reports / "explorer.html"
    with reproducible(device), torch.no_grad():
        axes = latent_axes(trained.vae, test.pixels)
        sheets = draw(trained.vae, test.pixels, axes, params.sample)
        some = test.take(ON_THE_MAP, params.sample.seed)
        codes = _posterior(trained.vae, some.pixels).mean.numpy()
        html = explorer(trained.vae, some, codes, read_manifest(workspace.prepared).classes, axes)
    drawn = {name: render(sheet) for name, sheet in sheets.items()}
    write_folder(workspace.reports / "samples", {f"{name}.png": png(pixels) for name, pixels in drawn.items()})
    write_file(page, html.encode())
    log.info("%s: %s", workspace.reports / "samples", ", ".join(drawn))
    with open_model_run(workspace, trained.digest, run_start(workspace, params)) as run:
        for name, pixels in drawn.items():
            run.image(name, pixels, 0)
        run.artifact(page, "reports")


@torch.no_grad()
def draw(model: VAE, test: Pixels, axes: LatentAxes, section: Sample) -> dict[str, Sheet]:
    """All sheets by name; `section.seed` chooses the images, again and again where the split has too few."""
    columns, steps, pairs = section.columns, section.steps, max(1, section.rows // 2)
    order = np.random.default_rng(section.seed).permutation(len(test))
    images: Pixels = np.asarray(test[np.resize(order, max(pairs * columns, 2 * section.rows, 3))])
    codes = _posterior(model, images).mean.to(model.device)
    code = "code" if model.deterministic else "posterior mean"

    noise = torch.randn(section.rows * columns, len(codes[0]), generator=torch.Generator().manual_seed(section.seed))
    samples = _pixels(model, model.prior.sample(noise.to(model.device)))
    prior = "N(0, I)" if isinstance(model.prior, StandardNormal) else "p(z), the learned prior"
    title = f"Samples of the prior\nthe decoder's mean at z ~ {prior}"
    if not model.has_prior:
        title = "Decoded N(0, I)\nan autoencoder's code has no such prior"
    sheets = {"prior_samples": Sheet(title, [("", samples[i : i + columns]) for i in range(0, len(samples), columns)])}

    rows = []
    for i in range(0, pairs * columns, columns):
        rows += [("original", images[i : i + columns]), ("reconstruction", _pixels(model, codes[i : i + columns]))]
    title = f"Reconstructions of test images\nbelow each, the decoder's mean at its {code}"
    sheets["reconstructions"] = Sheet(title, rows, group=2)

    fractions, rows = torch.linspace(0, 1, steps).to(codes), []
    for i in range(0, 2 * section.rows, 2):
        between = _pixels(model, torch.lerp(codes[i], codes[i + 1], fractions[:, None]))
        rows.append(("", np.concatenate([images[i : i + 1], between, images[i + 1 : i + 2]])))
    headers = ["test image", *(f"{fraction:.2f}" for fraction in fractions.tolist()), "test image"]
    title = f"Interpolation between test images\nthe decoder's mean on the straight line between their {code}s"
    sheets["interpolation"] = Sheet(title, rows, headers)

    rows = [("test image", images[:1])]
    for i in range(steps):  # row i: i + 1 mixtures, from the first image's share down to none in the last row
        shares = torch.tensor([(steps - 1 - i, i - j, j) for j in range(i + 1)]).to(codes) / max(1, steps - 1)
        rows.append(("", _pixels(model, shares @ codes[:3])))
    rows[-1] = ("test images at both ends", np.concatenate([images[1:2], rows[-1][1], images[2:3]]))
    title = "Mixtures of three test images, which stand outside the corners\nthe decoder's mean at weighted means of"
    sheets["mixtures"] = Sheet(f"{title} their {code}s", rows, centred=True)
    return sheets | {"traversals": _traversals(model, codes[:1], axes, section)}


@torch.no_grad()
def latent_axes(model: VAE, test: Pixels) -> LatentAxes:
    """Latent dimensions, the most informative first: by the mean KL to N(0, I) over the test split.

    Under another prior, and of an autoencoder, N(0, I) is no scale: there by the codes' variance, in units of the
    posterior's, and about the codes' own centre in units of their own spread.
    """
    posterior = _posterior(model, test)
    if isinstance(model.prior, StandardNormal) and not model.deterministic:
        kl = posterior.kl_to_standard_normal().double().mean(0)
        centre, spread, rank = torch.zeros_like(kl), torch.ones_like(kl), kl
        labels = [f"KL {mean:.1f} nats" for mean in kl.tolist()]
    else:
        codes, variance = posterior.mean.double(), posterior.log_variance.double().exp().mean(0)  # [N, Z], [Z]
        centre, spread = codes.mean(0), codes.std(0, correction=0)
        rank, labels = spread.square() / variance, [f"spread {deviation:.2f}" for deviation in spread.tolist()]
    order = rank.argsort(descending=True, stable=True).tolist()
    return LatentAxes(order, labels, centre.numpy(), spread.numpy())


def _traversals(model: VAE, code: Tensor, axes: LatentAxes, section: Sample) -> Sheet:
    """One row a latent dimension."""
    standard = isinstance(model.prior, StandardNormal) and not model.deterministic
    across = torch.linspace(-SPAN, SPAN, section.steps, dtype=torch.float64)
    rows, shown = [], axes.order[: section.traversals]
    for z in shown:
        path = code.repeat(section.steps, 1)
        path[:, z] = (axes.centre[z] + axes.spread[z] * across).to(path)
        rows.append((f"z{z}  {axes.labels[z]}", _pixels(model, path)))
    unit = "" if standard else " standard deviations of the codes about their mean"
    title = f"Traversals of the {len(shown)} most informative of {model.latent_dim} latent dimensions\n"
    title += f"one at a time from -{SPAN:g} to {SPAN:g}{unit}, the others as for a test image"
    return Sheet(title, rows, [f"{value:.1f}" for value in across.tolist()])


def _posterior(model: VAE, images: Pixels) -> DiagonalGaussian:
    return encoded(model, (model.likelihood.observe(x, None) for _, x in pixel_batches(model, images)), len(images))


def _pixels(model: VAE, z: Tensor) -> Pixels:
    """Expected images at latents [N, Z]."""
    parts = [decoded(model, z[part.start : part.stop]) for part in batch_ranges(model, len(z))]
    return to_pixels(torch.cat(parts).cpu().numpy())
