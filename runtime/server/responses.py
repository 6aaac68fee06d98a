"""What clients get, as OpenAI's API reference has it, with SambaNova's and our own figures in `usage`."""

from __future__ import annotations

import functools
import hashlib
import time
import uuid
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, Field, JsonValue, SerializerFunctionWrapHandler, model_serializer

from ..request import FinishReason, Health, JoulesSource, Residency, TokenLogprobs, TokenScore, ToolCall, ToolCallDelta
from ..request import Usage as EngineUsage

__all__ = [
    "ChatChoice",
    "ChatChunk",
    "ChatCompletion",
    "ChatDelta",
    "ChatLogprobs",
    "ChatMessage",
    "ChatToolCallDelta",
    "Classification",
    "ClassificationList",
    "Completion",
    "CompletionChoice",
    "CompletionChunk",
    "CompletionChunkChoice",
    "CompletionLogprobs",
    "EmbeddingItem",
    "EmbeddingList",
    "EmbeddingUsage",
    "ModelBytes",
    "ModelItem",
    "ModelList",
    "ModelMove",
    "Ranked",
    "RankedDocument",
    "Ranking",
    "RouteItem",
    "Score",
    "ScoreList",
    "Usage",
    "new_id",
    "now",
    "system_fingerprint",
]

_LEAST_LOGPROB = -9999.0  # OpenAI's, for tokens that are out of the question

Seconds: TypeAlias = Annotated[float, Field(ge=0)]


def new_id(prefix: str) -> str:
    """Returns an id that no other response has."""
    return f"{prefix}-{uuid.uuid4().hex}"


def now() -> int:
    """Returns seconds since the epoch."""
    return int(time.time())


@functools.cache
def system_fingerprint(bundle: str) -> str:
    """Returns a name for what computes the answers: this version of plait and the bundle."""
    return "fp_" + hashlib.sha256(f"{version('plait')}/{bundle}".encode()).hexdigest()[:12]


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


def _shown(score: TokenScore) -> str:
    """Returns a token's text; a part of a character becomes U+FFFD, its bytes are in `bytes`."""
    return score.data.decode(errors="replace")


class ChatTokenScore(BaseModel):
    """One token and the logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]

    @classmethod
    def of(cls, score: TokenScore) -> ChatTokenScore:
        """Returns a score in the API's terms."""
        return cls(token=_shown(score), logprob=_finite(score.logprob), bytes=list(score.data))


class ChatTokenLogprobs(ChatTokenScore):
    """One token of an answer, and the likeliest ones in its place."""

    top_logprobs: list[ChatTokenScore]


class ChatLogprobs(BaseModel):
    """The tokens of an answer, or of one step of it."""

    content: list[ChatTokenLogprobs]
    refusal: None = None

    @classmethod
    def of(cls, logprobs: Sequence[TokenLogprobs]) -> ChatLogprobs:
        """Returns scores in the API's terms."""
        return cls(
            content=[
                ChatTokenLogprobs(
                    **ChatTokenScore.of(one.drawn).model_dump(),
                    top_logprobs=[ChatTokenScore.of(score) for score in one.likeliest],
                )
                for one in logprobs
            ]
        )


class CompletionLogprobs(BaseModel):
    """The tokens of a text completion, or of one step of it, list by list."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]  # the likeliest, and the token itself
    text_offset: list[int]  # characters of the answer before each token

    @classmethod
    def of(cls, logprobs: Sequence[TokenLogprobs], offset: int = 0) -> CompletionLogprobs:
        """Returns scores in the API's terms, the first token's text beginning at an offset."""
        texts = [_shown(one.drawn) for one in logprobs]
        return cls(
            tokens=texts,
            token_logprobs=[_finite(one.drawn.logprob) for one in logprobs],
            top_logprobs=[
                {_shown(score): _finite(score.logprob) for score in (one.drawn, *reversed(one.likeliest))}
                for one in logprobs
            ],
            text_offset=[offset + sum(map(len, texts[:index])) for index in range(len(texts))],
        )

    @property
    def end_offset(self) -> int:
        """Where the text after these tokens begins."""
        return self.text_offset[-1] + len(self.tokens[-1]) if self.tokens else 0


def _finite(logprob: float) -> float:
    """JSON has no infinity."""
    return max(logprob, _LEAST_LOGPROB)


class FunctionCall(BaseModel):
    """What is to be called; of one step of a streamed answer, what is new of it."""

    name: str | None = None
    arguments: str


class ChatToolCall(BaseModel):
    """A call that the model asks for."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall

    @classmethod
    def of(cls, call: ToolCall) -> ChatToolCall:
        """Returns a call in the API's terms."""
        return cls(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))


