"""The scheduler's vocabulary: events go in, actions come out, all of it plain frozen data.

A step, a transfer and a timer are named by the action that starts them, and the event that ends them carries the
same id.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from ..compiler.configuration import Configuration
from .request import FinishReason

__all__ = [
    "CHUNK_BYTES",
    "Action",
    "Arrival",
    "Cancel",
    "CancelTransfer",
    "Check",
    "Checked",
    "Constraint",
    "CopyBlocks",
    "Decode",
    "Draft",
    "DropBlocks",
    "Embed",
    "EmbedEntry",
    "EmbedWork",
    "Event",
    "Evict",
    "FailureCode",
    "GenerateWork",
    "LoadBlocks",
    "LoadWork",
    "Prefill",
    "Reply",
    "Request",
    "RouteWork",
    "Routed",
    "Sampling",
    "SaveBlocks",
    "SequenceEntry",
    "SetTimer",
    "Step",
    "StepDone",
    "StepFailed",
    "TierName",
    "Timer",
    "Timing",
    "Transfer",
    "TransferCancelled",
    "TransferDone",
    "TransferEnd",
    "TransferFailed",
    "TransferProgressed",
    "UnloadWork",
    "Verify",
    "Work",
    "new_tuple",
]

TierName: TypeAlias = Literal["hbm", "ddr", "disk"]
FailureCode: TypeAlias = Literal["timeout", "failed", "unhealthy", "dropped"]  # dropped: a check that was in the way

new_tuple: Callable[..., Any] = cast("Any", tuple).__new__  # of a class and all its fields: quicker than a call of it

CHUNK_BYTES = 32 << 20  # of a transfer: it can end after any of them


class Constraint(Protocol):
    """What an answer must look like; says the same of the same answer, whatever it was asked before."""

    def allowed(self, answer: Sequence[int], vocab_size: int) -> NDArray[np.bool_]:
        """Returns which tokens may follow an answer, bool [vocab_size]."""
        ...

    def is_complete(self, answer: Sequence[int]) -> bool:
        """Returns whether nothing but an end may follow an answer."""
        ...

    @property
    def failure(self) -> str:
        """Why answers can no longer be constrained; "" while they can."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float  # 0 is greedy
    top_p: float
    seed: int
    top_k: int = 0  # 0: all
    min_p: float = 0.0  # least probability, as a share of the most likely token's
    frequency_penalty: float = 0.0  # for each time that a token is in the answer
    presence_penalty: float = 0.0  # once for a token that is in the answer
    repetition_penalty: float = 1.0  # divides the logits of tokens in prompt or answer
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, what is added to its logit)
    min_tokens: int = 0  # no end comes before so many
    ends: tuple[int, ...] = ()  # tokens that end the answer beside the model's own
    ignores_eos: bool = False  # the model's own ends are tokens like others
    num_logprobs: int | None = None  # likeliest tokens whose logarithms are wanted beside the drawn one's; None: none
    constraint: Constraint | None = None
    is_reproducible: bool = True  # a seed was given: whether and what a draft proposes must not change the answer

    @cached_property
    def uses_context(self) -> bool:
        """Whether a draw depends on the tokens before it by more than the logits."""
        penalties = (self.frequency_penalty, self.presence_penalty, self.repetition_penalty)
        return penalties != (0.0, 0.0, 1.0) or self.constraint is not None

    def is_end(self, token: int, eos_token_ids: Collection[int]) -> bool:
        """Returns whether a token ends the answer of a model with these ends of its own."""
        return token in self.ends or (not self.ignores_eos and token in eos_token_ids)

    def before_end(self, drawn: tuple[int, ...], eos_token_ids: Collection[int]) -> tuple[int, ...]:
        """Returns the tokens drawn before the first that ends the answer; all of them if none does."""
        if self.ignores_eos and not self.ends:
            return drawn
        for index, token in enumerate(drawn):
            if self.is_end(token, eos_token_ids):
                return drawn[:index]
        return drawn


@dataclass(frozen=True)
class GenerateWork:
    """An answer to be generated."""

    prompt: tuple[int, ...]  # at least one token
    max_tokens: int  # prompt and answer together fit the context and the KV pool
    sampling: Sampling
    salt: str = ""  # what is cached for it is shared with requests of the same salt only


