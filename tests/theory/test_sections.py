"""All claims on every kind of model, twice the same bytes."""

import json

import pytest

from pipeline.stages.theory import SECTIONS, all_sections, numbers_file, theory_files
from small_theory_context import hurry, small_context


@pytest.mark.parametrize(
    ("likelihood", "objective", "more"),
    [
        ({"kind": "gaussian"}, "elbo", {}),
        ({"kind": "bernoulli"}, "elbo", {"prior": {"kind": "vamp", "components": 5}}),
        ({"kind": "gaussian", "sigma": 0.1}, "autoencoder", {}),
        ({"kind": "continuous-bernoulli"}, "elbo", {"prior": {"kind": "mixture", "components": 3}}),
        (
            {"kind": "discretised-logistic"},
            "elbo",
            {"network": {"kind": "residual", "channels": [4, 8], "latent_channels": 1, "blocks": 1}, "latent_dim": 16},
        ),
    ],
)
def test_every_claim_is_made_on_every_kind_of_model(likelihood, objective, more, monkeypatch):
    hurry(monkeypatch)
    claims = all_sections(small_context(likelihood, objective, **more))
    numbers = json.loads(numbers_file(claims))
    assert len(numbers) == len(SECTIONS) == 9
    assert numbers["squared_error"]["applies"] == (likelihood["kind"] == "gaussian")
    assert numbers["gap"]["applies"] == (objective == "elbo")
    for claim in claims:
        assert claim.equation
        assert bool(claim.pictures) == bool(claim.table or claim.numbers) == numbers[claim.key]["applies"]
        assert ("Does not apply" in claim.words[0]) != numbers[claim.key]["applies"]
        assert all(picture.png.startswith(b"\x89PNG") and picture.caption for picture in claim.pictures)
        assert "nan" not in " ".join(claim.words).lower().replace("nan, and the training is over", "")


def test_the_files_are_the_same_bytes_every_time(monkeypatch):
    hurry(monkeypatch)
    first, second = (all_sections(small_context()) for _ in range(2))
    assert numbers_file(first) == numbers_file(second)
    assert theory_files(first) == theory_files(second)
