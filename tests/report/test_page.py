"""The page: real outputs of the stages, nothing from elsewhere, no text that becomes HTML, content only."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from evaluated_workspace import PARAMS, set_up
from pipeline.report import page, summary
from pipeline.stages import evaluate, sample
from pipeline.stages.theory import theory_files
from vaeline.config import parse_params
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace
from vaeline.plotting.charts import Picture
from vaeline.theory import equations
from vaeline.theory.claim import Claim
from vaeline.training.history import Epoch, to_csv

EVIL = """<script>alert(1)</script>"'><img src=https://evil.example/x onerror=alert(2)> {{ 7*7 }} &amp;"""
VOID = {"meta", "img", "br", "link", "input", "hr"}
REPORTS = Path("reports")


class Reading(HTMLParser):
    """The elements, their attributes, and the text of a page; refuses elements left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text, self._open = "", []  # type: ignore[var-annotated]
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def having(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def png(width: int = 8, height: int = 8, noise: bool = False) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256 if noise else 1, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), format="png")
    return buffer.getvalue()


def write(name: str, content: object) -> None:
    (REPORTS / name).write_text(content if isinstance(content, str) else json.dumps(content))


def write_claims(claim: Claim) -> None:
    for name, content in theory_files([claim]).items():
        (REPORTS / "theory" / name).write_bytes(content)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages leave; evaluate and sample are the real ones."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("VAELINE_UPLOADER", "off")
        (folder / ".dvc").mkdir()
        set_up(PARAMS)
        evaluate.main()
        sample.main()
        first = (-50, -45, 5, -52, -46, 6, 0.3)
        write("history.csv", to_csv([Epoch(i, i, *(value / i for value in first), 1.0, 1e-3) for i in range(1, 13)]))
        decision = {"digest": "d" * 64, "name": "shapes", "decision": "rejected", "reasons": ["not above", "too few"]}
        write("registration.json", decision | {"gate": {"gain": -0.25, "gain_se": 0.125}})
        (REPORTS / "theory").mkdir()
        table, picture = (("x", "y"), ("1", "2")), Picture("dots", "Dots", png())
        write_claims(Claim("gap", "The gap", "a = b", ("Words < words.",), {}, table, (picture,)))
    return folder


@pytest.fixture
def run(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the working folder."""
    monkeypatch.chdir(shutil.copytree(outputs, tmp_path / "copy"))
    return tmp_path / "copy"


def render() -> tuple[str, Reading]:
    text = page.render(Workspace(), parse_params(PARAMS))
    return text, Reading(text)


def test_the_page_has_every_section_and_the_numbers_of_the_outputs(run: Path):
    """Mistake 19."""
    text, read = render()
    ids = [attributes["id"] for _, attributes in read.tags if attributes.get("id")]
    assert sorted(ids) == ["latents", "numbers", "origin", "pictures", "theory", "tip", "training"]
    assert {*(f"#{name}" for name in ids), "explorer.html"} - {"#tip"} == {link["href"] for link in read.having("a")}
    test = json.loads((REPORTS / "metrics.json").read_text())["test"]
    words = ("rejected", "not above", "too few", "gain −0.25 ± 0.12", "nats per image", "train.beta", "shapes@champion")
    words += (f"± {test['elbo_se']:.2g}".rstrip("0"), f"= {test['reconstruction']:.4f}".replace("-", "−"))
    for word in (*words, "The gap", "a=b", "∂/∂ε", "loss = −ELBO", "Words < words.", "dB, mean of each image's"):
        assert word in read.text, word
    shown = {image["alt"]: image["src"] for image in read.having("img")}
    alts = list(shown)
    assert [alt.partition(",")[0] for alt in alts[:4]] == ["ELBO", "Reconstruction term", "KL", "σ of the likelihood"]
    assert "train from -50 to -4.167; validation from -52 to -4.333" in alts[0]
    of_latents = "KL of each of 6 latent dimensions to the prior's marginal on the test split by falling size"
    assert alts[4].startswith(of_latents)
    assert alts[5:] == [*page.CAPTIONS.values(), "Dots"]
    assert len(text) < 2_000_000
    assert set(page.CAPTIONS) == {path.stem for path in (REPORTS / "samples").iterdir()}
    for name, caption in page.CAPTIONS.items():
        content = base64.b64decode(shown[caption].partition(",")[2])
        assert content == (REPORTS / "samples" / f"{name}.png").read_bytes(), name
    assert (page._short(-68043.2), page._short(-4.16667)) == ("-68043", "-4.167")
    write("explorer.html", "Not available here")
    assert "Explore the latent space by vaeline explore: samples" in render()[1].text


