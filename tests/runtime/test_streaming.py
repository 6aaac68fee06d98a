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
    destination = found[begin : begin + num_bytes]
    StreamedCopy([[(destination, source[source_begin : source_begin + num_bytes], 0, num_bytes)]]).run()
    assert (found == expected).all()


def test_another_thread_sees_all_of_it() -> None:
    source, found = (np.empty(1 << 20, np.uint8) for _ in range(2))
    with ThreadPoolExecutor(1) as thread:
        for value in range(200):
            source[:] = value
            thread.submit(StreamedCopy([[(found, source, 0, len(found))]]).run).result()
            assert (found == value).all()


def test_many_pieces_are_one_copy() -> None:
    generator = np.random.default_rng(1)
    sources = [generator.integers(0, 256, int(size), dtype=np.uint8) for size in (0, 5, 64, 1000, 1 << 17)]
    found = [np.zeros_like(source) for source in sources]
    StreamedCopy([[(one, other, 0, len(one)) for one, other in zip(found, sources, strict=True)]]).run()
    assert all((one == other).all() for one, other in zip(found, sources, strict=True))
    StreamedCopy([]).run()


def test_of_a_piece_only_the_bytes_that_were_asked_for_are_copied() -> None:
    source = np.arange(4000, dtype=np.uint16)
    found = np.zeros_like(source)
    StreamedCopy([[(found, source, 1001, 5003)]]).run()
    expected = np.zeros(8000, np.uint8)
    expected[1001:5003] = source.view(np.uint8)[1001:5003]
    assert (found.view(np.uint8) == expected).all()


def test_threads_that_copy_together_take_each_strip_once() -> None:
    source = np.random.default_rng(2).integers(0, 256, (300, 10_000), dtype=np.uint8)
    with ThreadPoolExecutor(3) as threads:
        for _ in range(20):
            found = np.zeros_like(source)
            copy = StreamedCopy([[(to, of, 0, len(of))] for to, of in zip(found, source, strict=True)])
            helped = [threads.submit(copy.run) for _ in range(3)]
            num_taken = 0
            while copy.take():
                num_taken += 1
            for help_ in helped:
                help_.result()
            assert num_taken <= len(source)
            assert all(copy.is_copied(strip) for strip in range(len(source)))
            assert (found == source).all()


def test_of_a_copy_that_is_stopped_nothing_more_is_taken() -> None:
    source = np.ones((4, 1000), np.uint8)
    found = np.zeros_like(source)
    copy = StreamedCopy([[(to, of, 0, len(of))] for to, of in zip(found, source, strict=True)])
    assert copy.take()
    copy.stop()
    assert not copy.take()
    copy.run()
    assert [copy.is_copied(strip) for strip in range(4)] == [True, False, False, False]
    assert found.sum(1).tolist() == [1000, 0, 0, 0]
