import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from small_training import batch, model, options, step_config
from vaeline import config
from vaeline.core.objectives import elbo_terms, surrogate
from vaeline.training import step as steps
from vaeline.training.build import build_model
from vaeline.training.step import Batch, State, Stepper, kl_weight, learning_rate, losses, step

SHAPE = (1, 8, 8)
LIKELIHOODS = [
    config.Gaussian(kind="gaussian"),
    config.Gaussian(kind="gaussian", sigma=0.2),
    config.ContinuousBernoulli(kind="continuous-bernoulli"),
    config.DiscretisedLogistic(kind="discretised-logistic"),
    config.Bernoulli(kind="bernoulli"),
]
NETWORKS = [config.Conv(kind="conv", channels=[4, 8], hidden=16), config.Gated(kind="gated", hidden=[16])]
PRIORS = [config.Vamp(kind="vamp", components=5), config.Mixture(kind="mixture", components=5)]
MODELS = [
    *(model(likelihood) for likelihood in LIKELIHOODS),
    *(model(network=network) for network in NETWORKS),
    *(model(prior=prior) for prior in PRIORS),
]


def start(section: config.Model | None = None) -> State:
    return State(build_model(section or model(), SHAPE, "elbo", 1))


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("clip", "betas"), [(1e9, (0.9, 0.999)), (1.0, (0.8, 0.99))])
def test_steps_are_those_of_adam_with_clipped_gradients(clip: float, betas: tuple[float, float]):
    """To the last bit: PyTorch's private functions are held against its public ones."""
    state, other = start(), start().model
    parameters = list(other.parameters())
    optimiser = torch.optim.Adam(parameters, lr=0.01, betas=betas, fused=True)
    for seed in range(5):
        item = batch(seed=seed)
        _, norm = step(state, item, *step_config(beta=0.5, gradient_clip=clip, adam_betas=betas))
        terms = elbo_terms(other, other.likelihood.observe(item.pixels, item.uniform), item.normal)
        gradients = torch.autograd.grad(-surrogate(terms, torch.tensor(0.5), 0.0).mean(), parameters)
        assert norm == nn.utils.get_total_norm(gradients) > 1.0
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient / (norm / clip).clamp(min=1.0)
        optimiser.step()
    assert same(state.parameters, parameters)


def test_the_loss_is_the_negative_mean_of_the_surrogate_and_the_totals_are_not_weighted():
    """Mistakes 2, 4, 8 and 12: the KL's weight is in the loss alone; totals are sums over images, with their signs."""
    state, item = start(), batch()
    with torch.no_grad():
        terms = elbo_terms(state.model, state.model.likelihood.observe(item.pixels, item.uniform), item.normal)
    loss, _ = step(state, item, *step_config(beta=3.0, free_bits=0.5))
    assert loss.item() == pytest.approx(-surrogate(terms, 3.0, 0.5).mean().item(), rel=1e-6)
    expected = [terms.reconstruction.sum().item(), terms.kl.sum().item(), 0, 16]
    assert state.totals.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("poison", ["pixels", "normal", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_moves_nothing_then_or_later(poison: str):
    state, good, bad = start(), batch(), batch()
    step(state, good, *step_config())
    before = {name: tensor.clone() for name, tensor in state.tensors().items() if name != "totals"}
    if poison == "gradient":
        state.model.decoder.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * math.inf,))
    else:
        getattr(bad, poison)[0] = math.nan
    loss, _ = step(state, bad, *step_config())
    assert loss.isfinite() == (poison == "gradient")
    step(state, good, *step_config())
    assert state.failed.item() == state.count.item() == 1
    after = state.tensors()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("section", MODELS, ids=lambda m: f"{m.likelihood.kind} {m.network.kind} {m.prior.kind}")
def test_mistake_13_every_parameter_is_trained(section: config.Model):
    state, item = start(section), batch()
    pixels = (item.pixels > 99) * 255.0 if section.likelihood.kind == "bernoulli" else item.pixels
    noise = item.uniform if state.model.likelihood.uses_noise else None
    names = dict(state.model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in names.items()}
    for _ in range(3):
        step(state, Batch(pixels, noise, item.normal), *step_config())
    assert state.failed.item() == 0
    assert [name for name, old in before.items() if torch.equal(old, names[name].detach())] == []


def test_a_parameter_that_the_loss_does_not_depend_on_is_an_error():
    vae = build_model(model(), SHAPE, "elbo", 1)
    vae.forgotten = nn.Parameter(torch.zeros(3))
    with pytest.raises(RuntimeError, match="not have been used"):
        step(State(vae), batch(), *step_config())


def test_on_cuda_every_tensor_of_a_step_stays_there_and_none_is_looked_at(monkeypatch: pytest.MonkeyPatch):
    """A fake tensor has no value. What would need the driver, autograd's engine and Adam, is left out."""
    monkeypatch.setattr(torch, "_fused_adam_", lambda *tensors, lr, **options: rates.append(lr))
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, inputs: [torch.empty_like(p) for p in inputs])
    monkeypatch.setattr(steps, "matrix_products", lambda device, _: torch.autocast("cpu", torch.bfloat16))
    (options, _, _), rates = step_config(gradient_clip=1.0), []
    for section in MODELS:
        with FakeTensorMode(), torch.device("cuda"):
            state, noise = State(build_model(section, SHAPE, "elbo")), torch.zeros(16, *SHAPE)
            rate, beta = torch.zeros(()), torch.zeros(())
            result = step(state, Batch(noise, noise, torch.zeros(16, 3)), options, rate, beta)
            tensors = [*state.tensors().values(), *result, state.failed, rates[-1]]
            vae = state.model
            tensors.append(vae.likelihood.mean(vae.decode(vae.prior.sample(torch.zeros(5, 3)))))
            assert {tensor.device.type for tensor in tensors} == {"cuda"}
            assert {tensor.dtype for tensor in result} == {torch.float32}


