import logging
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_files import packed, write_packed
from vaeline.data.sources import public
from vaeline.data.sources.catalogue import BLOCK, PUBLIC_SETS, UnavailableError, store
from vaeline.errors import TransientError, UserError

IMAGES = "train-images-idx3-ubyte"


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[str]:
    """A mirror on this machine; a file whose content is b"hang" is never answered, b"cut" ends too early."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(self.path.removeprefix("/"))
            if content is None:
                self.send_error(404)
                return
            if content == b"hang":
                released.wait(20)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) + (content == b"cut")))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    released = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def closed_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Close every source, then open the mirrors that a test names, each an address of a folder."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("VAELINE_DATA_DIR", raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(public, "TIMEOUT_S", (0.5, 0.5))

    def open_mirrors(*addresses: str) -> None:
        names = [item.name for item in PUBLIC_SETS["fashion-mnist"].items]
        mirrors = [{name: f"{address}{name}.gz" for name in names} for address in addresses]
        monkeypatch.setattr(public, "torchvision_mirrors", lambda kind: mirrors)

    open_mirrors(f"http://127.0.0.1:{free_port()}/")
    return open_mirrors


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetched(tmp_path: Path) -> dict[str, bytes]:
    target = tmp_path / "raw"
    target.mkdir(exist_ok=True)
    public.fetch_public("fashion-mnist", target, tmp_path / "before")
    return {path.name: path.read_bytes() for path in target.iterdir()}


def mirrored(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name}.gz": packed(content) for name, content in files.items()}


def test_what_is_here_already_is_not_fetched_again_unless_it_is_damaged(
    tmp_path: Path, tiny_set: dict[str, bytes], closed_sources, monkeypatch
) -> None:
    monkeypatch.setenv("VAELINE_DATA_DIR", str(write_packed(tmp_path / "mine", tiny_set)))
    first = fetched(tmp_path)
    (tmp_path / "raw").rename(tmp_path / "before")
    monkeypatch.delenv("VAELINE_DATA_DIR")
    assert fetched(tmp_path) == first
    shutil.rmtree(tmp_path / "raw")
    (tmp_path / "before" / next(iter(first))).write_bytes(b"")
    with pytest.raises(TransientError):
        fetched(tmp_path)


@pytest.mark.parametrize("layout", ["plain", "packed", "in a folder named by the set"])
def test_the_folder_the_user_names_comes_first(
    *, tmp_path: Path, tiny_set: dict[str, bytes], closed_sources, monkeypatch, caplog, layout: str
) -> None:
    place = write_packed(tmp_path / "mine" / ("fashion-mnist" if layout.startswith("in") else ""), tiny_set)
    if layout == "packed":  # as a browser unpacks them, beside what is wanted
        (place / IMAGES).mkdir()
    if layout == "plain":
        for path in place.iterdir():
            path.rename(path.with_suffix("")).write_bytes(tiny_set[path.stem])
    monkeypatch.setenv("VAELINE_DATA_DIR", str(tmp_path / "mine"))
    with caplog.at_level(logging.INFO):
        assert fetched(tmp_path) == tiny_set
    assert f"taken from {tmp_path / 'mine'}" in caplog.text and "(VAELINE_DATA_DIR)" in caplog.text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "Not Found"),
        (b"hang", "Read timed out"),
        (b"cut", "Connection broken: IncompleteRead"),
        (packed(b"other"), f"{IMAGES}: ends after 5 of 616 bytes"),
        (packed(bytes(616)), f"{IMAGES}: SHA-256 is {sha256(bytes(616)).hexdigest()}, pinned is "),
        (packed(bytes(10_000)), f"{IMAGES}: more than the 616 bytes expected"),
        (packed(bytes(616))[:-4], f"{IMAGES}: Compressed file ended"),
        (b"<html>log in</html>", f"{IMAGES}: ends after 19 of 616 bytes"),
        (bytes(BLOCK * 3), f"{IMAGES}: more than the 616 bytes expected"),
    ],
)
def test_mistake_15_a_mirror_that_fails_is_left_for_the_next(
    *, tmp_path: Path, tiny_set: dict[str, bytes], closed_sources, caplog, content: bytes | None, says: str
) -> None:
    bad = {name: body for name, body in mirrored(tiny_set).items() if name != f"{IMAGES}.gz"}
    bad |= {} if content is None else {f"{IMAGES}.gz": content}
    with serving(bad) as broken, serving(mirrored(tiny_set)) as good:
        closed_sources(broken, good)
        with caplog.at_level(logging.INFO):
            assert fetched(tmp_path) == tiny_set
        assert f"taken from torchvision's mirror {good[:-1]}" in caplog.text
        closed_sources(broken)
        with pytest.raises(UserError) as caught:
            fetched(tmp_path)
        assert says in str(caught.value)


def test_where_no_source_is_open_all_that_was_tried_and_the_way_out_are_reported(
    tmp_path: Path, tiny_set: dict[str, bytes], closed_sources, monkeypatch
) -> None:
    write_packed(tmp_path / "mine", {name: body for name, body in tiny_set.items() if name != IMAGES})
    monkeypatch.setenv("VAELINE_DATA_DIR", "~nobody-of-this-name")
    with pytest.raises(UserError, match=f"~nobody-of-this-name .VAELINE_DATA_DIR.: holds no {IMAGES}"):
        fetched(tmp_path)
    monkeypatch.setenv("VAELINE_DATA_DIR", str(tmp_path / "mine"))
    with pytest.raises(UserError) as caught:
        fetched(tmp_path)
    for line, words in zip(
        str(caught.value).splitlines(),
        (
            "fashion-mnist: no source could be reached; tried:",
            f"{tmp_path / 'mine'} (VAELINE_DATA_DIR): holds no {IMAGES} or {IMAGES}.gz",
            "Connection refused",
            "apt-get: No such file or directory",
            "fashion-mnist: what to do: connect to the network, or set VAELINE_DATA_DIR to a folder",
        ),
        strict=True,
    ):
        assert words in line


def test_a_full_disk_is_not_taken_for_an_unavailable_source(tiny_set: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / IMAGES).symlink_to("/dev/full")
    with (tmp_path / "in").open("wb+") as source, pytest.raises(OSError, match="No space left"):
        source.write(tiny_set[IMAGES])
        source.seek(0)
        store(source, PUBLIC_SETS["fashion-mnist"].items[0], tmp_path)


def test_torchvision_knows_an_address_for_every_file() -> None:
    for kind, known in PUBLIC_SETS.items() - {("digits", PUBLIC_SETS["digits"])}:
        for mirror in public.torchvision_mirrors(kind):
            for item in known.items:
                assert mirror[item.name].startswith("http"), (kind, item.name)
                assert mirror[item.name].rpartition("/")[2].removesuffix(".gz") == item.name.removesuffix(".gz")


def test_the_debian_package_is_downloaded_and_unpacked_without_root(fashion_mnist: Path) -> None:
    """The real package from the machine's own Debian or Ubuntu archive."""
    found = {path.name: path.stat().st_size for path in fashion_mnist.iterdir()}
    assert found == {item.name: item.size for item in PUBLIC_SETS["fashion-mnist"].items}


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get on this machine")
def test_apt_that_cannot_reach_its_archive_reports_so(tmp_path: Path, tiny_set: dict[str, bytes], monkeypatch) -> None:
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list";\nDir::Etc::sourceparts "-";\nAcquire::Retries "0";\n'
    )
    (tmp_path / "sources.list").write_text(f"deb http://127.0.0.1:{free_port()}/debian stable main\n")
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    with pytest.raises(UnavailableError, match=r"^apt-get: .*(fetch|locate|index|find a source)"):
        public.download_package("fashion-mnist", tmp_path)
