"""MLflow's client, with something else between its calls."""

from collections.abc import Callable
from typing import Any


class InterruptedClient:
    """A client whose `at`-th call, from 1, comes after `interrupt`, or, with `lost`, before it.

    `counted`: how the names begin of those calls that count.
    """

    def __init__(
        self, client: Any, at: int, interrupt: Callable[[], object], *, lost: bool = False, counted: Any = ""
    ) -> None:
        self.client, self.at, self.interrupt, self.lost, self.counted, self.calls = (
            client,
            at,
            interrupt,
            lost,
            counted,
            0,
        )

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.client, name)
        if not callable(real) or not name.startswith(self.counted):
            return real

        def call(*values: Any, **named: Any) -> Any:
            self.calls += 1
            now = self.calls == self.at
            if now and not self.lost:
                self.interrupt()
            result = real(*values, **named)
            if now and self.lost:
                self.interrupt()
            return result

        return call
