"""The popular example script's loop, written after PyTorch's `examples/vae`: network, loss, optimiser, data path."""

from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

PIXELS, HIDDEN, LATENT, BATCH = 784, 400, 20, 128


class PlainVAE(nn.Module):
    """784-400-20 (Kingma & Welling 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(PIXELS, HIDDEN)
        self.mean, self.log_variance = nn.Linear(HIDDEN, LATENT), nn.Linear(HIDDEN, LATENT)
        self.decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS), nn.Sigmoid())

    def loss(self, x: Tensor) -> Tensor:
        """Binary cross-entropy plus the KL, summed over the batch [B, 784]."""
        hidden = torch.relu(self.encoder(x))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        entropy = nn.functional.binary_cross_entropy(self.decoder(z), x, reduction="sum")
        return entropy - 0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())


class PlainImages(Dataset[tuple[Tensor, int]]):
    """Images [N, 28, 28] and labels one by one through Pillow and ToTensor, as torchvision's data sets give them."""

    def __init__(self, images: Tensor) -> None:
        from torchvision.transforms import ToTensor

        self.images, self.transform = images, ToTensor()
        self.labels = torch.zeros(len(self.images), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        image, label = self.images[index], int(self.labels[index])
        return self.transform(Image.fromarray(image.numpy())), label


class PlainLoop:
    """A DataLoader and a loop around Adam."""

    def __init__(self, images: Tensor, *, binarise: bool = False) -> None:
        self.model, self.binarise = PlainVAE(), binarise
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.loader = DataLoader(PlainImages(images), batch_size=BATCH, shuffle=True)

    def steps(self, count: int | None = None) -> float:
        """Some steps, or an epoch's; returns the sum of losses. `binarise`: pixels drawn anew."""
        total = 0.0
        for grey, _ in islice(self.loader, count):
            x = (torch.bernoulli(grey) if self.binarise else grey).view(-1, PIXELS)
            self.optimiser.zero_grad()
            loss = self.model.loss(x)
            loss.backward()
            total += loss.item()
            self.optimiser.step()
        return total
