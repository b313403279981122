"""How programs start and end here: one clear line for what the user can mend, exit codes, plain log lines."""

import errno
import io
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from pipeline.services.child_processes import die_with_parent
from pipeline.services.workspace_lock import stage_turn
from pipeline.stages import PARENT
from vaeline.errors import TRY_AGAIN, TransientError, UserError

FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
OWN = "work in a clone of your own"
# numpy, safetensors and torch each have their own words for it, without an errno
FULL_DISK_WORDS = ("No space left on device", "Disk quota exceeded", "requested and", "inline_container.cc")


def run_stage(main: Callable[[], None]) -> NoReturn:
    """Run a stage's `main` as `run_program` does, with plain log lines.

    It ends with its parent: a killed `dvc repro` leaves no orphan that works on beside a second one. Where another
    run is at work in this workspace it does nothing; where something outside is away it exits with TRY_AGAIN.
    """
    die_with_parent(PARENT)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for ours in ("vaeline", "pipeline", "__main__"):
        logging.getLogger(ours).setLevel(logging.INFO)
    run_and_leave(lambda: _in_turn(main))


def run_and_leave(main: Callable[[], None]) -> NoReturn:
    """Run `main` as `run_program` does; when it was stopped by a signal, end without taking Python down.

    All is closed then. Taking torch down takes a second and more, Prefect's threads minutes where they go on sending
    to a temporary server that is gone, and somebody waits.
    """
    try:
        run_program(main)
    except SystemExit as end:
        if end.code in (130, 143):
            logging.shutdown()
            print(end="", flush=True)  # noqa: T201
            os._exit(int(end.code))
        raise


def _in_turn(main: Callable[[], None]) -> None:
    with stage_turn():
        try:
            main()
        except TransientError as error:
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)  # noqa: T201
            sys.exit(TRY_AGAIN)


def run_program(main: Callable[[], None]) -> NoReturn:
    """Run `main` and exit: 0, 1 for an error, 130 when interrupted, 143 when terminated.

    `UserError`, a full disk, a file that is not the user's and exhausted memory are told in one line each; any other
    exception is a bug and keeps its traceback. SIGTERM raises SystemExit in `main`, so that what is open gets closed.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as some supervisors leave it, every child ends with 0
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where it is closed
            stream.reconfigure(errors="replace")  # what a terminal cannot show is no reason to end
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except Exception as error:
        lines = explain(error)
        if lines is None:
            raise
        for line in lines:
            print(f"error: {line}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    finally:
        _end_at_once()
    sys.exit(0)


def explain(error: BaseException) -> list[str] | None:
    """One line for each thing that the user can mend; None where the error is a bug."""
    if isinstance(error, UserError):
        return str(error).splitlines()
    if _disk_is_full(error):
        name = getattr(error, "filename", None)
        return [f"the disk is full{f': {name}' if name else ''}; free some space and run again ({error})"]
    if isinstance(error, OSError) and error.errno in FORBIDDEN and error.filename:
        return [f"{error.filename}: {error.strerror}, for user {os.geteuid()}; {OWN}"]
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return ["out of memory; lower train.batch_size or model's widths, or use a machine with more"]
    return None


def _disk_is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return True
    io_error = isinstance(error, OSError | RuntimeError) or type(error).__name__ == "SafetensorError"
    return io_error and any(words in str(error) for words in FULL_DISK_WORDS)


def _end_at_once() -> None:
    """While Python takes itself down, a signal ends it without a traceback."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
