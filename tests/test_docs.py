"""README and docs/: every command exists with its options, every link leads somewhere, references name all that is."""

import ast
import hashlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer
from dvc.cli import DvcParserError, parse_args
from PIL import Image

from pipeline.cli import app
from pipeline.sweep.experiments import EXPERIMENTS, experiment_overrides, parse_overrides, read_experiments
from pipeline.sweep.space import parse_space
from vaeline import config
from vaeline.io.yaml_config import Section, read_yaml
from vaeline.serving.inference import TrainedModel
from workspaces import TINY, runs

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "deploy/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PARAMS = read_yaml(ROOT / "params.yaml")
OTHERS = {".", "cp", "docker", "examples/serve.sh", "export", "git", "mlflow", "openssl", "pre-commit", "python"} | {
    "sudo"
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PLACES = {"VERSION": "1"}  # what stands for a number


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in FENCE.findall(page.read_text()) if found == language]


def commands(page: Path) -> list[list[str]]:
    """The commands of a page, each as words, variables set before one left out."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", "").splitlines()]
    lines += re.findall(r"`((?:vaeline|dvc|make) [^`]+)`", FENCE.sub("", page.read_text()))
    found = [shlex.split(part, comments=True) for line in lines for part in line.split(" && ")]
    return [words for words in found if words and "=" not in words[0]]


def refusal(words: list[str]) -> str | None:
    """Why a command cannot be one; None where it can."""
    program, *given = words
    try:
        if program == "vaeline" and given[0] not in ("COMMAND", "--install-completion"):
            return check_vaeline(given)
        if program == "dvc":
            parse_args(given)
        elif program == "make":
            targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
            return None if set(given) <= targets else "no such target"
        elif program == "prefect":
            names = {f"vaeline/{d['name']}" for d in read_yaml(ROOT / "pipeline/flows/prefect.yaml")["deployments"]}
            return None if given[2] in names | {"sweep/sweep"} else "no such deployment"
        elif program != "vaeline" and program not in OTHERS:
            return "not a known program"
        elif any(not (ROOT / word).exists() for word in words if word.startswith("examples/")):
            return "no such file"
    except (DvcParserError, Exception) as error:
        by_name_alone = len(words) == 2 and type(error).__name__ == "MissingParameter"
        return None if by_name_alone else f"{type(error).__name__}: {error}"
    return None


def check_vaeline(given: list[str]) -> str | None:
    name, *rest = [PLACES.get(word, word) for word in given]
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    values = command.make_context(name, rest).params
    parse_overrides(values.get("changes") or [], PARAMS)
    if values.get("assignments"):
        parse_space(values["assignments"], PARAMS)
    if name == "experiment" and values["name"]:
        experiment_overrides(values["name"], PARAMS, read_experiments(ROOT / EXPERIMENTS))
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_exists_with_its_options_and_keys(page: Path):
    assert {" ".join(words): why for words in commands(page) if (why := refusal(words))} == {}


@pytest.mark.parametrize(
    "line", ["vaeline run --quux", "vaeline run -S train.bata=1", "make nothing", "dvc exp run --q"]
)
def test_a_command_that_is_not_there_is_found(line: str):
    assert refusal(line.split())


def test_the_methods_that_pages_call_exist():
    for page in PAGES:
        for block in blocks(page, "python"):
            ast.parse(block)
            assert all(hasattr(TrainedModel, name) for name in re.findall(r"\bmodel\.(\w+)\(", block)), page


def test_links_lead_somewhere_and_no_package_host_is_named():
    for page in PAGES:
        text = page.read_text()
        assert not re.search(r"pypi\.|pythonhosted|download\.pytorch|anaconda\.org|conda\.io", text), page
        for link in LINK.findall(FENCE.sub("", text)):
            path, _, anchor = unquote(link).partition("#")
            if link.startswith("https://"):
                assert link.startswith("https://github.com/"), link
                continue
            target = page.parent / path if path else page
            assert target.exists(), f"{page}: {link}"
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
            assert not anchor or anchor in {re.sub(r"[^\w-]", "", h.lower().replace(" ", "-")) for h in headings}, link


def sections_of(annotation: Any) -> list[type[Section]]:
    """The sections that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [part for inner in getattr(annotation, "__args__", ()) for part in sections_of(inner)]


