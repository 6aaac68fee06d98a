"""Between callers, threads or coroutines, and the engine's threads: requests go in, outcomes come out."""

from __future__ import annotations

import asyncio
import itertools
import queue
from collections.abc import AsyncGenerator, Callable, Generator

from ...errors import ExecutionError, ModelUnhealthyError, RequestTimeoutError
from ..clock import Clock
from ..core import EngineCore, Outcome
from ..events import EmbedWork, GenerateWork, Request, Work
from ..metrics import Metrics

__all__ = ["Exchange"]


class Exchange:
    """Hands requests to the engine and waits for what comes of them.

    Args:
        core: The engine's threads.
        clock: Their time.
        metrics: Told of requests that nobody waits for any more.
    """

    def __init__(self, core: EngineCore, clock: Clock, metrics: Metrics) -> None:
        self.metrics = metrics
        self._core = core
        self._clock = clock
        self._ids = itertools.count(1)

    def now(self) -> float:
        """Returns the engine's time in seconds."""
        return self._clock.now()

    def request(
        self, model: str, work: Work, *, priority: int = 0, client: str = "", deadline_seconds: float | None = None
    ) -> Request:
        """Returns a request of its own number."""
        return Request(next(self._ids), model, work, priority, client, deadline_seconds)

    def post(self, request: Request) -> None:
        """Hands a request in that nobody waits for.

        Raises:
            RequestError: if it is not taken.
        """
        self._core.submit(request, lambda outcome: None)

    def outcomes(self, request: Request) -> Generator[Outcome, None, None]:
        """Yields what comes of a request for as long as the generator is open; closing it ends the request.

        Raises:
            RequestError: if the request is not taken.
            ExecutionError: if it fails.
        """
        outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._core.submit(request, outcomes.put)
        try:
            while True:
                yield _checked(outcomes.get())
        finally:
            self._abandon(request)

    async def outcomes_async(self, request: Request) -> AsyncGenerator[Outcome, None]:
        """Yields what comes of a request; as `outcomes`."""
        outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
        self._core.submit(request, _into(outcomes))
        try:
            while True:
                yield _checked(await outcomes.get())
        finally:
            self._abandon(request)

    def end(self, request: Request) -> bool:
        """Ends a request if it is under way, and returns whether it was."""
        return self._core.release(request.id)

    def _abandon(self, request: Request) -> None:
        """Ends a request that nobody waits for any more, if it hasn't ended by itself."""
        if self.end(request) and isinstance(request.work, GenerateWork | EmbedWork):
            self.metrics.request_finished(request.model, "cancelled")


def _into(outcomes: asyncio.Queue[Outcome]) -> Callable[[Outcome], None]:
    """Returns a sink that puts outcomes into a queue of the running event loop, from any thread."""
    loop = asyncio.get_running_loop()

    def sink(outcome: Outcome) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(outcomes.put_nowait, outcome)

    return sink


def _checked(outcome: Outcome) -> Outcome:
    if outcome.reply.failure == "timeout":
        raise RequestTimeoutError(outcome.reply.message)
    if outcome.reply.failure == "unhealthy":
        raise ModelUnhealthyError(outcome.reply.message)
    if outcome.reply.failure is not None:
        raise ExecutionError(outcome.reply.message)
    return outcome
