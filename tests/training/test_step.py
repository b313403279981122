import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from small_training import CPU, batch, model, step_config
from vaeline import config
from vaeline.core.model import VAE
from vaeline.core.objectives import elbo_terms, surrogate
from vaeline.training import step as steps
from vaeline.training.build import build_model
from vaeline.training.step import Batch, State, losses, step

SHAPE = (1, 8, 8)
LIKELIHOODS = [
    config.Gaussian(kind="gaussian"),
    config.Gaussian(kind="gaussian", sigma=0.2),
    config.ContinuousBernoulli(kind="continuous-bernoulli"),
    config.DiscretisedLogistic(kind="discretised-logistic"),
    config.Bernoulli(kind="bernoulli"),
]
NETWORKS = [
    config.Mlp(kind="mlp", hidden=[16]),
    config.Conv(kind="conv", channels=[4, 8], hidden=16),
    config.Gated(kind="gated", hidden=[16]),
]
PRIORS = [
    config.StandardNormal(kind="standard-normal"),
    config.Vamp(kind="vamp", components=5),
    config.Mixture(kind="mixture", components=5),
]


def start(section: config.Model | None = None, seed: int = 1) -> State:
    return State.start(build_model(section or model(), SHAPE, "elbo", seed))


def plain_loop(vae: VAE, batches: Sequence[Batch], clip: float, beta: float) -> None:
    """The same training as everybody writes it."""
    optimiser = torch.optim.Adam(vae.parameters(), lr=0.01)
    for item in batches:
        optimiser.zero_grad()
        x = vae.likelihood.observe(item.pixels, item.uniform)
        terms = elbo_terms(vae, x, item.normal)
        (-(terms.reconstruction - beta * terms.kl).mean()).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), clip)
        optimiser.step()


@pytest.mark.parametrize("clip", [1e9, 1.0])
def test_steps_are_those_of_adam_with_clipped_gradients(clip: float):
    state, other = start(), start().model
    batches = [batch(seed=i) for i in range(5)]
    for item in batches:
        _, norm = step(state, item, step_config(gradient_clip=clip, beta=torch.tensor(0.5)))
        assert norm > 1.0
    plain_loop(other, batches, clip, beta=0.5)
    for ours, theirs in zip(state.parameters, other.parameters(), strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_negative_mean_of_the_surrogate_and_the_totals_are_not_weighted():
    """Mistakes 2, 4, 8 and 12: the KL's weight is in the loss alone; totals are sums over images, with their signs."""
    state, item = start(), batch()
    with torch.no_grad():
        terms = elbo_terms(state.model, state.model.likelihood.observe(item.pixels, item.uniform), item.normal)
    loss, _ = step(state, item, step_config(beta=torch.tensor(3.0), free_bits=0.5))
    assert loss.item() == pytest.approx(-surrogate(terms, 3.0, 0.5).mean().item(), rel=1e-6)
    expected = [terms.reconstruction.sum().item(), terms.kl.sum().item(), 0, 16]
    assert state.totals.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("poison", ["pixels", "normal"])
def test_a_loss_that_is_not_finite_moves_nothing_then_or_later(poison: str):
    state, good = start(), batch()
    step(state, good, step_config())
    before = {name: tensor.clone() for name, tensor in state.tensors().items() if name != "totals"}
    bad = batch()
    getattr(bad, poison)[0] = math.nan
    step(state, bad, step_config())
    assert state.failed.item() == 1
    step(state, good, step_config())
    after = state.tensors()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert state.count.item() == 1


def test_a_gradient_that_is_not_finite_moves_nothing_though_the_loss_is_finite():
    state = start()

    class Steep(torch.autograd.Function):
        """The identity with an infinite slope."""

        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient * math.inf

    state.model.decoder.append(steep := nn.Identity())
    steep.register_forward_hook(lambda module, inputs, output: Steep.apply(output))
    before = [p.detach().clone() for p in state.parameters]
    loss, _ = step(state, batch(), step_config())
    assert loss.isfinite()
    assert state.failed.item() == 1
    assert all(torch.equal(old, new) for old, new in zip(before, state.parameters, strict=True))


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.kind)
def test_mistake_13_every_parameter_is_trained(likelihood: config.Likelihood, network: config.Network):
    assert_everything_moves(model(likelihood, network=network))


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: prior.kind)
def test_mistake_13_every_parameter_of_a_prior_is_trained(prior: config.Prior):
    assert_everything_moves(model(prior=prior))


