"""The learning rate and the KL's weight as pure functions of the step."""

import math

RISE = 0.25  # the part of training in which the learning rate rises
START, END = 1 / 20, 1 / 1000  # of the peak


def one_cycle(step: int, steps: int, peak: float) -> float:
    """The learning rate of step 0 ... steps - 1: a linear rise to the peak, then half a cosine down.

    Smith & Topin 2018 (arXiv:1708.07120), with a cosine in place of their second line.
    """
    position, top = (step + 0.5) / steps, RISE
    if position < top:
        return peak * (START + (1 - START) * position / top)
    cosine = 0.5 * (1 + math.cos(math.pi * (position - top) / (1 - top)))
    return peak * (END + (1 - END) * cosine)


def kl_weight(step: int, warmup_steps: int, beta: float) -> float:
    """The KL's weight at a step: from 0 linearly to beta over the warm-up, then beta."""
    return beta * min(1.0, step / warmup_steps) if warmup_steps else beta
