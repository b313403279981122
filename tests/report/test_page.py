"""The page: real outputs of the stages, nothing from elsewhere, no text that becomes HTML, content only."""

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluated_workspace import PARAMS, set_up
from pipeline.report import page
from pipeline.stages import evaluate, sample
from pipeline.stages.theory import theory_files
from vaeline.config import parse_params
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace
from vaeline.plotting.charts import Picture
from vaeline.theory.claim import Claim
from vaeline.training.history import Epoch, to_csv

EVIL = """<script>alert(1)</script>"'><img src=https://evil.example/x onerror=alert(2)> {{ 7*7 }} &amp;"""
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reading(HTMLParser):
    """The elements, their attributes, and the text of a page; refuses elements left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", []  # type: ignore[var-annotated]
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def having(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def png(width: int = 8, height: int = 8, noise: bool = False) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256 if noise else 1, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def write_claims(claims: list[Claim]) -> None:
    for name, content in theory_files(claims).items():
        Path("reports/theory", name).write_bytes(content)


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
        epochs = [
            Epoch(i, i, -50 / i, -45 / i, 5 / i, -52 / i, -46 / i, 6 / i, 0.3 / i, 1.0, 1e-3) for i in range(1, 13)
        ]
        Path("reports/history.csv").write_text(to_csv(epochs))
        decision = {"digest": "d" * 64, "name": "shapes", "decision": "rejected", "reasons": ["not above", "too few"]}
        Path("reports/registration.json").write_text(json.dumps(decision | {"gate": {"gain": -0.25, "gain_se": 0.125}}))
        Path("reports/theory").mkdir()
        table, picture = (("x", "y"), ("1", "2")), Picture("dots", "Dots", png())
        write_claims([Claim("gap", "The gap", "a = b", ("Words < words.",), {}, table, (picture,))])
    return folder


@pytest.fixture
def run(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it as the working folder."""
    shutil.copytree(outputs, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def render() -> tuple[str, Reading]:
    text = page.render(Workspace(), parse_params(PARAMS))
    return text, Reading(text)


def test_the_page_has_every_section_and_the_numbers_of_the_outputs(run: Path):
    """Mistake 19."""
    text, read = render()
    ids = [attributes["id"] for _, attributes in read.tags if attributes.get("id")]
    assert sorted(ids) == ["latents", "numbers", "origin", "pictures", "theory", "training"]
    assert {f"#{name}" for name in ids} == {link["href"] for link in read.having("a")}
    test = json.loads((run / "reports" / "metrics.json").read_text())["test"]
    assert f"± {test['elbo_se']:.2g}".rstrip("0") in read.text
    assert f"= {test['reconstruction']:.4f}".replace("-", "−") in read.text
    words = ("rejected", "not above", "too few", "gain −0.25 ± 0.12", "nats per image", "train.beta", "shapes@champion")
    for word in (*words, "The gap", "a = b", "Words < words."):
        assert word in read.text, word
    shown = [image["alt"] or "" for image in read.having("img")]
    assert [alt.partition(",")[0] for alt in shown[:4]] == ["ELBO", "Reconstruction term", "KL", "σ of the likelihood"]
    assert "train from -50 to -4.167; validation from -52 to -4.333" in shown[0]
    assert shown[4].startswith("KL of each of 6 latent dimensions on the test split by falling size")
    assert shown[5:] == [*page.CAPTIONS.values(), "Dots"]
    assert len(text) < 2_000_000
    assert set(page.CAPTIONS) == {path.stem for path in Path("reports/samples").iterdir()}
    source = {image["alt"]: image["src"] or "" for image in read.having("img")}
    for name, caption in page.CAPTIONS.items():
        content = base64.b64decode(source[caption].partition(",")[2])
        assert content == (run / "reports" / "samples" / f"{name}.png").read_bytes(), name


def test_the_page_is_content_the_same_bytes_wherever_and_whenever_it_is_made(
    run: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch
):
    first, _ = render()
    monkeypatch.chdir(outputs)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    assert render()[0] == first
    words = re.sub(r"base64,[A-Za-z0-9+/=]*", "", first)
    assert str(run.parent) not in words
    assert not re.search(r"20\d\d-\d\d-\d\d|version \d|run_id|mlflow\.example", words)


def test_nothing_on_the_page_comes_from_elsewhere_and_nothing_runs(run: Path):
    text, read = render()
    assert not re.search(r"https?:|//|@import|url\((?!#)", re.sub(r"base64,[A-Za-z0-9+/=]*", "", text))
    assert not {tag for tag, _ in read.tags} & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            if value := attributes.get(name):
                assert value.startswith(("data:image/png;base64,", "#")), (tag, value)
    policies = [meta["content"] for meta in read.having("meta") if meta.get("http-equiv")]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_it_can_be_read_by_those_who_do_not_see_it_and_on_small_or_dark_screens(run: Path):
    text, read = render()
    assert read.having("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in read.having("img"))
    headings = [tag for tag, _ in read.tags if tag in ("h1", "h2", "h3")]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    assert {"viewport", "color-scheme"} <= {meta.get("name") for meta in read.having("meta")}
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_hostile_words_stay_words(run: Path):
    reports = run / "reports"
    decision = {"digest": EVIL, "name": EVIL, "decision": EVIL, "reasons": [EVIL], "gate": {EVIL: 1.0}}
    (reports / "registration.json").write_text(json.dumps(decision))
    metrics = json.loads((reports / "metrics.json").read_text())
    (reports / "metrics.json").write_text(json.dumps(metrics | {"protocol": EVIL, "objective": EVIL}))
    write_claims([Claim("k", EVIL, EVIL, (EVIL,), {}, ((EVIL,), (EVIL,)), (Picture("dots", EVIL, png()),))])
    _, read = render()
    assert read.text.count("<script>alert(1)</script>") >= 12
    assert "{{ 7*7 }}" in read.text
    assert not read.having("script")
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]


def test_an_autoencoder_has_no_bound_and_no_sum(run: Path):
    report = {"objective": "autoencoder", "protocol": "p", "test": {"reconstruction": -3.0, "mse": 0.1, "psnr": 10.0}}
    (run / "reports" / "metrics.json").write_text(json.dumps(report))
    rows = [Epoch(i, i, None, -4.0, None, None, -5.0 / i, None, 0.2, 1.0, 1e-3) for i in (1, 2)]
    (run / "reports" / "history.csv").write_text(to_csv(rows))
    (run / "reports" / "kl_per_dimension.csv").write_text("dimension,kl\n")
    _, read = render()
    assert "ELBO" not in read.text
    assert len(read.having("img")) == 1 + len(page.CAPTIONS) + 1, "the reconstruction's curve, the sheets, the claim's"


def test_a_large_picture_is_made_smaller(run: Path):
    (run / "reports" / "samples" / "prior_samples.png").write_bytes(png(1500, 400, noise=True))
    text, read = render()
    assert len(text) < 2_000_000
    (large,) = [image["src"] or "" for image in read.having("img") if "webp" in (image["src"] or "")[:20]]
    with Image.open(io.BytesIO(base64.b64decode(large.partition(",")[2]))) as picture:
        assert max(picture.size) == 1400


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("metrics.json", "is not JSON; run the stage evaluate again"),
        ("history.csv", "is not what the stage train writes"),
        ("registration.json", "is not JSON; run the stage register again"),
        ("theory/claims.json", "is not what the stage theory writes"),
    ],
)
def test_outputs_that_are_no_outputs_are_one_clear_line(run: Path, name: str, words: str):
    (run / "reports" / name).write_text("[1\n2")
    with pytest.raises(UserError, match=rf"^reports/{re.escape(name)}: {words}[^\n]*$"):
        render()


@pytest.mark.slow
def test_a_browser_shows_it_without_asking_anyone(run: Path):
    browser = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    (run / "page.html").write_text(render()[0])
    shot = run / "shot.png"
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={run / 'profile'}", "--window-size=800,1200", f"--screenshot={shot}"]
    subprocess.run([*command, (run / "page.html").as_uri()], check=True, timeout=240, capture_output=True)
    with Image.open(shot) as picture:
        colours = picture.convert("RGB").getcolors(1_000_000)
    assert colours is not None
    assert len(colours) > 50
