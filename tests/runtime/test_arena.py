from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from plait.runtime.arena import Arena

SIZE = 4096


def address(piece: np.ndarray) -> int:
    return piece.ctypes.data


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
        spans = sorted((address(piece), address(piece) + piece.nbytes) for piece in held)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


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
