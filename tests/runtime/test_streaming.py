"""Copies past the caches: the bytes asked for and no others, wherever they begin."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from plait.runtime.streaming import StreamedCopy

MARGIN = 128  # bytes


@pytest.mark.parametrize("num_bytes", [0, 1, 63, 64, 4096, 1 << 16, (1 << 16) + 1, (1 << 20) - 1, (1 << 20) + 77])
@pytest.mark.parametrize("begin", [0, 1, 8, 63, 64])
@pytest.mark.parametrize("source_begin", [0, 3])
def test_bytes_are_copied_and_nothing_beside_them(num_bytes: int, begin: int, source_begin: int) -> None:
    source = np.random.default_rng(0).integers(0, 256, num_bytes + MARGIN, dtype=np.uint8)
    found = np.full(num_bytes + MARGIN, 255, np.uint8)
    expected = found.copy()
    expected[begin : begin + num_bytes] = source[source_begin : source_begin + num_bytes]
    StreamedCopy([(found[begin : begin + num_bytes], source[source_begin : source_begin + num_bytes])]).run()
    assert (found == expected).all()


def test_another_thread_sees_all_of_it() -> None:
    source, found = (np.empty(1 << 20, np.uint8) for _ in range(2))
    copy = StreamedCopy([(found, source)])
    with ThreadPoolExecutor(1) as thread:
        for value in range(200):
            source[:] = value
            thread.submit(copy.run).result()
            assert (found == value).all()


def test_many_pieces_are_one_copy() -> None:
    generator = np.random.default_rng(1)
    sources = [generator.integers(0, 256, int(size), dtype=np.uint8) for size in (0, 5, 64, 1000, 1 << 17)]
    found = [np.zeros_like(source) for source in sources]
    StreamedCopy(list(zip(found, sources, strict=True))).run()
    assert all((one == other).all() for one, other in zip(found, sources, strict=True))
    StreamedCopy([]).run()
