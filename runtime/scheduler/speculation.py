"""Speculative decoding: a draft model proposes the next tokens of a target's answers, and one step of the target
computes them all. What is accepted, the sampler decides; an answer's distribution is the target's own.

A draft keeps a cache of its own of each answer, in blocks of its own pool: made when the answer begins, by chunks of
prompt that take turns with decode steps, and given up whenever somebody who asked for something wants the room: the
draft's own requests its blocks, other models its place in hbm. Then the target decodes as ever; no answer waits for a
draft. The tokens of both are one list, so that rejected ones need no undoing: they are only never counted as computed.

A step is worth drafting for if the tokens that it is expected to give are more than the same time would give by decode
steps, by the manifest's seconds and the share of proposals that were accepted of late ("Fast Inference from
Transformers via Speculative Decoding", Leviathan et al., 2023). After a number of steps without a draft it is tried
anew, for texts change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...compiler.bundle.manifest import SpeculativePair
from ...compiler.configuration import Configuration, Phase
from ..events import Draft, Prefill, SequenceEntry, Verify
from ..jobs import GenerateJob
from ..model_queue import ModelQueue
from .prefixes import catch_up, find_prefix, index_blocks
from .state import State, StepInFlight, order_of

__all__ = ["Speculation"]

_MOST_LACKING = 2  # tokens that a draft step computes of a sequence before it proposes
_WEIGHT_OF_NEWEST = 1 / 8  # in the running mean of what is accepted
_STEPS_UNTIL_TRIAL = 64  # without a draft


@dataclass(eq=False)
class _Pair:
    """A target, its draft and how well they go together."""

    target: ModelQueue
    draft: ModelQueue
    tokens: int  # that are proposed at once
    acceptance: float = 1.0  # share of the proposals, of late; at first the best is hoped for
    num_declined: int = 0  # steps without a draft since the last with one
    has_failed: bool = False

    def pays(self, num_jobs: int, num_drafted: int, acceptance: float | None = None) -> bool:
        """Whether a step with proposals for some of its jobs gives more tokens a second than one without.

        Args:
            num_jobs: All of the step.
            num_drafted: Those with proposals.
            acceptance: Share of them that is accepted; what it is of late by default.
        """
        acceptance = self.acceptance if acceptance is None else acceptance
        num_drafted = min(num_drafted, self.draft.entry.batch)
        if self.has_failed or not num_drafted:
            return False
        plain = self.target.step_seconds(_smallest(self.target, "decode", num_jobs, 1))
        verify = self.target.step_seconds(_smallest(self.target, "verify", num_jobs, self.tokens + 1))
        first, rest = _draft_configurations(self.draft, num_drafted, _MOST_LACKING)
        draft = self.draft.step_seconds(first) + (self.tokens - 1) * self.draft.step_seconds(rest)
        gained = 1 + acceptance * self.tokens * num_drafted / num_jobs
        return gained * plain > verify + draft

    def declined(self) -> None:
        """Counts a step without a draft that would pay if more had been accepted."""
        self.num_declined += 1
        if self.num_declined >= _STEPS_UNTIL_TRIAL:
            self.acceptance, self.num_declined = 1.0, 0

    def accepted(self, num_accepted: int, num_proposed: int) -> None:
        """Takes a sequence's part of a step into account."""
        self.num_declined = 0
        self.acceptance += _WEIGHT_OF_NEWEST * (num_accepted / num_proposed - self.acceptance)


