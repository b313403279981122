"""What simple readers make of features: nearest neighbours, a linear probe, PCA, a Frechet distance.

Everything runs on the CPU and is a function of its arguments and seeds.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

NEIGHBOURS = 5
RIDGE = 1e-3  # of the linear probe: nats per unit of squared weight
LARGEST_GRAM = 2048  # sides of a matrix whose eigenvectors take seconds
CLASSIFIER_SIDE = 28  # pixels; larger images are averaged down to it
CLASSIFIER_FEATURES = 64
CLASSIFIER_STEPS, CLASSIFIER_BATCH = 400, 100


def knn_predict(train: Tensor, labels: Tensor, test: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """The commonest label (the smallest, in a tie) of the k nearest training points: [N, D], [N], [M, D] -> [M].

    Euclidean distance; k is at most N.
    """
    classes, k = int(labels.max()) + 1, min(k, len(train))
    half_squares = 0.5 * train.square().sum(1)
    predicted = []
    for part in torch.split(test, max(1, 2**22 // len(train))):
        nearest = (part @ train.T - half_squares).topk(k, dim=1).indices  # [m, k]
        predicted.append(functional.one_hot(labels[nearest], classes).sum(1).argmax(1))
    return torch.cat(predicted)


def linear_predict(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Labels by multinomial logistic regression on standardised features: [N, D], [N], [M, D] -> [M].

    Minimises mean cross-entropy + RIDGE |W|^2 / 2, which is convex, from zero by at most 100 steps of L-BFGS.
    """
    centre, spread = train.mean(0), train.std(0)
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    x = (train - centre) / spread
    weight = torch.zeros(int(labels.max()) + 1, x.shape[1], requires_grad=True)
    bias = torch.zeros(len(weight), requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, tolerance_change=1e-7, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = functional.cross_entropy(x @ weight.T + bias, labels) + 0.5 * RIDGE * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return ((test - centre) / spread @ weight.T + bias).argmax(1)


def principal_components(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The mean [D] and the first principal axes [D, Z] of x [N, D], Z = min(count, N, D).

    From the eigenvectors of the smaller of the two Gram matrices, in float64; where both are larger than
    LARGEST_GRAM, the first LARGEST_GRAM points stand for all.
    """
    if min(x.shape) > LARGEST_GRAM:
        x = x[:LARGEST_GRAM]
    mean = x.mean(0)
    centred = (x - mean).double()
    count = min(count, *x.shape)
    if x.shape[1] <= x.shape[0]:
        axes = torch.linalg.eigh(centred.T @ centred).eigenvectors
    else:
        axes = functional.normalize(centred.T @ torch.linalg.eigh(centred @ centred.T).eigenvectors[:, -count:], dim=0)
    return mean, axes[:, -count:].flip(1).to(x)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), features [N, D] and [M, D] taken for Gaussian.

    Dowson & Landau 1982. Biased upwards by few points: compare only distances between as many.
    """
    x, y = x.double(), y.double()
    first, second = torch.cov(x.T), torch.cov(y.T)
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + first.trace() + second.trace() - 2 * cross)


def shrink(images: Tensor) -> Tensor:
    """Average images [B, C, H, W] down to CLASSIFIER_SIDE pixels at most a side; smaller sides stay."""
    size = (min(images.shape[2], CLASSIFIER_SIDE), min(images.shape[3], CLASSIFIER_SIDE))
    return images if size == images.shape[2:] else functional.adaptive_avg_pool2d(images, size)


class Classifier(nn.Module):
    """A small convolutional network whose last hidden layer are the features of a Frechet distance."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * -(-height // 4) * -(-width // 4), CLASSIFIER_FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(CLASSIFIER_FEATURES, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Pixels on [0, 1], [B, C, H, W], to logits [B, classes]."""
        return torch.as_tensor(self.head(self.features(images)))


def train_classifier(images: Tensor, labels: Tensor, seed: int) -> Classifier:
    """Train on pixels on [0, 1], [N, C, H, W], and labels [N]: CLASSIFIER_STEPS steps of Adam at one cycle."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(images.shape[1:], int(labels.max()) + 1)
        epochs = -(-CLASSIFIER_STEPS * CLASSIFIER_BATCH // len(images))
        order = torch.cat([torch.randperm(len(images)) for _ in range(epochs)])
    batches = torch.split(order, CLASSIFIER_BATCH)[:CLASSIFIER_STEPS]
    optimiser = torch.optim.Adam(classifier.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=len(batches))
    for batch in batches:
        optimiser.zero_grad()
        functional.cross_entropy(classifier(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return classifier.eval()


@torch.no_grad()
def classifier_features(classifier: Classifier, images: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, CLASSIFIER_FEATURES]."""
    return torch.cat([classifier.features(batch) for batch in torch.split(images, 500)])
