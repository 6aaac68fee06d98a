"""What an answer took, in OpenAI's fields, SambaNova's and our own."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, Field

from ...request import JoulesSource
from ...request import Usage as EngineUsage

__all__ = ["CompletionTokensDetails", "PromptTokensDetails", "Seconds", "Usage"]

Seconds: TypeAlias = Annotated[float, Field(ge=0)]


class PromptTokensDetails(BaseModel):
    """Of the prompt's tokens, those that were not computed again."""

    cached_tokens: int = 0


class CompletionTokensDetails(BaseModel):
    """What a draft model proposed: tokens that came into the answer, and others."""

    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(BaseModel):
    """What an answer cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()
    time_to_first_token: Seconds
    total_latency: Seconds
    completion_tokens_per_sec: float  # of the whole time
    completion_tokens_after_first_per_sec: float  # of the time after the first token; 0 for an answer of one
    queue_ms: float
    switch_ms: float  # of the queue's time, waiting for the model to be made hot
    joules: float | None  # of all steps for it, its share; null where nothing is known of power
    joules_per_token: float | None  # of the prompt and the answer together
    joules_source: JoulesSource | None

    @classmethod
    def of(cls, usage: EngineUsage) -> Usage:
        """Returns the engine's account in the API's terms."""
        after_first_seconds = usage.total_seconds - usage.time_to_first_token_seconds
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
            completion_tokens_details=CompletionTokensDetails(
                accepted_prediction_tokens=usage.accepted_tokens, rejected_prediction_tokens=usage.rejected_tokens
            ),
            time_to_first_token=usage.time_to_first_token_seconds,
            total_latency=usage.total_seconds,
            completion_tokens_per_sec=_rate(usage.completion_tokens, usage.total_seconds),
            completion_tokens_after_first_per_sec=_rate(usage.completion_tokens - 1, after_first_seconds),
            queue_ms=usage.queue_seconds * 1000,
            switch_ms=usage.switch_seconds * 1000,
            joules=usage.energy.joules if usage.energy else None,
            joules_per_token=usage.joules_per_token,
            joules_source=usage.energy.source if usage.energy else None,
        )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count > 0 and seconds > 0 else 0.0
