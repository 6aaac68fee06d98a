"""What computes next: hot models with work take turns, a step each.

In one model, decode steps and prefill chunks alternate, so that no answer waits for more than a chunk between two of
its tokens; while any answer is being generated, a chunk has no more than a budget of tokens. Prompts that are computed
in what a smaller chunk leaves of the time of the largest follow it at once. Chunks go in turn to the oldest prompt and
to prompts that one chunk completes, so that a long one neither keeps short ones waiting nor waits for ever. Several
short ones share a step where the model has a program for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..events import Action, Decode, Embed, EmbedEntry, Prefill
from ..jobs import EmbedJob, GenerateJob
from ..model_queue import ModelQueue
from .copies import BlockCopies
from .prefixes import catch_up
from .speculation import Speculation
from .state import State, order_of

__all__ = ["StepPlanner"]


class StepPlanner:
    """Plans one step at a time.

    Args:
        state: The scheduler's memory.
        copies: Of blocks to and from ddr, which take the place of a step.
        speculation: What draft models compute.
        decode_steps: Most tokens that one decode action draws for each sequence, where nothing else is to be decided.
        prefill_tokens: Most tokens of a chunk while answers are being generated; None for no limit.
    """

    def __init__(
        self,
        state: State,
        copies: BlockCopies,
        speculation: Speculation,
        *,
        decode_steps: int,
        prefill_tokens: int | None,
    ) -> None:
        self._state = state
        self._copies = copies
        self._speculation = speculation
        self._decode_steps = decode_steps
        self._prefill_tokens = prefill_tokens

    def plan(self, now: float) -> list[Action]:
        """Returns the next step, if any model has work."""
        hot = self._state.residency.is_hot
        for name, queue in self._state.turns.items():
            if (queue.answering or queue.prompts or queue.has_work) and hot(name):  # mostly without a call of it
                return [self._embed(queue, now)] if queue.embedding else self._generate(queue, now)
        return []

    def _generate(self, queue: ModelQueue, now: float) -> list[Action]:
        pool = queue.pool
        assert pool is not None, queue.entry.name
        if queue.num_seen != pool.num_inserted:
            queue.num_seen = pool.num_inserted
            for job in queue.prompts.copy():
                catch_up(pool, job)
                queue.advanced(job)
        behind = self._speculation.behind(queue)
        prompts = self._due(queue)
        if queue.answering and not prompts and not (behind and queue.last_phase == "decode"):
            copy, ready = self._make_room(queue)
            if copy:
                return copy
            if ready:
                return [self._speculation.verify(queue, ready, now) or self._decode(queue, ready, now)]
            prompts = self._due(queue)  # an older one has the blocks of all that decoded
        return self._prefill(queue, prompts, now) if prompts else [self._speculation.prefill(behind[0], now)]

    def _due(self, queue: ModelQueue) -> list[GenerateJob]:
        """Returns the prompts that may have a chunk before the answers' next tokens, the oldest first."""
        prompts = sorted(queue.prompts, key=order_of)
        if not prompts or not queue.answering or queue.last_phase == "decode":
            return prompts
        limit = self._most_tokens(queue)
        rest = queue.seconds_of_prompt(limit) - queue.prefill_seconds
        return [job for job in prompts if job.num_pending <= limit and queue.seconds_of_prompt(job.num_pending) <= rest]

    def _make_room(self, queue: ModelQueue) -> tuple[list[Action], list[GenerateJob]]:
        """Gets decoding jobs blocks for their next token; the youngest give theirs back if need be.

        Returns:
            The copy that has to come first, if the next one to be preempted is to be saved; the jobs that still run.
        """
        assert queue.pool is not None, queue.entry.name
        size = queue.pool.block_tokens
        short = [job for job in queue.answering if len(job.tokens) > len(job.blocks) * size]
        for job in sorted(short, key=order_of):
            while job in queue.answering and not queue.pool.extend(job.blocks, len(job.tokens)):
                if self._state.take_back_blocks(queue.entry.name):
                    continue
                youngest = max(queue.running, key=order_of)
                copy = self._copies.save_of(queue, youngest)
                if copy:
                    return copy, []
                self._state.preempt(queue, youngest)
        return [], queue.answering.copy()

    def _decode(self, queue: ModelQueue, jobs: list[GenerateJob], now: float) -> Decode:
        assert queue.pool is not None, queue.entry.name
        max_steps = 1
        if self._decode_steps > 1 and not queue.prompts and self._is_alone(queue):
            size = queue.pool.block_tokens
            remaining = min([job.num_prompt + job.max_tokens - len(job.tokens) for job in jobs])
            room = min([len(job.blocks) * size - job.num_computed for job in jobs])
            max_steps = min(self._decode_steps, remaining, room)
        configuration = queue.smallest("decode", batch=len(jobs)) or queue.longest("decode")
        entries = tuple([job.entry(1) for job in jobs])
        step_id = self._state.issue(queue, jobs, "decode", (1,) * len(jobs), now)
        return Decode(step_id, queue.entry.name, configuration, entries, max_steps)

    def _is_alone(self, queue: ModelQueue) -> bool:
        """Whether nothing but the answers of one model is to be decided about until something comes."""
        state = self._state
        if state.transfer is not None or not state.residency.are_all_hot:  # what is fetched ahead depends on the time
            return False
        return all(other is queue or not other.is_busy for other in reversed(state.turns.values()))

    def _prefill(self, queue: ModelQueue, prompts: list[GenerateJob], now: float) -> list[Action]:
        """Returns a chunk of one of these prompts, or the copy from ddr of what would be in it."""
        limit = self._most_tokens(queue)
        short = [job for job in prompts if job.num_pending <= limit]
        first = short[0] if short and queue.is_turn_of_short else prompts[0]
        queue.is_turn_of_short = first is min(queue.prompts, key=order_of)
        load = self._copies.load_for(queue, first)
        if load:
            return load
        jobs = self._fitting(queue, first, short) if first.num_pending <= limit else [first]
        wanted = min(limit, max([job.num_pending for job in jobs]))
        if len(jobs) > 1:
            configuration = queue.smallest("prefill", batch=len(jobs), new_tokens=wanted)
            assert configuration is not None, jobs
        else:
            configuration = queue.next_chunk(wanted)
        sizes = tuple([min(job.num_pending, configuration.new_tokens, limit) for job in jobs])
        entries = tuple([job.entry(size) for job, size in zip(jobs, sizes, strict=True)])
        before = queue.prefill_seconds if queue.last_phase == "prefill" else 0.0
        queue.prefill_seconds = before + queue.step_seconds(configuration)
        step_id = self._state.issue(queue, jobs, "prefill", sizes, now)
        return [Prefill(step_id, queue.entry.name, configuration, entries)]

    def _most_tokens(self, queue: ModelQueue) -> int:
        """Returns the most tokens that a chunk of a prompt may have now."""
        longest = queue.longest("prefill").new_tokens
        if self._prefill_tokens is None:
            return longest
        is_generating = any(other.answering for other in self._state.queues.values())
        return min(longest, self._prefill_tokens) if is_generating else longest

    def _fitting(self, queue: ModelQueue, first: GenerateJob, short: list[GenerateJob]) -> list[GenerateJob]:
        """Returns a short prompt, and those among others that one program computes with it, from the first on."""
        chosen, longest = [first], first.num_pending
        for job in short:
            if job is first:
                continue
            longest = max(longest, job.num_pending)
            if queue.smallest("prefill", batch=len(chosen) + 1, new_tokens=longest) is None:
                break
            chosen.append(job)
        return chosen

    def _embed(self, queue: ModelQueue, now: float) -> Embed:
        chosen: list[tuple[EmbedJob, int]] = []
        configuration, longest = queue.longest("embed"), 0
        for job, index in _pending(queue.embedding):
            longest = max(longest, len(job.sequences[index]))
            larger = queue.smallest("embed", batch=len(chosen) + 1, new_tokens=longest)
            if larger is None:
                break
            configuration = larger
            chosen.append((job, index))
        jobs = [job for job, _ in chosen]
        step_id = self._state.issue(queue, jobs, "embed", (0,) * len(jobs), now)
        for job in jobs:
            job.num_issued += 1
        entries = tuple(EmbedEntry(job.id, index, job.sequences[index]) for job, index in chosen)
        return Embed(step_id, queue.entry.name, configuration, entries)


def _pending(jobs: Sequence[EmbedJob]) -> Iterator[tuple[EmbedJob, int]]:
    """Yields the sequences that no step has been issued for, in order."""
    for job in jobs:
        for index in range(job.num_issued, len(job.sequences)):
            yield job, index