@dataclass(frozen=True)
class EmbedWork:
    """Sequences to be turned into one vector each."""

    sequences: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class LoadWork:
    """A model to be made hot, for whatever comes later."""


@dataclass(frozen=True)
class UnloadWork:
    """A model to be dropped from all tiers above one, after what was asked of it before."""

    tier: Literal["ddr", "disk"]


@dataclass(frozen=True)
class RouteWork:
    """Nothing but to be told which model would answer."""


Work: TypeAlias = GenerateWork | EmbedWork | LoadWork | UnloadWork | RouteWork


@dataclass(frozen=True)
class Request:
    """What one client asks of one model."""

    id: int
    model: str  # name, alias or route; with the scheduler's answer, the model's own name
    work: Work
    priority: int = 0  # class; a lower number goes first
    client: str = ""  # whose it is: those of a class get the same share
    deadline_seconds: float | None = None  # after it came: when its first token is wanted; one that is late goes on


# Events


@dataclass(frozen=True)
class Arrival:
    """A request has come in."""

    request: Request


@dataclass(frozen=True)
class Cancel:
    """The client of a request is gone, or has read enough."""

    request_id: int


@dataclass(frozen=True)
class Check:
    """A request of the runtime itself, to find out about a hot model: it comes after all others, and gives way."""

    request: Request


@dataclass(frozen=True)
class Checked:
    """A check has shown what a model is worth."""

    model: str
    message: str  # what is wrong with it; "" if nothing is


class StepDone(NamedTuple):
    """A step, or a copy in the place of one, has ended; `tokens` holds those drawn for each entry, if it has any.

    A tuple, as the steps of decoders are: they are made in less time, and there are many.
    """

    step_id: int
    tokens: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class StepFailed:
    """A step has failed; what it should have computed is lost."""

    step_id: int
    message: str


@dataclass(frozen=True)
class TransferProgressed:
    """All bytes of a transfer but its last chunk have arrived: nobody needs to know of those before."""

    transfer_id: int
    done_bytes: int


@dataclass(frozen=True)
class TransferDone:
    """A transfer has arrived whole."""

    transfer_id: int


@dataclass(frozen=True)
class TransferCancelled:
    """A transfer has ended because it was told to; its destination holds nothing of it."""

    transfer_id: int
    done_bytes: int  # that had been moved by then


@dataclass(frozen=True)
class TransferFailed:
    """A transfer has failed; its destination holds nothing of it."""

    transfer_id: int
    message: str


@dataclass(frozen=True)
class Timer:
    """A timer that the scheduler set has run out."""

    timer_id: int


TransferEnd: TypeAlias = TransferDone | TransferCancelled | TransferFailed
Event: TypeAlias = Arrival | Cancel | Check | Checked | StepDone | StepFailed | TransferProgressed | TransferEnd | Timer


# Actions


class SequenceEntry(NamedTuple):
    """One sequence's part of a prefill, decode or verify step. A tuple: one is made for every token."""

    request_id: int
    tokens: tuple[int, ...]  # new tokens to compute
    start: int  # number of tokens before them, whose keys and values are in the cache
    blocks: tuple[int, ...]  # of the KV pool, in the order of the sequence
    sampling: Sampling | None  # None where more of the prompt follows and no token is wanted
    num_generated: int  # tokens of the answer so far: with the seed, it determines the draw
    context: tuple[int, ...] = ()  # the whole prompt and answer so far, where the draw depends on them


@dataclass(frozen=True)
class EmbedEntry:
    """One sequence of an embedding step."""

    request_id: int
    index: int  # within its request
    tokens: tuple[int, ...]


class Prefill(NamedTuple):
    """Compute a chunk of a prompt."""

    step_id: int
    model: str
    configuration: Configuration
    entries: tuple[SequenceEntry, ...]


class Decode(NamedTuple):
    """Compute the next tokens of several sequences: `max_steps` each, or fewer if one of them ends before."""

    step_id: int
    model: str
    configuration: Configuration
    entries: tuple[SequenceEntry, ...]
    max_steps: int


