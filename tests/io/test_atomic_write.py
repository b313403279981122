import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from vaeline.io.atomic_write import drop_parts, replaced, write_folder, write_together, write_whole

WRITER = """
import sys
from pathlib import Path
from vaeline.io.atomic_write import write_whole
for number in range(30):
    write_whole(Path(sys.argv[1]), sys.argv[2].encode() * 100_000)
"""


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


def test_what_a_killed_writer_left_is_taken_over_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".file.part").write_bytes(b"half of something much longer than the new content")
    write_whole(tmp_path / "file", b"content")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"content"}


def test_writers_of_one_file_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), letter]) for letter in "abc"]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 100_000
            assert len(set(content)) == 1
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_where_one_of_several_files_cannot_be_written_all_old_ones_stay(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError, match=r"File too large: '.*/b'"):
            write_together({tmp_path / "a": b"new", tmp_path / "b": bytes(2000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_signal_between_two_renames_leaves_both_files_new(
    tmp_path: Path, stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, seen = os.replace, []

    def interrupted(source: Path, target: Path) -> None:
        rename(source, target)
        seen.append(target)
        if len(seen) == 1:
            raise stop

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(stop):
        write_together({tmp_path / "a": b"new", tmp_path / "b": b"new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "b": b"new"}


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", {"a": b"1", "b": b"2"})
    write_folder(tmp_path / "folder", {"b": b"3"})
    with pytest.raises(ValueError, match="stop"), replaced(tmp_path / "folder") as new:
        (new / "b").write_bytes(b"4")
        raise ValueError("stop")
    assert {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()} == {"b": b"3"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_that_a_killed_writer_had_moved_away_comes_back(tmp_path: Path) -> None:
    write_folder(tmp_path / ".folder.old", {"a": b"old"})
    (tmp_path / ".folder.new").mkdir()
    with pytest.raises(OSError, match="full"), replaced(tmp_path / "folder"):
        raise OSError(28, "full")
    assert (tmp_path / "folder" / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
