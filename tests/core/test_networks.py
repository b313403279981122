import pytest
import torch

from vaeline.config import DiscretisedLogistic, Mlp, Model
from vaeline.core import networks
from vaeline.training.build import build_model


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
    mlp, logistic = Mlp(kind="mlp", hidden=[8]), DiscretisedLogistic(kind="discretised-logistic")
    section = Model(latent_dim=2, network=mlp, likelihood=logistic)
    for decoder in (
        build_model(section, (1, 4, 4), "elbo", seed=0).decoder,  # the logistic's mean may leave (0, 1)
        networks.mlp_decoder((1, 4, 4), (8,), 2, "relu"),
        networks.conv_decoder((1, 4, 4), (8,), 8, 2, "relu"),
    ):
        images = decoder(100 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0)))
        assert images.min() < -1
        assert images.max() > 1
