"""For how long a request whose model is away lets others go first.

Without patience, only older requests go before a switch: the least latency, and a switch for each change of model.
With it, those that come later for the models in the way go first, too: fewer switches, more throughput. It begins when
the request has come, or its model has left, or one in the way has arrived; so each model has a turn of that length for
as long as it is asked for, however many wait. Then the oldest request goes first, so nobody starves. A deadline ends
patience early enough for what is under way, the switch and the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ...errors import ConfigurationError
from ..foresight import Foresight
from ..jobs import EmbedJob, GenerateJob, Job
from ..model_queue import ModelQueue
from .state import State

__all__ = ["Patience"]


class Patience:
    """Says when the time of held requests has come.

    Args:
        state: The scheduler's memory.
        foresight: How long models take to become hot.
        seconds: That a held request lets others of its class go first.

    Raises:
        ConfigurationError: if that is no time, or for ever.
    """

    def __init__(self, state: State, foresight: Foresight, seconds: float) -> None:
        if not 0 <= seconds < math.inf:
            raise ConfigurationError(f"requests cannot have a patience of {seconds} s: give a number from 0 on")
        self._state = state
        self._foresight = foresight
        self._seconds = seconds

    def has_ended(self, queue: ModelQueue, in_the_way: Callable[[], Sequence[str]], now: float) -> bool:
        """Returns whether those who wait for a model that is not hot are to wait no longer than they must.

        Args:
            queue: Of the model; somebody waits.
            in_the_way: Models that have to run dry first.
            now: The time.
        """
        since = queue.waiting[0].cold_since
        if not self._seconds or since is None:  # what has begun lets nobody go first
            return True
        if now >= since + self._seconds:
            arrived_at = self._state.residency.arrived_at
            if all(now >= arrived_at(name) + self._seconds for name in in_the_way()):
                return True
        if all(job.request.deadline_seconds is None for job in queue.waiting):
            return False
        queues = self._state.queues
        seconds = sum(_seconds_left(queues[name]) for name in in_the_way())  # they take turns
        return now + seconds >= _latest(queue) - self._foresight.reload_seconds(queue.entry.name)


def _latest(queue: ModelQueue) -> float:
    """Returns when a model must be hot so that each of those who wait for it has its first token in time."""
    latest, seconds = math.inf, 0.0
    for job in queue.waiting:
        seconds += _seconds_to_first(queue, job)
        if job.request.deadline_seconds is not None:
            latest = min(latest, job.arrived_at + job.request.deadline_seconds - seconds)
    return latest


def _seconds_to_first(queue: ModelQueue, job: Job) -> float:
    """Returns how long a job computes until its first token, or its vectors are there."""
    match job:
        case GenerateJob():
            return _seconds_of_prompt(queue, job.num_pending)
        case EmbedJob():
            return _seconds_of_sequences(queue, len(job.sequences))
        case _:
            return 0.0


def _seconds_left(queue: ModelQueue) -> float:
    """Returns how long a model runs at most if it begins what it has room for, and nothing after it."""
    free = max(0, queue.entry.batch - queue.num_running)
    coming = [job for job in queue.waiting if isinstance(job, GenerateJob | EmbedJob)][:free]
    prompts = [*queue.prompts, *(job for job in coming if isinstance(job, GenerateJob))]
    computing = sum(_seconds_of_prompt(queue, job.num_pending) for job in prompts)
    tokens = max((job.num_prompt + job.max_tokens - len(job.tokens) for job in (*prompts, *queue.answering)), default=0)
    answers = tokens * queue.step_seconds(queue.longest("decode")) if tokens else 0.0
    embedding = [*queue.embedding, *(job for job in coming if isinstance(job, EmbedJob))]
    return (
        computing + answers + _seconds_of_sequences(queue, sum(len(job.sequences) - job.num_done for job in embedding))
    )


def _seconds_of_prompt(queue: ModelQueue, num_tokens: int) -> float:
    num_whole, rest = divmod(num_tokens, queue.longest("prefill").new_tokens)
    whole = num_whole * queue.step_seconds(queue.longest("prefill"))
    return whole + (queue.seconds_of_prompt(rest) if rest else 0.0)


def _seconds_of_sequences(queue: ModelQueue, count: int) -> float:
    if not count:
        return 0.0
    step = queue.longest("embed")
    return math.ceil(count / step.batch) * queue.step_seconds(step)
