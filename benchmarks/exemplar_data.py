"""`python -m benchmarks.exemplar_data`: the Exemplar VAE's own splits of Fashion-MNIST, in place of stage prepare's.

After `python -m pipeline.stages.runner fetch`. Their code takes the last 10,000 training images to validate and
binarises these, then the test images, by numpy's legacy generator at seed 777; training images stay grey.
"""

import json
from pathlib import Path

import numpy as np

from vaeline.config import read_params
from vaeline.data.prepared import MANIFEST
from vaeline.data.sources.readers import read_source
from vaeline.evaluation.split_metrics import Pixels
from vaeline.io.digests import file_digest
from vaeline.io.workspace import current_workspace

HELD_OUT, SEED = 10_000, 777


def their_splits(pool: Pixels, test: Pixels, held_out: int = HELD_OUT) -> dict[str, Pixels]:
    """Grey training images, binary validation and test images: uint8 [N, C, H, W]."""
    draws = np.random.RandomState(SEED)
    binary = [(255 * draws.binomial(1, pixels / 255)).astype(np.uint8) for pixels in (pool[-held_out:], test)]
    return dict(zip(("train", "validation", "test"), (pool[:-held_out], *binary), strict=True))


def write(folder: Path, splits: dict[str, Pixels], source: str) -> None:
    """Write the arrays and their manifest as stage prepare does, without labels."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": 1, "source": source, "shape": splits["train"].shape[1:], "binarise": "dynamic"}
    summaries = {}
    for name, pixels in splits.items():
        np.save(folder / f"{name}.npy", pixels)
        summaries[name] = {"count": len(pixels), "sha256": file_digest(folder / f"{name}.npy")}
        summaries[name] |= {"mean": pixels.mean() / 255, "std": pixels.std() / 255, "labels": False, "factors": False}
    content |= {"splits": summaries, "duplicates_dropped": 0, "classes": None}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """Of what stage fetch has fetched."""
    workspace = current_workspace()
    source = read_params(workspace.params).data.source
    images = read_source(source, workspace.raw)
    assert images.test, "Fashion-MNIST has a test split"
    write(workspace.prepared, their_splits(np.asarray(images.pool.pixels), images.test.pixels), source.kind)


if __name__ == "__main__":
    main()
