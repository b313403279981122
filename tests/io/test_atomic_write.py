import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vaeline.io.atomic_write import new_folder, write_file, write_files, write_folder

DEAD = 4_999_999  # no process has this number: they end at 2^22
WRITER = """
import sys
from pathlib import Path
from vaeline.io.atomic_write import write_file
for number in range(30):
    write_file(Path(sys.argv[1]), sys.argv[2].encode() * 100_000)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_appears_complete_or_not_at_all(tmp_path: Path):
    write_file(tmp_path / "new" / "file", b"content")
    assert contents(tmp_path / "new") == {"file": b"content"}
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=r"directory: '[^']*/folder'$"):
        write_file(tmp_path / "folder", b"content")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "new"]


def test_a_device_is_not_replaced_nothing_half_and_what_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "pipe").symlink_to("/dev/null")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").write_bytes(b"old")
    for name, error in (("pipe", "device"), ("folder", "directory")):
        with pytest.raises(OSError, match=rf"{error}: '[^']*/{name}'$"):
            write_files({tmp_path / "a": b"new", tmp_path / name: b"new"})
    assert (tmp_path / "a").read_bytes() == b"old"
    with pytest.raises(PermissionError, match=r"Nothing can be written there: '/proc/nowhere/file'"):
        write_file(Path("/proc/nowhere/file"), b"")


@pytest.mark.parametrize(
    ("write", "synced"),
    [
        (lambda folder: write_file(folder / "a", b"new"), {"file": "a", "folder": "."}),
        (lambda folder: write_folder(folder / "b", {"a": b"new"}), {"file": ".b.new/a", "new folder": ".b.new"}),
    ],
)
def test_mistake_15_content_is_on_the_disk_before_its_name(tmp_path, monkeypatch, write, synced):
    """Content, then its name, then the folder's: the order that survives a power cut."""
    events = []
    sync, rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(("sync", path.is_dir(), path.stat().st_size if path.is_file() else 0))
        sync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        events.append(("rename",))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "replace", renamed)
    write(tmp_path)
    of_new_folder = [("sync", True, 0)] * ("new folder" in synced)
    assert events == [("sync", False, 3), *of_new_folder, ("rename",), ("sync", True, 0)]


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path):
    mine, other = f".file.{os.getpid()}-{threading.get_native_id()}.part", f".b.{os.getppid()}-1.part"
    for name in (f".file.{DEAD}-{DEAD}.part", f".other.{DEAD}-{DEAD}.part", ".a.part", "part", "a.part", other):
        (tmp_path / name).write_bytes(b"half of something much longer than the new content")
    (tmp_path / mine).write_bytes(b"half of something much longer than the new content")
    write_file(tmp_path / "file", b"content")
    assert sorted(contents(tmp_path)) == sorted([".a.part", other, "a.part", "file", "part"])
    assert (tmp_path / "file").read_bytes() == b"content"


def test_of_several_writers_of_one_file_each_writes_all_of_it(tmp_path: Path):
    path = tmp_path / "file"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), letter]) for letter in "abc"]
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 100_000
            assert len(set(content)) == 1
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_where_one_of_several_files_cannot_be_written_all_old_ones_stay(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError, match=r"File too large: '.*/b'"):
            write_files({tmp_path / "a": b"new", tmp_path / "b": bytes(2000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert contents(tmp_path) == {"a": b"old"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_signal_between_two_renames_leaves_both_files_new(
    tmp_path: Path, stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
):
    rename, seen = os.replace, []

    def interrupted(source: Path, target: Path) -> None:
        rename(source, target)
        seen.append(target)
        if len(seen) == 1:
            raise stop

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(stop):
        write_files({tmp_path / "a": b"new", tmp_path / "b": b"new"})
    assert contents(tmp_path) == {"a": b"new", "b": b"new"}


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path):
    write_folder(tmp_path / "folder", {"a": b"1", "b": b"2"})
    write_folder(tmp_path / "folder", {"b": b"3"})
    with pytest.raises(ValueError, match="stop"), new_folder(tmp_path / "folder") as new:
        (new / "b").write_bytes(b"4")
        raise ValueError("stop")
    assert contents(tmp_path / "folder") == {"b": b"3"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_link_to_a_folder_stays_and_a_file_is_not_replaced_by_a_folder(tmp_path: Path):
    (tmp_path / "link").symlink_to("disk/folder")
    for content in (b"1", b"2"):
        write_folder(tmp_path / "link", {"a": content})
        assert contents(tmp_path / "disk/folder") == {"a": content} == contents(tmp_path / "link")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"Is no folder: '[^']*/file'$"):
        write_folder(tmp_path / "file", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "file", "link"]


def test_a_folder_that_a_killed_writer_had_moved_away_comes_back(tmp_path: Path):
    write_folder(tmp_path / ".folder.old", {"a": b"old"})
    (tmp_path / ".folder.new").mkdir()
    with pytest.raises(OSError, match="full"), new_folder(tmp_path / "folder"):
        raise OSError(28, "full")
    assert contents(tmp_path / "folder") == {"a": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