def test_mistake_13_what_is_called_learned_is_a_parameter():
    sections = [*(model(likelihood) for likelihood in LIKELIHOODS), *(model(prior=prior) for prior in PRIORS)]
    names = {name for section in sections for name, _ in start(section).model.named_parameters()}
    learned = {name for name in names if not name.startswith(("encoder.", "decoder."))}
    mixture = {"prior.means", "prior.raw_log_variances", "prior.logits"}
    assert learned == {"likelihood.log_sigma", "likelihood.log_scale", "prior.pseudo_inputs", *mixture}


def assert_everything_moves(section: config.Model) -> None:
    state, item = start(section), batch()
    pixels = (item.pixels > 99) * 255.0 if section.likelihood.kind == "bernoulli" else item.pixels
    noise = item.uniform if state.model.likelihood.uses_noise else None
    names = dict(state.model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in names.items()}
    for _ in range(3):
        step(state, Batch(pixels, noise, item.normal), step_config())
    assert state.failed.item() == 0
    assert [name for name, old in before.items() if torch.equal(old, names[name].detach())] == []


def test_a_parameter_that_the_loss_does_not_depend_on_is_an_error():
    vae = build_model(model(), SHAPE, "elbo", 1)
    vae.forgotten = nn.Parameter(torch.zeros(3))
    with pytest.raises(RuntimeError, match="not have been used"):
        step(State.start(vae), batch(), step_config())


def test_a_state_restored_from_its_tensors_goes_on_to_the_same_bits():
    one, two = start(), start(seed=2)
    step(one, batch(seed=1), step_config())
    two.restore({name: tensor.clone() for name, tensor in one.tensors().items()})
    for state in (one, two):
        step(state, batch(seed=2), step_config())
    assert all(torch.equal(tensor, two.tensors()[name]) for name, tensor in one.tensors().items())


def test_on_cuda_every_tensor_of_a_step_stays_there(monkeypatch: pytest.MonkeyPatch):
    """Shapes and devices alone, without a GPU; autograd's engine would need the driver, so its result is made up."""
    monkeypatch.setattr(steps, "_losses", lambda device: losses)
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, inputs: [torch.empty_like(p) for p in inputs])
    monkeypatch.setattr(steps, "precision", lambda device: torch.autocast("cpu", torch.bfloat16))
    with FakeTensorMode(), torch.device("cuda"):
        state = State.start(build_model(model(), SHAPE, "elbo"))
        noise = torch.zeros(16, *SHAPE)
        result = step(
            state, Batch(noise, noise, torch.zeros(16, 3)), step_config(beta=torch.ones(()), gradient_clip=1.0)
        )
        tensors = [*state.tensors().values(), *result, state.failed]
        assert {tensor.device.type for tensor in tensors} == {"cuda"}
        assert {tensor.dtype for tensor in result} == {torch.float32}


def test_matrix_products_are_bfloat16_and_the_terms_float32_under_autocast(monkeypatch: pytest.MonkeyPatch):
    vae, item = build_model(model(), SHAPE, "elbo", 1), batch()
    exact, _ = losses(vae, item, torch.ones(()), 0.0)
    seen: list[torch.dtype] = []
    layers = [layer for layer in vae.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    monkeypatch.setattr(steps, "precision", lambda device: torch.autocast("cpu", torch.bfloat16))
    loss, sums = losses(vae, item, torch.ones(()), 0.0)
    assert set(seen) == {torch.bfloat16}
    assert loss.dtype == sums.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)


def test_the_losses_compile_into_one_graph():
    vae, item = build_model(model(), SHAPE, "elbo", 1), batch()
    compiled = torch.compile(losses, backend="aot_eager", fullgraph=True, dynamic=False)
    for beta in (torch.tensor(1.0), torch.tensor(2.0)):
        (ours, sums), (theirs, other) = compiled(vae, item, beta, 0.1), losses(vae, item, beta, 0.1)
        torch.testing.assert_close((ours, sums), (theirs, other))
        gradients = [torch.autograd.grad(loss, list(vae.parameters())) for loss in (ours, theirs)]
        torch.testing.assert_close(*gradients)


def test_on_the_cpu_precision_is_that_of_float32():
    with steps.precision(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
