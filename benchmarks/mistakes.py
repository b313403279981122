"""`python -m benchmarks.mistakes`: put each mistake of mistakes.yaml into the code and see a test named after it fail.

One at a time, in a copy of the repository. The tests of mistake N are those whose name has `mistake_N` or whose
docstring names it ("Mistakes 6, 8 and 11: ..."). Writes benchmarks/results/mistakes.md; with numbers as arguments it
tries these mistakes only and writes nothing. Exit code 1 where a mistake survives, or where a patch does not apply to
the code as it is now.
"""

import ast
import contextlib
import io
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch  # once, before any fork
import yaml

ROOT = Path(__file__).parents[1]
TABLE, RESULT = Path(__file__).with_suffix(".yaml"), Path(__file__).parent / "results" / "mistakes.md"
COPIED = (
    ".dvc",
    ".dvcignore",
    ".gitignore",
    "LICENSE",
    "README.md",
    "benchmarks",
    "src",
    "pipeline",
    "tests",
    "dvc.yaml",
    "params.yaml",
    "experiments.yaml",
    "pyproject.toml",
    "requirements.lock",
)
NAMED = re.compile(r"\bmistakes?[ _]((?:\d+(?:, | and )?)+)", re.IGNORECASE)


@dataclass(frozen=True)
class Mistake:
    """A way to make one of the mistakes: `old` becomes `new` in `file`."""

    number: int
    what: str
    file: str
    old: str
    new: str

    def make(self, folder: Path) -> bool:
        """Put it into the code; False if the code no longer reads so, at exactly one place."""
        path = folder / self.file
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")
        return text.count(self.old) == 1 and self.old != self.new


def read_table() -> tuple[dict[int, str], list[Mistake]]:
    """The names of the mistakes, and the ways to make them."""
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    ways = [Mistake(number, **way) for number, entry in table.items() for way in entry["ways"]]
    return {number: entry["name"] for number, entry in table.items()}, ways


def named_tests() -> dict[int, list[str]]:
    """The tests of each mistake, as pytest calls them."""
    found = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                text = f"{node.name.replace('_', ' ')}\n{ast.get_docstring(node) or ''}"
                for number in {n for numbers in NAMED.findall(text) for n in re.findall(r"\d+", numbers)}:
                    found[int(number)].append(f"{path.relative_to(ROOT)}::{node.name}")
    return found


class Failed:
    """The failed tests by name: a plugin of pytest."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test has run."""
        if report.failed:
            self.names.append(report.nodeid)


def failing(tests: list[str], folder: Path) -> str:
    """The first of the tests that fails in the folder, "" if none does; raises if they cannot be run."""
    fork = multiprocessing.get_context("fork")  # so that torch need not be imported again
    with ProcessPoolExecutor(1, mp_context=fork) as process:
        return process.submit(run_tests, tests, folder).result()


def run_tests(tests: list[str], folder: Path) -> str:
    """`failing`, in a process of its own."""
    paths = [str(folder / "src"), str(folder)]
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    os.chdir(folder)
    sys.path[:0] = paths
    torch.set_num_threads(1)  # as tests/conftest.py sets it, too late for a torch that is there
    failed, output = Failed(), io.StringIO()
    with contextlib.redirect_stdout(output):
        code = pytest.main(["-x", "-p", "no:cacheprovider", *tests], [failed])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or bool(failed.names) != bool(code):
        raise RuntimeError(output.getvalue())
    return failed.names[0] if failed.names else ""


def outcome(mistake: Mistake, tests: list[str]) -> str:
    """The test that fails, or in capitals what is wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in COPIED:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, folder / part)
        if not mistake.make(folder):
            return "DOES NOT APPLY"
        if not tests:
            return "HAS NO TEST"
        test = failing(tests, folder)
    return f"`{test.partition('::')[2]}` in {test.partition('::')[0]}" if test else "SURVIVES"


def main(chosen: set[int]) -> int:
    """Try the chosen mistakes, all if none is; print each row as it comes."""
    names, mistakes = read_table()
    tests = named_tests()
    if missing := [number for number in names if not tests[number]]:
        print(f"no test is named after mistake {missing}")
    every = sorted({test for number in chosen or names for test in tests[number]})
    if broken := failing(every, ROOT):
        sys.exit(f"{broken} fails without any mistake")
    rows, wrong = [], 0
    for mistake in mistakes:
        if not chosen or mistake.number in chosen:
            found = outcome(mistake, tests[mistake.number])
            wrong += found.isupper()
            rows.append(
                f"| {mistake.number} | {mistake.what} | {mistake.file.removeprefix('src/vaeline/')} | {found} |"
            )
            print(rows[-1], flush=True)
    if not chosen:
        RESULT.write_text(page(names, rows, wrong), encoding="utf-8")
    return 1 if wrong or missing else 0


def page(names: dict[int, str], rows: list[str], wrong: int) -> str:
    """The result as Markdown."""
    lines = [
        "# Known mistakes, put into the code",
        "",
        "Each row is a mistake, made by one patch (`benchmarks/mistakes.yaml`), and the first test named after it that",
        f"fails: {len(rows)} patches, {wrong} of them not caught. Written by `python -m benchmarks.mistakes`.",
        "",
        *(f"{number}. {name}" for number, name in names.items()),
        "",
        "| mistake | made by | file | fails |",
        "|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main({int(number) for number in sys.argv[1:]}))
