"""Copies of tensors in chunks: a transfer can end after any of them, and says how far it has come.

The thread that asks for them copies, and another one beside it; but alone where each chunk has to fit between two
steps. Whoever is done with a strip takes the next: the first has more to do than to copy.

A tensor that is larger than a chunk is divided where its bytes are copied into memory of this process; devices with
memory of their own get whole tensors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

import jax
import numpy as np

from ..compiler.target import Link

if TYPE_CHECKING:
    from .streaming import StreamedCopy

__all__ = ["ChunkCopier", "Pace", "Tensor"]

Tensor: TypeAlias = np.ndarray | jax.Array

_STRIPS_A_CHUNK = 2  # one for each thread: one alone does not fill this machine's memory bus


@dataclass
class _Strip:
    """Bytes of consecutive tensors, for one thread to copy."""

    parts: list[tuple[str, int, int]]  # (tensor, its bytes: half-open)
    whole: list[str]  # tensors whose last bytes are among them
    num_bytes: int


class ChunkCopier:
    """Copies tensors to where others of the same shapes are."""

    def __init__(self) -> None:
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="plait-copy")

    def close(self) -> None:
        """Ends the thread that helps."""
        self._helper.shutdown()

    def copy(
        self,
        source: Mapping[str, Tensor],
        destination: Mapping[str, np.ndarray] | None,
        chunk_bytes: int,
        within: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> Generator[tuple[Mapping[str, Tensor], int], None, None]:
        """Yields the tensors that are whole with a chunk, and its bytes; by default while the next ones are copied.

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
            for strip in self._copied_by_two(source, destination, chunk_bytes):
                yield {name: destination[name] for name in strip.whole}, strip.num_bytes
        else:  # by this thread: others would begin a while after the gap does
            for strip in _strips(source, chunk_bytes, divides=True):
                copy = _streamed([strip], source, destination)
                with within():
                    copy.run()
                    _copy_others(strip, source, destination)
                yield {name: destination[name] for name in strip.whole}, strip.num_bytes

    def _copied_by_two(
        self, source: Mapping[str, Tensor], destination: Mapping[str, np.ndarray], chunk_bytes: int
    ) -> Generator[_Strip, None, None]:
        """Yields strips that are copied, in order; the helper copies further ones meanwhile."""
        strips = list(_strips(source, max(1, chunk_bytes // _STRIPS_A_CHUNK), divides=True))
        copy = _streamed(strips, source, destination)
        helped = self._helper.submit(copy.run)
        try:
            for number, strip in enumerate(strips):
                while not copy.is_copied(number):
                    if not copy.take():
                        helped.result()  # has taken what is missing
                _copy_others(strip, source, destination)
                yield strip
        finally:
            copy.stop()
            wait([helped])  # the memory may be given back next


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


def _streamed(
    strips: Sequence[_Strip], source: Mapping[str, Tensor], destination: Mapping[str, np.ndarray]
) -> StreamedCopy:
    from .streaming import StreamedCopy  # once there is something to copy: it takes a while

    return StreamedCopy(
        [
            [
                (destination[name], tensor, begin, end)
                for name, begin, end in strip.parts
                if _is_flat(tensor := source[name])
            ]
            for strip in strips
        ]
    )


def _copy_others(strip: _Strip, source: Mapping[str, Tensor], destination: Mapping[str, np.ndarray]) -> None:
    """Copies the tensors of a strip that are no row of bytes."""
    for name in strip.whole:
        if not _is_flat(source[name]):
            np.copyto(destination[name], source[name])


def _is_flat(tensor: Tensor) -> TypeGuard[np.ndarray]:
    """Whether a tensor's bytes are beside each other."""
    return isinstance(tensor, np.ndarray) and tensor.flags.c_contiguous
