from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.compiler.memory.packing import Buffer
from plait.compiler.verify.packing import verify_load, verify_packing
from plait.errors import VerificationError

PAIR = [Buffer("a", 0, 2, 4), Buffer("b", 1, 3, 2, 4)]


def test_neighbours_in_time_and_in_address_may_touch() -> None:
    verify_packing(PAIR, {"a": 0, "b": 4}, 6, 6)
    verify_packing([PAIR[0], Buffer("c", 2, 3, 4)], {"a": 0, "c": 0}, 4)


@pytest.mark.parametrize(
    ("offsets", "height", "says"),
    [
        ({"a": 0}, 4, "there are 1 offsets of 2 buffers"),
        ({"a": 0, "b": 6}, 8, "buffer 'b' is at 6; its alignment is 4"),
        ({"a": -1, "b": 4}, 6, "buffer 'a' is at -1"),
        ({"a": 0, "b": 4}, 5, "the highest buffer ends at 6, the height is said to be 5"),
        ({"a": 0, "b": 8}, 10, "the height is 10, the capacity 9"),
        ({"a": 1, "b": 4}, 6, "buffers 'b' at 4 and 'a' at 1 overlap at time 1"),
    ],
    ids=["missing", "alignment", "negative", "height", "capacity", "overlap"],
)
def test_a_wrong_packing_is_refused(offsets: dict[str, int], height: int, says: str) -> None:
    with pytest.raises(VerificationError) as error_info:
        verify_packing(PAIR, offsets, height, 9)
    assert says in str(error_info.value)


SPANS = st.tuples(st.integers(0, 5), st.integers(1, 3), st.integers(1, 3), st.integers(0, 8))


@given(st.lists(SPANS, max_size=7))
def test_all_pairs_are_held_against_each_other(spans: list[tuple[int, int, int, int]]) -> None:
    buffers = [Buffer(str(i), lower, lower + width, size) for i, (lower, width, size, _) in enumerate(spans)]
    offsets = {str(i): span[3] for i, span in enumerate(spans)}
    height = max((span[2] + span[3] for span in spans), default=0)
    cells = [
        (time, address)
        for buffer in buffers
        for time in range(buffer.lower, buffer.upper)
        for address in range(offsets[buffer.id], offsets[buffer.id] + buffer.size)
    ]
    if len(set(cells)) == len(cells):
        verify_packing(buffers, offsets, height)
    else:
        with pytest.raises(VerificationError, match="overlap at time"):
            verify_packing(buffers, offsets, height)


def test_a_load_is_the_sum_of_what_is_live() -> None:
    verify_load(PAIR, 1, 6)
    with pytest.raises(VerificationError, match="at time 2 2 bytes are live, not 6"):
        verify_load(PAIR, 2, 6)
