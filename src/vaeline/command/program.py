"""Start and end of a program: import path, signals, exit codes, one line for each error that the user can fix."""

import errno
import io
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from vaeline.errors import UserError
from vaeline.io.safe_read import FULL_DISK, shown

FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
FAILED_WRITES = {errno.EIO, errno.EFBIG, errno.EPIPE, errno.ESTALE}  # which may not name their file
MOST_LINES = 20
OWN = "work in a clone of your own"
OF_PIPELINE = {"mlflow", "PIL", "sklearn", "rich", "cryptography", "psutil"}  # brought by the extra `pipeline`
# of numpy, safetensors and torch, whose errors have no errno
FULL_DISK_MESSAGES = ("No space left on device", "Disk quota exceeded", "requested and", "inline_container.cc")


def use_code_of(root: Path) -> None:
    """Import `pipeline` and `vaeline` from this workspace from now on, here and in the processes started here."""
    own = [str(root / "src"), str(root)]
    sys.path[:] = [*own, *(path for path in sys.path if path not in own)]
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in own]
    os.environ["PYTHONPATH"] = os.pathsep.join([*own, *inherited])
    if not Path(__file__).resolve().is_relative_to(root.resolve()):  # installed from elsewhere
        for name in [name for name in sys.modules if name.partition(".")[0] == "vaeline"]:
            del sys.modules[name]


def set_process_defaults() -> None:
    """Set what libraries read from the environment when they are loaded; call it before torch is imported.

    A thread of GNU OpenMP that waits for another spins for some 20 microseconds, then sleeps: by default it spins for
    milliseconds, which on a machine shared with other programs makes training some thirty times slower than its share
    of the cores; for a fifth of that, a second core gains nothing. Servers started here answer on this machine alone,
    which a proxy does not reach.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    direct = [*os.environ.get("no_proxy", "").split(","), *os.environ.get("NO_PROXY", "").split(",")]
    hosts = ",".join(dict.fromkeys([*filter(None, direct), "127.0.0.1", "localhost"]))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = hosts  # where both are set, the lower-case one wins


def run_program(main: Callable[[], None]) -> NoReturn:
    """Run `main` and exit: 0, 1 for an error, 130 when interrupted, 143 when terminated.

    `UserError`, a full disk, a file of another user and exhausted memory are one line each; any other
    exception is a bug and keeps its traceback. SIGTERM raises SystemExit in `main`, so that what is open gets closed.
    """
    set_process_defaults()
    while (null := os.open(os.devnull, os.O_RDWR)) < 3:  # a closed standard stream: a database would take its place
        os.set_inheritable(null, True)
        setattr(sys, ("stdin", "stdout", "stderr")[null], os.fdopen(null, "w" if null else "r"))
    os.close(null)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as some supervisors leave it, every child ends with 0
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where it is closed
            stream.reconfigure(errors="replace")  # what a terminal cannot show is no reason to end
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except (KeyboardInterrupt, SystemExit) as end:
        code = end.code if isinstance(end, SystemExit) else 130  # with which typer, too, ends an interrupted command
        if code == 130:
            _complain("interrupted")
        _leave(code or 0)
    except Exception as error:
        if (lines := explain(error)) is None:
            raise
        for line in lines:
            _complain(f"error: {shortened(line)}")
        _leave(1)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):  # while Python shuts down, a signal ends it without a traceback
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
    _leave(0)


def _complain(line: str) -> None:
    with suppress(OSError):  # its file may be on the disk that is full
        print(line, file=sys.stderr)  # noqa: T201


def _leave(code: str | int) -> NoReturn:
    """End the process without Python's own shutdown, which takes a second with MLflow or torch.

    Prefect gets it for what its threads still send, unless a signal ended the program: then they may send for minutes.
    """
    if not isinstance(code, int) or ("prefect" in sys.modules and code not in (130, 143)):
        sys.exit(code)
    try:
        logging.shutdown()
        print(end="", flush=True)  # noqa: T201
    except OSError as error:
        if not code and not isinstance(error, BrokenPipeError):  # its reader has enough
            _complain(f"error: standard output: cannot be written: {error.strerror}")
        code = code or 1
    os._exit(code)


def shortened(line: str) -> str:
    """A line as a terminal may show it, of at most 400 characters: its start names a file, its end says what to do."""
    words = shown(line, most=1 << 20)
    return words if len(words) <= 400 else f"{words[:250]} ... {words[-145:]}"


def explain(error: BaseException) -> list[str] | None:
    """One line for each thing that the user can fix; None where the error is a bug."""
    kind, number, name = type(error).__name__, getattr(error, "errno", None), getattr(error, "filename", None)
    if isinstance(error, UserError):
        lines = [line for line in str(error).splitlines() if line.strip()] or ["no reason was given"]
        return [*lines[:MOST_LINES], f"{len(lines) - MOST_LINES} more lines like these"][: len(lines)]
    if number in FULL_DISK or (
        (isinstance(error, OSError | RuntimeError) or kind == "SafetensorError")
        and any(message in str(error) for message in FULL_DISK_MESSAGES)
    ):
        return [f"the disk is full{f': {name}' if name else ''}; free some space and run again ({error})"]
    if isinstance(error, OSError) and number in FORBIDDEN and name:
        return [f"{name}: {error.strerror}, for user {os.geteuid()}; {OWN}"]
    if isinstance(error, OSError) and ((name and number not in (None, errno.ENOENT)) or number in FAILED_WRITES):
        return [f"{name or 'a file'}: cannot be used: {error.strerror}"]
    if isinstance(error, ModuleNotFoundError):
        library = (error.name or "").partition(".")[0]
        return [f"{library}: is not installed; pip install 'vaeline[pipeline]'"] if library in OF_PIPELINE else None
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return ["out of memory; lower train.batch_size or model's widths, or use a machine with more"]
    if kind == "ValidationError" and (section := str(getattr(error, "title", ""))).endswith("Settings"):
        found = error.errors(include_url=False)  # type: ignore[attr-defined]
        return [f"PREFECT_...: {section}.{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found]
    return None
