import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vaeline import config
from vaeline.core.batches import BATCH
from vaeline.core.objectives import elbo_terms
from vaeline.core.sampling import decoded, reconstructions
from vaeline.serving.model_files import LoadedModel, load_model, save_model
from vaeline.training.build import build_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns of its own type hints when imported
    from vaeline.serving.pyfunc import Served

SHAPE = (1, 5, 4)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)
BLACK_AND_WHITE = np.where(PIXELS > 127, 255, 0).astype(np.uint8)


def loaded(folder: Path, likelihood: config.Likelihood, objective: str = "elbo") -> LoadedModel:
    network = config.Mlp(kind="mlp", hidden=[8])
    section = config.Model(latent_dim=3, network=network, likelihood=likelihood)
    data = {"digest": "d", "source": "digits", "binarise": "none"}
    described = {"model": section.model_dump(), "objective": objective, "data": data}
    save_model(folder, build_model(section, SHAPE, objective, seed=1), described)
    return load_model(folder)


@pytest.fixture
def model(tmp_path: Path) -> LoadedModel:
    return loaded(tmp_path, config.Gaussian(kind="gaussian", sigma=0.5))


def test_it_reconstructs_encodes_and_decodes_as_the_model_does(model: LoadedModel):
    served, vae = Served(model), model.vae
    x = vae.likelihood.observe(torch.from_numpy(PIXELS), None)
    assert np.array_equal(served.answer(PIXELS, {}), reconstructions(vae, x).numpy())
    z = served.answer(PIXELS, {"method": "encode"})
    assert np.array_equal(z, vae.encode(x).mean.numpy())
    assert np.array_equal(served.answer(z, {"method": "decode"}), decoded(vae, torch.from_numpy(z)).numpy())


def test_its_score_averages_to_the_elbo(model: LoadedModel):
    """One image scored by many seeds, against one draw of many copies from another generator."""
    scores = np.concatenate([Served(model).answer(PIXELS[:1], {"method": "score", "seed": s}) for s in range(400)])
    copies = torch.from_numpy(PIXELS[:1]).expand(4000, *SHAPE)
    generator = torch.Generator().manual_seed(1)
    x = model.vae.likelihood.observe(copies, torch.rand(copies.shape, generator=generator))
    elbo = elbo_terms(model.vae, x, torch.randn(4000, 3, generator=generator)).elbo.numpy()
    error = np.hypot(scores.std() / len(scores) ** 0.5, elbo.std() / len(elbo) ** 0.5)
    assert abs(scores.mean() - elbo.mean()) < 4 * error


@pytest.mark.parametrize("method", ["reconstruct", "encode", "score"])
def test_neighbours_in_the_input_change_nothing(model: LoadedModel, method: str):
    served = Served(model)
    many = np.resize(PIXELS, (BATCH + 3, *SHAPE))
    whole, first = (served.answer(pixels, {"method": method, "seed": 5}) for pixels in (many, many[:2]))
    assert whole.shape[0] == BATCH + 3
    np.testing.assert_allclose(whole[:2], first, rtol=1e-5, atol=1e-5)


def test_samples_are_chosen_by_the_seed(model: LoadedModel):
    served = Served(model)
    samples = served.answer([0], {"method": "sample", "n": BATCH + 1, "seed": 1})
    assert samples.shape == (BATCH + 1, *SHAPE)
    few = served.answer(None, {"method": "sample", "n": 3, "seed": 1})
    np.testing.assert_allclose(samples[:3], few, rtol=1e-5, atol=1e-5)
    assert not np.allclose(samples[:3], served.answer(None, {"method": "sample", "n": 3, "seed": 2}))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64, object])
def test_pixels_of_any_numeric_dtype_mean_the_same(model: LoadedModel, dtype: type):
    assert np.array_equal(Served(model).answer(PIXELS.astype(dtype), {}), Served(model).answer(PIXELS, {}))


@pytest.mark.parametrize("method", ["reconstruct", "encode", "score"])
def test_no_images_give_no_answers(model: LoadedModel, method: str):
    assert len(Served(model).answer(PIXELS[:0], {"method": method})) == 0


@pytest.mark.parametrize(
    ("given", "params", "words"),
    [
        (PIXELS / 255, {}, "pixels: found other values than whole numbers from 0 to 255"),
        (PIXELS.astype(int) + 256, {}, "pixels: found other values"),
        (PIXELS.astype(int) - 256, {}, "pixels: found other values"),
        (np.full(PIXELS.shape, np.nan), {}, "pixels: found other values"),
        (PIXELS[:, :, :3], {}, r"pixels: found shape \[6, 1, 3, 4\], allowed: \[N, 1, 5, 4\]"),
        (PIXELS[0], {}, "pixels: found shape"),
        (np.array([["a"]]), {}, "input: found something else than an array of numbers"),
        (np.zeros((2, 4)), {"method": "decode"}, r"latents: found shape \[2, 4\], allowed: \[N, 3\]"),
        (np.full((2, 3), np.inf), {"method": "decode"}, "latents: found values that are not finite"),
        (PIXELS, {"method": "predict"}, "method: found 'predict', allowed: reconstruct, encode"),
        (PIXELS, {"method": "sample", "n": 0}, "n: found 0, allowed: 1 to 100000"),
    ],
)
def test_what_it_cannot_read_is_told_in_one_line(model: LoadedModel, given: Any, params: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words) as raised:
        Served(model).answer(given, params)
    assert len(str(raised.value).splitlines()) == 1


def test_a_model_of_binary_images_refuses_grey_ones(tmp_path: Path):
    served = Served(loaded(tmp_path, config.Bernoulli(kind="bernoulli")))
    assert np.isfinite(served.answer(BLACK_AND_WHITE, {"method": "score"})).all()
    with pytest.raises(ValueError, match="binary images"):
        served.answer(PIXELS, {})


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


def test_an_autoencoder_has_no_score(tmp_path: Path):
    served = Served(loaded(tmp_path, config.Gaussian(kind="gaussian"), objective="autoencoder"))
    assert served.answer(PIXELS, {"method": "encode"}).shape == (6, 3)
    with pytest.raises(ValueError, match="plain autoencoder"):
        served.answer(PIXELS, {"method": "score"})


def test_a_server_is_told_what_is_wrong_in_words_that_it_passes_on(model: LoadedModel):
    """MLflow's server answers other exceptions with a sentence of its own and a stack trace."""
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=r"^pixels: found other values than whole numbers") as raised:
        Served(model).predict(None, PIXELS / 255, params={})
    assert raised.value.get_http_status_code() == 400
