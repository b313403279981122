import pytest
import torch
from torch import nn

from vaeline.core.networks import Shape
from vaeline.core.residual import ResidualBlock, factor, latent_shape, residual_decoder, residual_encoder


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 24), (2, 4, 4)], ids=str)
@pytest.mark.parametrize("channels", [(8,), (6, 10), (4, 8, 8)], ids=str)
@pytest.mark.parametrize("blocks", [1, 2])
def test_latents_are_spatial_and_images_keep_their_size(shape: Shape, channels: tuple[int, ...], blocks: int) -> None:
    latents = latent_shape(shape, channels, 3)
    assert latents == (3, shape[1] // factor(channels), shape[2] // factor(channels))
    encoder, decoder = residual_encoder(shape, channels, blocks, 6), residual_decoder(shape, channels, blocks, 3)
    size = torch.Size(latents).numel()
    assert encoder(torch.rand(2, *shape)).shape == (2, 2 * size)
    assert decoder(torch.randn(2, size)).shape == (2, *shape)


@pytest.mark.parametrize(("height", "width"), [(30, 28), (28, 2)])
def test_a_size_that_the_factor_does_not_divide_is_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"must be divisible by 4, found {height} x {width}"):
        latent_shape((1, height, width), (4, 8, 8), 3)


def test_a_mean_and_its_variance_stand_at_the_same_place() -> None:
    encoder = residual_encoder((1, 16, 16), (4, 4), 1, 2)
    x = torch.rand(1, 1, 16, 16)
    changed = x.clone()
    changed[..., :2, :2] += 1
    with torch.no_grad():
        for norm in encoder.modules():  # they mix places
            if isinstance(norm, ResidualBlock):
                norm.change[0], norm.change[3] = nn.Identity(), nn.Identity()
        encoder[-4] = nn.Identity()
        moved = (encoder(changed) - encoder(x)).view(2, 8, 8).abs() > 0  # mean, log variance
    assert moved[:, 0, 0].all()
    assert not moved[:, 7, 7].any()


def test_a_block_starts_as_its_input_plus_something_and_passes_the_gradient() -> None:
    block, x = ResidualBlock(4, 4), torch.randn(2, 4, 5, 5, requires_grad=True)
    torch.testing.assert_close(block(x) - x, block.change(x))
    with torch.no_grad():
        block.change[-1].weight.zero_()
    block(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.ones_like(x))
