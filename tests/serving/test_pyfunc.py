"""The registered model's code, as MLflow calls it."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from model_sections import saved, section
from vaeline.serving.inference import TrainedModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns of its own type hints when imported
    from vaeline.serving.pyfunc import Served

SHAPE = (1, 5, 4)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)


def served(folder: Path, **likelihood: Any) -> Served:
    answering = Served()
    answering.model = TrainedModel(saved(folder, section(likelihood=likelihood), SHAPE))
    return answering


@pytest.mark.parametrize("kind", ["gaussian", "continuous-bernoulli", "discretised-logistic"])
def test_each_method_of_every_likelihood_is_that_of_the_trained_model(tmp_path: Path, kind: str):
    answering = served(tmp_path, kind=kind)
    own = answering.model
    latents, images = own.encode(PIXELS), own.reconstruct(PIXELS)
    for params, given, expected in (
        (None, PIXELS, images),
        ({"method": "encode"}, PIXELS, latents),
        ({"method": "decode"}, latents, own.decode(latents)),
        ({"method": "score", "seed": 5}, PIXELS, own.score(PIXELS, seed=5)),
        ({"method": "sample", "n": 3, "seed": 1}, None, own.sample(3, seed=1)),
    ):
        assert np.array_equal(answering.predict(None, given, params), expected)
        assert np.isfinite(expected).all()
    assert (images.dtype, images.shape) == (np.float32, PIXELS.shape)
    assert 0 <= images.min() <= images.max() <= 1


@pytest.mark.parametrize("dtype", [np.int64, np.float64, object])
def test_requests_may_have_any_dtype_or_be_lists(tmp_path: Path, dtype: type):
    answering = served(tmp_path, kind="gaussian")
    expected = answering.predict(None, PIXELS)
    assert np.array_equal(answering.predict(None, PIXELS.astype(dtype)), expected)
    assert np.array_equal(answering.predict(None, PIXELS.astype(dtype).tolist()), expected)


@pytest.mark.parametrize(
    ("pixels", "method", "line"),
    [
        (PIXELS / 255, "encode", r"^pixels: found other values than whole numbers"),
        (PIXELS, "predict", "^method: found 'predict', allowed: reconstruct, encode"),
    ],
)
def test_errors_reach_a_servers_client(tmp_path: Path, pixels: np.ndarray, method: str, line: str):
    """MLflow's server answers exceptions other than its own with a general sentence and a stack trace."""
    with pytest.raises(MlflowException, match=line) as raised:
        served(tmp_path, kind="gaussian").predict(None, pixels, {"method": method})
    assert raised.value.get_http_status_code() == 400