@pytest.mark.parametrize("fails", [False, True])
def test_a_captured_step_moves_the_state_as_the_plain_one_also_where_capture_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: bool
):
    """A graph that runs while it is captured, and again over the same buffers at each replay."""
    stepper, other, plain = Stepper(start(), step_config()[0]), start(), []
    stepper.on_cuda = stepper.captures = True
    monkeypatch.setattr(steps, "step", lambda *arguments: plain.append(arguments) or step(*arguments))

    @contextmanager
    def graph(captured: SimpleNamespace, capture_error_mode: str) -> Iterator[None]:
        yield
        captured.replay = lambda arguments=plain[-1]: step(*arguments)
        if fails:
            raise RuntimeError("operation not permitted\nwhen capturing")

    waiting = SimpleNamespace(wait_stream=lambda stream: None)
    fakes = {"CUDAGraph": SimpleNamespace, "Stream": lambda: waiting, "current_stream": lambda: waiting}
    for name, fake in (fakes | {"stream": nullcontext, "graph": graph}).items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for seed, count, beta in ((0, 16, 0.5), (1, 16, 1.0), (2, 5, 1.0), (3, 16, 2.0)):
        options, _, weight = step_config(beta=beta)
        stepper(batch(count, seed=seed), 0.01 * beta, weight)
        step(other, batch(count, seed=seed), options, torch.tensor(0.01 * beta), weight)
    assert same([*stepper.state.tensors().values()], [*other.tensors().values()])
    assert sorted(stepper.graphs) == ([] if fails else [5, 16])
    logged = ["training without CUDA graphs: operation not permitted"] if fails else []
    assert [record.getMessage() for record in caplog.records] == logged


def test_matrix_products_are_bfloat16_and_the_terms_float32():
    vae, item, seen = build_model(model(), SHAPE, "elbo", 1), batch(), set()
    exact, _ = losses(vae, item, torch.ones(()), 0.0)
    for layer in vae.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    loss, sums = losses(vae, item, torch.ones(()), 0.0, precision="bfloat16")
    assert seen == {torch.bfloat16}
    assert loss.dtype == sums.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
def test_the_learning_rate_never_rises_twice_and_follows_its_schedule(schedule: str, steps: int):
    section = options(schedule=schedule, learning_rate=0.002)
    rates = [learning_rate(section, step, steps) for step in range(steps)]
    assert all(0 < rate <= 0.002 for rate in rates)
    if schedule == "constant":
        assert set(rates) == {0.002}
    elif steps == 1000:
        top = rates.index(max(rates))
        assert max(rates) == pytest.approx(0.002, rel=1e-2)
        assert rates == [*sorted(rates[:top]), *sorted(rates[top:], reverse=True)]
        assert rates[-1] < 0.01 * 0.002
        assert (200 < top < 300 and rates[0] < 0.1 * 0.002) if schedule == "one-cycle" else top == 0


def test_the_average_is_exponential_with_a_decay_that_grows_and_trades_places_with_the_weights():
    state = State(build_model(model(), SHAPE, "elbo", 1), averages=True)
    expected = [parameter.detach().clone() for parameter in state.parameters]
    for number in range(1, 21):
        step(state, batch(seed=number), *step_config(ema=0.7))
        decay = min(0.7, (1 + number) / (10 + number))
        expected = [
            decay * old + (1 - decay) * new.detach() for old, new in zip(expected, state.parameters, strict=True)
        ]
    for average, wanted in zip(state.average, expected, strict=True):
        torch.testing.assert_close(average, wanted, rtol=1e-5, atol=1e-7)
    weights, average = ([t.detach().clone() for t in tensors] for tensors in (state.parameters, state.average))
    state.swap()
    assert same(state.parameters, average)
    assert same(state.average, weights)


def test_the_kl_weight_grows_linearly_to_beta_and_stays():
    assert [kl_weight(step, 4, 2.0) for step in range(7)] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert kl_weight(0, 0, 3.0) == 3.0


@pytest.mark.parametrize("changes", [{}, {"objective": "iwae", "samples": 3}], ids=["elbo", "iwae"])
def test_the_gradient_of_a_batch_in_parts_is_that_of_the_whole(changes: dict[str, Any]):
    state, item, shape = start(), batch(), (3, 16, 3) if changes else (16, 3)
    item = replace(item, normal=torch.randn(shape, generator=torch.Generator().manual_seed(5)))
    whole, parts = (
        steps.gradient_of_loss(state, item, options(accumulate=count, **changes), torch.tensor(1.0)) for count in (1, 5)
    )
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(parts[2], whole[2], rtol=1e-3, atol=1e-3)
    assert [len(part.pixels) for part in item.parts(5)] == [4, 3, 3, 3, 3]
    assert len(item.parts(40)) == 16
