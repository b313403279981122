"""Probes of codes, on the CPU: nearest neighbours, a linear probe, PCA, a Frechet distance, MIG and DCI."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

PIXELS = 2**24  # that a probe of images holds as numbers
NEIGHBOURS = 5
RIDGE = 1e-3  # of the linear probe: nats per unit of squared weight
CLASSIFIER_SIDE = 28  # pixels; larger images are averaged down to it
CLASSIFIER_FEATURES = 64
CLASSIFIER_STEPS, CLASSIFIER_BATCH = 400, 100
BINS, TREES = 20, 30  # of MIG and DCI

Values = NDArray[np.float64]


def knn_predict(train: Tensor, labels: Tensor, test: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """The commonest label (the smallest, in a tie) of the k nearest training points: [N, D], [N], [M, D] -> [M]."""
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = KNeighborsClassifier(min(k, len(train)), algorithm="brute").fit(train.numpy(), labels.numpy())
    return torch.from_numpy(neighbours.predict(test.numpy()))


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
    """The mean [D] and the first min(count, N, D) principal axes [D, Z] of x [N, D]."""
    from sklearn.decomposition import PCA

    found = PCA(min(count, *x.shape), random_state=0).fit(x.numpy())
    return torch.from_numpy(found.mean_), torch.from_numpy(found.components_.T.copy())


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)) of features [N, D] and [M, D]; biased upwards by few points."""
    x, y = x.double(), y.double()
    first, second = torch.cov(x.T), torch.cov(y.T)
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + first.trace() + second.trace() - 2 * cross)


def shrink(images: Tensor) -> Tensor:
    """Images [B, C, H, W] averaged down to CLASSIFIER_SIDE pixels at most a side; smaller sides stay."""
    size = (min(images.shape[2], CLASSIFIER_SIDE), min(images.shape[3], CLASSIFIER_SIDE))
    return images if size == images.shape[2:] else functional.adaptive_avg_pool2d(images, size)


@torch.enable_grad()
def train_classifier(images: Tensor, labels: Tensor, seed: int) -> nn.Sequential:
    """A small convolutional network, trained on pixels on [0, 1], [N, C, H, W], and labels [N]: features, logits."""
    _, channels, height, width = images.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = nn.Sequential(
            nn.Conv2d(channels, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * -(-height // 4) * -(-width // 4), CLASSIFIER_FEATURES),
            nn.ReLU(),
            nn.Linear(CLASSIFIER_FEATURES, int(labels.max()) + 1),
        )
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
def classifier_features(classifier: nn.Sequential, batches: Iterable[Tensor]) -> Tensor:
    """Batches of images of any size, [B, C, H, W] each -> [N, CLASSIFIER_FEATURES]."""
    return torch.cat([classifier[:-1](shrink(batch.cpu())) for batch in batches])


def mutual_information_gap(codes: Values, factors: Values) -> float:
    """MIG (Chen et al. 2018, arXiv:1802.04942, section 4.1), from 0 to 1.

    The mean over factors of (I(z_a; v) - I(z_b; v)) / H(v), with z_a, z_b the two dimensions that know most of v.
    codes [N, Z] are samples of q(z|x), factors [N, F]; a factor of more than BINS values, and every code, is cut into
    BINS bins of equal counts. Factors that never vary are left out.
    """
    from sklearn.metrics import mutual_info_score

    binned = [discretise(code) for code in codes.T]
    gaps = []
    for factor in (discretise(factor) for factor in factors.T):
        entropy = mutual_info_score(factor, factor)
        if entropy > 0:
            known = sorted([0.0, 0.0, *(mutual_info_score(code, factor) for code in binned)])
            gaps.append((known[-1] - known[-2]) / entropy)
    return float(np.mean(gaps)) if gaps else 0.0


def discretise(values: Values) -> NDArray[np.int64]:
    """[N] -> bin numbers: the values themselves if there are at most BINS, else quantiles."""
    distinct, numbers = np.unique(values, return_inverse=True)
    if len(distinct) <= BINS:
        return numbers
    edges = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1])
    return np.searchsorted(edges, values, side="right")


def dci(codes: Values, factors: Values, seed: int) -> dict[str, float]:
    """Disentanglement, completeness, informativeness (Eastwood & Williams 2018), each at most 1.

    A random forest a factor learns from one half of codes [N, Z] (posterior means) and factors [N, F]: on the other
    half informativeness is the mean R^2, or accuracy for a factor of few values. By its importances [Z, F],
    disentanglement asks whether a dimension matters for one factor only, completeness the same of a factor.
    """
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    half, importances, scores = len(codes) // 2, [], []
    for factor in factors.T:
        discrete = len(np.unique(factor)) <= BINS
        kind = RandomForestClassifier if discrete else RandomForestRegressor
        forest = kind(n_estimators=TREES, min_samples_leaf=10, max_features=None, random_state=seed % 2**32, n_jobs=1)
        target = discretise(factor) if discrete else factor
        forest.fit(codes[:half], target[:half])
        importances.append(np.asarray(forest.feature_importances_))  # [Z], summing to 1
        scores.append(float(forest.score(codes[half:], target[half:])))
    relative = np.stack(importances, axis=1)  # [Z, F]
    weights = relative.sum(1) / max(relative.sum(), 1e-12)
    return {
        "disentanglement": float((weights * _concentration(relative)).sum()),
        "completeness": float(_concentration(relative.T).mean()),
        "informativeness": float(np.mean(scores)),
    }


def _concentration(rows: Values) -> Values:
    """1 - entropy of each row as a share of the largest: 1 where one column has it all, 0 for zeros, [A, B] -> [A]."""
    if rows.shape[1] < 2:
        return np.ones(len(rows))
    totals = rows.sum(1, keepdims=True)
    shares = np.where(totals > 0, rows / np.maximum(totals, 1e-12), 1 / rows.shape[1])
    entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(1)
    return np.asarray(1 - entropy / np.log(rows.shape[1]))
