"""Chunks of a copy and steps take turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest

from plait.runtime import gaps as module
from plait.runtime.gaps import StepGaps

SOON = 10.0  # seconds, by which a thread that can go on has done so
A_WHILE = 0.05  # seconds, in which one that can go on would have


@pytest.fixture
def gaps(monkeypatch: pytest.MonkeyPatch) -> StepGaps:
    monkeypatch.setattr(module, "_MOST_LATE_SECONDS", SOON)
    monkeypatch.setattr(module, "_MOST_DELAY_SECONDS", SOON)
    return StepGaps()


def now(gaps: StepGaps) -> AbstractContextManager[None]:
    """A chunk that is due now."""
    return gaps.chunk(time.perf_counter())


@contextmanager
def beside(inside: Callable) -> Iterator[threading.Event]:
    """Enters and leaves a context in another thread; yields what is set once it is left."""
    is_done = threading.Event()

    def run() -> None:
        with inside():
            is_done.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield is_done
    finally:
        thread.join(SOON)
        assert not thread.is_alive()


def test_a_chunk_waits_for_the_end_of_a_step(gaps: StepGaps) -> None:
    with ExitStack() as stack:
        with gaps.step():
            copied = stack.enter_context(beside(lambda: now(gaps)))
            assert not copied.wait(A_WHILE)
        assert copied.wait(SOON)


def test_a_step_waits_for_the_chunk_under_way(gaps: StepGaps) -> None:
    with ExitStack() as stack:
        with now(gaps):
            computed = stack.enter_context(beside(gaps.step))
            assert not computed.wait(A_WHILE)
        assert computed.wait(SOON)


def test_a_chunk_does_not_wait_for_a_long_step(gaps: StepGaps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_LATE_SECONDS", 0.0)
    with gaps.step(), beside(lambda: now(gaps)) as copied:
        assert copied.wait(SOON)


def test_a_step_that_has_waited_long_enough_goes_before_the_next_chunk(
    gaps: StepGaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_DELAY_SECONDS", 0.0)
    order: list[str] = []

    @contextmanager
    def step() -> Iterator[None]:
        with gaps.step():
            order.append("step")
            yield

    with ExitStack() as stack:
        with now(gaps):
            stack.enter_context(beside(step))
            deadline = time.monotonic() + SOON
            while gaps._waits_since == float("inf") and time.monotonic() < deadline:
                time.sleep(0.001)
        with now(gaps):
            order.append("chunk")
    assert order == ["step", "chunk"]


def test_what_fails_inside_leaves_the_way_free(gaps: StepGaps) -> None:
    for inside in (gaps.step, lambda: now(gaps)):
        with pytest.raises(RuntimeError), inside():
            raise RuntimeError("the device failed")
    with gaps.step():
        pass
    with now(gaps):
        pass
