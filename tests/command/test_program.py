"""Exit codes and error lines of a program, whatever ends it."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from vaeline.command.program import explain
from vaeline.errors import UserError

START = "import sys\nfrom pipeline.stages import runner\nfrom vaeline.errors import UserError\n"
RUN = "sys.modules['pipeline.stages.fake'] = sys.modules['__main__']; runner.main('fake')\n"


def start(body: str, cwd: Path, *within: str) -> subprocess.Popen[str]:
    """A stage with this `main`, run by a command where one is given."""
    code = f"{START}def main():\n{textwrap.indent(textwrap.dedent(body), '    ')}\n{RUN}"
    command = [*within, sys.executable, "-u", "-c", code]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(body: str, cwd: Path, *within: str) -> tuple[int, str]:
    """Exit code and stderr of a stage with this `main`."""
    with start(body, cwd, *within) as process:
        _, errors = process.communicate()
    return process.returncode, errors


def test_a_stage_that_ends_well_exits_with_zero_and_logs_plain_lines(tmp_path: Path):
    body = "import logging; logging.getLogger('vaeline.data').info('fetched'); logging.getLogger('other').info('no')"
    assert end(body, tmp_path) == (0, "fetched\n")


def test_each_line_of_a_user_error_is_printed_without_a_traceback(tmp_path: Path):
    body = "raise UserError('a.png: 3 channels, allowed: 1\\nb.png: truncated')"
    assert end(body, tmp_path) == (1, "error: a.png: 3 channels, allowed: 1\nerror: b.png: truncated\n")


def test_a_bug_keeps_its_traceback(tmp_path: Path):
    code, errors = end("raise ZeroDivisionError('here')", tmp_path)
    assert code == 1
    assert "Traceback" in errors
    assert "ZeroDivisionError: here" in errors


def test_a_full_disk_is_one_clear_line(tmp_path: Path, full: Path):
    code, errors = end(f"f = open({str(full)!r}, 'w', buffering=1); f.write('x\\n')", tmp_path)
    assert code == 1
    assert errors.splitlines()[0].startswith("error: the disk is full")
    assert "Traceback" not in errors.splitlines()[0]


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A file on a full disk: behind a link, so that nothing can replace the device itself."""
    path = tmp_path / "full"
    path.symlink_to("/dev/full")
    return path


def write_numpy(path: Path) -> None:
    np.zeros(1 << 16).tofile(path)


def write_torch(path: Path) -> None:
    import torch

    torch.save(torch.zeros(1 << 16), path)


def write_bytes(path: Path) -> None:
    path.write_bytes(b"x")


@pytest.mark.parametrize("write", [write_bytes, write_numpy, write_torch])
def test_the_full_disk_errors_of_every_library_are_recognised(write, full: Path):
    with pytest.raises((OSError, RuntimeError)) as caught:
        write(full)
    lines = explain(caught.value)
    assert lines is not None
    assert len(lines) == 1
    assert lines[0].startswith("the disk is full")


def test_a_missing_file_is_not_taken_for_a_full_disk(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "nothing").read_bytes()
    assert explain(caught.value) is None


def test_a_file_of_another_user_is_named():
    error = PermissionError(errno.EACCES, "Permission denied", "/srv/vaeline/.vaeline/run.lock")
    assert explain(error) == [
        f"/srv/vaeline/.vaeline/run.lock: Permission denied, for user {os.geteuid()}; work in a clone of your own"
    ]


def test_a_failed_child_is_noticed_where_a_supervisor_ignores_sigchld(tmp_path: Path):
    body = "import subprocess, sys; sys.exit(subprocess.call(['false']))"
    assert end(body, tmp_path, "env", "--ignore-signal=CHLD") == (1, "")


def test_a_letter_that_the_terminal_cannot_show_is_no_error(tmp_path: Path):
    assert end("print(chr(177))", tmp_path, "env", "LC_ALL=POSIX", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0") == (0, "")


def test_a_closed_stdout_is_no_error(tmp_path: Path):
    assert end("print('line'); raise KeyboardInterrupt", tmp_path, "sh", "-c", 'exec "$@" >&-', "sh") == (
        130,
        "interrupted\n",
    )


def test_exhausted_memory_is_one_line():
    with pytest.raises(MemoryError) as caught:
        np.empty(1 << 55)
    assert explain(caught.value) is not None
    assert explain(UserError("x: y")) == ["x: y"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_closes_open_files_and_sets_the_exit_code(tmp_path: Path, number: int, code: int):
    body = """
        import time
        try:
            print("ready"); time.sleep(60)
        finally:
            open("closed", "w").close()
    """
    with start(body, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(10) == code
    assert (tmp_path / "closed").exists()


def test_a_stage_ends_with_the_process_that_started_it(tmp_path: Path):
    (tmp_path / "stage.py").write_text(
        f"{START}import os, time\ndef main(): print(os.getpid(), flush=True); time.sleep(60)\n{RUN}"
    )
    code = "import subprocess, sys; subprocess.run([sys.executable, 'stage.py'])"
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        stage = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while stage.is_running() and stage.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)