def test_the_page_is_content_the_same_bytes_everywhere_and_asks_for_nothing(
    run: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch
):
    first, read = render()
    monkeypatch.chdir(outputs)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    assert render()[0] == first
    words = re.sub(r"base64,[A-Za-z0-9+/=]*", "", first)
    assert str(run.parent) not in words
    assert not re.search(r"20\d\d-\d\d-\d\d|version \d|run_id|mlflow\.example", words)
    assert not re.search(r"https?:|//|@import|url\((?!#)", words)
    assert not {tag for tag, _ in read.tags} & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in {"src", "href", "data", "action", "poster", "srcset"} & attributes.keys():
            assert attributes[name].startswith(("data:image/png;base64,", "#", "explorer.html")), (tag, name)
    policies = [meta["content"] for meta in read.having("meta") if meta.get("http-equiv")]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    # to be read also by those who do not see it, and on small or dark screens
    assert read.having("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in read.having("img"))
    assert [tag for tag, _ in read.tags if tag in ("h1", "h2", "h3")][:2] == ["h1", "h2"]
    assert len(read.having("h1")) == 1
    assert {"viewport", "color-scheme"} <= {meta.get("name") for meta in read.having("meta")}
    assert "prefers-color-scheme: dark" in first
    assert "@media print" in first


def test_every_equation_becomes_mathml_with_nothing_left_of_its_latex():
    claims = {name: text for name, text in vars(equations).items() if name.isupper()}
    assert len(claims) == 9
    for name, text in claims.items():
        for mathml, note in page.formulas(text):
            read = "".join(ElementTree.fromstring(mathml).itertext())
            assert not re.search(r"[\\{}%]|frac|mathrm", read + note), name
    assert page.formulas("a < b % c")[0][1] == "c"


def test_numbers_have_a_minus_names_keep_their_hyphens_and_no_param_names_a_folder(run: Path):
    text = "fashion-mnist, one-cycle, -3 - -2.5e-05, ln p(x)-1, `a --b` < 1"
    assert page.minus(text) == "fashion-mnist, one-cycle, −3 - −2.5e-05, ln p(x)-1, `a --b` < 1"
    assert page.words(text).endswith("<code>a --b</code> &lt; 1")
    source = {"kind": "folder", "path": "/home/ann/My images"}
    read = Reading(page.render(Workspace(), parse_params(PARAMS | {"data": PARAMS["data"] | {"source": source}})))
    assert ".../My images" in read.text
    assert "ann" not in read.text.partition("Params")[2]


def test_hostile_words_stay_words(run: Path):
    decision = {"digest": EVIL, "name": EVIL, "decision": EVIL, "reasons": [EVIL], "gate": {EVIL: 1.0}}
    write("registration.json", decision)
    metrics = json.loads((REPORTS / "metrics.json").read_text())
    write("metrics.json", metrics | {"protocol": EVIL, "objective": EVIL})
    write_claims(Claim("k", EVIL, EVIL, (EVIL,), {}, ((EVIL,), (EVIL,)), (Picture("dots", EVIL, png()),)))
    _, read = render()
    assert read.text.count("<script>alert(1)</script>") >= 12
    assert "{{ 7*7 }}" in read.text
    assert not read.having("script")
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]


