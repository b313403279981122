"""The registered model's code, as MLflow calls it."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from vaeline import config
from vaeline.core.objectives import elbo_terms
from vaeline.serving.inference import TrainedModel
from vaeline.serving.model_files import LoadedModel, load_model, save_model
from vaeline.training.build import build_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns of its own type hints when imported
    from vaeline.serving.pyfunc import Served

SHAPE = (1, 5, 4)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)


def loaded(folder: Path, likelihood: config.Likelihood) -> LoadedModel:
    network = config.Mlp(kind="mlp", hidden=[8])
    section = config.Model(latent_dim=3, network=network, likelihood=likelihood)
    data = {"digest": "d", "source": "digits", "binarise": "none"}
    described = {"model": section.model_dump(), "objective": "elbo", "data": data}
    save_model(folder, build_model(section, SHAPE, "elbo", seed=1), described)
    return load_model(folder)


@pytest.fixture
def model(tmp_path: Path) -> LoadedModel:
    return loaded(tmp_path, config.Gaussian(kind="gaussian", sigma=0.5))


def test_each_method_is_that_of_the_trained_model(model: LoadedModel):
    served, own = Served(model), TrainedModel(model)
    latents = own.encode(PIXELS)
    for params, given, expected in (
        ({}, PIXELS, own.reconstruct(PIXELS)),
        ({"method": "encode"}, PIXELS, latents),
        ({"method": "decode"}, latents, own.decode(latents)),
        ({"method": "score", "seed": 5}, PIXELS, own.score(PIXELS, seed=5)),
        ({"method": "sample", "n": 3, "seed": 1}, None, own.sample(3, seed=1)),
    ):
        assert np.array_equal(served.answer(given, params), expected)


@pytest.mark.parametrize("dtype", [np.int64, np.float64, object])
def test_requests_may_have_any_dtype_or_be_lists(model: LoadedModel, dtype: type):
    expected = Served(model).answer(PIXELS, {})
    assert np.array_equal(Served(model).answer(PIXELS.astype(dtype), {}), expected)
    assert np.array_equal(Served(model).answer(PIXELS.astype(dtype).tolist(), {}), expected)


def test_its_score_averages_to_the_elbo(model: LoadedModel):
    """One image scored by many seeds, against one draw of many copies from another generator."""
    scores = np.concatenate([Served(model).answer(PIXELS[:1], {"method": "score", "seed": s}) for s in range(400)])
    copies = torch.from_numpy(PIXELS[:1]).expand(4000, *SHAPE)
    generator = torch.Generator().manual_seed(1)
    x = model.vae.likelihood.observe(copies, torch.rand(copies.shape, generator=generator))
    elbo = elbo_terms(model.vae, x, torch.randn(4000, 3, generator=generator)).elbo.numpy()
    error = np.hypot(scores.std() / len(scores) ** 0.5, elbo.std() / len(elbo) ** 0.5)
    assert abs(scores.mean() - elbo.mean()) < 4 * error


def test_an_unknown_method_is_reported_in_one_line(model: LoadedModel):
    with pytest.raises(ValueError, match="method: found 'predict', allowed: reconstruct, encode"):
        Served(model).answer(PIXELS, {"method": "predict"})


@pytest.mark.parametrize(
    "likelihood",
    [
        config.ContinuousBernoulli(kind="continuous-bernoulli"),
        config.DiscretisedLogistic(kind="discretised-logistic"),
    ],
)
def test_every_likelihood_is_served(tmp_path: Path, likelihood: config.Likelihood):
    served = Served(loaded(tmp_path, likelihood))
    images = served.answer(PIXELS, {})
    assert (images.dtype, images.shape) == (np.float32, PIXELS.shape)
    assert 0 <= images.min() <= images.max() <= 1
    assert np.isfinite(served.answer(PIXELS, {"method": "score"})).all()


def test_errors_reach_a_servers_client(model: LoadedModel):
    """MLflow's server answers exceptions other than its own with a general sentence and a stack trace."""
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=r"^pixels: found other values than whole numbers") as raised:
        Served(model).predict(None, PIXELS / 255, params={})
    assert raised.value.get_http_status_code() == 400
