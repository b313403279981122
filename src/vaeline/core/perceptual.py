"""LPIPS, the distance of two images in the features of VGG-16 (Zhang et al. 2018, arXiv:1801.03924)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# the convolutions' channels up to each of the five places that are compared: relu1_2, 2_2, 3_3, 4_3, 5_3
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels on [0, 1]


class Perceptual(nn.Module):
    """Sum over stages of the mean over places of w . (f(x) - f(y))^2, f of unit length at each place, frozen.

    w are the linear layers of LPIPS, or ones where the weights have none.
    """

    def __init__(self, weight: float) -> None:
        """`weight` is that in a loss, nats a unit."""
        super().__init__()
        self.weight = weight
        self.features, before = nn.ModuleDict(), 3
        for stage, channels in enumerate(STAGES):
            for after in channels:
                number = len(self.features) * 2 + stage  # as torchvision counts: a ReLU each, a pooling a stage
                self.features[str(number)] = nn.Conv2d(before, after, kernel_size=3, padding=1)
                before = after
        self.lins = nn.ParameterList([torch.ones(channels[-1]) for channels in STAGES])
        self.requires_grad_(False).eval()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take torchvision's `features.N.weight`, `.bias`, and LPIPS's `linK.model.1.weight` where they are there."""
        own = {
            name.removeprefix("features."): tensor for name, tensor in tensors.items() if name.startswith("features.")
        }
        self.features.load_state_dict(own)
        for stage, lin in enumerate(self.lins):
            if (found := tensors.get(f"lin{stage}.model.1.weight")) is not None:
                lin.copy_(found.flatten())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Images [B, C, H, W] with pixels on [0, 1], grey ones as three equal channels: [B]."""
        total = x.new_zeros(len(x))
        h = torch.cat([self._normalised(x), self._normalised(y)])
        layers = iter(self.features.values())
        for stage, channels in enumerate(STAGES):
            h = nn.functional.max_pool2d(h, 2) if stage else h
            for _ in channels:
                h = next(layers)(h).relu()
            f, g = (h / (h.square().sum(1, keepdim=True) + 1e-10).sqrt()).chunk(2)
            total = total + ((f - g).square() * self.lins[stage].view(1, -1, 1, 1)).sum(1).mean((1, 2))
        return total

    def _normalised(self, x: Tensor) -> Tensor:
        mean, spread = (x.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, SPREAD))
        return (x.expand(-1, 3, -1, -1) - mean) / spread
