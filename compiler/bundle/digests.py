"""Digests of a bundle's files: what the writer records and the reader holds the bytes against.

A file is hashed whole and per chunk of `CHUNK_BYTES`, so that a reader can check each chunk while it streams and use
it before the last byte has arrived.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from .manifest import FileEntry

__all__ = ["CHUNK_BYTES", "digest_file", "num_chunks", "read_chunks", "sha256_hex"]

CHUNK_BYTES = 16 * 2**20


def sha256_hex(data: bytes | memoryview) -> str:
    """Returns the SHA-256 of `data` as 64 lowercase hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def num_chunks(size_bytes: int) -> int:
    """Returns how many chunks a file of that size has."""
    return -(-size_bytes // CHUNK_BYTES)


def read_chunks(file: BinaryIO) -> Iterator[memoryview]:
    """Yields the rest of a file in chunks of `CHUNK_BYTES`, the last one shorter.

    All chunks share one buffer: each is valid until the next one is asked for.
    """
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while num_bytes := _fill(file, buffer):
        yield buffer[:num_bytes]


def digest_file(file: BinaryIO, progress: Callable[[int], None] | None = None) -> FileEntry:
    """Returns the size and digests of the rest of an open file.

    Args:
        file: Open for reading bytes.
        progress: Called after each chunk with the number of its bytes.
    """
    whole = hashlib.sha256()
    chunks: list[str] = []
    size_bytes = 0
    for chunk in read_chunks(file):
        whole.update(chunk)
        chunks.append(sha256_hex(chunk))
        size_bytes += len(chunk)
        if progress is not None:
            progress(len(chunk))
    return FileEntry(size_bytes, whole.hexdigest(), tuple(chunks))


def _fill(file: BinaryIO, buffer: memoryview) -> int:
    """Reads until the buffer is full or the file ends; a raw file may give less than asked for at a time."""
    filled = 0
    while filled < len(buffer):
        num_bytes = file.readinto(buffer[filled:])  # type: ignore[attr-defined]
        if not num_bytes:
            break
        filled += num_bytes
    return filled
