"""Models that clients want loaded or unloaded.

Both wait in the model's queue like requests, in the order in which they came. A load is answered when its model is
hot; it is held until then as a request is, so it evicts no busy model and passes nobody. An unload comes after what was
asked of its model before it and keeps what is asked later waiting, until the model has run dry and is gone; then
whoever asks brings the model back. Until somebody does, it is not fetched ahead.
"""

from __future__ import annotations

import bisect

from ..events import Action, DropBlocks, Reply
from ..jobs import LoadJob, UnloadJob
from .copies import BlockCopies
from .moves import Moves
from .state import State, order_of

__all__ = ["Loads"]


class Loads:
    """Answers loads and carries unloads out.

    Args:
        state: The scheduler's memory.
        copies: Of KV blocks, which are saved where the weights stay in ddr.
        moves: Evicts models.
    """

    def __init__(self, state: State, copies: BlockCopies, moves: Moves) -> None:
        self._state = state
        self._copies = copies
        self._moves = moves
        self._jobs: list[LoadJob | UnloadJob] = []  # in order

    def ask(self, job: LoadJob | UnloadJob) -> None:
        """Notes a load or an unload that has come in."""
        bisect.insort(self._jobs, job, key=order_of)

    def plan(self, now: float) -> list[Action]:
        """Returns what can be answered and evicted now."""
        if not self._jobs:
            return []
        actions: list[Action] = []
        for job in [job for job in self._jobs if job.id in self._state.jobs]:
            actions += self._load(job) if isinstance(job, LoadJob) else self._unload(job, now)
        self._jobs = [job for job in self._jobs if job.id in self._state.jobs]
        return actions

    def _load(self, job: LoadJob) -> list[Action]:
        model = job.request.model
        before = (other for other in self._state.queues[model].waiting if other.order < job.order)
        if not self._state.residency.is_hot(model) or any(isinstance(other, UnloadJob) for other in before):
            return []
        return self._answer(job)

    def _unload(self, job: UnloadJob, now: float) -> list[Action]:
        model, state = job.request.model, self._state
        queue, residency = state.queues[model], state.residency
        is_first = queue.waiting[0] is job and not queue.is_busy
        if not is_first or state.transfer is not None or state.is_copying or state.is_computing(model):
            return []
        if job.tier == "ddr" and residency.is_hot(model) and self._copies.has_to_save(queue):
            if state.step is not None:
                return []
            save = self._copies.save_unused(queue)
            if save:
                return save
        actions: list[Action] = [*self._moves.unload(model, job.tier, now)]
        dropped = residency.saved.drop(model) if job.tier == "disk" else ()
        return [*actions, *([DropBlocks(dropped)] if dropped else []), *self._answer(job)]

    def _answer(self, job: LoadJob | UnloadJob) -> list[Action]:
        self._state.forget(job)
        return [Reply(job.id, finish_reason="stop")]
