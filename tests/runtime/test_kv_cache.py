from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from plait.runtime.kv_cache import BlockPool


def test_a_table_grows_by_whole_blocks_lowest_first():
    pool, table = BlockPool(4, block_tokens=16), []
    assert pool.extend(table, 1)
    assert table == [0]
    assert pool.extend(table, 16)
    assert table == [0]
    assert pool.extend(table, 17)
    assert table == [0, 1]
    assert pool.num_free == 2


def test_a_table_that_cannot_grow_stays_as_it_is():
    pool, table, other = BlockPool(3, block_tokens=4), [], []
    assert pool.extend(table, 8)
    assert not pool.extend(other, 8)
    assert (table, other, pool.num_free) == ([0, 1], [], 1)


def test_blocks_that_came_back_are_handed_out_again():
    pool, first, second = BlockPool(2, block_tokens=4), [], []
    assert pool.extend(first, 8)
    pool.release(first)
    assert first == []
    assert pool.extend(second, 8)
    assert second == [0, 1]


def test_an_empty_table_gives_back_nothing():
    pool = BlockPool(2, block_tokens=4)
    pool.release([])
    assert pool.num_free == 2


@given(
    num_blocks=st.integers(1, 12),
    block_tokens=st.integers(1, 5),
    moves=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), max_size=40),
)
def test_every_block_has_one_owner_at_most(num_blocks: int, block_tokens: int, moves: list[tuple[int, int]]):
    pool = BlockPool(num_blocks, block_tokens)
    tables: list[list[int]] = [[], [], [], []]
    for index, num_tokens in moves:
        table = tables[index]
        if num_tokens == 0:
            pool.release(table)
        elif pool.extend(table, num_tokens):
            assert len(table) * block_tokens >= num_tokens
        owned = [block for other in tables for block in other]
        assert len(set(owned)) == len(owned)
        assert set(owned) <= set(range(num_blocks))
        assert pool.num_free == num_blocks - len(owned)
