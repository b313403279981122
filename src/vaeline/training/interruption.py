"""SIGTERM and Ctrl-C, deferred to the end of a step and a checkpoint."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """The signal that this process received, if any."""

    number: int | None = None

    def error(self) -> BaseException:
        """SystemExit(143), or KeyboardInterrupt; another process of the group may have received the signal."""
        if self.number == signal.SIGINT:
            return KeyboardInterrupt()
        return SystemExit(128 + (self.number or signal.SIGTERM))


@contextmanager
def deferred() -> Iterator[Interruption]:
    """Note SIGTERM and SIGINT instead of acting on them, for the length of the block (in the main thread)."""
    noted = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, frame: FrameType | None) -> None:
        noted.number = number

    heard = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
