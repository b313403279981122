"""The one variable by which processes pass on their context."""

import pytest

from vaeline.errors import UserError
from vaeline.io.workspace import VARIABLE, RunContext


def test_children_get_the_parents_context_with_changes(monkeypatch: pytest.MonkeyPatch):
    assert RunContext.read() == RunContext()
    for name, value in RunContext(root="/a", sweep="first").environment(flow_run="1", sweep=None).items():
        monkeypatch.setenv(name, value)
    assert RunContext.read() == RunContext(root="/a", flow_run="1")


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"root": 1}', '{"rot": "/a"}', "[" * 100_000])
def test_a_broken_context_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(UserError, match=r"^VAELINE_RUN_CONTEXT: found '.*', allowed: a JSON object .* root, [^\n]*$"):
        RunContext.read()
