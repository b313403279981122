"""Claims as files: numbers in theory.json, everything else in claims.json with the pictures beside it."""

import json
from pathlib import Path

import pytest

from pipeline.report.page import read_claims
from pipeline.stages.theory import numbers_file, theory_files
from vaeline.errors import UserError
from vaeline.plotting.charts import Picture
from vaeline.theory.claim import Claim

CLAIMS = [
    Claim("one", "a < b & p(x|z)", "KL(q ‖ p) >= 0", ("2 * 3",), {"a": [float("nan"), 1.0]}, (("x", "n"), ("1", ""))),
    Claim("two", "Second", "e", pictures=(Picture("chart", "dots", b"PNG"), Picture("more", "lines", b"GNP"))),
]


def write(folder: Path) -> None:
    for name, content in theory_files(CLAIMS).items():
        (folder / name).write_bytes(content)


def test_claims_come_back_from_their_files_without_their_numbers(tmp_path: Path):
    write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"claims.json", "chart.png", "more.png"}
    one, two = read_claims(tmp_path)
    assert (one["title"], one["words"], one["pictures"]) == ("a < b & p(x|z)", ["2 * 3"], [])
    assert one["table"] == {"header": ["x", "n"], "rows": [["1", ""]]}
    assert (two["equation"], two["table"]) == ("e", None)
    assert [tuple(picture.values()) for picture in two["pictures"]] == [
        ("chart", "dots", b"PNG"),
        ("more", "lines", b"GNP"),
    ]
    assert "numbers" not in one


@pytest.mark.parametrize("content", ["[1", '{"a": 1}', "[1]", '[{"key": "a"}]'])
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, content: str):
    (tmp_path / "claims.json").write_text(content)
    with pytest.raises(UserError, match=r"claims\.json: is not what the stage theory writes; run it again$"):
        read_claims(tmp_path)


@pytest.mark.parametrize("name", ["claims.json", "more.png"])
def test_a_missing_file_is_named(tmp_path: Path, name: str):
    write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name}: cannot be read: .*; run the stage theory$"):
        read_claims(tmp_path)


def test_the_numbers_say_which_claims_apply_and_hold_null_for_what_is_no_number():
    expected = {"one": {"applies": True, "a": [None, 1.0]}, "two": {"applies": False}}
    assert json.loads(numbers_file(CLAIMS)) == expected
