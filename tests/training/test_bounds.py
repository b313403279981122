"""Training under other bounds and estimators than the plain ELBO: what moves, and what is reported."""

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from small_training import Recorder, batch, model, options, same_weights, step_config, train_small
from vaeline import config
from vaeline.core.objectives import Bound, Estimator, log_weights
from vaeline.training.build import build_model
from vaeline.training.history import score
from vaeline.training.step import Batch, State, losses, step

SHAPE = (1, 8, 8)
COMBINATIONS: list[tuple[Bound, Estimator]] = [
    (bound, estimator)
    for bound in get_args(Bound)
    for estimator in get_args(Estimator)
    if (bound, estimator) not in [("elbo", "doubly-reparameterised"), ("iwae", "sticking-the-landing")]
]


def several(samples: int, count: int = 16) -> Batch:
    plain = batch(count)
    noise = torch.randn(samples, count, 3, generator=torch.Generator().manual_seed(5))
    return Batch(plain.pixels, plain.uniform, noise)


@pytest.mark.parametrize(("bound", "estimator"), COMBINATIONS)
def test_every_parameter_moves_and_the_bound_is_what_is_added_up(bound: Bound, estimator: Estimator):
    """Mistake 5: the surrogate reported as the bound; and mistake 13: a parameter that nothing trains."""
    state, item = State(build_model(model(), SHAPE, bound, 1)), several(4)
    before = [parameter.detach().clone() for parameter in state.parameters]
    with torch.no_grad():
        log_w = log_weights(state.model, state.model.likelihood.observe(item.pixels, item.uniform), item.normal)
    step(state, item, *step_config(objective=bound, estimator=estimator, samples=4))
    reconstruction, kl, gain, images = state.totals.tolist()
    truth = log_w.mean(0) if bound == "elbo" else log_w.logsumexp(0) - math.log(4)
    closed_form = (bound, estimator) == ("elbo", "pathwise")
    assert (reconstruction - kl + gain) / images == pytest.approx(truth.mean().item(), abs=0.5 if closed_form else 1e-4)
    assert (gain == 0) if bound == "elbo" else (gain / images > 0.01)
    assert not any(torch.equal(old, new) for old, new in zip(before, state.parameters, strict=True))


def test_one_sample_is_the_plain_elbo_and_beta_weighs_its_kl_under_every_estimator():
    vae, one, four = build_model(model(), SHAPE, "elbo", 1), several(1), several(4)
    plain = Batch(one.pixels, one.uniform, one.normal[0])
    torch.testing.assert_close(*(losses(vae, item, torch.tensor(2.0), 0.2) for item in (one, plain)))
    for estimator in get_args(Estimator)[:4]:
        (loss, sums), (other, same) = (losses(vae, four, torch.tensor(b), 0.0, estimator=estimator) for b in (1.0, 9.0))
        assert torch.equal(sums, same)
        assert loss != other


@pytest.mark.parametrize(("bound", "estimator"), COMBINATIONS)
def test_the_losses_of_every_estimator_compile_into_one_graph(bound: Bound, estimator: Estimator):
    torch.compiler.reset()
    vae, item, beta = build_model(model(), SHAPE, bound, 1), several(3), torch.tensor(2.0)
    compiled = torch.compile(losses, backend="aot_eager", fullgraph=True, dynamic=False)
    ours, theirs = (f(vae, item, beta, 0.1, bound=bound, estimator=estimator) for f in (compiled, losses))
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, list(vae.parameters())) for loss in (ours[0], theirs[0])]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("changes", "prior"),
    [
        ({"estimator": "sticking-the-landing"}, None),
        ({"estimator": "score-function-baseline"}, None),
        ({"objective": "iwae"}, None),
        ({"objective": "iwae", "estimator": "doubly-reparameterised"}, None),
        ({}, config.Vamp(kind="vamp", components=7)),
        ({}, config.Mixture(kind="mixture", components=2)),
    ],
    ids=str,
)
def test_every_way_improves_its_bound_and_comes_to_the_same_again(tmp_path: Path, changes: dict[str, Any], prior):
    section, vae = options(epochs=5, samples=1 if prior else 4, **changes), model(**{"prior": prior} if prior else {})
    result = train_small(tmp_path / "a", section, model_section=vae)
    assert result.history[-1].validation_elbo > result.history[0].validation_elbo + 1
    assert same_weights(result, train_small(tmp_path / "b", section, model_section=vae))
    if changes:
        plain = {"estimator": "pathwise"} if "estimator" in changes else {"objective": "elbo", "samples": 1}
        assert not same_weights(result, train_small(tmp_path / "c", options(**section.model_dump() | plain)))


def test_under_iwae_the_reported_bound_is_the_one_trained_and_its_terms_are_the_elbos(tmp_path: Path):
    recorder = Recorder()
    result = train_small(tmp_path, options(objective="iwae", samples=5), tracker=recorder)
    for row in result.history:
        assert row.train_elbo > row.train_reconstruction - row.train_kl
        assert row.validation_elbo > row.validation_reconstruction - row.validation_kl
    elbo, kl = recorder.values("train/elbo"), recorder.values("train/kl")
    assert all(elbo[step] > value - kl[step] for step, value in recorder.values("train/reconstruction").items())
    assert recorder.values("validation/elbo") == {row.step: row.validation_elbo for row in result.history}
    assert score(result.best, 1.0) == result.best.validation_elbo == max(r.validation_elbo for r in result.history)
