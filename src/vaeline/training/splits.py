"""The data that training sees."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vaeline.config import Binarise
from vaeline.data.batches import CHUNK, Pixels
from vaeline.errors import UserError
from vaeline.training.randomness import permutation


@dataclass(frozen=True)
class Splits:
    """What training sees: two splits, [N, C, H, W] each. The test split is none of its business."""

    train: Pixels
    validation: Pixels
    binarise: Binarise

    def some(self, count: int, seed: int) -> Tensor:
        """Training images chosen at random, pixels on [0, 1]: [count, C, H, W]; again from the first if too few."""
        order = permutation(seed, -1, len(self.train))  # no epoch's
        chosen = order[torch.arange(count) % len(order)].sort().values
        return torch.from_numpy(self.train[chosen.numpy()]) / 255

    def refuse_grey(self) -> None:
        """Raise UserError where pixels that a Bernoulli is to score are neither black nor white."""
        binary = {"validation": self.validation} | ({} if self.binarise == "dynamic" else {"train": self.train})
        for name, pixels in binary.items():
            rows = max(1, CHUNK // pixels[0].nbytes)
            for start in range(0, len(pixels), rows):
                part = pixels[start : start + rows]
                if ((part != 0) & (part != 255)).any():
                    raise UserError(
                        f"model.likelihood.kind: is 'bernoulli', but the {name} split has grey pixels; allowed: black "
                        "and white ones (set data.binarise to static or dynamic), or another likelihood"
                    )
