"""Private names of PyTorch, all in this module, kept for speed: tests hold them against the public ones.

`torch.optim.Adam(fused=True)` gives the same bits but took 0.20 ms a step more (0.53 in place of 0.33 ms with 16
hidden units, 4.00 in place of 3.78 ms with 400, one thread, batch 128); `nn.utils.get_total_norm` 0.05 ms.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # of Adam (Kingma & Ba 2015)


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all numbers together: scalar."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))
    return norm


def fused_adam(
    parameters: list[Tensor],
    gradients: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    count: Tensor,
    *,
    learning_rate: float,
    divisor: Tensor | None,
    skip: Tensor,
) -> None:
    """One step of Adam in place, gradients divided by `divisor` first; nothing where `skip` is 1.

    `count` is that of this step, from 1: one scalar for all parameters.
    """
    torch._fused_adam_(
        parameters,
        gradients,
        first,
        second,
        [],
        [count] * len(gradients),
        lr=learning_rate,
        beta1=BETA1,
        beta2=BETA2,
        weight_decay=0.0,
        eps=EPSILON,
        amsgrad=False,
        maximize=False,
        grad_scale=divisor,
        found_inf=skip,
    )
