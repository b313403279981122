import pytest
import torch
from torch import nn

from vaeline.core import networks
from vaeline.core.networks import ResidualBlock, latent_shape, residual_decoder, residual_encoder


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 33, 17), (2, 1, 1), (3, 5, 64)], ids=str)
def test_networks_return_the_size_they_were_given(shape: networks.Shape) -> None:
    pairs = [(networks.mlp_encoder(shape, (9, 7), 6, "tanh"), networks.mlp_decoder(shape, (9, 7), 3, "tanh"))]
    for channels in ((4,), (4, 6, 8, 5)):
        encoder = networks.conv_encoder(shape, channels, 16, 6, "silu")
        pairs.append((encoder, networks.conv_decoder(shape, channels, 16, 3, "silu")))
    for encoder, decoder in pairs:
        assert encoder(torch.rand(2, *shape)).shape == (2, 6)
        assert decoder(torch.randn(2, 3)).shape == (2, *shape)


def test_the_decoder_mirrors_the_encoder() -> None:
    widths = [tuple(p.shape) for p in networks.mlp_encoder((1, 4, 4), (9, 7), 6, "relu").parameters() if p.ndim == 2]
    mirrored = [tuple(p.shape) for p in networks.mlp_decoder((1, 4, 4), (9, 7), 6, "relu").parameters() if p.ndim == 2]
    assert widths == [(9, 16), (7, 9), (6, 7)]
    assert [shape[::-1] for shape in reversed(mirrored)] == widths


def test_the_decoder_reaches_every_pixel_and_the_encoder_sees_it() -> None:
    shape = (1, 7, 5)
    x = torch.rand(1, *shape, requires_grad=True)
    networks.conv_encoder(shape, (4, 6), 16, 6, "tanh")(x).square().sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).all()
    images = networks.conv_decoder(shape, (4, 6), 16, 3, "tanh")(torch.randn(2, 3))
    assert (images[0] != images[1]).all()


def test_outputs_are_linear_so_that_any_real_number_can_be_reached() -> None:
    for decoder in (
        networks.mlp_decoder((1, 4, 4), (8,), 2, "relu"),
        networks.conv_decoder((1, 4, 4), (8,), 8, 2, "relu"),
    ):
        images = decoder(100 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0)))
        assert images.min() < -1
        assert images.max() > 1


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 24), (2, 4, 4)], ids=str)
@pytest.mark.parametrize(("channels", "blocks"), [((8,), 1), ((6, 10), 2), ((4, 8, 8), 1)], ids=str)
def test_residual_latents_are_spatial(shape: networks.Shape, channels: tuple[int, ...], blocks: int) -> None:
    latents, factor = latent_shape(shape, channels, 3), 2 ** (len(channels) - 1)
    assert latents == (3, shape[1] // factor, shape[2] // factor)
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


def test_a_block_is_its_input_plus_something_and_passes_the_gradient() -> None:
    block, x = ResidualBlock(4, 4), torch.randn(2, 4, 5, 5, requires_grad=True)
    torch.testing.assert_close(block(x) - x, block.change(x))
    with torch.no_grad():
        block.change[-1].weight.zero_()
    block(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))
