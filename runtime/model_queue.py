"""The requests of one model, and the configurations that its steps can have."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from ..compiler.bundle.manifest import ModelEntry, ProgramEntry
from ..compiler.configuration import Configuration, Phase
from .client_shares import ClientShares
from .jobs import EmbedJob, GenerateJob, Job
from .kv_cache import BlockPool

__all__ = ["ModelQueue"]


@dataclass(eq=False)
class ModelQueue:
    """The requests of one model."""

    entry: ModelEntry
    pool: BlockPool | None = None  # of a decoder
    block_bytes: int = 0  # of one block, on the fullest device
    copy_pays: bool = False  # whether a token's KV is copied to ddr and back in less time than it takes to compute
    blocks_per_load: int = 1  # that are copied in the time of one prefill chunk
    waiting: list[Job] = field(default_factory=list[Job])  # in order
    prompts: list[GenerateJob] = field(default_factory=list[GenerateJob])  # admitted: own KV blocks
    answering: list[GenerateJob] = field(default_factory=list[GenerateJob])  # likewise: lack only their newest token
    embedding: list[EmbedJob] = field(default_factory=list[EmbedJob])  # admitted; in order
    shares: ClientShares = field(default_factory=ClientShares)
    last_phase: Phase = "decode"
    prefill_seconds: float = 0.0  # of the steps since the last decode step, if there were any
    is_turn_of_short: bool = False  # whether the next chunk is for a prompt that it completes
    num_seen: int = 0  # blocks that had come into the pool when prompts were last looked for in it
    is_saved: bool = False  # whether what is worth it has been saved since the last step
    num_preemptions: int = 0
    num_proposed: int = 0  # tokens of a draft model, for this one's answers
    num_accepted: int = 0  # of them, that are in the answers
    _chosen: dict[tuple[Phase, int, int], Configuration | None] = field(
        default_factory=dict[tuple[Phase, int, int], "Configuration | None"]
    )  # what `smallest` has said: asked at every step
    _longest: dict[Phase, Configuration] = field(default_factory=dict[Phase, Configuration])  # likewise
    _planned: dict[int, tuple[float, Configuration]] = field(default_factory=dict[int, "tuple[float, Configuration]"])

    @staticmethod
    def of(entry: ModelEntry, *, kv_bytes_per_s: float | None) -> ModelQueue:
        """Returns an empty queue.

        Args:
            entry: The model.
            kv_bytes_per_s: Rate at which KV blocks are copied to ddr and back; None where they never are.
        """
        if entry.kv is None:
            return ModelQueue(entry)
        queue = ModelQueue(entry, BlockPool(entry.kv.num_blocks, entry.kv.block_tokens))
        queue.block_bytes = -(-max(share.kv_bytes for share in entry.shares) // entry.kv.num_blocks)
        if kv_bytes_per_s is not None:
            program = queue._program(queue.longest("prefill"))
            copy_seconds = queue.block_bytes / kv_bytes_per_s
            chunk_seconds = program.step_seconds
            blocks_per_chunk = program.configuration.new_tokens / entry.kv.block_tokens
            queue.copy_pays = 2 * copy_seconds * blocks_per_chunk < chunk_seconds
            queue.blocks_per_load = max(1, int(chunk_seconds / copy_seconds))
        return queue

    @property
    def running(self) -> list[GenerateJob]:
        """The jobs that own KV blocks."""
        return self.prompts + self.answering

    @property
    def is_busy(self) -> bool:
        """Whether any request has begun and not ended."""
        return bool(self.answering or self.prompts or self.embedding)

    @property
    def is_full(self) -> bool:
        """Whether no more answers can be under way."""
        return len(self.prompts) + len(self.answering) >= self.entry.batch

    @property
    def num_running(self) -> int:
        """Number of requests that have been admitted."""
        return len(self.prompts) + len(self.answering) + len(self.embedding)

    @property
    def has_work(self) -> bool:
        """Whether a step could be issued."""
        if not self.embedding:  # asked of many models at every step
            return bool(self.answering or self.prompts)
        return any(job.num_issued < len(job.sequences) for job in self.embedding)

    def advanced(self, job: GenerateJob) -> None:
        """Has a prompt answer if its cache has come that far."""
        if job.is_decoding:
            self.prompts.remove(job)
            self.answering.append(job)

    def leave_prefill(self) -> None:
        """Has answers go on before the next chunk of a prompt."""
        self.last_phase, self.prefill_seconds = "prefill", math.inf

    def smallest(self, phase: Phase, *, batch: int = 1, new_tokens: int = 1) -> Configuration | None:
        """Returns the cheapest configuration that holds so many sequences of so many tokens, if there is one."""
        asked = (phase, batch, new_tokens)
        if asked not in self._chosen:
            fitting = (c for c in self._of_phase(phase) if c.batch >= batch and c.new_tokens >= new_tokens)
            self._chosen[asked] = min(fitting, key=lambda c: (c.batch * c.new_tokens, c.batch), default=None)
        return self._chosen[asked]

    def next_chunk(self, num_tokens: int) -> Configuration:
        """Returns the step to begin with so that a prompt of so many tokens takes the least time.

        A step that is not full takes as long as a full one: a little more than a step holds is two steps.
        """
        return self._quickest(min(num_tokens, self.longest("prefill").new_tokens))[1]

    def seconds_of_prompt(self, num_tokens: int) -> float:
        """Returns the least time in which so many tokens of one prompt are computed, no more than a step can have."""
        return self._quickest(num_tokens)[0]

    @cached_property
    def _chunks(self) -> list[tuple[int, float, Configuration]]:
        """Tokens of the prefill steps there are, and how long each takes in the smallest batch."""
        steps = sorted(self._of_phase("prefill"), key=lambda c: -c.batch)
        return [(size, self.step_seconds(c), c) for size, c in {c.new_tokens: c for c in steps}.items()]

    def _quickest(self, num_tokens: int) -> tuple[float, Configuration]:
        """Returns how long a prompt of no more tokens than a step can have takes, and the first of its steps."""
        if num_tokens not in self._planned:
            covering = min((size for size, _, _ in self._chunks if size >= num_tokens), default=0)
            ways = [
                (seconds + (self._quickest(num_tokens - size)[0] if size < num_tokens else 0.0), -size, c)
                for size, seconds, c in self._chunks
                if size < num_tokens or size == covering
            ]
            seconds, _, chosen = min(ways, key=lambda way: way[:2])
            self._planned[num_tokens] = (seconds, chosen)
        return self._planned[num_tokens]

    def longest(self, phase: Phase) -> Configuration:
        """Returns the configuration with the most new tokens."""
        if phase not in self._longest:
            self._longest[phase] = max(self._of_phase(phase), key=lambda c: c.new_tokens)
        return self._longest[phase]

    def _of_phase(self, phase: Phase) -> Iterator[Configuration]:
        return (program.configuration for program in self.entry.programs if program.configuration.phase == phase)

    def step_seconds(self, configuration: Configuration) -> float:
        """Returns what a step took when the bundle was made."""
        return self._program(configuration).step_seconds

    def _program(self, configuration: Configuration) -> ProgramEntry:
        return next(program for program in self.entry.programs if program.configuration == configuration)
