"""The page as Markdown and as HTML, and the report of all claims."""

import hashlib
import html
import json
import re

import pytest

from small_theory_context import hurry, subject
from vaeline.plotting import charts
from vaeline.plotting.charts import Picture
from vaeline.theory import page, report
from vaeline.theory.context import finite
from vaeline.theory.page import Claim, Table

CLAIM = Claim(
    "key",
    "a < b & p(x|z)",
    "KL(q ‖ p) >= 0 | * _",
    ("2 * 3 * 4 and a_b_c, p(x|z)",),
    {"a": 1.0},
    Table(("p(x|z)", "n"), (("a|b", "1 < 2"),)),
    (Picture("chart", "what it *shows*", b"PNG"),),
)


def test_markdown_shows_plain_text_as_it_is():
    text = page.markdown("Title", "Introduction.", [CLAIM])
    assert "## 1. a &lt; b &amp; p(x|z)" in text
    assert "```text\nKL(q ‖ p) >= 0 | * _\n```" in text
    assert "2 \\* 3 \\* 4 and a\\_b\\_c" in text
    assert "| p(x\\|z) | n |\n| --- | --- |\n| a\\|b | 1 &lt; 2 |" in text
    assert "](chart.png)" in text


def test_markdown_renders_to_the_words_that_went_in():
    markdown = pytest.importorskip("markdown")
    made = markdown.markdown(page.markdown("Title", "Introduction.", [CLAIM]), extensions=["tables", "fenced_code"])
    words = html.unescape(re.sub(r"<[^>]+>", "", made))
    for expected in (CLAIM.title, CLAIM.equation, *CLAIM.words, "a|b", "1 < 2"):
        assert expected in words


def test_html_needs_no_other_file():
    text = page.document("Title", "Introduction.", [CLAIM])
    assert "a &lt; b &amp; p(x|z)" in text
    assert 'src="data:image/png;base64,UE5H"' in text
    assert re.findall(r'(?:src|href)="([^#d][^"]*)"', text) == []


def test_what_json_has_no_number_for_becomes_null():
    assert finite({"a": [float("nan"), 1.0], "b": {"c": float("inf")}}) == {"a": [None, 1.0], "b": {"c": None}}


def test_a_chart_is_the_same_bytes_whatever_the_users_settings(tmp_path):
    import matplotlib as mpl

    def draw() -> bytes:
        return charts.chart("line", "", lambda axes: axes.plot([1, 2], [3, 4], label="σ²")).png

    first = draw()
    with mpl.rc_context({"font.size": 22, "axes.facecolor": "red", "savefig.dpi": 30}):
        assert draw() == first
        assert mpl.rcParams["font.size"] == 22
    assert b"Software" not in first
    assert b"Date" not in first


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
def test_every_claim_is_shown_on_every_kind_of_model(likelihood, objective, more, monkeypatch):
    hurry(monkeypatch)
    made = report.show(subject(likelihood, objective, **more))
    files = made.files()
    numbers = json.loads(made.numbers())
    assert len(numbers) == len(report.CLAIMS) == 9
    assert numbers["squared_error"]["applies"] == (likelihood["kind"] == "gaussian")
    assert numbers["gap"]["applies"] == (objective == "elbo")
    assert all(claim.equation and bool(claim.pictures) == bool(claim.numbers) for claim in made.claims)
    text = files["theory.md"].decode()
    assert text.count("Does not apply") == sum(not claim["applies"] for claim in numbers.values())
    assert set(re.findall(r"\]\((.+?\.png)\)", text)) == {name for name in files if name.endswith(".png")}
    for name, content in files.items():
        assert not name.endswith(".png") or content.startswith(b"\x89PNG"), name
    assert "nan" not in text.lower().replace("nan, and the training is over", "")


def test_the_report_is_the_same_bytes_every_time(monkeypatch):
    hurry(monkeypatch)
    digests = []
    for _ in range(2):
        made = report.show(subject())
        content = made.numbers() + b"".join(made.files()[name] for name in sorted(made.files()))
        digests.append(hashlib.sha256(content).hexdigest())
    assert digests[0] == digests[1]
