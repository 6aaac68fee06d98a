"""Which share of a file the system keeps in memory, and how to make it forget the file. Linux."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np

__all__ = ["cached_share", "drop"]


def drop(path: Path) -> None:
    """Asks the system to forget a file's pages; those that a process has mapped stay."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # pages that are not written yet would stay
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def cached_share(path: Path) -> float:
    """Returns which share of a file's pages is in memory, by mincore(2)."""
    num_bytes = path.stat().st_size
    num_pages = -(-num_bytes // mmap.PAGESIZE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), num_bytes, prot=mmap.PROT_READ) as mapped:
        first = np.frombuffer(mapped, np.uint8)
        pages = np.empty(num_pages, np.uint8)
        library = ctypes.CDLL(None, use_errno=True)
        address, length = ctypes.c_void_p(first.ctypes.data), ctypes.c_size_t(num_bytes)
        failed = library.mincore(address, length, pages.ctypes.data_as(ctypes.c_void_p))
        error = ctypes.get_errno()
        del first  # or the mapping could not be closed
    if failed:
        raise OSError(error, os.strerror(error))
    return float((pages & 1).mean())
