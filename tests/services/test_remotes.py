"""Results shared through a DVC remote: pushed here, pulled in a clone."""

import getpass
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.services.servers import free_port
from workspaces import execute

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")
CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
Subsystem sftp internal-sftp
"""


@pytest.fixture
def ssh_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """An OpenSSH server for this user alone, on the loopback interface: its port and the user's key."""
    assert SSHD is not None
    folder, port = tmp_path_factory.mktemp("sshd"), free_port(0)
    for key in ("host", "user"):
        execute("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key), cwd=folder)
    (folder / "config").write_text(CONFIG.format(port=port, folder=folder))
    if getpass.getuser() == "root":
        Path("/run/sshd").mkdir(exist_ok=True)
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "config")], stderr=log)
    try:
        while "listening" not in (folder / "log").read_text():
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        yield port, folder / "user"
    finally:
        server.terminate()
        server.wait(10)


def push_and_pull(toy: Path, clone: Path) -> None:
    """Push what the pipeline made; a clone pulls the same bytes and finds nothing to do."""
    execute("dvc", "repro", "-q", cwd=toy)
    execute("git", "add", "-A", cwd=toy)
    execute("git", "commit", "-qm", "results", cwd=toy)
    execute("dvc", "push", "-q", cwd=toy)
    execute("git", "clone", "-q", str(toy), str(clone), cwd=toy)
    assert not (clone / "model.txt").exists()
    local = toy / ".dvc" / "config.local"  # where a colleague's own key stands: not in git
    if local.exists():
        shutil.copy(local, clone / ".dvc")
    execute("dvc", "pull", "-q", cwd=clone)
    for name in ("raw.txt", "model.txt", "sample.txt"):
        assert (clone / name).read_bytes() == (toy / name).read_bytes()
    assert "up to date" in execute("dvc", "status", cwd=clone).stdout
    assert "in sync" in execute("dvc", "status", "--cloud", cwd=clone).stdout


def test_a_folder_is_a_remote(toy: Path, tmp_path_factory: pytest.TempPathFactory):
    store = tmp_path_factory.mktemp("store")
    execute("dvc", "remote", "add", "-q", "-d", "storage", str(store), cwd=toy)
    push_and_pull(toy, tmp_path_factory.mktemp("clones") / "clone")
    assert list(store.glob("files/md5/*/*"))


@pytest.mark.slow
@pytest.mark.skipif(SSHD is None, reason="needs OpenSSH's server: sudo apt install openssh-server")
def test_a_machine_behind_ssh_is_a_remote(
    toy: Path, ssh_port: tuple[int, Path], tmp_path_factory: pytest.TempPathFactory
):
    (port, key), store = ssh_port, tmp_path_factory.mktemp("store")
    address = f"ssh://{getpass.getuser()}@127.0.0.1:{port}{store}"
    execute("dvc", "remote", "add", "-q", "-d", "storage", address, cwd=toy)
    execute("dvc", "remote", "modify", "--local", "storage", "keyfile", str(key), cwd=toy)
    push_and_pull(toy, tmp_path_factory.mktemp("clones") / "clone")
    assert list(store.glob("files/md5/*/*"))


def test_a_remote_that_is_away_is_reported_and_loses_nothing(toy: Path, tmp_path: Path):
    execute("dvc", "remote", "add", "-q", "-d", "storage", "ssh://nobody@127.0.0.1:1/nowhere", cwd=toy)
    execute("dvc", "repro", "-q", cwd=toy)
    before = (toy / "model.txt").read_bytes()
    failed = execute("dvc", "push", "-q", cwd=toy, check=False)
    assert failed.returncode != 0
    assert "Traceback" not in failed.stderr
    assert (toy / "model.txt").read_bytes() == before