def sections(section: type[Section]) -> list[type[Section]]:
    """A section's class and those below it."""
    below = [part for field in section.model_fields.values() for part in sections_of(field.annotation)]
    return [section, *(found for part in below for found in sections(part))]


def test_the_site_is_built_without_a_warning_asks_for_nothing_and_its_references_are_complete(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    html = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    assert {page.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for page in PAGES[3:]} <= set(html)
    for name, text in html.items():
        assert not re.search(r"<(script|link|img|iframe)\b[^>]*\b(src|href)=\"?(https?:)?//", text), name
        for link in re.findall(r'(?:src|href)="?([^" >#]+)', text):
            if not re.match(r"[a-z]+:|/", link):
                assert (tmp_path / name).parent.joinpath(unquote(link)).exists(), f"{name}: {link}"
    assert "<math" in html["tutorial.html"]
    params = re.sub(r"<[^>]+>", "|", html["reference/params.html"])
    for section in sections(config.Params)[1:]:
        for name, field in section.model_fields.items():
            key = f"{name}.kind" if sections_of(field.annotation) else name
            assert f"|{key}|" in params or key == "kind", (section, key)
    assert not re.search(r"<td></td>\s*</tr>", html["reference/params.html"]), "a key without a meaning"
    wanted = {command.name for command in typer.main.get_command(app).commands.values()}  # type: ignore[attr-defined]
    assert wanted <= set(re.findall(r'<h2 id="([\w-]+)"', html["reference/commands.html"]))
    assert 'id="vaeline.serving.inference.TrainedModel.encode"' in html["reference/api.html"]


def test_the_page_of_variables_names_those_that_the_code_reads():
    code = [path for folder in ("src", "pipeline", "deploy") for path in (ROOT / folder).rglob("*") if path.is_file()]
    text = "\n".join(path.read_text() for path in code if path.suffix != ".pyc")
    page = (ROOT / "docs/reference/environment.md").read_text()
    assert set(re.findall(r"\bVAELINE_[A-Z_]+", text)) == set(re.findall(r"\bVAELINE_[A-Z_]+", page))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_readme_works_from_a_fresh_clone_line_by_line(tmp_path: Path):
    """On smaller data; lines with the placeholder NAME left out, the servers of `make ui` have tests of their own."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    params = clone / "params.yaml"
    text = params.read_text()
    for pattern, value in TINY.items():
        text = text if "name" in pattern else re.sub(pattern, value, text)
    params.write_text(text)
    subprocess.run(["git", "-C", str(clone), "commit", "-q", "-a", "-m", "Smaller"], check=True)
    here, key = Path(sys.executable).parent, hashlib.sha256()
    for name in ("requirements.lock", "pyproject.toml"):
        key.update((clone / name).read_bytes())
    (clone / ".venv").mkdir()
    (clone / ".venv/bin").symlink_to(here)
    for name in ("lib", "pyvenv.cfg"):
        (clone / ".venv" / name).symlink_to(here.parent / name)
    (clone / ".venv/.installed").write_text(f"{key.hexdigest()} {clone}\n")
    for n in range(120):
        path = clone / "MY IMAGES" / "abc"[n % 3] / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + n % 7, 24 - n % 5), (40 * (n % 5), 2 * n, 90 * (n % 3))).save(path)
    lines = [line for block in blocks(ROOT / "README.md", "sh") for line in block.splitlines()]
    script = [". .venv/bin/activate", *(line for line in lines if not re.search("^make ui|/NAME", line))]
    assert len(script) >= 7
    env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "OMP_NUM_THREADS": "1", "VAELINE_DEVICE": "cpu"}
    env |= {name: value for name, value in os.environ.items() if name.startswith("GIT_")}
    for command in script[1:]:
        shell = ["sh", "-c", f"{script[0]} && {command}"]
        done = subprocess.run(shell, cwd=clone, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    (block,) = blocks(ROOT / "README.md", "python")
    code = f"import numpy\npixels = numpy.zeros((4, 1, 8, 8), 'uint8')\n{block}"
    subprocess.run([sys.executable, "-c", code], cwd=clone, env=env, check=True)
    assert {run["experiment"] for run in runs(clone)} >= {"vaeline-fashion-mnist"}
