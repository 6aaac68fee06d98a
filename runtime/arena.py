"""Memory that stands in for a device's own on the CPU: allocated once, touched once, handed out in pieces.

An accelerator's allocator holds its memory for good, so a switch there is a copy and nothing else. The C library
would hand each evicted model's pages back to the system, and the next model would arrive at the speed of page faults.
"""

from __future__ import annotations

import threading

import numpy as np

__all__ = ["Arena", "aligned_empty", "padded"]

_ALIGNMENT = 64  # bytes; JAX takes over an aligned buffer without a copy


class Arena:
    """One block of memory, and which of it is free. Thread-safe.

    Args:
        num_bytes: Of the block; touched at once, so that no later copy waits for pages.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        raw = np.ones(num_bytes + _ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT
        self._block = raw[start : start + num_bytes]
        self._free = [(0, num_bytes)]  # (offset, bytes), by offset, neighbours merged
        self._lock = threading.Lock()

    def allocate(self, num_bytes: int) -> np.ndarray:
        """Returns aligned memory, [num_bytes] of u8: the first hole that holds it, or the system's if none does."""
        size = padded(num_bytes)
        with self._lock:
            for index, (offset, room) in enumerate(self._free):
                if room >= size:
                    self._free[index : index + 1] = [(offset + size, room - size)] if room > size else []
                    return self._block[offset : offset + num_bytes]
        return aligned_empty(num_bytes)

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


def aligned_empty(num_bytes: int) -> np.ndarray:
    """Returns aligned memory of the system's, [num_bytes] of u8."""
    raw = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + num_bytes]


def padded(num_bytes: int) -> int:
    """Returns the bytes that a piece takes: what follows it is aligned again."""
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
