from __future__ import annotations

import asyncio
import itertools

import pytest

from plait.runtime.bench.arrivals import Arrival, Mix, closed_loop
from plait.runtime.bench.client import Reply
from plait.runtime.bench.load import Load, run_load

MIX = Mix(("a", "b"), 10, 5)


class FakeServer:
    """Answers after a while; knows how many it answered at once."""

    def __init__(self, seconds: float = 0.002) -> None:
        self.seconds = seconds
        self.num_active = 0
        self.most_active = 0
        self.num_asked = 0

    async def __call__(self, arrival: Arrival) -> Reply:
        self.num_asked += 1
        self.num_active += 1
        self.most_active = max(self.most_active, self.num_active)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.num_active -= 1
        return Reply(self.seconds, ttft_seconds=self.seconds, output_tokens=1)


def test_a_closed_loop_has_so_many_under_way_and_no_more() -> None:
    server = FakeServer()
    done: list[int] = []
    run = asyncio.run(run_load(Load(closed_loop(MIX), 3, 20), server, progress=done.append))
    assert len(run.outcomes) == server.num_asked == 20
    assert server.most_active == 3
    assert done == list(range(1, 21))
    assert run.num_interrupted == 0


def test_an_open_loop_does_not_wait_for_answers() -> None:
    server = FakeServer(0.3)
    arrivals = [Arrival(0.01 * number, "a", 1, 1) for number in range(10)]
    run = asyncio.run(run_load(Load(arrivals), server))
    assert server.most_active == len(run.outcomes) == 10
    sent = [outcome.sent_seconds for outcome in run.outcomes]
    assert all(moment >= arrival.seconds for moment, arrival in zip(sent, arrivals, strict=True))
    assert all(
        outcome.late_seconds == pytest.approx(outcome.sent_seconds - arrival.seconds)
        for outcome, arrival in zip(run.outcomes, arrivals, strict=True)
    )


def test_nothing_is_sent_after_the_time_and_what_is_under_way_is_waited_for() -> None:
    server = FakeServer(0.05)
    arrivals = (Arrival(0.02 * number, "a", 1, 1) for number in itertools.count())
    run = asyncio.run(run_load(Load(arrivals, duration_seconds=0.1), server))
    assert server.num_asked == len(run.outcomes) <= 5
    assert run.seconds == max(outcome.ended_seconds for outcome in run.outcomes)
    closed = asyncio.run(run_load(Load(closed_loop(MIX), 2, duration_seconds=0.1), server))
    assert 2 <= len(closed.outcomes) <= 6
    assert all(outcome.sent_seconds < 0.1 for outcome in closed.outcomes)


@pytest.mark.parametrize("concurrency", [None, 2], ids=["open", "closed"])
def test_a_stop_keeps_what_there_is(concurrency: int | None) -> None:
    server = FakeServer(0.001)

    async def main():
        stop = asyncio.Event()

        async def slow_in_the_end(arrival: Arrival) -> Reply:
            if server.num_asked >= 6:
                stop.set()
                await asyncio.Event().wait()
            return await server(arrival)

        arrivals = [Arrival(0.005 * number, "a", 1, 1) for number in range(100)]
        return await asyncio.wait_for(run_load(Load(arrivals, concurrency), slow_in_the_end, stop=stop), 10)

    run = asyncio.run(main())
    assert len(run.outcomes) == 6
    assert run.num_interrupted in (1, 2)


def test_a_defect_is_raised() -> None:
    async def broken(arrival: Arrival) -> Reply:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup, match="TaskGroup"):
        asyncio.run(run_load(Load(closed_loop(MIX), 1, 1), broken))
