"""What goes into the runtime and what comes out of it, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float

__all__ = [
    "ClassifyResult",
    "Completion",
    "EmbedResult",
    "FinishReason",
    "ModelStatus",
    "Piece",
    "Residency",
    "SamplingParams",
    "Usage",
]

FinishReason: TypeAlias = Literal["stop", "length"]
Residency: TypeAlias = Literal["hot", "warm", "cold"]


@dataclass(frozen=True)
class SamplingParams:
    """How an answer is drawn from a model. None means the model's own default."""

    max_tokens: int | None = None  # None: until the context is full
    temperature: float | None = None  # 0 is greedy
    top_p: float | None = None
    seed: int | None = None  # None: drawn at random
    stop: tuple[str, ...] = ()  # the answer ends before the first of these


@dataclass(frozen=True)
class Usage:
    """What an answer cost. Times count from the moment the request was submitted."""

    prompt_tokens: int
    completion_tokens: int
    queue_seconds: float  # until the first step that computed for it
    switch_seconds: float  # of that, waiting for its model to be made hot
    time_to_first_token_seconds: float
    total_seconds: float


@dataclass(frozen=True)
class Piece:
    """A piece of an answer; the last one has a finish reason and the usage, and may have no text."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage


@dataclass(frozen=True)
class EmbedResult:
    """The vectors of a list of texts, in their order."""

    vectors: Float[np.ndarray, "texts size"]  # f32
    usage: Usage


@dataclass(frozen=True)
class ClassifyResult:
    """What a classifier says of a list of texts or pairs, in their order."""

    labels: tuple[str, ...]
    probabilities: Float[np.ndarray, "inputs labels"]  # f32; a row sums to 1 unless there is one label or many may hold
    usage: Usage


@dataclass(frozen=True)
class ModelStatus:
    """What a model of the running bundle is and where it is."""

    name: str
    aliases: tuple[str, ...]
    capabilities: tuple[str, ...]
    residency: Residency
    pin: str | None
    context_length: int
    max_completion_tokens: int
    weights_bytes: int
    kv_bytes: int
    workspace_bytes: int
