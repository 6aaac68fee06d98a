"""Who may run: gives requests a slot and blocks of the KV pool, with what the cache holds of their prompts.

A lower priority class goes first; in it, requests that were preempted, then those of the client that got least so
far, each client's in the order of their arrival. A request whose turn it is and that finds no room waits, and all
behind it. One whose beginning a running request is computing waits for that, and others may pass it meanwhile.
"""

from __future__ import annotations

import bisect

from ..events import Action, CopyBlocks
from ..jobs import EmbedJob, GenerateJob, Job, LoadJob, UnloadJob
from ..model_queue import ModelQueue
from .prefixes import copy_of_tail, find_prefix, is_being_computed
from .state import Barrier, State, order_of

__all__ = ["Admission"]


class Admission:
    """Moves jobs from those that wait to those that run."""

    def __init__(self, state: State) -> None:
        self._state = state

    def admit(self, queue: ModelQueue, barrier: Barrier | None) -> list[Action]:
        """Admits as many jobs of a model as there is room for, and returns the copies that they need."""
        actions: list[Action] = []
        while (job := self._next(queue, barrier)) is not None:
            if isinstance(job, EmbedJob):
                bisect.insort(queue.embedding, job, key=order_of)
            elif isinstance(job, GenerateJob):
                if not self._give_blocks(queue, job):
                    break
                copy = copy_of_tail(queue, job)
                actions += [] if copy is None else [CopyBlocks(queue.entry.name, (copy,))]
                if not job.is_charged:  # what is computed anew is not the client's doing
                    queue.shares.charge(job.request.client, job.num_pending)
                    job.is_charged = True
                queue.prompts.append(job)
                queue.advanced(job)
            queue.waiting.remove(job)
        self._state.count(queue)
        return actions

    def _next(self, queue: ModelQueue, barrier: Barrier | None) -> Job | None:
        """Returns the job whose turn it is, if one can run now."""
        if not queue.waiting or queue.is_full:
            return None
        if not self._state.residency.is_hot(queue.entry.name):
            return None
        best: Job | None = None
        clients: set[str] = set()  # whose first request has been seen
        for job in queue.waiting:
            if barrier is not None and barrier.bars(queue.entry.name, job):
                break
            if isinstance(job, UnloadJob):
                break
            if isinstance(job, LoadJob):
                continue
            if best is not None and (best.order[0] < job.order[0] or len(clients) == queue.shares.num_clients):
                break
            if job.request.client in clients and job.started_at is None:
                continue
            if isinstance(job, GenerateJob) and self._waits_for_another(queue, job):
                continue
            clients.add(job.request.client)
            best = job if best is None else min(best, job, key=lambda job: _turn(queue, job))
        return best

    def _waits_for_another(self, queue: ModelQueue, job: GenerateJob) -> bool:
        first = job.tokens[0]
        if not any(other.tokens[0] == first for other in queue.prompts):
            return False  # as most often, without a look at the cache
        assert queue.pool is not None, queue.entry.name
        return is_being_computed(queue, job, len(find_prefix(queue.pool, job)))

    def _give_blocks(self, queue: ModelQueue, job: GenerateJob) -> bool:
        pool = queue.pool
        assert pool is not None, queue.entry.name
        found = find_prefix(pool, job)
        while not pool.can_hold(found, len(job.tokens)):
            if not self._state.take_back_blocks(queue.entry.name):
                return False
        pool.share(job.blocks, found)
        job.num_indexed = len(found)
        job.found(len(found) * pool.block_tokens)
        pool.extend(job.blocks, len(job.tokens))
        return True


def _turn(queue: ModelQueue, job: Job) -> tuple[bool, float, tuple[int, int]]:
    return (job.started_at is None, queue.shares.served(job.request.client), job.order)
