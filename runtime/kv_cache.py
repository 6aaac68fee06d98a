"""The blocks of a model's KV pool, and which of them hold what.

A sequence refers to whole blocks of `block_tokens` tokens; its block table is the list of their ids in order. A full
block is indexed by a digest of its tokens and of everything before them, so that sequences that begin alike refer to
the same blocks. A block that nobody refers to any more stays in the index until its room is needed: least recently
used first, and of a sequence its end before its beginning, so that what is left of it is always a prefix.

The pool here is the book-keeping; the arrays are the executor's.
"""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence

__all__ = ["BlockPool", "chain_digests", "root_digest"]

_DIGEST_BYTES = 16


def root_digest(salt: str) -> bytes:
    """Returns what the digests of a salt's sequences begin from: other salts never share a block."""
    return hashlib.blake2b(salt.encode(errors="surrogatepass"), digest_size=_DIGEST_BYTES).digest()


def chain_digests(parent: bytes, tokens: Sequence[int], block_tokens: int) -> Iterator[bytes]:
    """Yields the digests of full blocks: of each one's tokens and, by the digest before it, of all before them."""
    data = array("q", tokens)
    raw, size = data.tobytes(), block_tokens * data.itemsize
    for first in range(0, len(raw), size):
        parent = hashlib.blake2b(parent + raw[first : first + size], digest_size=_DIGEST_BYTES).digest()
        yield parent


class BlockPool:
    """Hands out blocks: those that hold nothing, lowest first, then those that nobody has used for longest."""

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.num_inserted = 0  # so far: while it stays the same, nothing more is found
        self._empty = list(range(num_blocks))  # a heap
        self._references = [0] * num_blocks
        self._index: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}  # of the indexed blocks
        self._unused: OrderedDict[int, None] = OrderedDict()  # indexed and referred to by nobody; the first goes first

    @property
    def num_free(self) -> int:
        """Number of blocks that nobody refers to."""
        return len(self._empty) + len(self._unused)

    def blocks_for(self, num_tokens: int) -> int:
        """Returns how many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_tokens)

    def find(self, digest: bytes) -> int | None:
        """Returns the block of that content, if there is one."""
        return self._index.get(digest)

    def match(self, digests: Sequence[bytes]) -> list[int]:
        """Returns the blocks of the longest beginning of a sequence that is in the pool."""
        found: list[int] = []
        for digest in digests:
            block = self._index.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def can_hold(self, found: Sequence[int], num_tokens: int) -> bool:
        """Whether a sequence of so many tokens that begins with the blocks found could have all that it needs."""
        idle = sum(not self._references[block] for block in found)
        return self.blocks_for(num_tokens) - len(found) <= self.num_free - idle

    def share(self, blocks: list[int], found: Sequence[int]) -> None:
        """Appends indexed blocks to a block table."""
        for block in found:
            self._refer(block)
            blocks.append(block)

    def extend(self, blocks: list[int], num_tokens: int) -> bool:
        """Grows a block table in place until it holds `num_tokens` tokens.

        Returns:
            False if there are too few free blocks; the table is unchanged then.
        """
        missing = self.blocks_for(num_tokens) - len(blocks)
        if missing > self.num_free:
            return False
        for _ in range(missing):
            block = self._pop()
            self._references[block] = 1
            blocks.append(block)
        return True

    def release(self, blocks: list[int]) -> None:
        """Takes back all blocks of a table and empties it; those that are indexed can still be found."""
        while blocks:
            self._put_back(blocks.pop())  # the end first: it goes before what it follows

    def insert(self, blocks: list[int], position: int, digest: bytes) -> None:
        """Indexes a full block of a table; if its content is in the pool already, the table refers to that instead."""
        self.num_inserted += 1
        block = self._index.setdefault(digest, blocks[position])
        if block == blocks[position]:
            self._digests[block] = digest
        else:
            self.replace(blocks, position, block)

    def replace(self, blocks: list[int], position: int, block: int) -> None:
        """Makes a table refer to an indexed block in the place of its own, which it gives back."""
        self._refer(block)
        self._put_back(blocks[position])
        blocks[position] = block

    def is_exclusive(self, block: int) -> bool:
        """Whether only one table refers to a block."""
        return self._references[block] == 1

    def digest(self, block: int) -> bytes | None:
        """Returns the digest of a block's content, if it is indexed."""
        return self._digests.get(block)

    def unused(self) -> Iterator[tuple[int, bytes]]:
        """Yields the indexed blocks that nobody refers to, with their digests: most recently used first."""
        for block in reversed(self._unused):
            yield block, self._digests[block]

    def forget(self) -> None:
        """Empties the index: the pool's contents are gone."""
        for block in self._unused:
            heapq.heappush(self._empty, block)
        self._unused.clear()
        self._index.clear()
        self._digests.clear()

    def _refer(self, block: int) -> None:
        if not self._references[block]:
            del self._unused[block]
        self._references[block] += 1

    def _put_back(self, block: int) -> None:
        self._references[block] -= 1
        if self._references[block]:
            return
        if block in self._digests:
            self._unused[block] = None
        else:
            heapq.heappush(self._empty, block)

    def _pop(self) -> int:
        if self._empty:
            return heapq.heappop(self._empty)
        block, _ = self._unused.popitem(last=False)
        del self._index[self._digests.pop(block)]
        return block
