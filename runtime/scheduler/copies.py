"""KV blocks on their way to ddr and back.

Two occasions save blocks: a running sequence is preempted, or a model is evicted from hbm with blocks that somebody may
ask for again. Whoever needs a saved block that is not in the pool loads it, instead of computing it. All this only
where the link moves a token there and back in less time than the model computes one, and as far as ddr has room
beside the weights in it. A copy takes the place of a step, so that no step changes what it reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from ..events import Action, DropBlocks, LoadBlocks, SaveBlocks
from ..jobs import GenerateJob
from ..model_queue import ModelQueue
from .prefixes import num_sharable
from .state import State, StepInFlight

__all__ = ["BlockCopies"]


class BlockCopies:
    """Decides which blocks are copied, and keeps the books of those in ddr."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._saved = state.residency.saved

    def has_to_save(self, queue: ModelQueue) -> bool:
        """Whether a model may have blocks to be saved before it leaves hbm."""
        if not queue.copy_pays or queue.is_saved or queue.pool is None:
            return False
        return next(queue.pool.unused(), None) is not None and self._num_slots(queue) > 0

    def save_unused(self, queue: ModelQueue) -> list[Action]:
        """Returns the copy of the blocks of an idle model, those used last first; none if all are in ddr already."""
        assert queue.pool is not None, queue.entry.name
        queue.is_saved = True
        return self._save(queue, islice(queue.pool.unused(), self._num_slots(queue)))

    def save_of(self, queue: ModelQueue, job: GenerateJob) -> list[Action]:
        """Returns the copy that must come before a sequence is preempted; none if it costs less to compute it anew."""
        if not queue.copy_pays:
            return []
        assert queue.pool is not None, queue.entry.name
        own = [(block, queue.pool.digest(block)) for block in job.blocks if queue.pool.is_exclusive(block)]
        indexed = [(block, digest) for block, digest in own if digest is not None]
        return self._save(queue, indexed) if len(indexed) <= self._num_slots(queue) else []

    def load_for(self, queue: ModelQueue, job: GenerateJob) -> list[Action]:
        """Returns the copy of what a job needs next and ddr has; none if it has to be computed."""
        pool = queue.pool
        if not queue.copy_pays or pool is None or job.num_computed % pool.block_tokens:
            return []
        first, last = job.num_computed // pool.block_tokens, num_sharable(pool, job)
        copies: list[tuple[int, int]] = []
        for position, digest in enumerate(job.digests(last, pool.block_tokens)[first:], first):
            slot = self._saved.find(queue.entry.name, digest)
            if slot is None or pool.find(digest) is not None or len(copies) == queue.blocks_per_load:
                break
            self._saved.keep(queue.entry.name, digest, queue.block_bytes)
            copies.append((slot, job.blocks[position]))
        if not copies:
            return []
        step_id = self._state.next_id()
        queue.leave_prefill()
        self._state.turns.move_to_end(queue.entry.name)
        load = LoadBlocks(step_id, queue.entry.name, tuple(copies), len(copies) * queue.block_bytes)
        self._state.step = StepInFlight(step_id, queue, (job,), copy=load)
        return [load]

    def loaded(self, queue: ModelQueue, job: GenerateJob, num_blocks: int) -> None:
        """Records that a job's next blocks have arrived."""
        assert queue.pool is not None, queue.entry.name
        first = job.num_indexed
        digests = job.digests(first + num_blocks, queue.pool.block_tokens)
        for position in range(first, first + num_blocks):
            queue.pool.insert(job.blocks, position, digests[position])
        job.num_indexed += num_blocks
        job.found(num_blocks * queue.pool.block_tokens)
        queue.advanced(job)

    def lost(self, copy: SaveBlocks) -> DropBlocks:
        """Records that a copy to ddr has failed."""
        slots = tuple(slot for _, slot in copy.copies)
        self._saved.discard(slots)
        return DropBlocks(slots)

    def _num_slots(self, queue: ModelQueue) -> int:
        """Returns how many blocks of a model ddr could hold beside the weights there."""
        return self._state.residency.room_for_saved() // queue.block_bytes

    def _save(self, queue: ModelQueue, wanted: Iterable[tuple[int, bytes]]) -> list[Action]:
        """Returns the copies to ddr of blocks that are not there, first those whose room they take being dropped.

        Args:
            queue: Of the model.
            wanted: Blocks and their digests, those to be kept longest first; there is room for all.
        """
        copies: list[tuple[int, int]] = []
        for block, digest in reversed(list(wanted)):
            slot = self._saved.keep(queue.entry.name, digest, queue.block_bytes)
            if slot is not None:
                copies.append((block, slot))
        if not copies:
            return []
        dropped = self._saved.trim(self._state.residency.room_for_saved())
        step_id = self._state.next_id()
        self._state.turns.move_to_end(queue.entry.name)
        save = SaveBlocks(step_id, queue.entry.name, tuple(copies), len(copies) * queue.block_bytes)
        self._state.step = StepInFlight(step_id, queue, (), copy=save)
        return [DropBlocks(dropped), save] if dropped else [save]
