"""Stage evaluate: the model and the test split -> `reports/metrics.json`, `reports/kl_per_dimension.csv`."""

import json
import logging
from typing import Any

from pipeline.stages.inputs import load_trained
from vaeline.config import read_params
from vaeline.data.prepared import SPLITS, open_split
from vaeline.evaluation.latent_space import latent_report
from vaeline.evaluation.split_metrics import Evaluation, evaluate
from vaeline.io.atomic_write import write_files
from vaeline.io.workspace import current_workspace
from vaeline.tracking.provenance import headline_metrics, run_start
from vaeline.tracking.runs import open_model_run
from vaeline.training.device import keep_freed_memory, pick_device, reproducible

log = logging.getLogger(__name__)


def main() -> None:
    """Score the model on the whole test split, and by its bound on the validation split."""
    workspace, device = current_workspace(), pick_device()
    params = read_params(workspace.params)
    keep_freed_memory()
    trained, section = load_trained(workspace, device), params.evaluate
    train, validation, test = (open_split(workspace.prepared, name) for name in SPLITS)
    with reproducible(device):
        evaluation = evaluate(
            trained.vae,
            validation.pixels,
            test.pixels,
            objective=trained.config.objective,
            importance_samples=section.importance_samples,
            active_units_threshold=section.active_units_threshold,
            seed=section.seed,
        )
        evaluation.report["latent"] = latent_report(
            trained.vae, train, validation, test, images=section.latent_images, seed=section.seed
        )
    metrics, kl = workspace.reports / "metrics.json", workspace.reports / "kl_per_dimension.csv"
    text = json.dumps(evaluation.report, indent=2, allow_nan=False) + "\n"
    write_files({metrics: text.encode(), kl: kl_table(evaluation).encode()})
    for line in summary(evaluation.report):
        log.info("%s", line)
    with open_model_run(workspace, trained.digest, run_start(workspace, params)) as run:
        run.metrics(headline_metrics(evaluation.report))
        run.artifact(metrics, "reports")
        run.artifact(kl, "reports")


def kl_table(evaluation: Evaluation) -> str:
    """CSV: latent dimension, its mean KL in nats."""
    rows = [f"{dimension},{kl!r}\n" for dimension, kl in evaluation.kl_per_dimension]
    return "".join(["dimension,kl\n", *rows])


def summary(report: dict[str, Any]) -> list[str]:
    """The report in a few lines, with the protocol beside the numbers."""
    test = report["test"]
    lines = [f"test split, {report['protocol']}:"]
    names = {"elbo": "ELBO", "reconstruction": "reconstruction", "kl": "KL", "nll": "NLL", "gap": "log p(x) - ELBO"}
    for key, name in names.items():
        if key in test:
            lines.append(f"  {name:<16}{test[key]:10.3f} +- {test[f'{key}_se']:.3f} nats per image")
    if "nll" in test:
        bits, bits_nll = test["bits_per_dimension"], test["bits_per_dimension_nll"]
        lines.append(f"  bits/dim        {bits:10.4f} by the ELBO, {bits_nll:.4f} by the NLL")
        lines.append(f"  NLL by importance sampling with k = {test['importance_samples']}")
        lines.append(f"  active units    {test['active_units']:10d}")
    lines.append(f"  MSE             {test['mse']:10.5f}, PSNR {test['psnr']:.2f} dB")
    return lines + latent_summary(report["latent"])


def latent_summary(latent: dict[str, Any]) -> list[str]:
    """The section `latent` in a few lines."""
    lines = [f"latents of {latent['images']} test images:"]
    if "rate" in latent:
        known, limit = latent["mutual_information"], latent["log_images"]
        lines.append(f"  mutual information {known:.3f} nats; log N = {limit:.3f} limits {latent['saturation']:.0%}")
        squared, by_chance = latent["mmd"]["squared"], latent["mmd"]["null_deviation"]
        lines.append(f"  MMD^2 to the prior {squared:.5f}; by chance 0 +- {by_chance:.5f}")
    for key, name in {"knn_accuracy": "k-NN", "linear_accuracy": "linear probe"}.items():
        if "probes" in latent:
            means, pca, pixels = (latent["probes"][key][of] for of in ("posterior_means", "pca", "pixels"))
            lines.append(f"  {name:<12} accuracy {means:.1%} on the latents, {pca:.1%} on PCA, {pixels:.1%} on pixels")
    return lines
