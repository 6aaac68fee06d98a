"""The requests of one model, and the configurations that its steps can have."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..compiler.bundle.manifest import ModelEntry
from ..compiler.configuration import Configuration, Phase
from .jobs import EmbedJob, GenerateJob, Job
from .kv_cache import BlockPool

__all__ = ["ModelQueue"]


@dataclass(eq=False)
class ModelQueue:
    """The requests of one model."""

    entry: ModelEntry
    pool: BlockPool | None  # of a decoder
    waiting: list[Job] = field(default_factory=list[Job])  # in order
    running: list[GenerateJob] = field(default_factory=list[GenerateJob])  # own KV blocks; in order of admission
    embedding: list[EmbedJob] = field(default_factory=list[EmbedJob])  # admitted; in order
    last_step_id: int = -1
    last_phase: Phase = "decode"

    @property
    def is_busy(self) -> bool:
        """Whether any request has begun and not ended."""
        return bool(self.running or self.embedding)

    @property
    def has_work(self) -> bool:
        """Whether a step could be issued."""
        return bool(self.running) or any(job.num_issued < len(job.sequences) for job in self.embedding)

    def smallest(self, phase: Phase, *, batch: int = 1, new_tokens: int = 1) -> Configuration | None:
        """Returns the cheapest configuration that holds so many sequences of so many tokens, if there is one."""
        known = (program.configuration for program in self.entry.programs if program.configuration.phase == phase)
        fitting = (c for c in known if c.batch >= batch and c.new_tokens >= new_tokens)
        return min(fitting, key=lambda c: (c.batch * c.new_tokens, c.batch), default=None)

    def longest(self, phase: Phase) -> Configuration:
        """Returns the configuration with the most new tokens."""
        known = (program.configuration for program in self.entry.programs if program.configuration.phase == phase)
        return max(known, key=lambda c: c.new_tokens)
