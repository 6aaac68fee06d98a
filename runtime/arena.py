"""Memory that is allocated once, touched once, and handed out in pieces.

It stands in for a device's own on the CPU: an accelerator's allocator holds its memory for good, so a switch there is a
copy and nothing else. The C library would hand each evicted model's pages back to the system, and the next model would
arrive at the speed of page faults. So would saved KV blocks, for which it grows.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

__all__ = ["Arena", "GrowingArena", "aligned_empty", "padded"]

_ALIGNMENT = 64  # bytes; JAX takes over an aligned buffer without a copy


class Arena:
    """One block of memory, and which of it is free. Thread-safe.

    Args:
        num_bytes: Of the block; touched at once, so that no later copy waits for pages.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.free_bytes = num_bytes  # in however many holes
        raw = np.ones(num_bytes + _ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT
        self._block = raw[start : start + num_bytes]
        self._free = [(0, num_bytes)]  # (offset, bytes), by offset, neighbours merged
        self._lock = threading.Lock()

    def find(self, num_bytes: int) -> np.ndarray | None:
        """Returns aligned memory, [num_bytes] of u8: the first hole that holds it, if one does."""
        size = padded(num_bytes)
        with self._lock:
            for index, (offset, room) in enumerate(self._free):
                if room >= size:
                    self._free[index : index + 1] = [(offset + size, room - size)] if room > size else []
                    self.free_bytes -= size
                    return self._block[offset : offset + num_bytes]
        return None

    def allocate(self, num_bytes: int) -> np.ndarray:
        """Returns what `find` does, or the system's memory if no hole holds it."""
        piece = self.find(num_bytes)
        return aligned_empty(num_bytes) if piece is None else piece

    def release(self, piece: np.ndarray) -> None:
        """Takes back memory that `allocate` gave; nobody may use it any more."""
        offset = piece.ctypes.data - self._block.ctypes.data
        if not 0 <= offset < len(self._block):
            return  # the system's
        size = padded(piece.nbytes)
        with self._lock:
            merged: list[tuple[int, int]] = []
            for start, room in sorted([*self._free, (offset, size)]):
                if merged and sum(merged[-1]) == start:
                    merged[-1] = (merged[-1][0], merged[-1][1] + room)
                else:
                    merged.append((start, room))
            self._free = merged
            self.free_bytes += size


class GrowingArena:
    """Arenas of one size; when less than half of one is free, another thread makes the next. For one thread.

    Args:
        num_bytes: Of each. One and a half of them are held at most beside what pieces took at some time.
    """

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._arenas: list[Arena] = []
        self._maker = ThreadPoolExecutor(1, "plait-arena")
        self._coming: Future[Arena] | None = self._maker.submit(Arena, num_bytes)

    def allocate(self, num_bytes: int) -> np.ndarray:
        """Returns aligned memory, [num_bytes] of u8: the system's if there is no room yet."""
        if self._coming is not None and self._coming.done():
            self._arenas.append(self._coming.result())
            self._coming = None
        pieces = (arena.find(num_bytes) for arena in self._arenas)
        piece = next((piece for piece in pieces if piece is not None), None)
        if self._coming is None and sum(arena.free_bytes for arena in self._arenas) < self._num_bytes // 2:
            self._coming = self._maker.submit(Arena, self._num_bytes)
        return aligned_empty(num_bytes) if piece is None else piece

    def release(self, piece: np.ndarray) -> None:
        """Takes back memory that `allocate` gave; nobody may use it any more."""
        for arena in self._arenas:
            arena.release(piece)

    def close(self) -> None:
        """Ends the thread."""
        self._maker.shutdown(cancel_futures=True)


def aligned_empty(num_bytes: int) -> np.ndarray:
    """Returns aligned memory of the system's, [num_bytes] of u8."""
    raw = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + num_bytes]


def padded(num_bytes: int) -> int:
    """Returns the bytes that a piece takes: what follows it is aligned again."""
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
