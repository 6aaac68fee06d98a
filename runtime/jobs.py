"""What the scheduler remembers of each request while it is under way."""

from __future__ import annotations

from dataclasses import dataclass, field

from .events import EmbedWork, GenerateWork, Request, Sampling, SequenceEntry, TierName, Timing, UnloadWork, new_tuple
from .kv_cache import chain_digests, root_digest

__all__ = ["EmbedJob", "GenerateJob", "Job", "LoadJob", "UnloadJob", "job_of"]


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


@dataclass(eq=False, kw_only=True)
class GenerateJob(Job):
    """An answer under way: its tokens, and how many of them have keys and values in the cache."""

    sampling: Sampling
    tokens: list[int] = field(default_factory=list[int])  # of the prompt, then of the answer
    num_prompt: int = 0
    max_tokens: int = 0
    salt: str = ""  # its cache is shared with requests of the same salt only
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list[int])
    num_indexed: int = 0  # blocks of the table that can be found by others
    num_cached: int = 0  # tokens of the prompt that were in the cache when it first came to run
    was_preempted: bool = False  # after its first step
    is_charged: bool = False  # whether its prompt counts against its client's share
    num_proposed: int = 0  # tokens of a draft model
    num_accepted: int = 0  # of them, that are in the answer
    draft: GenerateJob | None = None  # the same tokens in the cache of a draft model, with blocks of its pool
    _digests: list[bytes] = field(default_factory=list[bytes])  # of the full blocks, as far as they were asked for
    last_timing: Timing | None = None  # of its replies: from the first token on only proposals change it

    @staticmethod
    def of(request: Request, work: GenerateWork, order: tuple[int, int], now: float) -> GenerateJob:
        """Returns the job of a new request."""
        prompt = list(work.prompt)
        return GenerateJob(
            request,
            order,
            now,
            sampling=work.sampling,
            tokens=prompt,
            num_prompt=len(prompt),
            max_tokens=work.max_tokens,
            salt=work.salt,
        )

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
        return 0 < self.num_computed == len(self.tokens) - 1

    def digests(self, num_blocks: int, block_tokens: int) -> list[bytes]:
        """Returns the digests of the first blocks, of tokens that are known."""
        known = self._digests
        if len(known) < num_blocks:
            parent = known[-1] if known else root_digest(self.salt)
            known += chain_digests(
                parent, self.tokens[len(known) * block_tokens : num_blocks * block_tokens], block_tokens
            )
        return known[:num_blocks]

    def digest(self, position: int, block_tokens: int) -> bytes:
        """Returns the digest of one block, of tokens that are known."""
        if position < len(self._digests):
            return self._digests[position]
        return self.digests(position + 1, block_tokens)[position]

    def for_draft(self) -> GenerateJob:
        """Returns what a draft model keeps of the job: its tokens, which are one list, and nothing computed of them."""
        return GenerateJob(
            self.request,
            self.order,
            self.arrived_at,
            sampling=self.sampling,
            tokens=self.tokens,
            num_prompt=self.num_prompt,
            max_tokens=self.max_tokens,
            salt=self.salt,
        )

    def found(self, num_tokens: int) -> None:
        """Records that so many tokens more are in the cache, and that nothing was computed for them."""
        self.num_computed += num_tokens
        if not self.was_preempted:
            self.num_cached += num_tokens

    def timing(self) -> Timing:
        """Returns when things happened, and what needed not."""
        if self.last_timing is None:
            assert self.started_at is not None, self.id
            self.last_timing = Timing(
                self.arrived_at,
                self.started_at,
                self.switch_seconds,
                self.num_cached,
                self.num_proposed,
                self.num_accepted,
            )
        return self.last_timing

    def proposed(self, num_tokens: int, num_accepted: int) -> None:
        """Counts tokens that a draft model has proposed, and those of them that are in the answer."""
        self.num_proposed += num_tokens
        self.num_accepted += num_accepted
        self.last_timing = None

    def entry(self, num_tokens: int) -> SequenceEntry:
        """Returns the job's part of a step that computes its next tokens; after the last of all one is drawn."""
        tokens, start = self.tokens, self.num_computed
        end, num_known = start + num_tokens, len(tokens)
        sampling = self.sampling if end == num_known else None
        context = tuple(tokens) if sampling is not None and sampling.uses_context else ()
        num_generated = num_known - self.num_prompt
        return new_tuple(
            SequenceEntry,
            (self.request.id, tuple(tokens[start:end]), start, tuple(self.blocks), sampling, num_generated, context),
        )


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


@dataclass(eq=False)
class LoadJob(Job):
    """A model to be made hot."""


@dataclass(eq=False)
class UnloadJob(Job):
    """A model to be dropped from the tiers above one."""

    tier: TierName = "disk"


def job_of(request: Request, order: tuple[int, int], now: float) -> Job:
    """Returns the job of a new request."""
    match request.work:
        case GenerateWork() as work:
            return GenerateJob.of(request, work, order, now)
        case EmbedWork() as work:
            return EmbedJob.of(request, work, order, now)
        case UnloadWork(tier):
            return UnloadJob(request, order, now, tier=tier)
        case _:
            return LoadJob(request, order, now)