class Speculation:
    """Plans what draft models compute.

    Args:
        state: The scheduler's memory.
        pairs: By the models' own names; a target has one draft.
    """

    def __init__(self, state: State, pairs: Sequence[SpeculativePair]) -> None:
        self._state = state
        queues = state.queues
        self._pairs = {pair.target: _Pair(queues[pair.target], queues[pair.draft], pair.tokens) for pair in pairs}
        state.draft_of = {pair.target: pair.draft for pair in pairs}

    def missing(self) -> Iterator[str]:
        """Yields drafts that are not hot and that answers under way could use."""
        is_hot = self._state.residency.is_hot
        for target, pair in self._pairs.items():
            num_jobs = pair.target.num_running
            if num_jobs and is_hot(target) and not is_hot(pair.draft.entry.name) and pair.pays(num_jobs, num_jobs):
                yield pair.draft.entry.name

    def behind(self, queue: ModelQueue) -> list[GenerateJob]:
        """Returns the decoding jobs of a target for which a chunk has to be computed before its draft can propose."""
        pair = self._ready_pair(queue)
        num_jobs = len(queue.answering)
        if pair is None or not num_jobs or not pair.pays(num_jobs, num_jobs):
            return []
        assert pair.draft.pool is not None, pair.draft.entry.name
        found: list[GenerateJob] = []
        worth_it = (job for job in queue.answering if _is_worth(job, pair.tokens))
        for job in sorted(worth_it, key=order_of)[: pair.draft.entry.batch]:
            if job.draft is None and not self._begin(pair, job):
                break
            assert job.draft is not None, job.id
            if not pair.draft.pool.extend(job.draft.blocks, len(job.tokens)):
                continue  # the answer has outgrown what the draft has room for, while others have the rest
            catch_up(pair.draft.pool, job.draft)
            if job.draft.num_pending > _MOST_LACKING:
                found.append(job)
        return found

    def prefill(self, job: GenerateJob, now: float) -> Prefill:
        """Returns the chunk of a job that its draft needs next, as a step in the target's turn."""
        pair, shadow = self._pairs[job.request.model], job.draft
        assert shadow is not None, job.id
        wanted = shadow.num_pending - 1  # its newest token is what the first proposal is drawn from
        configuration = pair.draft.smallest("prefill", new_tokens=wanted) or pair.draft.longest("prefill")
        size = min(wanted, configuration.new_tokens)
        name = pair.draft.entry.name
        step_id = self._state.issue(pair.draft, (shadow,), "prefill", (size,), now, draft=name)
        pair.target.leave_prefill()
        self._state.turns.move_to_end(job.request.model)
        return Prefill(step_id, name, configuration, (shadow.entry(size),))

    def verify(self, queue: ModelQueue, jobs: Sequence[GenerateJob], now: float) -> Verify | None:
        """Returns the step that computes the next tokens of a target's jobs; None if a plain one does better."""
        pair = self._ready_pair(queue)
        if pair is None:
            return None
        if not pair.pays(len(jobs), len(jobs)):
            if pair.pays(len(jobs), len(jobs), acceptance=1.0):
                pair.declined()
            return None
        proposed = self._proposed(pair, jobs)
        if not pair.pays(len(jobs), sum(map(bool, proposed))):
            return None
        drafted = [(job, count) for job, count in zip(jobs, proposed, strict=True) if count]
        lacking = max(job.draft.num_pending for job, _ in drafted if job.draft is not None)
        first, rest = _draft_configurations(pair.draft, len(drafted), lacking)
        draft = Draft(
            pair.draft.entry.name,
            first,
            rest,
            tuple(_draft_entry(job) for job, _ in drafted),
            tuple(count for _, count in drafted),
        )
        sizes = (1,) * len(jobs)
        step_id = self._state.issue(
            queue, jobs, "verify", sizes, now, draft=pair.draft.entry.name, num_proposed=tuple(proposed)
        )
        pair.draft.is_saved = False
        configuration = _smallest(queue, "verify", len(jobs), pair.tokens + 1)
        return Verify(step_id, queue.entry.name, configuration, tuple(job.entry(1) for job in jobs), draft)

    def verified(self, step: StepInFlight, index: int, job: GenerateJob, num_drawn: int) -> None:
        """Records what came of a job's proposals; its drawn tokens are not among its tokens yet."""
        num_proposed = step.num_proposed[index]
        if not num_proposed:
            return
        num_accepted = num_drawn - 1
        pair = self._pairs[step.queue.entry.name]
        pair.accepted(num_accepted, num_proposed)
        job.proposed(num_proposed, num_accepted)
        step.queue.num_proposed += num_proposed
        step.queue.num_accepted += num_accepted
        if job.draft is not None:  # it has computed all that it proposed but the last token
            job.draft.num_computed = len(job.tokens) + min(num_accepted, num_proposed - 1)

    def prefilled(self, step: StepInFlight) -> None:
        """Records that a draft has computed a chunk."""
        shadow = step.jobs[0]
        assert isinstance(shadow, GenerateJob), shadow
        if shadow.blocks:  # else it was given up meanwhile
            shadow.num_computed += step.num_tokens[0]
            self._index(step.queue, shadow)

    def index(self, job: GenerateJob) -> None:
        """Lets others find the blocks that a draft has filled for a job."""
        assert job.draft is not None, job.id
        self._index(self._pairs[job.request.model].draft, job.draft)

    def failed(self, step: StepInFlight) -> None:
        """Gives up a draft after a step of it has failed: it may have lost its pool."""
        assert step.draft is not None, step.id
        for job in self._state.drafted(step.draft):
            self._state.leave_draft(job)
        for pair in self._pairs.values():
            pair.has_failed |= pair.draft.entry.name == step.draft

    def _ready_pair(self, queue: ModelQueue) -> _Pair | None:
        """Returns a target's pair if its draft is hot and nothing is known to be wrong with it."""
        pair = self._pairs.get(queue.entry.name)
        if pair is None or pair.draft.entry.name in self._state.unhealthy:
            return None
        return pair if self._state.residency.is_hot(pair.draft.entry.name) else None

    def _begin(self, pair: _Pair, job: GenerateJob) -> bool:
        """Gives a job blocks of its draft's pool, with what is cached there; False if others need or have the room."""
        shadow, pool = job.for_draft(), pair.draft.pool
        assert pool is not None, pair.draft.entry.name
        found = find_prefix(pool, shadow)
        if pair.draft.waiting or not pool.can_hold(found, len(job.tokens) + pair.tokens):
            return False
        pool.share(shadow.blocks, found)
        shadow.num_indexed = len(found)
        shadow.found(len(found) * pool.block_tokens)
        pool.extend(shadow.blocks, len(job.tokens) + pair.tokens)
        job.draft = shadow
        return True

    def _proposed(self, pair: _Pair, jobs: Sequence[GenerateJob]) -> list[int]:
        """Returns how many tokens are proposed for each job; there is room for them in both pools."""
        proposed: list[int] = []
        for job in jobs:
            is_full = sum(map(bool, proposed)) == pair.draft.entry.batch
            proposed.append(0 if is_full else self._num_proposed(pair, job))
        return proposed

    def _num_proposed(self, pair: _Pair, job: GenerateJob) -> int:
        target, draft, shadow = pair.target.pool, pair.draft.pool, job.draft
        assert target is not None, pair.target.entry.name
        assert draft is not None, pair.draft.entry.name
        if shadow is None or shadow.num_pending > _MOST_LACKING:
            return 0
        room = min(pair.target.entry.sequence, pair.draft.entry.sequence) - len(job.tokens)
        count = min(pair.tokens, job.max_tokens - job.num_generated - 1, room)
        if count < 1 or not target.extend(job.blocks, len(job.tokens) + count):
            return 0
        return count if draft.extend(shadow.blocks, len(job.tokens) + count - 1) else 0

    def _index(self, queue: ModelQueue, shadow: GenerateJob) -> None:
        assert queue.pool is not None, queue.entry.name
        index_blocks(queue.pool, shadow)


