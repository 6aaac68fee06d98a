"""Answers of /v1/completions, whole and streamed."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from ...request import FinishReason
from .logprobs import CompletionLogprobs
from .usage import Usage

__all__ = ["Completion", "CompletionChoice", "CompletionChunk", "CompletionChunkChoice"]


class CompletionChoice(BaseModel):
    """One answer of a text completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason


class Completion(BaseModel):
    """Body of a text completion."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(BaseModel):
    """One step of a streamed text completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class CompletionChunk(BaseModel):
    """One event of a streamed text completion; `usage` is left out unless the client asked for it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None
