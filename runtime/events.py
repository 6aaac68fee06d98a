"""The scheduler's vocabulary: events go in, actions come out, all of it plain frozen data.

A step, a transfer and a timer are named by the action that starts them, and the event that ends them carries the
same id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..compiler.configuration import Configuration
from .request import FinishReason

__all__ = [
    "Action",
    "Arrival",
    "Cancel",
    "Decode",
    "Embed",
    "EmbedEntry",
    "EmbedWork",
    "Event",
    "Evict",
    "FailureCode",
    "GenerateWork",
    "Prefill",
    "Reply",
    "Request",
    "Sampling",
    "SequenceEntry",
    "SetTimer",
    "Step",
    "StepDone",
    "StepFailed",
    "TierName",
    "Timer",
    "Timing",
    "Transfer",
    "TransferDone",
    "TransferFailed",
    "TransferProgressed",
]

TierName: TypeAlias = Literal["hbm", "ddr", "disk"]
FailureCode: TypeAlias = Literal["timeout", "failed"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float  # 0 is greedy
    top_p: float
    seed: int


@dataclass(frozen=True)
class GenerateWork:
    """An answer to be generated."""

    prompt: tuple[int, ...]  # at least one token
    max_tokens: int  # prompt and answer together fit the context and the KV pool
    sampling: Sampling


@dataclass(frozen=True)
class EmbedWork:
    """Sequences to be turned into one vector each."""

    sequences: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Request:
    """What one client asks of one model."""

    id: int
    model: str
    work: GenerateWork | EmbedWork
    priority: int = 0  # class; a lower number goes first


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
class StepDone:
    """A step has ended; `tokens` holds, for each entry of a prefill or decode, those that were drawn."""

    step_id: int
    tokens: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class StepFailed:
    """A step has failed; what it should have computed is lost."""

    step_id: int
    message: str


@dataclass(frozen=True)
class TransferProgressed:
    """So many bytes of a transfer have arrived."""

    transfer_id: int
    done_bytes: int


@dataclass(frozen=True)
class TransferDone:
    """A transfer has arrived whole."""

    transfer_id: int


@dataclass(frozen=True)
class TransferFailed:
    """A transfer has failed; its destination holds nothing of it."""

    transfer_id: int
    message: str


@dataclass(frozen=True)
class Timer:
    """A timer that the scheduler set has run out."""

    timer_id: int


Event: TypeAlias = Arrival | Cancel | StepDone | StepFailed | TransferProgressed | TransferDone | TransferFailed | Timer


# Actions


@dataclass(frozen=True)
class SequenceEntry:
    """One sequence's part of a prefill or decode step."""

    request_id: int
    tokens: tuple[int, ...]  # new tokens to compute
    start: int  # number of tokens before them, whose keys and values are in the cache
    blocks: tuple[int, ...]  # of the KV pool, in the order of the sequence
    sampling: Sampling | None  # None where more of the prompt follows and no token is wanted
    num_generated: int  # tokens of the answer so far: with the seed, it determines the draw


@dataclass(frozen=True)
class EmbedEntry:
    """One sequence of an embedding step."""

    request_id: int
    index: int  # within its request
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Prefill:
    """Compute a chunk of a prompt."""

    step_id: int
    model: str
    configuration: Configuration
    entries: tuple[SequenceEntry, ...]


@dataclass(frozen=True)
class Decode:
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


Step: TypeAlias = Prefill | Decode | Embed


@dataclass(frozen=True)
class Transfer:
    """Copy a model's weights from one tier to the next; in hbm, room for its KV pool comes with them."""

    transfer_id: int
    model: str
    source: TierName
    destination: TierName
    num_bytes: int


@dataclass(frozen=True)
class Evict:
    """Drop a model's bytes in a tier."""

    model: str
    tier: TierName


@dataclass(frozen=True)
class Timing:
    """When things happened to a request, in the scheduler's seconds."""

    arrived_at: float
    started_at: float  # its first step was issued
    switch_seconds: float  # of the wait, spent without its model being hot


@dataclass(frozen=True)
class Reply:
    """Tell a client: more tokens, the end, or a failure. Nothing follows an end or a failure."""

    request_id: int
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    failure: FailureCode | None = None
    message: str = ""
    timing: Timing | None = None  # with tokens and with the end


@dataclass(frozen=True)
class SetTimer:
    """Send `Timer(timer_id)` at this time or soon after."""

    timer_id: int
    at_seconds: float


Action: TypeAlias = Prefill | Decode | Embed | Transfer | Evict | Reply | SetTimer
