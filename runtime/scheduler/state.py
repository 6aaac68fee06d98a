"""What the parts of the scheduler share: the requests under way, and what is in flight."""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from ...compiler.configuration import Phase
from ..events import LoadBlocks, SaveBlocks
from ..jobs import GenerateJob, Job
from ..model_queue import ModelQueue
from ..residency import ResidencyManager

__all__ = ["Barrier", "State", "StepInFlight", "TransferInFlight", "order_of"]

order_of: Callable[[Job], tuple[int, int]] = attrgetter("order")  # who goes first: a priority class, a serial number


@dataclass(eq=False, slots=True)  # not frozen: that takes three times as long to make
class StepInFlight:
    """A step that computes, or a copy of KV blocks in its place."""

    id: int
    queue: ModelQueue
    jobs: tuple[Job, ...]  # one for each entry; of a load, the one that it is for
    num_tokens: tuple[int, ...] = ()  # that each entry computes
    copy: SaveBlocks | LoadBlocks | None = None
    draft: str | None = None  # the model that proposes, or that computes a chunk for its target
    num_proposed: tuple[int, ...] = ()  # tokens for each job of a verify step

    @property
    def is_for_target(self) -> bool:
        """Whether a draft computes a chunk of what its target answers."""
        return self.draft == self.queue.entry.name


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
    """Models in the way of a waiting request: they admit nothing that comes after it."""

    models: frozenset[str]
    order: tuple[int, float]
    wanted: str

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
    unhealthy: dict[str, str] = field(default_factory=dict[str, str])  # by model, what is wrong with it
    draft_of: Mapping[str, str] = field(default_factory=dict[str, str])  # by target
    turns: OrderedDict[str, ModelQueue] = field(init=False)  # the one whose last step is the longest ago first
    open: dict[str, ModelQueue] = field(default_factory=dict[str, ModelQueue])  # somebody waits, and it isn't full

    def __post_init__(self) -> None:
        self.turns = OrderedDict(self.queues)

    @property
    def is_copying(self) -> bool:
        """Whether KV blocks are on their way between hbm and ddr."""
        return self.step is not None and self.step.copy is not None

    def is_computing(self, model: str) -> bool:
        """Whether a model takes part in the step under way; a copy is none."""
        step = self.step
        return step is not None and step.copy is None and model in (step.queue.entry.name, step.draft)

    def is_drafting(self, model: str) -> bool:
        """Whether a model has a target with answers under way."""
        return any(draft == model and self.queues[target].is_busy for target, draft in self.draft_of.items())

    def next_id(self) -> int:
        """Returns a number that nothing else has."""
        self.serial += 1
        return self.serial

    def issue(
        self,
        queue: ModelQueue,
        jobs: Sequence[Job],
        phase: Phase,
        num_tokens: tuple[int, ...],
        now: float,
        *,
        draft: str | None = None,
        num_proposed: tuple[int, ...] = (),
    ) -> int:
        """Notes a step that is to compute, and returns its id."""
        step_id = self.next_id()
        queue.last_phase, queue.is_saved = phase, False
        self.turns.move_to_end(queue.entry.name)
        for job in jobs:
            if job.started_at is None:
                job.started_at = now
        self.step = StepInFlight(step_id, queue, tuple(jobs), num_tokens, None, draft, num_proposed)
        return step_id

    def wait(self, job: Job) -> None:
        """Puts a job among those that wait for admission."""
        queue = self.queues[job.request.model]
        bisect.insort(queue.waiting, job, key=order_of)
        self.count(queue)

    def count(self, queue: ModelQueue) -> None:
        """Notes whether a model may have requests to admit; to be called when its lists have changed."""
        if queue.waiting and not queue.is_full:
            self.open[queue.entry.name] = queue
        else:
            self.open.pop(queue.entry.name, None)

    def leave(self, job: Job) -> None:
        """Takes a job out of its model's lists and gives its blocks back."""
        queue = self.queues[job.request.model]
        for jobs in (queue.waiting, queue.prompts, queue.answering, queue.embedding):
            if job in jobs:
                jobs.remove(job)  # type: ignore[arg-type]
        self.count(queue)
        if isinstance(job, GenerateJob) and queue.pool is not None:
            queue.pool.release(job.blocks)
            self.leave_draft(job)

    def leave_draft(self, job: GenerateJob) -> None:
        """Drops what a draft model keeps of a job."""
        if job.draft is not None:
            pool = self.queues[self.draft_of[job.request.model]].pool
            assert pool is not None, job.id
            pool.release(job.draft.blocks)
            job.draft = None

    def drafted(self, model: str) -> list[GenerateJob]:
        """Returns the jobs of other models that a draft model keeps blocks for, the youngest first."""
        targets = (self.queues[target] for target, draft in self.draft_of.items() if draft == model)
        jobs = (job for queue in targets for job in queue.running if job.draft is not None)
        return sorted(jobs, key=order_of, reverse=True)

    def take_back_blocks(self, model: str) -> bool:
        """Takes the blocks of one drafted job back for a model's own requests, and returns whether there was one."""
        drafted = self.drafted(model)
        if drafted:
            self.leave_draft(drafted[0])
        return bool(drafted)

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
