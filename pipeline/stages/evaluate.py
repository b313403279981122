"""Stage evaluate: the model and the test split -> `reports/metrics.json`, `reports/kl_per_dimension.csv`."""

import json
import logging

from pipeline.report.summary import test_lines
from vaeline.config import AutoencoderKl, read_params
from vaeline.config.train import INIT_PERCEPTUAL, Perceptual
from vaeline.core.laplace import MOST_LATENTS
from vaeline.data.prepared import SPLITS, open_split
from vaeline.evaluation.first_stage import channel_report, mean_similarity
from vaeline.evaluation.latent_space import latent_report
from vaeline.evaluation.split_metrics import evaluate
from vaeline.io.atomic_write import write_files
from vaeline.io.workspace import current_workspace
from vaeline.serving.model_files import load_trained
from vaeline.tracking.provenance import headline_metrics, run_start
from vaeline.tracking.runs import open_model_run
from vaeline.training.build import kl_sizes
from vaeline.training.device import keep_freed_memory, pick_device, reproducible
from vaeline.training.initial import load_perceptual

log = logging.getLogger(__name__)


def main() -> None:
    """Score the model on the whole test split, and by its bound on the validation split."""
    workspace, device = current_workspace(), pick_device()
    params = read_params(workspace.params)
    keep_freed_memory()
    trained, section = load_trained(workspace, device), params.evaluate
    train, validation, test = (open_split(workspace.prepared, name) for name in SPLITS)
    proposal = section.proposal
    if proposal == "auto":
        proposal = "laplace" if trained.vae.latent_dim <= MOST_LATENTS else "posterior"
    with reproducible(device):
        report, kl_per_dimension = evaluate(
            trained.vae,
            validation.pixels,
            test.pixels,
            importance_samples=section.importance_samples,
            proposal=proposal,
            active_units_threshold=section.active_units_threshold,
            seed=section.seed,
        )
        latent = latent_report(trained.vae, train, validation, test, images=section.latent_images, seed=section.seed)
        if isinstance(network := trained.config.model.network, AutoencoderKl):
            latents = kl_sizes(network).latents(trained.vae.shape)
            report["test"] |= mean_similarity(trained.vae, test.pixels).numbers("ssim")
            if (path := workspace.init / INIT_PERCEPTUAL).exists():
                options = Perceptual(weight=1.0, kind="vgg16", weights=str(path))
                lpips = load_perceptual(options, trained.vae.shape).to(device)
                report["test"] |= mean_similarity(trained.vae, test.pixels, lpips).numbers("lpips")
            latent["channels"] = channel_report(trained.vae, latents, test.pixels, section.seed)
    report = {"objective": trained.config.objective, **report, "latent": latent}
    metrics, kl = workspace.reports / "metrics.json", workspace.reports / "kl_per_dimension.csv"
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    rows = ["dimension,kl\n", *(f"{dimension},{mean!r}\n" for dimension, mean in kl_per_dimension)]
    write_files({metrics: text.encode(), kl: "".join(rows).encode()})
    log.info("%s", "\n".join(test_lines(report)))
    with open_model_run(workspace, trained.digest, run_start(workspace, params)) as run:
        run.metrics(headline_metrics(report))
        run.artifact(metrics, "reports")
        run.artifact(kl, "reports")