def test_an_autoencoder_has_no_bound_and_a_large_picture_is_made_smaller(run: Path):
    test = {"reconstruction": -3.0, "mse": 0.1, "psnr": 10.0}
    write("metrics.json", {"objective": "autoencoder", "protocol": "p", "test": test})
    write("history.csv", to_csv([Epoch(i, i, None, -4.0, None, None, -5.0 / i, None, 0.2, 1.0, 1e-3) for i in (1, 2)]))
    write("kl_per_dimension.csv", "dimension,kl\n")
    (REPORTS / "samples" / "prior_samples.png").write_bytes(png(1500, 400, noise=True))
    text, read = render()
    assert "ELBO" not in read.text.partition("The theory, on this model")[0]
    images = [image["src"] for image in read.having("img")]
    assert len(images) == 1 + len(page.CAPTIONS) + 1, "the reconstruction's curve, the sheets, the claim's"
    assert len(text) < 2_000_000
    (large,) = [source for source in images if "webp" in source[:20]]
    with Image.open(io.BytesIO(base64.b64decode(large.partition(",")[2]))) as picture:
        assert max(picture.size) == 1400


def test_saturated_estimates_are_bounds_without_an_error_and_units_are_printed():
    latent = {"mutual_information": 5.7, "mutual_information_se": 0.01, "total_correlation": 3.25, "marginal_kl": 4.0}
    near, far = (summary.latent_numbers(latent | {"saturation": share}) for share in (0.9, 0.01))
    expected = {"mutual_information": "≥ 5.7", "total_correlation": "≤ 3.25", "marginal_kl": "≤ 4"}
    assert near == expected | {"saturation": "0.9"}
    assert far["mutual_information"] == "5.700 ± 0.010"
    lines = summary.test_lines({"protocol": "p", "test": {"elbo": -3.5, "psnr": 20.8, "psnr_se": 0.1}})
    assert lines[1:] == ["  elbo  -3.5", "  psnr  20.80 ± 0.10  dB, mean of each image's"]


SPOILT, NESTED = ["dimension,kl\n[1"], "[" * 100_000


@pytest.mark.parametrize(
    ("name", "words", "contents"),
    [
        ("metrics.json", "is not JSON; run the stage evaluate again", SPOILT),
        ("history.csv", "is not what the stage train writes", SPOILT),
        ("metrics.json", "is not what the stage evaluate writes; run it again", ["{}"]),
        ("metrics.json", "is nested deeper than 32 levels; run", [NESTED]),
        ("registration.json", "is not JSON; run the stage register again", SPOILT),
        ("registration.json", "is not what the stage register writes", ['{"name": "a"}']),
        ("theory/claims.json", "is not what its stage writes; run `dvc repro`", ["[1\n2", '[{"key": "a"}]', NESTED]),
        ("kl_per_dimension.csv", "is not what its stage writes; run `dvc repro`", SPOILT),
    ],
)
def test_outputs_that_are_no_outputs_are_one_clear_line(run: Path, name: str, words: str, contents: list[str]):
    for content in contents:
        write(name, content)
        with pytest.raises(UserError, match=rf"^reports/{re.escape(name)}: {words}[^\n]*$"):
            render()


def test_without_a_registration_the_page_says_so_and_without_another_output_there_is_one_clear_line(run: Path):
    (REPORTS / "registration.json").unlink()
    _, read = render()
    assert "shapes: not registered" in read.text
    for path in ("theory/dots.png", "theory/claims.json", "samples/mixtures.png", "kl_per_dimension.csv"):
        (REPORTS / path).unlink()
        with pytest.raises(UserError, match=rf"^reports/{re.escape(path)}: cannot be read: .*; run `dvc repro`$"):
            render()
        if path.startswith("theory"):
            write("theory/claims.json", "[]")
        elif path.startswith("samples"):
            (REPORTS / path).write_bytes(png())


@pytest.mark.slow
def test_a_browser_shows_it_without_asking_anyone(run: Path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    Path("page.html").write_text(render()[0])
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += [f"--user-data-dir={run / 'profile'}", "--window-size=800,1200", f"--screenshot={run / 'shot.png'}"]
    address = (run / "page.html").as_uri()
    subprocess.run([browser, *options, address], check=True, timeout=240, capture_output=True)
    with Image.open("shot.png") as picture:
        assert len(picture.convert("RGB").getcolors(1_000_000) or []) > 50
