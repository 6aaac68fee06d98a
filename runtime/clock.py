"""Time as the runtime sees it: injected, so that the same scheduler runs in real and in simulated seconds."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "MonotonicClock"]


class Clock(Protocol):
    """A source of seconds that never goes back."""

    def now(self) -> float:
        """Returns seconds since an arbitrary start."""
        ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Returns seconds since an arbitrary start."""
        return time.monotonic()
