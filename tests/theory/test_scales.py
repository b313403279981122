"""Readings of the encoder's output; the best σ of a Gaussian likelihood."""

import math

import pytest
import torch

from small_theory_context import small_context
from vaeline.theory import scales


def test_only_sigma_itself_can_be_no_sigma():
    raw = torch.tensor([-300.0, -1.0, 0.0, 300.0])
    for head, wrong in (("log σ²", 0), ("softplus", 1), ("σ", 2)):
        log_variance, invalid = scales.read_head(raw, head)  # type: ignore[arg-type]
        assert int(invalid.sum()) == wrong, head
        assert torch.isfinite(log_variance).all()
        assert log_variance[2] == pytest.approx(0, abs=1e-6)


def test_the_best_sigma_is_the_root_of_the_mean_squared_error():
    numbers = scales.squared_error(small_context()).numbers
    assert numbers["largest_relative_difference"] < 1e-4
    mse = numbers["root_mean_squared_error_train"] ** 2

    def cost(sigma: float) -> float:
        return mse / (2 * sigma**2) + math.log(sigma)

    best = numbers["root_mean_squared_error_train"]
    assert cost(best) < min(cost(best * 1.01), cost(best * 0.99))


def test_the_squared_error_is_no_claim_on_other_likelihoods():
    claim = scales.squared_error(small_context({"kind": "discretised-logistic"}))
    assert claim.words == ("Does not apply: the likelihood is discretised-logistic.",)
    assert claim.numbers == {}
