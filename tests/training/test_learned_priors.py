from pathlib import Path

import pytest
import torch

from small_training import model, options, same_weights, splits, train_small
from vaeline import config
from vaeline.core.priors import Mixture, VampPrior

PRIORS = [config.Vamp(kind="vamp", components=7), config.Mixture(kind="mixture", components=2)]


@pytest.mark.parametrize("prior", PRIORS, ids=["vamp", "mixture"])
def test_a_learned_prior_is_trained_with_its_model_the_same_way_twice(tmp_path: Path, prior: config.Prior) -> None:
    section = model(prior=prior)
    first = train_small(tmp_path / "a", model_section=section)
    assert same_weights(first, train_small(tmp_path / "b", model_section=section))
    short = train_small(tmp_path / "c", options(epochs=1), model_section=section)
    for one, other in zip(first.model.prior.parameters(), short.model.prior.parameters(), strict=True):
        assert not torch.equal(one, other)
    assert isinstance(first.model.prior, Mixture)
    assert first.history[-1].validation_elbo > first.history[0].validation_elbo


def test_pseudo_inputs_start_at_different_training_images(tmp_path: Path) -> None:
    data = splits()
    pixels = torch.from_numpy(data.train) / 255
    started = data.some(7, seed=1)
    matches = (started[:, None] == pixels[None]).flatten(2).all(2)  # [7, N]
    assert matches.any(1).all()
    assert matches.any(0).sum() == 7
    assert len(data.some(250, seed=1)) == 250
    slow = train_small(tmp_path, options(epochs=1, learning_rate=1e-9), data, model_section=model(prior=PRIORS[0]))
    assert isinstance(slow.model.prior, VampPrior)
    torch.testing.assert_close(slow.model.prior.pseudo_inputs.detach(), started)