def _is_worth(job: GenerateJob, num_tokens: int) -> bool:
    """Whether anything is to be proposed for a job: nothing before its first token, and nothing near its end.

    Nor where an answer is constrained: a draft would lead the constraint's parser astray.
    """
    is_near_end = job.max_tokens - job.num_generated <= num_tokens
    return job.num_generated > 0 and not is_near_end and job.sampling.constraint is None


def _draft_configurations(
    draft: ModelQueue, num_sequences: int, num_tokens: int
) -> tuple[Configuration, Configuration]:
    """Returns what a draft's first step runs, of so many tokens of each sequence, and the steps after it."""
    rest = _smallest(draft, "decode", num_sequences, 1)
    return (rest if num_tokens == 1 else _smallest(draft, "verify", num_sequences, num_tokens)), rest


def _draft_entry(job: GenerateJob) -> SequenceEntry:
    assert job.draft is not None, job.id
    return job.draft.entry(job.draft.num_pending)


def _smallest(queue: ModelQueue, phase: Phase, num_sequences: int, num_tokens: int) -> Configuration:
    configuration = queue.smallest(phase, batch=num_sequences, new_tokens=num_tokens)
    assert configuration is not None, f"{queue.entry.name} has no {phase} program for {num_sequences} sequences"
    return configuration
