"""Generated params.yaml: whatever bytes it holds, it is read as DVC reads it, or refused in short lines at once."""

import tempfile
import time
from pathlib import Path

import pytest
from dvc.utils.serialize import load_yaml  # type: ignore[attr-defined]
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.services.dvc_command import always_stale
from vaeline.command.program import explain
from vaeline.config import parse_params, read_params
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")  # else it hides what failed
PARAMS = (Path(__file__).parents[1] / "params.yaml").read_bytes()
LINES = PARAMS.splitlines()
SPITEFUL = st.sampled_from(
    ["0x" + "f" * 5000, "-0o" + "7" * 6000, "1" * 5000, "1e999999", "1:" * 900 + "1", ".nan", "-.inf", "2001-99-99",
     "2001-01-01", "2001-01-01T25:99:99Z", "!!int abc", "!!int _", "!!float x", "!!bool x", "!!timestamp 5", "!!null x",
     "!!binary 5", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!python/name:os.system", "!x 3", "!<tag:x> 1",
     "&a [*a]", "*none", "[" * 3000, "{a: " * 3000, "- " * 3000, "? " * 3000, '"\\e[31m\\u202e"', '"a\\nb"', "a\x00",
     "\x1b[31m", "\u2028", "\ufeff", "\x85", "{? [a] : 1}", "{1: 2, ~: 3}", "[" + ", ".join(["x"] * 90) + "]",
     "&a [1, 1]\nz: [*a, *a]", "{" + ", ".join(f"k{i}: 1" for i in range(9000)) + "}", "010", "0o10", "0x10", "1_000",
     "1:30", "+1", "1.", ".5", "1e3", "1E+3", "yes", "off", "~", "''", "|\n  text", ">-\n  text", "{<<: 3}",
     "\n".join(["a: &a0 [x]"] + [f"b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(9)])]
)  # fmt: skip
VALUES = SPITEFUL | st.text(max_size=30) | st.integers().map(str) | st.floats().map(repr)


@st.composite
def generated(draw: st.DrawFn) -> bytes:
    """The real file with values or lines changed, doubled, dropped, then perhaps bytes changed or re-encoded."""
    lines = list(LINES)
    for _ in range(draw(st.integers(0, 3))):
        number = draw(st.integers(0, len(lines) - 1))
        value = draw(VALUES).encode("utf-8", "surrogatepass")
        key, colon, _ = lines[number].partition(b":")
        match draw(st.sampled_from(["value", "value", "value", "line", "twice", "drop", "indent", "key"])):
            case "value":
                lines[number] = key + colon + b" " + value
            case "line":
                lines[number] = value
            case "twice":
                lines.insert(number, lines[number])
            case "drop":
                lines[number] = b""
            case "indent":
                lines[number] = b" " * draw(st.integers(1, 4)) + lines[number]
            case "key":
                lines[number] = value + lines[number][len(key) :]
    content = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])).join(lines)
    match draw(st.sampled_from([*["as it is"] * 5, "cut", "bytes", "mark", "recoded", "twice"])):
        case "cut":
            content = content[: draw(st.integers(0, len(content)))]
        case "bytes":
            place = draw(st.integers(0, len(content)))
            content = content[:place] + draw(st.binary(max_size=8)) + content[place + draw(st.integers(0, 9)) :]
        case "mark":
            content = b"\xef\xbb\xbf" + content
        case "recoded":
            code = draw(st.sampled_from(["utf-16", "utf-32", "latin-1"]))
            content = content.decode("utf-8", "replace").encode(code, "replace")
        case "twice":
            content = content + b"\n" + draw(st.sampled_from([b"", b"---\n", b"...\n"])) + content
    return content


def check(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "params.yaml")
        path.write_bytes(content)
        start = time.process_time()  # other programs may run beside
        try:
            params = read_params(path)
        except UserError as error:
            refused = explain(error)
            assert refused is not None and 1 <= len(refused) <= 21
            assert all(line.isprintable() and len(line) <= 400 for line in refused)
        else:
            assert parse_params(load_yaml(str(path))) == params, "DVC reads other values"
        try:
            assert always_stale(Workspace(Path(folder))) in (set(), {"fetch"})
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) <= 400
        assert time.process_time() - start < 2


@given(generated())
@settings(derandomize=True, max_examples=60, deadline=None)
def test_any_params_are_read_as_dvc_reads_them_or_refused_in_short_lines(content: bytes) -> None:
    check(content)


@pytest.mark.slow
@given(generated())
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_thousand_params_are_read_as_dvc_reads_them_or_refused_in_short_lines(content: bytes) -> None:
    check(content)