@dataclass(frozen=True)
class Embed:
    """Compute the vectors of several sequences."""

    step_id: int
    model: str
    configuration: Configuration
    entries: tuple[EmbedEntry, ...]


@dataclass(frozen=True)
class Draft:
    """Propose tokens for sequences of another model: each step draws one for every entry that wants more."""

    model: str
    first: Configuration  # of the first step, which computes all that the cache lacks of a sequence
    rest: Configuration  # of the steps after it
    entries: tuple[SequenceEntry, ...]  # of requests that the verify step has too; blocks are of the draft's own pool
    num_tokens: tuple[int, ...]  # that are proposed for each entry


@dataclass(frozen=True)
class Verify:
    """Let a draft propose tokens, and compute them with its target: what follows those that it would have drawn too.

    What is drawn for an entry are the proposals that are accepted, and one token after them unless one is an end.
    """

    step_id: int
    model: str
    configuration: Configuration
    entries: tuple[SequenceEntry, ...]  # all that decode; for some nothing may be proposed
    draft: Draft


Step: TypeAlias = Prefill | Decode | Verify | Embed


@dataclass(frozen=True)
class CopyBlocks:
    """Copy blocks of a model's KV pool within it, before the next step."""

    model: str
    copies: tuple[tuple[int, int], ...]  # (source, destination)


@dataclass(frozen=True)
class SaveBlocks:
    """Copy blocks of a model's KV pool to slots in ddr. It takes the place of a step: nothing computes meanwhile."""

    step_id: int
    model: str
    copies: tuple[tuple[int, int], ...]  # (block, slot); slots are numbered over all models and never used again
    num_bytes: int  # of the fullest device


@dataclass(frozen=True)
class LoadBlocks:
    """Copy slots in ddr to blocks of a model's KV pool; the slots stay. It takes the place of a step."""

    step_id: int
    model: str
    copies: tuple[tuple[int, int], ...]  # (slot, block)
    num_bytes: int  # of the fullest device


@dataclass(frozen=True)
class DropBlocks:
    """Free slots in ddr."""

    slots: tuple[int, ...]


@dataclass(frozen=True)
class Transfer:
    """Copy a model's weights from one tier to the next, but for the segments that are there.

    In hbm, room for its KV pool comes with them.
    """

    transfer_id: int
    model: str
    source: TierName
    destination: TierName
    num_bytes: int  # to the fullest device
    chunk_bytes: int = CHUNK_BYTES


@dataclass(frozen=True)
class CancelTransfer:
    """End a transfer after the chunk that is under way. It may have arrived by then: whichever end comes is the one."""

    transfer_id: int


@dataclass(frozen=True)
class Evict:
    """Drop a model's bytes in a tier, or of hbm what is not in its first segments."""

    model: str
    tier: TierName
    num_kept: int = 0  # segments of the weights that stay; nothing else does


@dataclass(frozen=True)
class Timing:
    """When things happened to a request, in the scheduler's seconds."""

    arrived_at: float
    started_at: float  # its first step was issued
    switch_seconds: float  # of the wait, spent without its model being hot
    cached_tokens: int = 0  # of the prompt, that were in the KV cache when it began
    proposed_tokens: int = 0  # by a draft model, so far
    accepted_tokens: int = 0  # of them, that are in the answer


class Reply(NamedTuple):
    """Tell a client: more tokens, the end, or a failure. Nothing follows an end or a failure.

    A tuple: one is made for every token.
    """

    request_id: int
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    failure: FailureCode | None = None
    message: str = ""
    timing: Timing | None = None  # with tokens and with the end


@dataclass(frozen=True)
class Routed:
    """Tell a client which model has its request; it ends a request to be told that."""

    request_id: int
    model: str


@dataclass(frozen=True)
class SetTimer:
    """Send `Timer(timer_id)` at this time or soon after."""

    timer_id: int
    at_seconds: float


Action: TypeAlias = (
    Step
    | CopyBlocks
    | SaveBlocks
    | LoadBlocks
    | DropBlocks
    | Transfer
    | CancelTransfer
    | Evict
    | Reply
    | Routed
    | SetTimer
)
