from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from plait.runtime.kv_cache import BlockPool, chain_digests, root_digest


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


def filled(pool: BlockPool, tokens: list[int]) -> list[int]:
    """A table of full blocks, each of which can be found."""
    table: list[int] = []
    assert pool.extend(table, len(tokens))
    for position, digest in enumerate(digests(tokens)):
        pool.insert(table, position, digest)
    return table


def digests(tokens: list[int], salt: str = "") -> list[bytes]:
    """Those of blocks of two tokens."""
    return list(chain_digests(root_digest(salt), tokens, 2))


def test_a_digest_tells_tokens_all_before_them_and_the_salt():
    assert digests([1, 2, 3, 4])[1] == digests([1, 2, 3, 4])[1]
    assert len({*digests([1, 2, 3, 4]), *digests([3, 4]), *digests([5, 6, 3, 4]), *digests([1, 2, 3, 4], "x")}) == 7


def test_a_salt_may_be_any_text():
    assert root_digest("\ud800") != root_digest("")


def test_released_blocks_are_found_until_their_room_is_needed():
    pool = BlockPool(4, block_tokens=2)
    table = filled(pool, [1, 2, 3, 4])
    pool.release(table)
    assert (pool.num_free, pool.match(digests([1, 2, 3, 4, 5, 6]))) == (4, [0, 1])
    other: list[int] = []
    assert pool.extend(other, 6)
    assert pool.match(digests([1, 2, 3, 4])) == [0]  # the end of it went before its beginning
    pool.release(other)
    assert pool.extend(other, 8)
    assert pool.match(digests([1, 2, 3, 4])) == []


def test_the_least_recently_used_goes_first():
    pool = BlockPool(2, block_tokens=2)
    for tokens in ([1, 2], [3, 4]):
        pool.release(filled(pool, tokens))
    table: list[int] = []
    pool.share(table, pool.match(digests([1, 2])))
    pool.release(table)
    pool.extend(table, 2)
    assert (pool.match(digests([1, 2])), pool.match(digests([3, 4]))) == ([0], [])


def test_a_block_that_two_have_is_kept_when_one_gives_it_back():
    pool = BlockPool(2, block_tokens=2)
    first, second = filled(pool, [1, 2]), []
    pool.share(second, pool.match(digests([1, 2])))
    pool.release(first)
    assert pool.num_free == 1
    assert not pool.can_hold([], 4)
    assert pool.can_hold(second, 4)
    pool.release(second)
    assert pool.num_free == 2


def test_the_same_content_is_kept_once():
    pool = BlockPool(3, block_tokens=2)
    first, second = filled(pool, [1, 2]), filled(pool, [1, 2])
    assert first == second == [0]
    assert pool.num_free == 2


def test_a_pool_that_forgets_gives_out_its_blocks_as_empty():
    pool = BlockPool(2, block_tokens=2)
    held, table = filled(pool, [1, 2]), filled(pool, [3, 4])
    pool.release(table)
    pool.forget()
    assert pool.match(digests([1, 2])) == []
    pool.release(held)
    assert (pool.num_free, list(pool.unused())) == (2, [])


@given(
    num_blocks=st.integers(1, 8),
    moves=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["take", "give", "forget"]), st.integers(1, 7)), max_size=40
    ),
)
def test_tables_that_share_are_those_of_the_same_content(num_blocks: int, moves: list[tuple[int, str, int]]):
    """Tokens of a table are all equal, so that many begin alike; what blocks hold is written down beside the pool."""
    pool = BlockPool(num_blocks, block_tokens=2)
    tables: list[list[int]] = [[], [], [], []]
    contents: dict[int, bytes] = {}
    for index, move, length in moves:
        table = tables[index]
        if move == "forget":
            pool.forget()
            contents.clear()
        pool.release(table)
        if move == "take":
            chain = digests([index % 2] * 2 * length)
            found = pool.match(chain)
            assert [contents.get(block) for block in found] == chain[: len(found)]
            if not pool.can_hold(found, 2 * length):
                continue
            pool.share(table, found)
            assert pool.extend(table, 2 * length)
            for block in table[len(found) :]:
                assert all(block not in other for other in tables if other is not table)
            for position in range(len(found), length):
                contents[table[position]] = chain[position]
                pool.insert(table, position, chain[position])
        used = {block for other in tables for block in other}
        assert pool.num_free == num_blocks - len(used)


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
