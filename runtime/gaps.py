"""The gaps between steps: where a copy that stands in for a link's takes nothing from what is computed.

A device's link moves bytes beside its steps. Here both take the same memory and the same cores, and a step whose
threads wait for each other loses more than the copy takes. So what the link would have moved during a step is copied
after it, before the next one begins.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["StepGaps"]

_MOST_LATE_SECONDS = 0.05  # that a chunk waits for the end of a step: a decode step is shorter, a long prompt's is not
_MOST_DELAY_SECONDS = 0.01  # for which a step lets further chunks go first


class StepGaps:
    """Takes turns between a thread that computes and one that copies."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_computing = False
        self._is_copying = False
        self._waits_since = float("inf")  # the next step

    @contextmanager
    def step(self) -> Iterator[None]:
        """Computes inside, once the chunk under way is copied."""
        with self._changed:
            self._waits_since = time.perf_counter()
            self._changed.wait_for(lambda: not self._is_copying)
            self._waits_since, self._is_computing = float("inf"), True
        try:
            yield
        finally:
            with self._changed:
                self._is_computing = False
                self._changed.notify_all()

    @contextmanager
    def chunk(self, due: float) -> Iterator[None]:
        """Copies inside: when nothing is computed, or once it is too late to wait any longer.

        Args:
            due: When the link would begin, by `time.perf_counter`.
        """
        with self._changed:
            self._changed.wait_for(self._is_gap, max(0.0, due + _MOST_LATE_SECONDS - time.perf_counter()))
            self._is_copying = True
        try:
            yield
        finally:
            with self._changed:
                self._is_copying = False
                self._changed.notify_all()

    def _is_gap(self) -> bool:
        return not self._is_computing and time.perf_counter() - self._waits_since < _MOST_DELAY_SECONDS
