"""Configurations: the unit that is compiled, and which of them a model needs.

A configuration fixes every shape of one program: (model, phase, sequences at once, new tokens, context).
`configurations` lays out the buckets of a model: powers of two of the batch for decode, and few, coarse token buckets,
since every bucket costs compile time, load time and a program in memory, while padding costs a factor of four at most.
An encoder's step has as many sequences as fit a number of tokens: a longer list takes several steps.

A verify step computes a few tokens of every sequence, and gives the logits of all of them: of speculative decoding's
target those that its draft has proposed, of a draft those that it lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..models.config import DecoderConfig, ModelConfig

__all__ = ["BLOCK_TOKENS", "Configuration", "Phase", "configurations", "ladder"]

Phase: TypeAlias = Literal["prefill", "decode", "verify", "embed", "train"]

BLOCK_TOKENS = 16  # tokens of one KV block
PREFILL_CHUNKS = (16, 64, 128, 256, 512)  # new tokens of a prefill step; a longer prompt takes several
_MIN_EMBED_TOKENS = 32
_MAX_EMBED_STEP_TOKENS = 1024  # of all sequences: more in one step only costs memory, and makes others wait


@dataclass(frozen=True)
class Configuration:
    """The shapes of one program of one model."""

    phase: Phase
    batch: int  # sequences at once
    new_tokens: int  # tokens of each sequence that this step computes
    context: int  # longest sequence the step can see, new tokens included

    @property
    def id(self) -> str:
        """Name within its model, e.g. `decode-b8-t1-c2048`."""
        return f"{self.phase}-b{self.batch}-t{self.new_tokens}-c{self.context}"


def ladder(smallest: int, largest: int, factor: int) -> tuple[int, ...]:
    """Returns smallest, smallest * factor, ... up to and including `largest`."""
    steps = []
    step = smallest
    while step < largest:
        steps.append(step)
        step *= factor
    return (*steps, largest)


def configurations(
    config: ModelConfig, *, sequence: int, batch: int, verify_tokens: Sequence[int] = ()
) -> tuple[Configuration, ...]:
    """Returns the configurations that serve a model, the most needed first.

    Args:
        config: The model's architecture.
        sequence: Longest context in tokens.
        batch: Most sequences at once.
        verify_tokens: New tokens of each sequence in a decoder's verify steps; several sizes, or none.
    """
    if isinstance(config, DecoderConfig):
        prefills = [Configuration("prefill", 1, min(chunk, sequence), sequence) for chunk in PREFILL_CHUNKS]
        sizes = ladder(1, batch, 2)
        decodes = [Configuration("decode", size, 1, sequence) for size in sizes]
        verifies = [Configuration("verify", size, tokens, sequence) for tokens in verify_tokens for size in sizes]
        return tuple(dict.fromkeys([*prefills, *decodes, *verifies]))
    lengths = ladder(min(_MIN_EMBED_TOKENS, sequence), sequence, 4)
    return tuple(
        Configuration("embed", size, length, length)
        for length in lengths
        for size in ladder(1, max(1, min(batch, _MAX_EMBED_STEP_TOKENS // length)), 4)
    )
