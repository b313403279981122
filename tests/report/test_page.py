"""The run report: real outputs of the stages on one page, nothing from elsewhere, and no text that becomes HTML."""

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
from vaeline.config import parse_params
from vaeline.errors import UserError
from vaeline.plotting.charts import Picture
from vaeline.registry.lineage import Changes, Lineage
from vaeline.theory.page import Claim, Table, document
from vaeline.training.history import Epoch, to_csv
from workspaces import ROOT

EVIL = """<script>alert(1)</script>"'><img src=https://evil.example/x onerror=alert(2)> {{ 7*7 }} &amp;"""
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reading(HTMLParser):
    """The elements, their attributes, the ids, and the text of a page; refuses elements left open."""

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

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def having(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def epochs(count: int) -> list[Epoch]:
    return [
        Epoch(i, 10 * i, -50 / i, -45 / i, 5 / i, -52 / i, -46 / i, 6 / i, 0.3 / i, 1.0, 1e-3)
        for i in range(1, count + 1)
    ]


def png(width: int = 8, height: int = 8, noise: bool = False) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256 if noise else 1, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


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
    reports = folder / "reports"
    (reports / "history.csv").write_text(to_csv(epochs(12)))
    decision = {"digest": "d" * 64, "name": "shapes", "decision": "rejected", "reasons": ["not above", "too few"]}
    (reports / "registration.json").write_text(json.dumps(decision | {"gate": {"gain": -0.25, "gain_se": 0.125}}))
    claim = Claim("gap", "The gap", "a = b", ("Words < words.",), {}, Table(("x", "y"), (("1", "2"),)))
    claims = [claim, Claim("codes", "Codes", "c", (), {}, None, (Picture("p", "Dots", png()),))]
    (reports / "theory").mkdir()
    (reports / "theory" / "theory.html").write_text(document("Theory", "On it.", claims))
    return folder


@pytest.fixture
def run(outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it as the working folder."""
    copy = tmp_path / "copy"
    shutil.copytree(outputs, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("VAELINE_UPLOADER", "off")
    return copy


def lineage(**tags: str) -> Lineage:
    told = {"vaeline.git_commit": "c" * 40, "vaeline.git_dirty": "true", "vaeline.machine.threads": "3"}
    return Lineage(
        "shapes",
        "4",
        ("challenger",),
        told | {f"vaeline.{key}": value for key, value in tags.items()},
        run_id="r1",
        experiment_id="7",
        params={"train.beta": "1.0"},
        changes=Changes(b"diff --git a/x.py b/x.py\n--- a/x.py\n+++ b/x.py\n@@ -1 +1,2 @@\n-a\n+b\n+c\n"),
    )


def written(of: Lineage | None) -> tuple[str, Reading]:
    text = page.write(parse_params(PARAMS), of).read_text()
    return text, Reading(text)


def test_the_page_has_every_section_and_the_numbers_of_the_outputs(run: Path):
    text, read = written(lineage())
    ids = [attributes["id"] for _, attributes in read.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert {"numbers", "training", "latents", "pictures", "theory", "lineage"} <= set(ids)
    assert {f"#{name}" for name in ids} >= {link["href"] for link in read.having("a")}
    test = json.loads((run / "reports" / "metrics.json").read_text())["test"]
    assert f"± {test['elbo_se']:.2g}".rstrip("0") in read.text
    assert "ELBO = reconstruction − KL" in read.text
    for word in (
        "rejected",
        "not above",
        "too few",
        "gain −0.25 ± 0.12",
        "nats per image",
        "x.py +2 -1",
        "c" * 40,
        "train.beta",
    ):
        assert word in read.text
    assert len(read.having("svg")) == 5, "ELBO, reconstruction, KL, sigma, KL of the dimensions"
    assert len(read.having("img")) == 6, "five sheets and the claim's"
    assert "The gap" in read.text
    assert "Words < words." in read.text
    assert len(text) < 2_000_000


def test_nothing_on_the_page_comes_from_elsewhere_and_nothing_runs(run: Path):
    text, read = written(lineage())
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
    text, read = written(lineage())
    assert read.having("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in read.having("img"))
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in read.having("svg"))
    headings = [tag for tag, _ in read.tags if tag in ("h1", "h2", "h3")]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    assert {"viewport", "color-scheme"} <= {meta.get("name") for meta in read.having("meta")}
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    for scheme in re.findall(r":root \{([^}]*)\}", text):
        colours = dict(re.findall(r"--(\w+): (#\w+)", scheme))
        for ink in ("text", "soft", "link", "one", "two"):
            if ink in colours:
                least = 3.0 if ink in ("one", "two") else 4.5
                assert contrast(colours[ink], colours["page"]) >= least, (ink, colours[ink])


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_hostile_words_stay_words(run: Path):
    reports = run / "reports"
    decision = {"digest": EVIL, "name": EVIL, "decision": EVIL, "reasons": [EVIL], "gate": {EVIL: 1.0}}
    (reports / "registration.json").write_text(json.dumps(decision))
    metrics = json.loads((reports / "metrics.json").read_text())
    (reports / "metrics.json").write_text(json.dumps(metrics | {"protocol": EVIL, "objective": EVIL}))
    shutil.copy(reports / "samples" / "mixtures.png", reports / "samples" / "<b onclick=alert(3)>.png")
    theory = f"<h2>1. t</h2><p>{EVIL}</p><img alt='x' src='https://evil.example/y.png'><svg onload=alert(4)></svg>"
    (reports / "theory" / "theory.html").write_text(theory)
    named = lineage(**dict.fromkeys(("git_commit", "dvc_experiment", "flow_run_id", "data_digest", "likelihood"), EVIL))
    _, read = written(Lineage(**(vars(named) | {"name": EVIL, "params": {EVIL: EVIL}, "run_name": EVIL})))
    assert read.text.count("<script>alert(1)</script>") >= 8
    assert "{{ 7*7 }}" in read.text
    assert not read.having("script")
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    assert all((image["src"] or "").startswith("data:image/png") for image in read.having("img"))
    assert page.facts()["version"] == "4"


def test_without_the_later_stages_and_without_a_store_it_shows_what_there_is(run: Path):
    for name in ("metrics.json", "kl_per_dimension.csv", "history.csv", "registration.json", "theory", "samples"):
        path = run / "reports" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _, read = written(None)
    assert "the stage evaluate has not run" in read.text
    assert "not registered" in read.text
    assert "The tracking store could not be asked" in read.text
    assert "model.latent_dim" in read.text, "the params are those of params.yaml"
    assert not read.having("img")


def test_an_autoencoder_has_no_bound_and_no_sum(run: Path):
    report = {"objective": "autoencoder", "protocol": "p", "test": {"reconstruction": -3.0, "mse": 0.1, "psnr": 10.0}}
    (run / "reports" / "metrics.json").write_text(json.dumps(report))
    rows = [Epoch(i, i, None, -4.0, None, None, -5.0 / i, None, 0.2, 1.0, 1e-3) for i in (1, 2)]
    (run / "reports" / "history.csv").write_text(to_csv(rows))
    (run / "reports" / "kl_per_dimension.csv").write_text("dimension,kl\n")
    _, read = written(None)
    assert "ELBO" not in read.text.replace("The ELBO", "")
    assert len(read.having("svg")) == 1, "of the reconstruction alone"
    assert "σ = 0.2" in read.text


def test_many_large_pictures_are_made_smaller(run: Path):
    for name in ("prior_samples", "mixtures"):
        (run / "reports" / "samples" / f"{name}.png").write_bytes(png(1500, 400, noise=True))
    text, read = written(None)
    assert len(text) < 2_000_000
    sources = [image["src"] or "" for image in read.having("img")]
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    with Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2]))) as first:
        assert max(first.size) == 1400


def test_the_page_is_stale_once_what_it_shows_has_changed(run: Path):
    assert page.is_stale(), "there is none yet"
    page.write(parse_params(PARAMS), lineage())
    assert not page.is_stale()
    assert page.facts()["run_id"] == "r1"
    (run / "reports" / "history.csv").write_text(to_csv(epochs(13)))
    assert page.is_stale()
    (run / "reports" / "registration.json").unlink()
    assert not page.is_stale(), "the register stage will write it"


def test_the_page_is_told_with_a_link_where_mlflow_is_a_server(run: Path, monkeypatch: pytest.MonkeyPatch):
    page.write(parse_params(PARAMS), lineage())
    assert page.where() == "`reports/index.html`; in MLflow: run `r1`, artifact `reports/index.html`"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@mlflow.example:5000/")
    assert page.where().endswith(
        "([open](http://mlflow.example:5000/#/experiments/7/runs/r1/artifacts/reports/index.html))"
    )


def test_outputs_that_are_no_outputs_are_one_clear_line(run: Path):
    (run / "reports" / "metrics.json").write_text("[1")
    with pytest.raises(UserError, match=r"^reports/metrics\.json: is not what its stage writes"):
        page.write(parse_params(PARAMS), None)


@pytest.mark.slow
def test_a_browser_shows_it_without_asking_anyone(run: Path):
    browser = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    page.write(parse_params(PARAMS), lineage())
    shot = run / "shot.png"
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={run / 'profile'}", "--window-size=800,1200", f"--screenshot={shot}"]
    subprocess.run([*command, (run / "reports" / "index.html").as_uri()], check=True, timeout=240, capture_output=True)
    with Image.open(shot) as picture:
        colours = picture.convert("RGB").getcolors(1_000_000)
    assert colours is not None
    assert len(colours) > 50


def test_the_template_travels_with_the_package():
    assert 'pipeline = ["templates/*.html"]' in (ROOT / "pyproject.toml").read_text()
