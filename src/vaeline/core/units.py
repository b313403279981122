"""Nats to bits per dimension and back: the only place that knows log 2."""

import math


def bits_per_dimension(log_likelihood: float, dimensions: int, *, density_on_unit_interval: bool = False) -> float:
    """Convert a log-likelihood in nats per image to bits per dimension, -log p / (D log 2), lower is better.

    With `density_on_unit_interval` the likelihood is a density of 8-bit pixels dequantised to
    x = (u8 + U[0, 1)) / 256, whose volume element costs log2(256) = 8 bits a dimension
    (Theis, van den Oord & Bethge 2016, arXiv:1511.01844, section 3.1).
    """
    bits = -log_likelihood / (dimensions * math.log(2.0))
    return bits + 8.0 if density_on_unit_interval else bits
