"""The blocks of a model's KV pool.

A sequence owns whole blocks of `block_tokens` tokens; its block table is the list of their ids in order. The pool
here is the book-keeping; the arrays are the executor's.
"""

from __future__ import annotations

import heapq

__all__ = ["BlockPool"]


class BlockPool:
    """Hands out block ids, lowest first."""

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._free = list(range(num_blocks))  # a heap

    @property
    def num_free(self) -> int:
        """Number of blocks that nobody owns."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Returns how many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_tokens)

    def extend(self, blocks: list[int], num_tokens: int) -> bool:
        """Grows a block table in place until it holds `num_tokens` tokens.

        Returns:
            False if there are too few free blocks; the table is unchanged then.
        """
        missing = self.blocks_for(num_tokens) - len(blocks)
        if missing > len(self._free):
            return False
        blocks.extend(heapq.heappop(self._free) for _ in range(missing))
        return True

    def release(self, blocks: list[int]) -> None:
        """Takes back all blocks of a table and empties it."""
        for block in blocks:
            heapq.heappush(self._free, block)
        blocks.clear()
