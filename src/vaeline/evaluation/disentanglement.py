"""Does one latent dimension hold one factor of variation? MIG and DCI, where the factors are known."""

import numpy as np
from numpy.typing import NDArray

BINS = 20
TREES = 30

Values = NDArray[np.float64]


def mutual_information_gap(codes: Values, factors: Values) -> float:
    """MIG (Chen et al. 2018, arXiv:1802.04942, section 4.1), from 0 to 1.

    The mean over factors of (I(z_a; v) - I(z_b; v)) / H(v), with z_a, z_b the two dimensions that know most of v.
    codes [N, Z] are samples of q(z|x), factors [N, F]; a factor of more than BINS values, and every code, is cut into
    BINS bins of equal counts. Factors that never vary are left out.
    """
    binned = [discretise(code) for code in codes.T]
    gaps = []
    for factor in (discretise(factor) for factor in factors.T):
        entropy = mutual_information(factor, factor)
        if entropy > 0:
            known = sorted([0.0, 0.0, *(mutual_information(code, factor) for code in binned)])
            gaps.append((known[-1] - known[-2]) / entropy)
    return float(np.mean(gaps)) if gaps else 0.0


def discretise(values: Values) -> NDArray[np.int64]:
    """[N] -> bin numbers: the values themselves if there are at most BINS, else quantiles."""
    distinct, numbers = np.unique(values, return_inverse=True)
    if len(distinct) <= BINS:
        return numbers
    edges = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1])
    return np.searchsorted(edges, values, side="right")


def mutual_information(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """I(a; b) in nats of two discrete variables [N], from their counts; that of one with itself is its entropy."""
    shape = (int(a.max()) + 1, int(b.max()) + 1)
    joint = np.bincount(a * shape[1] + b, minlength=shape[0] * shape[1]).reshape(shape) / len(a)
    expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / expected[seen])).sum())


def dci(codes: Values, factors: Values, seed: int) -> dict[str, float]:
    """Disentanglement, completeness, informativeness (Eastwood & Williams 2018), each at most 1.

    A random forest a factor is fitted to one half of codes [N, Z] (posterior means) and factors [N, F] and scored on
    the other half: informativeness is the mean R^2, or accuracy for a factor of few values. Of its importances
    R [Z, F], disentanglement asks whether a dimension matters for one factor only, completeness whether a factor
    needs one dimension only.
    """
    importances, scores = zip(*(_forest(codes, factor, seed) for factor in factors.T), strict=True)
    relative = np.stack(importances, axis=1)  # [Z, F]
    weights = relative.sum(1) / max(relative.sum(), 1e-12)
    return {
        "disentanglement": float((weights * _concentration(relative)).sum()),
        "completeness": float(_concentration(relative.T).mean()),
        "informativeness": float(np.mean(scores)),
    }


def _forest(codes: Values, factor: Values, seed: int) -> tuple[Values, float]:
    """Importances [Z], summing to 1, and the score on held-out images."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    discrete = len(np.unique(factor)) <= BINS
    kind = RandomForestClassifier if discrete else RandomForestRegressor
    forest = kind(n_estimators=TREES, min_samples_leaf=10, max_features=None, random_state=seed % 2**32, n_jobs=1)
    half = len(codes) // 2
    target = discretise(factor) if discrete else factor
    forest.fit(codes[:half], target[:half])
    return np.asarray(forest.feature_importances_), float(forest.score(codes[half:], target[half:]))


def _concentration(rows: Values) -> Values:
    """1 - entropy of each row, as a share of the largest possible: 1 where one column has it all, [A, B] -> [A].

    A row of zeros knows of no column more than of another: 0.
    """
    if rows.shape[1] < 2:
        return np.ones(len(rows))
    totals = rows.sum(1, keepdims=True)
    shares = np.where(totals > 0, rows / np.maximum(totals, 1e-12), 1 / rows.shape[1])
    entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(1)
    return np.asarray(1 - entropy / np.log(rows.shape[1]))
