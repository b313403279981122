"""The table of mistakes fits the code and the tests as they are now."""

import ast
from pathlib import Path

import pytest

from benchmarks import mistakes

ROOT = Path(__file__).parents[1]
NAMES, MISTAKES = mistakes.read_table()


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: f"{mistake.number}: {mistake.what}")
def test_a_mistake_is_made_at_exactly_one_place(mistake: mistakes.Mistake):
    text = (ROOT / mistake.file).read_text(encoding="utf-8")
    assert text.count(mistake.old) == 1
    assert mistake.old != mistake.new
    if mistake.file.endswith(".py"):
        ast.parse(text.replace(mistake.old, mistake.new))


def test_every_mistake_has_a_test():
    tests = mistakes.named_tests()
    assert not [f"{number}. {name}" for number, name in NAMES.items() if not tests[number]]
