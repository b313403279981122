import time
from pathlib import Path
from typing import Any

import pytest

from data_files import refusal
from vaeline.errors import UserError
from vaeline.io.yaml_config import Section, parse_yaml, read_yaml, validate

MB = 990_000
BOMB = "- &a [1, 1]\n" + "".join(f"- &{c} [{', '.join(9 * [f'*{chr(ord(c) - 1)}'])}]\n" for c in "bcdefg")


class Inner(Section):
    """A section in another."""

    count: int = 1


class Outer(Section):
    """A section of a file."""

    inner: Inner = Inner()
    rate: float = 1.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(text, 0.001) for text in ("1e-3", "1E-3", "1.0e-3", "0.001", "1.e-3")],
        ("0", 0),
        ("-0.5", -0.5),
        ("1:30", "1:30"),
        ("yes", "yes"),
        ("off", "off"),
        ("~", None),
        (".inf", float("inf")),
    ],
)
def test_mistake_15_values_are_those_that_dvc_reads(tmp_path: Path, text: str, value: Any):
    from dvc.utils.serialize import load_yaml  # type: ignore[attr-defined]

    path = tmp_path / "params.yaml"
    path.write_text(f"value: {text}\n")
    assert read_yaml(path) == load_yaml(str(path)) == {"value": value}


def test_aliases_and_merged_keys_are_read():
    text = "a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\nd: &d 3\ne: *d"
    assert parse_yaml(text, "x") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}, "d": 3, "e": 3}


def test_digests_of_dvc_lock_are_text_whatever_they_begin_with():
    for digest in ("0bbf5ca667c1437459ffa0aba0a3c96c", "00112233445566778899aabbccddeeff"):
        assert parse_yaml(f"md5: {digest}", "dvc.lock") == {"md5": digest}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "at line 2, column 1: did not find expected node content"),
        ("train: {beta: 1, beta: 2}", 'at line 1, column 18: found duplicate key "beta" with value "2"'),
        ("a: 1\n---\na: 2", "found another document"),
        ("a: *b", "found undefined alias"),
        *[
            (f"a: 1\nb: {n}", f"line 2: found {n}; allowed: decimal numbers without leading zeros, or text in quotes")
            for n in ("010", "-00", "0o10", "0x1F", "1_000", "+1_0.5e3", "0b1")
        ],
        ("a: !!python/object:os.system x", "could not determine a constructor for the tag"),
        ("a: !!int abc", "invalid literal for int"),
        ("a: !!bool x", "is not valid YAML: 'x'"),
        ("!!int", "is not valid YAML"),
        ("a: 2001-99-99", "month must be in 1..12"),
        ("a: 1970-01-01T00:00:00+99:99", "offset must be"),
        ("a: " + "1" * 4301, "more than 3,000 characters"),
        ("a: [-0x" + "f" * 900_000 + "]", "more than 3,000 characters"),
        ("".join(f"k{i}: 1\n" for i in range(50_000)), "more than 20,000 values"),
        ("a: \x00", "control characters are not allowed"),
        ("a: \x1b[31m", "control characters are not allowed"),
        ("a: \ud800", "surrogates not allowed"),
        ("? {a: 1}\n: 3", "found unhashable key"),
        ("%YAML 1.3\n---\na: 1", "found incompatible YAML document"),
        ("[" * MB, "nested deeper than 32 levels"),
        ("{a: " * (MB // 4), "nested deeper than 32 levels"),
        ("- " * (MB // 2), "nested deeper than 32 levels"),
        ("a: &a [*a]", "more than 20,000 values"),
        (BOMB, "more than 20,000 values"),
        ("[" + "a," * (MB // 2) + "]", "more than 20,000 values"),
        ("!" * MB, "could not determine a constructor"),
        ('"' + "\\" * MB, "unexpected end of stream"),
    ],
)
def test_text_that_is_not_yaml_or_meant_to_hurt_is_one_line_at_once(text: str, words: str):
    start = time.process_time()
    message = refusal(parse_yaml, text, "x.yaml")
    assert message.startswith("x.yaml: ")
    assert words in message
    assert len(message) < 250
    assert time.process_time() - start < 2


def test_a_file_that_is_missing_too_large_or_not_text_is_named(tmp_path: Path):
    large = b"a: " + b"1" * 1_000_000
    for content, words in [(None, "No such file"), (b"\xff\xfe\x00", "not UTF-8"), (large, "at most 1000000")]:
        path = tmp_path / "file.yaml"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=f"^{path}: .*{words}"):
            read_yaml(path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "f: must be a section with keys; found None"),
        ("- 1", "f: must be a section with keys; found [1]"),
        ("inner: {cuont: 2}", "f: inner.cuont: unknown key; did you mean 'count'? allowed: count"),
        ("? [1, 2]\n: 3", "f: (1, 2): unknown key; allowed: inner, rate"),
        ("inner: {1: 2}", "f: inner.1: unknown key; allowed: count"),
        ("inner: 2001-01-01", "f: inner: must be a section with keys; found datetime.date(2001, 1, 1)"),
        (f"rate: {'a' * 200}", f"f: rate: must be a valid number; found '{'a' * 56}..."),
        ('rate: "\\e[31m"', "f: rate: must be a valid number; found '\\x1b[31m'"),
        ('"\\e[31m": 1', "f: '\\x1b[31m': unknown key; allowed: inner, rate"),
    ],
)
def test_what_a_section_refuses_is_one_short_printable_line(text: str, line: str):
    assert refusal(validate, Outer, parse_yaml(text, "f"), "f") == line
