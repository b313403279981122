"""All claims on every kind of model, twice the same bytes; their files, and what the page reads of them."""

import json
from pathlib import Path

import pytest

from model_sections import AUTOENCODER_KL
from pipeline.report.page import read_claims
from pipeline.stages.theory import SECTIONS, all_sections, numbers_file, theory_files
from small_theory_context import hurry, small_context
from vaeline.errors import UserError
from vaeline.plotting.charts import Picture
from vaeline.theory.claim import Claim

SPATIAL = {"network": AUTOENCODER_KL, "latent_dim": 16}


@pytest.mark.parametrize(
    ("likelihood", "objective", "more"),
    [
        ({"kind": "gaussian"}, "elbo", {}),
        ({"kind": "bernoulli"}, "elbo", {"prior": {"kind": "vamp", "components": 5}}),
        ({"kind": "gaussian", "sigma": 0.1}, "autoencoder", {}),
        ({"kind": "continuous-bernoulli"}, "elbo", {"prior": {"kind": "mixture", "components": 3}}),
        ({"kind": "discretised-logistic"}, "elbo", SPATIAL),
    ],
)
def test_every_claim_is_made_on_every_kind_of_model(likelihood, objective, more, monkeypatch):
    hurry(monkeypatch)
    claims = all_sections(small_context(likelihood, objective, **more))
    if likelihood == {"kind": "gaussian"}:
        again = all_sections(small_context())
        assert (numbers_file(claims), theory_files(claims)) == (numbers_file(again), theory_files(again))
    numbers = json.loads(numbers_file(claims))
    assert len(numbers) == len(SECTIONS) == 9
    assert numbers["squared_error"]["applies"]
    assert numbers["gap"]["applies"] == (objective == "elbo")
    for claim in claims:
        applies = numbers[claim.key]["applies"]
        assert claim.equation
        assert bool(claim.table or claim.numbers) == applies
        assert bool(claim.pictures) == (bool(more.get("network")) if claim.key == "latent_diffusion" else applies)
        assert ("Does not apply" in claim.words[0]) != applies
        assert all(picture.png.startswith(b"\x89PNG") and picture.caption for picture in claim.pictures)
        assert "nan" not in " ".join(claim.words).lower().replace("nan, and the training is over", "")


def test_claims_come_back_from_their_files_and_their_numbers_stand_apart(tmp_path: Path):
    table, numbers = (("x", "n"), ("1", "")), {"a": [float("nan"), 1.0]}
    pictures = (Picture("chart", "dots", b"PNG"), Picture("more", "lines", b"GNP"))
    claims = [Claim("one", "a < b", "KL >= 0", ("2 * 3",), numbers, table), Claim("two", "b", "e", pictures=pictures)]
    assert json.loads(numbers_file(claims)) == {"one": {"applies": True, "a": [None, 1.0]}, "two": {"applies": False}}
    for name, content in theory_files(claims).items():
        (tmp_path / name).write_bytes(content)
    assert {path.name for path in tmp_path.iterdir()} == {"claims.json", "chart.png", "more.png"}
    one, two = read_claims(tmp_path)
    table = {"header": ["x", "n"], "rows": [["1", ""]]}
    assert {name: one.pop(name) for name in ("table", "pictures")} == {"table": table, "pictures": []}
    assert one == {"key": "one", "title": "a < b", "equation": "KL >= 0", "words": ["2 * 3"]}
    assert (two["table"], two["pictures"]) == (None, [vars(picture) for picture in pictures])
    (tmp_path / "more.png").unlink()
    with pytest.raises(UserError, match=r"more\.png: cannot be read: .*; run `dvc repro`$"):
        read_claims(tmp_path)