class ChatToolCallDelta(BaseModel):
    """One step of a call: its id and name with the first, and then its arguments."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCall

    @classmethod
    def of(cls, delta: ToolCallDelta) -> ChatToolCallDelta:
        """Returns a step in the API's terms."""
        function = FunctionCall(name=delta.name, arguments=delta.arguments)
        return cls(index=delta.index, id=delta.id, type="function" if delta.id else None, function=function)


class ChatMessage(BaseModel):
    """An answer: text, or calls, or both."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    annotations: list[str] = []  # always empty: there are no citations
    tool_calls: list[ChatToolCall] | None = None  # left out where there are none

    @classmethod
    def of(cls, text: str, calls: Sequence[ToolCall]) -> ChatMessage:
        """Returns an answer in the API's terms."""
        return cls(content=None if calls and not text else text, tool_calls=list(map(ChatToolCall.of, calls)) or None)

    @model_serializer(mode="wrap")
    def _without_missing_calls(self, dump: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        return {name: value for name, value in dump(self).items() if name != "tool_calls" or value}


class ChatChoice(BaseModel):
    """One answer of a chat completion."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """Body of a chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(BaseModel):
    """One step of a streamed answer."""

    index: int
    delta: dict[str, JsonValue]
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(BaseModel):
    """One event of a streamed chat completion; `usage` is left out unless the client asked for it."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatDelta]
    usage: Usage | None = None


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


class EmbeddingItem(BaseModel):
    """One vector: a list of numbers, or little-endian f32 in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """What vectors, labels or scores cost."""

    prompt_tokens: int
    total_tokens: int
    total_latency: Seconds
    queue_ms: float
    switch_ms: float
    joules: float | None
    joules_per_token: float | None
    joules_source: JoulesSource | None

    @classmethod
    def of(cls, usage: EngineUsage) -> EmbeddingUsage:
        """Returns the engine's account in the API's terms."""
        return cls(
            prompt_tokens=usage.prompt_tokens,
            total_tokens=usage.prompt_tokens,
            total_latency=usage.total_seconds,
            queue_ms=usage.queue_seconds * 1000,
            switch_ms=usage.switch_seconds * 1000,
            joules=usage.energy.joules if usage.energy else None,
            joules_per_token=usage.joules_per_token,
            joules_source=usage.energy.source if usage.energy else None,
        )


class EmbeddingList(BaseModel):
    """Body of an embeddings response."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage


class Classification(BaseModel):
    """One input's most probable label, and the probability of each label in the model's order."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassificationList(BaseModel):
    """Body of a classification response."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    labels: list[str]  # what each of `probs` is the probability of
    data: list[Classification]
    usage: EmbeddingUsage


class Score(BaseModel):
    """One pair's score, between 0 and 1."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreList(BaseModel):
    """Body of a score response."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Score]
    usage: EmbeddingUsage


class RankedDocument(BaseModel):
    """A document as it was sent."""

    text: str


class Ranked(BaseModel):
    """One document's place; `document` is left out unless the client asked for it."""

    index: int  # in the request
    relevance_score: float  # between 0 and 1
    document: RankedDocument | None = None


class Ranking(BaseModel):
    """Body of a rerank response, the most relevant document first."""

    id: str
    model: str
    results: list[Ranked]
    usage: EmbeddingUsage


class ModelBytes(BaseModel):
    """What a model takes of memory while it is hot."""

    weights: int
    kv: int
    workspace: int


class ModelMove(BaseModel):
    """The last transfer that brought a model to another tier."""

    source: str
    destination: str
    bytes: int
    seconds: float
    ended_at: float  # seconds since the epoch


class ModelItem(BaseModel):
    """A model, what it can do and where it is now."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    context_length: int
    max_completion_tokens: int
    capabilities: list[str]
    residency: Residency
    bytes: ModelBytes
    health: Health
    tiers: dict[str, int]  # bytes in each tier that the model is in
    running: int
    waiting: int
    last_move: ModelMove | None
    aliases: list[str]
    pin: str | None


class RouteItem(BaseModel):
    """A name for models that can stand for each other; an answer's `model` says which one it was."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    context_length: int
    max_completion_tokens: int
    capabilities: list[str]
    residency: Residency
    models: list[str]
    policy: str


class ModelList(BaseModel):
    """Body of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelItem | RouteItem]
