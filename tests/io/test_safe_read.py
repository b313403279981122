import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaeline.errors import UserError
from vaeline.io.safe_read import DEEPEST, checked_digest, opened, parse_json, read_bounded, shown

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_json_comes_back_as_json_reads_it(value: Any):
    assert parse_json(json.dumps(value).encode(), "x") == value
    assert parse_json(json.dumps(["[" * 100, value], ensure_ascii=False).encode(), "x")[1] == value  # no depth


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_refused_in_one_line(content: bytes):
    try:
        parse_json(content, "x")
    except UserError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), "nested deeper"),
        (b'["]]]]",' * 100_000, "nested deeper"),  # closing brackets in strings close nothing
        (b'["\\"]",' * 100_000, "nested deeper"),
        (b'{"a":' * 100_000, "nested deeper"),
        (b'"\\' * 500_000, "is not JSON"),  # and is told without delay
        (b'{"a": 1, "a": 1}', "key 'a' given twice"),
        (b'{"b": {"a": 1, "\\u0061": 1}}', "key 'a' given twice"),
        (b"[NaN]", "is not JSON"),
        (b"[-Infinity]", "is not JSON"),
        (b"[1e999]", "is not JSON"),
        (b"1" * 10_000, "is not JSON"),
        (b'"\xff"', "is not JSON"),
        ('{"a": 1}'.encode("utf-16"), "is not JSON"),
        (b"", "is not JSON"),
    ],
)
def test_json_that_is_meant_to_hurt_is_refused(content: bytes, words: str):
    with pytest.raises(UserError, match=f"^x: .*{words}"):
        parse_json(content, "x")


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path):
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    (tmp_path / "link").symlink_to(file)
    os.mkfifo(tmp_path / "pipe")
    assert read_bounded(file, 3) == read_bounded(tmp_path / "link", 10**15) == b"abc"
    for path, words in [
        (file, "found 3 bytes, allowed: at most 2"),
        (tmp_path / "pipe", "is not a regular file"),
        (tmp_path, "Is a directory"),
        (Path("/dev/zero"), "is not a regular file"),
        (tmp_path / "none", "No such file"),
    ]:
        with pytest.raises(UserError, match=words):
            read_bounded(path, 2)
    with pytest.raises(OSError, match="full"), opened(file):
        raise OSError(errno.ENOSPC, "full")  # of what is written meanwhile: not the file's fault
    assert checked_digest(file, 3) == hashlib.sha256(b"abc").hexdigest()
    for path, size, words in [(file, 2, "found 3 bytes"), (tmp_path / "link", 3, "cannot be read")]:
        with pytest.raises(UserError, match=words):
            checked_digest(path, size)


@given(st.text())
def test_what_is_shown_is_short_and_printable(text: str):
    assert shown(text).isprintable()
    assert len(shown(text)) <= 120
    assert shown("plain words") == "plain words"
