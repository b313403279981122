"""Exit codes and error lines of a program, whatever ends it."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from vaeline.command.program import explain, shortened
from vaeline.errors import UserError
from vaeline.io.atomic_write import write_file

START = "import sys\nfrom pipeline.stages import runner\nfrom vaeline.errors import UserError\n"
RUN = "sys.modules['pipeline.stages.fake'] = sys.modules['__main__']; runner.main('fake')\n"


def start(body: str, cwd: Path, *within: str) -> subprocess.Popen[str]:
    """A stage with this `main`, run by a command where one is given."""
    code = f"{START}def main():\n{textwrap.indent(textwrap.dedent(body), '    ')}\n{RUN}"
    command = [*within, sys.executable, "-u", "-c", code]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


LOGS = "import logging; logging.getLogger('vaeline.data').info('fetched'); logging.getLogger('other').info('no')"
MISTAKES = "raise UserError('a.png: 3 channels, allowed: 1\\nb.png: truncated')"
CHILD = "import subprocess, sys; sys.exit(subprocess.call(['false']))"
POSIX = ("env", "LC_ALL=POSIX", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0")
CLOSED = ("sh", "-c", 'exec "$@" >&-', "sh")
ALL = ("sh", "-c", 'touch a; exec "$@" <&- >&- 2>&-', "sh")
FULL = ("sh", "-c", 'exec "$@" >/dev/full', "sh")
NO_SPACE = "free some space and run again ([Errno 28] No space left on device)"
ENDS: dict[str, tuple[str, tuple[str, ...], int, str]] = {
    "a stage that ends well logs plain lines": (LOGS, (), 0, "fetched\n"),
    "each line of a UserError": (MISTAKES, (), 1, "error: a.png: 3 channels, allowed: 1\nerror: b.png: truncated\n"),
    "a UserError without words": ("raise UserError(chr(10))", (), 1, "error: no reason was given\n"),
    "what a terminal obeys": ("raise UserError(chr(27) + '[2Jx')", (), 1, "error: '\\x1b[2Jx'\n"),
    "a standard output on a full disk": ("print('line')", FULL, 1, f"error: the disk is full; {NO_SPACE}\n"),
    "a failed child where a supervisor ignores SIGCHLD": (CHILD, ("env", "--ignore-signal=CHLD"), 1, ""),
    "a letter that the terminal cannot show is no error": ("print(chr(177))", POSIX, 0, ""),
    "a closed stdout is no error": ("print('line'); raise KeyboardInterrupt", CLOSED, 130, "interrupted\n"),
    "closed streams are no error, and no file's": ("print(open('a').fileno() > 2); sys.stderr.fileno()", ALL, 0, ""),
    "a bug keeps its traceback": ("raise ZeroDivisionError('here')", (), 1, "ZeroDivisionError: here\n"),
}


@pytest.mark.parametrize("case", ENDS)
def test_exit_codes_and_error_lines(tmp_path: Path, case: str):
    body, within, code, expected = ENDS[case]
    with start(body, tmp_path, *within) as process:
        _, errors = process.communicate()
    assert process.returncode == code
    assert errors.startswith("Traceback") == case.startswith("a bug")
    assert errors.endswith(expected) if case.startswith("a bug") else errors == expected


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"x"),
        lambda path: np.zeros(1 << 16).tofile(path),
        lambda path: torch.save(torch.zeros(1 << 16), path),
    ],
    ids=["bytes", "numpy", "torch"],
)
def test_the_full_disk_errors_of_every_library_are_recognised(write: Callable[[Path], Any], tmp_path: Path):
    full = tmp_path / "full"  # a link, so that nothing can replace the device itself
    full.symlink_to("/dev/full")
    with pytest.raises((OSError, RuntimeError)) as caught:
        write(full)
    assert str(explain(caught.value)).startswith("['the disk is full")


def test_a_path_that_cannot_be_used_and_exhausted_memory_are_explained_and_other_errors_are_not(tmp_path: Path):
    assert explain(FileNotFoundError(errno.ENOENT, "No such file", "nothing")) is None
    assert explain(PermissionError(errno.EACCES, "Permission denied", "/srv/run.lock")) == [
        f"/srv/run.lock: Permission denied, for user {os.geteuid()}; work in a clone of your own"
    ]
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="File exists") as refused:
        write_file(tmp_path / "file" / "scores.csv", b"")
    assert explain(refused.value) == [f"{tmp_path}/file: cannot be used: File exists"]
    for number in (errno.EROFS, errno.EPERM, errno.EISDIR, errno.EIO, errno.EBUSY, errno.ELOOP, errno.ENOSPC):
        (line,) = explain(OSError(number, os.strerror(number), "/srv/b.csv")) or []
        assert "/srv/b.csv: " in line or number == errno.ENOSPC
    for empty in (np.empty, torch.empty):
        with pytest.raises((MemoryError, RuntimeError)) as caught:
            empty(1 << 55)
        assert "out of memory; " in str(explain(caught.value))


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


def test_a_long_error_keeps_the_file_at_its_start_and_the_advice_at_its_end_and_many_are_counted():
    line = shortened(f"a.yaml: has {', '.join(map(str, range(20_000)))}; allowed: 3")
    assert len(line) == 400
    assert line.startswith("a.yaml: has 0, 1")
    assert line.endswith("19999; allowed: 3")
    lines = explain(UserError("\n".join(map(str, range(1000))))) or []
    assert (len(lines), lines[-1]) == (21, "980 more lines like these")
