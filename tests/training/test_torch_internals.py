"""PyTorch's private functions against its public ones."""

import torch
from torch import Tensor, nn

from vaeline.training.torch_internals import fused_adam, total_norm


def numbers(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in ((5, 3), (7,), ())]


def test_the_norm_is_that_of_the_public_function():
    assert torch.equal(total_norm(numbers(1)), nn.utils.get_total_norm(numbers(1)))


def test_the_fused_step_is_adam_on_divided_gradients_and_moves_nothing_where_it_is_skipped():
    ours, public = numbers(0), [nn.Parameter(tensor) for tensor in numbers(0)]
    moments, count = [[torch.zeros_like(p) for p in ours] for _ in range(2)], torch.zeros(())
    optimiser = torch.optim.Adam(public, lr=0.01, fused=True)
    for seed, divisor in ((1, None), (2, torch.tensor(4.0)), (3, None)):
        count += 1
        step = {"learning_rate": 0.01, "divisor": divisor, "skip": torch.zeros(())}
        fused_adam(ours, numbers(seed), *moments, count, **step)
        for parameter, gradient in zip(public, numbers(seed), strict=True):
            parameter.grad = gradient if divisor is None else gradient / divisor
        optimiser.step()
        assert all(torch.equal(one, other) for one, other in zip(ours, public, strict=True))
    before = [tensor.clone() for tensor in (*ours, *moments[0], *moments[1])]
    fused_adam(ours, numbers(4), *moments, count, learning_rate=0.01, divisor=None, skip=torch.ones(()))
    assert all(torch.equal(one, other) for one, other in zip(before, (*ours, *moments[0], *moments[1]), strict=True))
