"""What the cache holds of a sequence's beginning, and who is computing it just now.

A sequence never takes its whole prompt from the cache: its last token is computed, for the next one is drawn from it.
"""

from __future__ import annotations

from ..jobs import GenerateJob
from ..kv_cache import BlockPool
from ..model_queue import ModelQueue

__all__ = ["catch_up", "copy_of_tail", "find_prefix", "index_blocks", "is_being_computed", "num_sharable"]


def num_sharable(pool: BlockPool, job: GenerateJob) -> int:
    """Returns how many blocks a job could take from the cache at most."""
    return (len(job.tokens) - 1) // pool.block_tokens


def find_prefix(pool: BlockPool, job: GenerateJob) -> list[int]:
    """Returns the blocks of the longest beginning of a job's tokens that is in the pool."""
    return pool.match(job.digests(num_sharable(pool, job), pool.block_tokens))


def catch_up(pool: BlockPool, job: GenerateJob) -> None:
    """Takes the blocks that have come into the pool since the job was admitted, in the place of its own."""
    size, last = pool.block_tokens, num_sharable(pool, job)
    while job.num_computed % size == 0 and (position := job.num_computed // size) < last:
        block = pool.find(job.digest(position, size))
        if block is None:
            return
        pool.replace(job.blocks, position, block)
        job.found(size)
        job.num_indexed = position + 1


def index_blocks(pool: BlockPool, job: GenerateJob) -> None:
    """Lets others find the blocks that a job has filled."""
    num_known = min(job.num_computed, len(job.tokens) - 1)  # the newest token of an answer is in no cache yet
    num_full = num_known // pool.block_tokens
    if num_full <= job.num_indexed:
        return
    digests = job.digests(num_full, pool.block_tokens)
    for position in range(job.num_indexed, num_full):
        pool.insert(job.blocks, position, digests[position])
    job.num_indexed = num_full


def is_being_computed(queue: ModelQueue, job: GenerateJob, num_found: int) -> bool:
    """Whether a running job is about to compute what a waiting one needs next: a block, or the rest of its prompt.

    It will, for running jobs are computed in turn, so the waiting one can be passed over: it loses nothing.
    """
    assert queue.pool is not None, queue.entry.name
    size = queue.pool.block_tokens
    first = num_found * size
    end = min(first + size, len(job.tokens) - 1)
    if first >= end:
        return False
    prompts = [other for other in queue.prompts if other.num_computed < end]
    last = job.tokens[first:end]  # most prompts differ there
    return any(other.tokens[first:end] == last and _begins_alike(other, job, end, size) for other in prompts)


def copy_of_tail(queue: ModelQueue, job: GenerateJob) -> tuple[int, int] | None:
    """Lets a job that lacks less than a block of its prompt copy it from a running one that has it.

    Returns:
        The blocks to copy from and to; None if no job has that.
    """
    assert queue.pool is not None, queue.entry.name
    size = queue.pool.block_tokens
    first, end = job.num_computed, len(job.tokens) - 1
    if not 0 < end - first < size:
        return None
    for other in queue.running:
        if other.num_computed >= end and _begins_alike(other, job, end, size):
            job.found(end - first)
            return other.blocks[first // size], job.blocks[first // size]
    return None


def _begins_alike(one: GenerateJob, other: GenerateJob, num_tokens: int, block_tokens: int) -> bool:
    """Whether the first tokens of two jobs are the same, and may be shared."""
    if one.salt != other.salt or min(len(one.tokens), len(other.tokens)) < num_tokens:
        return False
    num_full = num_tokens // block_tokens
    rest = slice(num_full * block_tokens, num_tokens)
    if one.tokens[rest] != other.tokens[rest]:
        return False
    return not num_full or one.digest(num_full - 1, block_tokens) == other.digest(num_full - 1, block_tokens)
