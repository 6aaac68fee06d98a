from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.runtime.arena import Arena, GrowingArena

SIZE = 4096


def address(piece: np.ndarray) -> int:
    return piece.ctypes.data


def do_not_overlap(pieces: list[np.ndarray]) -> bool:
    spans = sorted((address(piece), address(piece) + piece.nbytes) for piece in pieces)
    return all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


@given(st.lists(st.tuples(st.integers(1, 900), st.booleans()), max_size=40))
def test_pieces_are_aligned_and_never_overlap(requests: list[tuple[int, bool]]) -> None:
    arena = Arena(SIZE)
    held: list[np.ndarray] = []
    for num_bytes, is_release in requests:
        if is_release and held:
            arena.release(held.pop(0))
        held.append(arena.allocate(num_bytes))
        assert address(held[-1]) % 64 == 0
        assert held[-1].nbytes == num_bytes
        assert do_not_overlap(held)


@given(st.permutations(range(8)))
def test_released_neighbours_become_one_hole_again(order: list[int]) -> None:
    arena = Arena(SIZE)
    pieces = [arena.allocate(SIZE // 8) for _ in range(8)]
    start = min(address(piece) for piece in pieces)
    for index in order:
        arena.release(pieces[index])
    assert address(arena.allocate(SIZE)) == start


def test_what_does_not_fit_comes_from_the_system_and_may_be_released() -> None:
    arena = Arena(SIZE)
    first = arena.allocate(SIZE)
    second = arena.allocate(64)
    assert not address(first) <= address(second) < address(first) + SIZE
    arena.release(second)
    arena.release(first)
    assert address(arena.allocate(SIZE)) == address(first)


@pytest.fixture
def growing() -> Iterator[GrowingArena]:
    arena = GrowingArena(SIZE)
    yield arena
    arena.close()


def is_ready_made(piece: np.ndarray) -> bool:
    """Whether a piece is an arena's, and none of the system's."""
    assert isinstance(piece.base, np.ndarray)
    return piece.base.nbytes > SIZE


def test_it_grows_as_it_fills_up_and_takes_pieces_back(growing: GrowingArena) -> None:
    pieces: list[np.ndarray] = []
    until = time.monotonic() + 10
    while sum(map(is_ready_made, pieces)) < 8 and time.monotonic() < until:
        time.sleep(0.001)
        pieces.append(growing.allocate(SIZE // 2))
    ready = [piece for piece in pieces if is_ready_made(piece)]
    assert len(ready) == 8
    assert do_not_overlap(pieces)
    for piece in pieces:
        growing.release(piece)
    again = [growing.allocate(SIZE // 2) for _ in range(8)]
    assert all(map(is_ready_made, again))
    assert do_not_overlap(again)


def test_pieces_do_not_overlap_whether_or_not_there_is_room_yet(growing: GrowingArena) -> None:
    pieces = [growing.allocate(SIZE // 2) for _ in range(40)]
    assert do_not_overlap(pieces)
    for piece in pieces:
        growing.release(piece)


def test_a_piece_may_be_larger_than_an_arena(growing: GrowingArena) -> None:
    piece = growing.allocate(2 * SIZE)
    assert piece.nbytes == 2 * SIZE
    growing.release(piece)
