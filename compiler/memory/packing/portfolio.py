"""The exact search with many rules in turn, on two threads: what one rule never finds another one finds at once.

Each attempt ends after a number of nodes, and the next one has another rule and other random numbers. The number grows
from round to round, so that in the end one attempt tries everything, and that there is no packing is proven too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from time import monotonic
from typing import Literal

import numpy as np

from .canonical import EXHAUSTED, FOUND, STOPPED, search
from .instance import Instance
from .state import Buffers, State, make_state, state_bytes

__all__ = ["Found", "is_searchable", "make_buffers", "search_packing"]

_FIRST_NODES = 400
_GROWTH = 1.4  # of the nodes of an attempt, from round to round
_NOISE = 0.3  # standard deviation of what is added to a key
_KEPT = 0.5  # of the weights of failures, from attempt to attempt
_MOST_WEIGHT = 1000.0
_MOST_THREADS = 2
_MOST_BYTES = 1_200_000_000  # of the states of all threads


@dataclass(frozen=True)
class _Rule:
    """How an attempt chooses what it places next, see `choose`."""

    key: Literal["size", "width", "area", "blame", "fault"]
    is_urgent: bool = True
    pull: float = 1e-4  # of the ceiling


# Each is the only one that solves some problem in seconds, of those that were tried.
_RULES = (
    _Rule("width"),
    _Rule("size", pull=1e-6),
    _Rule("blame"),
    _Rule("area"),
    _Rule("width", pull=1e-3),
    _Rule("fault"),
    _Rule("blame", is_urgent=False),
    _Rule("size", pull=3e-4),
    _Rule("fault", is_urgent=False),
    _Rule("width", is_urgent=False),
)


@dataclass(frozen=True)
class Found:
    """What a search came to: offsets, or a proof that there are none, or nothing."""

    offsets: np.ndarray | None  # [buffers], units
    is_exhausted: bool


def is_searchable(instance: Instance) -> bool:
    """Whether the search has enough memory for so many buffers; up to 1,800 are never too many."""
    return _num_threads() * state_bytes(len(instance.size), len(instance.times)) <= _MOST_BYTES


def _num_threads() -> int:
    return min(_MOST_THREADS, os.cpu_count() or 1)


def search_packing(instance: Instance, ceiling: int, deadline: float) -> Found:
    """Searches a packing below a ceiling, in units, until the deadline of `time.monotonic`.

    Too many buffers for the memory of the search are not searched at all.
    """
    num_threads = _num_threads()
    if not is_searchable(instance) or monotonic() > deadline:
        return Found(None, False)
    stop = np.zeros(1, np.int64)
    workers = [_Worker(instance, ceiling, stop, number, num_threads) for number in range(num_threads)]
    with ThreadPoolExecutor(num_threads) as pool:
        futures: list[Future[Found]] = []
        try:
            # The first attempt is alone: it may be enough, and it compiles what all need.
            first = workers[0].attempt()
            if first is not None:
                return first
            futures = [pool.submit(worker.run) for worker in workers]
            done, _ = wait(futures, timeout=max(deadline - monotonic(), 0.0), return_when=FIRST_COMPLETED)
        finally:
            stop[0] = 1
    return _best([future.result() for future in (*done, *futures)])


def _best(results: Sequence[Found]) -> Found:
    return next((found for found in results if found.offsets is not None or found.is_exhausted), Found(None, False))


class _Worker:
    """One thread's attempts, with what they learn on the way."""

    def __init__(self, instance: Instance, ceiling: int, stop: np.ndarray, number: int, num_workers: int) -> None:
        self._buffers, self._ceiling, self._stop = make_buffers(instance), ceiling, stop
        self._state: State = make_state(len(instance.size), len(instance.times))
        self._random = np.random.default_rng(number)
        self._number, self._turn = number, 0
        self._num_workers = num_workers

    def run(self) -> Found:
        """Returns what the first attempt that ends finds, or nothing if all are stopped."""
        while not self._stop[0]:
            found = self.attempt()
            if found is not None:
                return found
        return Found(None, False)

    def attempt(self) -> Found | None:
        """Makes the next attempt; None if it was given up."""
        rule = _RULES[(self._turn * self._num_workers + self._number) % len(_RULES)]
        rounds = self._turn * self._num_workers / len(_RULES)
        most_nodes = int(_FIRST_NODES * _GROWTH ** int(rounds))
        self._turn += 1
        outcome = search(
            self._buffers,
            self._state,
            self._ceiling,
            self._key(rule),
            rule.is_urgent,
            rule.pull * self._ceiling,
            min(most_nodes, 2**60),
            self._stop,
        )
        self._forget()
        if outcome == STOPPED:
            return None
        return Found(self._state.offset.copy() if outcome == FOUND else None, outcome == EXHAUSTED)

    def _key(self, rule: _Rule) -> np.ndarray:
        """The logarithm of what a rule looks at; the blame of a buffer is what failed while it is live."""
        size, width = self._buffers.size, self._buffers.end - self._buffers.begin
        failures = np.append(0.0, self._state.weight.cumsum())
        blame = failures[self._buffers.end] - failures[self._buffers.begin]
        values = {"size": size, "width": width, "area": size * width, "blame": blame, "fault": blame * size}
        is_first_round = self._turn * self._num_workers <= len(_RULES)
        noise = 0.0 if is_first_round else _NOISE * self._random.standard_normal(len(size))
        return np.log(values[rule.key]) + noise

    def _forget(self) -> None:
        """Halves the weights of failures, and keeps them from outgrowing all else."""
        weight = self._state.weight
        weight -= 1.0
        weight *= _KEPT * _MOST_WEIGHT / max(_MOST_WEIGHT, float(weight.max()))
        weight += 1.0


def make_buffers(instance: Instance) -> Buffers:
    """Returns buffers as the search takes them."""
    rows = np.stack([instance.begin, instance.end, instance.size, instance.alignment], axis=1)
    twin = np.unique(rows, axis=0, return_inverse=True)[1].ravel()
    return Buffers(
        instance.begin,
        instance.end,
        instance.size,
        instance.alignment,
        twin.astype(np.int64),
        bool((instance.alignment > 1).any()),
    )
