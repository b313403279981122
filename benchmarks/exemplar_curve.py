"""`python -m benchmarks.exemplar_curve`: the curves of benchmarks/results/fashion-exemplar, drawn beside them."""

import csv
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent / "results" / "fashion-exemplar"
MODELS = {"gaussian": ("Gaussian prior", 228.70, "C0"), "vamp": ("VampPrior", 227.35, "C1")}


def main() -> None:
    """Write curve.png."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, (label, published, colour) in MODELS.items():
        with (FOLDER / f"{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        epochs = [int(row["epoch"]) for row in rows]
        axes.plot(epochs, [-float(row["validation_elbo"]) for row in rows], colour, label=f"{label}: validation")
        axes.plot(epochs, [-float(row["train_elbo"]) for row in rows], colour, alpha=0.4, label=f"{label}: train")
        measured = json.loads((FOLDER / f"{name}.json").read_text())["nll_5000"]
        axes.axhline(measured, color=colour, linewidth=1, label=f"{label}: test NLL, {measured:.2f}")
        axes.axhline(published, color=colour, linestyle="--", linewidth=1, label=f"published: {published:.2f}")
    axes.set(xlabel="epoch", ylabel="negative ELBO or NLL, nats per image", ylim=(226, 250))
    axes.set_title("Fashion-MNIST, dynamically binarised: gated 300-300, 40 latents")
    axes.legend(frameon=False)
    figure.savefig(FOLDER / "curve.png", dpi=110)


if __name__ == "__main__":
    main()
