"""Means with standard errors."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Measured:
    """A mean and its standard error, sd / sqrt(N)."""

    value: float
    se: float

    @classmethod
    def of(cls, values: Tensor | NDArray[np.float64]) -> "Measured":
        """Of independent values [N], N at least 2, in float64."""
        if isinstance(values, Tensor):
            values = values.detach().double().flatten().cpu()
            return cls(float(values.mean()), float(values.std() / math.sqrt(len(values))))
        return cls(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))

    def numbers(self, name: str) -> dict[str, float]:
        """`name` and `name_se`, for the JSON."""
        return {name: self.value, f"{name}_se": self.se}

    def text(self, digits: int = 2) -> str:
        """With the sign of an error between them."""
        return f"{self.value:.{digits}f} ± {self.se:.{digits}f}"
