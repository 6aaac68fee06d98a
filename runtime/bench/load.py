"""Load: sends arrivals to a server, in a closed or an open loop, and keeps what came of each.

In a closed loop a number of clients each send their next request when the last is answered. In an open loop a request
is sent at its time, whether or not those before are answered; how late the client was with it is kept. Requests under
way when the time is over are waited for; those that are interrupted are counted, and no more than that.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

from .arrivals import Arrival
from .client import Reply

__all__ = ["Load", "Outcome", "Run", "run_load"]


@dataclass(frozen=True)
class Load:
    """What is sent, and when that ends."""

    arrivals: Iterable[Arrival]
    concurrency: int | None = None  # clients of a closed loop; None: an open loop
    num_requests: int | None = None
    duration_seconds: float | None = None  # in which requests are sent


@dataclass(frozen=True)
class Outcome:
    """A request and what came of it."""

    model: str
    sent_seconds: float  # after the start
    late_seconds: float  # that it was sent after its time; 0 in a closed loop, where it has none
    reply: Reply

    @property
    def ended_seconds(self) -> float:
        """When its answer was complete, or had failed."""
        return self.sent_seconds + self.reply.end_seconds


@dataclass(frozen=True)
class Run:
    """All outcomes, in the order in which they came."""

    outcomes: tuple[Outcome, ...]
    num_interrupted: int

    @property
    def seconds(self) -> float:
        """From the start until the last answer was complete."""
        return max((outcome.ended_seconds for outcome in self.outcomes), default=0.0)


async def run_load(
    load: Load,
    send: Callable[[Arrival], Awaitable[Reply]],
    *,
    stop: asyncio.Event | None = None,
    progress: Callable[[int], None] | None = None,
) -> Run:
    """Sends a load.

    Args:
        load: What is sent.
        send: Sends one request; it raises nothing.
        stop: Once it is set nothing more is sent, and what is under way is interrupted.
        progress: Told how many requests are finished.

    Returns:
        What came of all requests that were sent.
    """
    sending = _Sending(load, send, progress or (lambda done: None))
    work = asyncio.ensure_future(sending.run())
    stopping = asyncio.ensure_future((stop or asyncio.Event()).wait())
    try:
        await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()  # raises what went wrong here
    finally:
        work.cancel()
        stopping.cancel()
        await asyncio.gather(work, stopping, return_exceptions=True)
    return Run(tuple(sending.outcomes), sending.num_interrupted)


class _Sending:
    def __init__(
        self, load: Load, send: Callable[[Arrival], Awaitable[Reply]], progress: Callable[[int], None]
    ) -> None:
        self.outcomes: list[Outcome] = []
        self.num_interrupted = 0
        self._load = load
        self._send = send
        self._progress = progress
        self._began = time.perf_counter()

    async def run(self) -> None:
        arrivals = self._arrivals()
        async with asyncio.TaskGroup() as group:
            if self._load.concurrency is not None:
                for _ in range(self._load.concurrency):
                    group.create_task(self._client(arrivals))
                return
            for arrival in arrivals:
                await asyncio.sleep(max(0.0, arrival.seconds - self._now()))
                group.create_task(self._one(arrival, due=arrival.seconds))

    def _arrivals(self) -> Iterator[Arrival]:
        """Yields what is to be sent; an open loop ends before the first that comes too late."""
        limit = self._load.duration_seconds
        for arrival in itertools.islice(self._load.arrivals, self._load.num_requests):
            if limit is not None and max(arrival.seconds, self._now()) >= limit:
                return
            yield arrival

    async def _client(self, arrivals: Iterator[Arrival]) -> None:
        for arrival in arrivals:
            await self._one(arrival)

    async def _one(self, arrival: Arrival, *, due: float | None = None) -> None:
        sent = self._now()
        late = 0.0 if due is None else max(0.0, sent - due)
        try:
            reply = await self._send(arrival)
        except asyncio.CancelledError:
            self.num_interrupted += 1
            raise
        self.outcomes.append(Outcome(arrival.model, sent, late, reply))
        self._progress(len(self.outcomes))

    def _now(self) -> float:
        return time.perf_counter() - self._began
