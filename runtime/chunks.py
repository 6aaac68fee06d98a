"""Copies of tensors in chunks: a transfer can end after any of them, and says how far it has come.

Several threads copy, and one alone where each chunk has to fit between two steps.

A tensor that is larger than a chunk is divided where its bytes are copied into memory of this process; devices with
memory of their own get whole tensors.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import jax
import numpy as np

from ..compiler.target import Link

if TYPE_CHECKING:
    from .streaming import StreamedCopy

__all__ = ["ChunkCopier", "Pace", "Tensor"]

Tensor: TypeAlias = np.ndarray | jax.Array

_NUM_THREADS = 2  # one thread alone does not fill this machine's memory bus


@dataclass
class _Strip:
    """Bytes of consecutive tensors, for one thread to copy."""

    parts: list[tuple[str, int, int]]  # (tensor, its bytes: half-open)
    whole: list[str]  # tensors whose last bytes are among them
    num_bytes: int


class ChunkCopier:
    """Copies tensors to where others of the same shapes are."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="plait-copy")

    def close(self) -> None:
        """Ends the copying threads."""
        self._threads.shutdown()

    def copy(
        self,
        source: Mapping[str, Tensor],
        destination: Mapping[str, np.ndarray] | None,
        chunk_bytes: int,
        within: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> Generator[tuple[Mapping[str, Tensor], int], None, None]:
        """Yields the tensors that are whole with a chunk, and its bytes; by default while the next chunk is copied.

        No copy is under way any more once the iterator is closed.

        Args:
            source: What to copy.
            destination: Where to; None yields the sources themselves, for somebody else to copy.
            chunk_bytes: About as many are in a chunk.
            within: Where each chunk is to be copied, and nothing beside; anywhere by default.
        """
        if destination is None:
            for strip in _strips(source, chunk_bytes, divides=False):
                yield {name: source[name] for name in strip.whole}, strip.num_bytes
        elif within is None:
            yield from self._copy_ahead(source, destination, chunk_bytes)
        else:  # by this thread: others would begin a while after the gap does
            for strip in _strips(source, chunk_bytes, divides=True):
                copy = _prepared(strip, source, destination)
                with within():
                    copy.run()
                yield {name: destination[name] for name in strip.whole}, strip.num_bytes

    def _copy_ahead(
        self, source: Mapping[str, Tensor], destination: Mapping[str, np.ndarray], chunk_bytes: int
    ) -> Generator[tuple[Mapping[str, Tensor], int], None, None]:
        """Yields chunks, each while the next one is copied, by all threads."""
        strips = _strips(source, max(1, chunk_bytes // _NUM_THREADS), divides=True)
        ahead: deque[tuple[list[_Strip], list[Future[None]]]] = deque()
        try:
            while chunk := list(itertools.islice(strips, _NUM_THREADS)):
                ahead.append((chunk, [self._threads.submit(_prepared(s, source, destination).run) for s in chunk]))
                if len(ahead) > 1:
                    yield _arrived(*ahead.popleft(), destination)
            while ahead:
                yield _arrived(*ahead.popleft(), destination)
        finally:
            wait([future for _, futures in ahead for future in futures])  # their memory may be given back next


class Pace:
    """Keeps a copy from being faster than its link; every device has one of its own, and all begin together."""

    def __init__(self, link: Link, began: float) -> None:
        self._link = link
        self._began = began
        self._device_bytes = 0  # of the device whose turn it is
        self.done_bytes = 0  # of the fullest device so far
        self.slept_seconds = 0.0

    @property
    def is_kept(self) -> bool:
        """Whether the link has a pace, which copies wait for."""
        return self._link.pace

    @property
    def due(self) -> float:
        """When the link would have moved what has arrived, by `time.perf_counter`."""
        return self._began + self._link.latency_seconds + self._device_bytes / self._link.bandwidth_bytes_per_s

    def next_device(self) -> None:
        """Begins to count another device's bytes."""
        self._device_bytes = 0

    def moved(self, num_bytes: int) -> None:
        """Counts bytes that have arrived, and waits until the link would have moved all there are so far."""
        self._device_bytes += num_bytes
        self.done_bytes = max(self.done_bytes, self._device_bytes)
        if self.is_kept:
            wait = self.due - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
                self.slept_seconds += wait


def _strips(tensors: Mapping[str, Tensor], most_bytes: int, *, divides: bool) -> Iterator[_Strip]:
    """Yields all bytes of some tensors, in order, in strips of so many bytes; or more, where no tensor is divided."""
    strip = _Strip([], [], 0)
    for name, tensor in tensors.items():
        size, begin = tensor.nbytes, 0
        while True:
            end = min(size, begin + most_bytes - strip.num_bytes) if divides and _is_flat(tensor) else size
            strip.parts.append((name, begin, end))
            strip.num_bytes += end - begin
            begin = end
            if end == size:
                strip.whole.append(name)
            if strip.num_bytes >= most_bytes:
                yield strip
                strip = _Strip([], [], 0)
            if end == size:
                break
    if strip.parts:
        yield strip


def _prepared(strip: _Strip, source: Mapping[str, Tensor], destination: Mapping[str, np.ndarray]) -> StreamedCopy:
    from .streaming import StreamedCopy  # once there is something to copy: it takes a while

    pieces = [(_bytes_of(destination[name])[i:j], _bytes_of(source[name])[i:j]) for name, i, j in strip.parts]
    return StreamedCopy(pieces)


def _is_flat(tensor: Tensor) -> bool:
    """Whether a tensor's bytes are beside each other."""
    return isinstance(tensor, np.ndarray) and tensor.flags.c_contiguous


def _bytes_of(tensor: Tensor) -> np.ndarray:
    """Returns a tensor's bytes in order; a copy if they are not beside each other."""
    return np.asarray(tensor).reshape(-1).view(np.uint8)


def _arrived(
    chunk: list[_Strip], copies: list[Future[None]], destination: Mapping[str, np.ndarray]
) -> tuple[Mapping[str, Tensor], int]:
    for copy in copies:
        copy.result()
    whole = {name: destination[name] for strip in chunk for name in strip.whole}
    return whole, sum(strip.num_bytes for strip in chunk)
