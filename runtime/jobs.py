"""What the scheduler remembers of each request while it is under way."""

from __future__ import annotations

from dataclasses import dataclass, field

from .events import EmbedWork, GenerateWork, Request, Timing

__all__ = ["EmbedJob", "GenerateJob", "Job"]


@dataclass(eq=False)
class Job:
    """A request under way."""

    request: Request
    order: tuple[int, int]  # (priority class, serial number): who goes first
    arrived_at: float
    started_at: float | None = None  # when its first step was issued
    cold_since: float | None = None  # while it waits and its model isn't hot
    switch_seconds: float = 0.0  # of the wait, spent like that so far
    is_cancelled: bool = False  # while a step computes for it

    @property
    def id(self) -> int:
        """The request's id."""
        return self.request.id

    def became_hot(self, now: float) -> None:
        """Records that its model has arrived in hbm."""
        if self.cold_since is not None:
            self.switch_seconds += now - self.cold_since
        self.cold_since = None

    def became_cold(self, now: float) -> None:
        """Records that its model has left hbm."""
        if self.started_at is None:  # what comes after the first step is no wait for it
            self.cold_since = now

    def timing(self) -> Timing:
        """Returns when things happened, for the final reply."""
        assert self.started_at is not None, self.id
        return Timing(self.arrived_at, self.started_at, self.switch_seconds)


@dataclass(eq=False)
class GenerateJob(Job):
    """An answer under way: its tokens, and how many of them have keys and values in the cache."""

    tokens: list[int] = field(default_factory=list[int])  # of the prompt, then of the answer
    num_prompt: int = 0
    max_tokens: int = 0
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list[int])

    @staticmethod
    def of(request: Request, work: GenerateWork, order: tuple[int, int], now: float) -> GenerateJob:
        """Returns the job of a new request."""
        prompt = list(work.prompt)
        return GenerateJob(request, order, now, tokens=prompt, num_prompt=len(prompt), max_tokens=work.max_tokens)

    @property
    def num_generated(self) -> int:
        """Number of tokens of the answer so far."""
        return len(self.tokens) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Number of tokens that are not in the cache yet; one while decoding."""
        return len(self.tokens) - self.num_computed

    @property
    def is_decoding(self) -> bool:
        """Whether only the newest token is missing from the cache."""
        return self.num_pending == 1 and self.num_computed > 0


@dataclass(eq=False)
class EmbedJob(Job):
    """A list of sequences under way."""

    sequences: tuple[tuple[int, ...], ...] = ()
    num_issued: int = 0  # sequences that a step has been issued for
    num_done: int = 0

    @staticmethod
    def of(request: Request, work: EmbedWork, order: tuple[int, int], now: float) -> EmbedJob:
        """Returns the job of a new request."""
        return EmbedJob(request, order, now, sequences=work.sequences)
