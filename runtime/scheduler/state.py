"""What the parts of the scheduler share: the requests under way, and what is in flight."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...compiler.configuration import Phase
from ..events import LoadBlocks, SaveBlocks
from ..jobs import GenerateJob, Job
from ..model_queue import ModelQueue
from ..residency import ResidencyManager

__all__ = ["Barrier", "State", "StepInFlight", "TransferInFlight", "order_of"]


@dataclass(frozen=True)
class StepInFlight:
    """A step that computes, or a copy of KV blocks in its place."""

    id: int
    queue: ModelQueue
    jobs: tuple[Job, ...]  # one for each entry; of a load, the one that it is for
    num_tokens: tuple[int, ...] = ()  # that each entry computes
    copy: SaveBlocks | LoadBlocks | None = None


@dataclass(eq=False)
class TransferInFlight:
    """A model on its way to another tier."""

    id: int
    model: str
    num_bytes: int
    done_bytes: int = 0
    is_cancelled: bool = False


@dataclass(frozen=True)
class Barrier:
    """Models in the way of a waiting request: they admit nothing younger than it."""

    models: frozenset[str]
    order: tuple[int, int]

    def bars(self, model: str, job: Job) -> bool:
        """Whether a request must not begin."""
        return model in self.models and job.order > self.order


@dataclass(eq=False)
class State:
    """The scheduler's memory."""

    residency: ResidencyManager
    queues: dict[str, ModelQueue]
    jobs: dict[int, Job] = field(default_factory=dict[int, Job])
    step: StepInFlight | None = None
    transfer: TransferInFlight | None = None
    serial: int = 0

    @property
    def is_copying(self) -> bool:
        """Whether KV blocks are on their way between hbm and ddr."""
        return self.step is not None and self.step.copy is not None

    def next_id(self) -> int:
        """Returns a number that nothing else has."""
        self.serial += 1
        return self.serial

    def issue(
        self, queue: ModelQueue, jobs: Sequence[Job], phase: Phase, num_tokens: tuple[int, ...], now: float
    ) -> int:
        """Notes a step that is to compute, and returns its id."""
        step_id = self.next_id()
        queue.last_step_id, queue.last_phase, queue.is_saved = step_id, phase, False
        for job in jobs:
            job.started_at = now if job.started_at is None else job.started_at
        self.step = StepInFlight(step_id, queue, tuple(jobs), num_tokens)
        return step_id

    def wait(self, job: Job) -> None:
        """Puts a job among those that wait for admission."""
        bisect.insort(self.queues[job.request.model].waiting, job, key=order_of)

    def leave(self, job: Job) -> None:
        """Takes a job out of its model's lists and gives its blocks back."""
        queue = self.queues[job.request.model]
        for jobs in (queue.waiting, queue.running, queue.embedding):
            if job in jobs:
                jobs.remove(job)  # type: ignore[arg-type]
        if isinstance(job, GenerateJob) and queue.pool is not None:
            queue.pool.release(job.blocks)

    def preempt(self, queue: ModelQueue, job: GenerateJob) -> None:
        """Makes a running job wait again, without blocks."""
        self.leave(job)
        job.num_computed = job.num_indexed = 0
        if job.started_at is None:
            job.num_cached = 0  # what was found for it may be gone when it comes to run
        else:
            job.was_preempted = True
        queue.num_preemptions += 1
        self.wait(job)

    def forget(self, job: Job) -> None:
        """Drops a job that is over."""
        self.leave(job)
        self.queues[job.request.model].shares.leave(job.request.client)
        del self.jobs[job.id]


def order_of(job: Job) -> tuple[int, int]:
    """Returns who goes first: a priority class and, within it, a serial number."""
    return job.order
