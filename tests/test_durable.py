from pathlib import Path

import pytest

from vaeline.durable import drop_parts, write_whole


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    write_whole(tmp_path / "new" / "file", b"content")
    assert (tmp_path / "new" / "file").read_bytes() == b"content"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "folder", b"content")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "new"]


def test_what_killed_writers_left_is_dropped_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.123.part", "part", "a.part"):
        (tmp_path / name).write_bytes(b"x")
    drop_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.part", "part"]
